"""Readers of DATA (docs/data.md): each form of data as arrays, with the split that the source itself has."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

import numpy as np

from pyjuice_lvd.checks import require
from pyjuice_lvd.data.cifar import is_cifar_folder, read_cifar_folder
from pyjuice_lvd.data.decoded import Block, decoded
from pyjuice_lvd.data.image_files import read_image_folder
from pyjuice_lvd.data.numpy_files import Npz, read_npy
from pyjuice_lvd.data.reading import reading
from pyjuice_lvd.data.source import Source, UInt8, meant_split, not_read, others_in
from pyjuice_lvd.data.table_files import is_debd_folder, read_csv, read_debd_folder
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.settings.choices import PHOTO_SIZES, SPLITS

BUNDLED = ("digits", "photos")

# What becomes of the photographs' columns, 32 at a time: N train, V valid, T test. The bands of each kind lie at even
# distances, so that each kind sees all that a photograph shows; a band is as wide as a whole number of images.
PHOTO_BANDS = 2 * "VNTNNNNTNN"
PHOTO_BAND_WIDTH = 32
PHOTO_TRAIN_STRIDE = 8  # overlapping training images: thousands of them from two photographs


def read_source(data: str | Path, *, size: int, crop: tuple[int, int] | None) -> Source:
    """Read DATA that is a bundled name (a `str`; a `Path` is always a path) or a path.

    `size` is the side of the images that photographs are cut into. `crop` (height, width) is applied here to image
    files only, whose sizes may differ before it. Raises InputError for whatever cannot be read, naming the file.
    """
    if data == "digits":
        return _read_digits()
    if data == "photos":
        return _read_photos(size)
    path = Path(data)
    with reading(path):
        if path.is_dir():
            return _read_folder(path, crop)
        if not path.exists():
            names = " and ".join(repr(name) for name in BUNDLED)
            raise InputError(f"{path}: no such file or folder; the data sets known by name are {names}")
        readers = {".csv": read_csv, ".npy": numpy_source, ".npz": numpy_source}
        if path.suffix.lower() not in readers or not path.is_file():
            found = f"{path.suffix or 'suffix-less'} file" if path.is_file() else "special file"
            raise InputError(f"{path}: found a {found}, wanted .npy, .npz, .csv or a folder")
        return readers[path.suffix.lower()](path)


def _read_digits() -> Source:
    """Read scikit-learn's 1,797 grey digits of 8x8 pixels with their own 17 levels 0..16, not rescaled."""
    from sklearn.datasets import load_digits  # imported where used: scikit-learn takes a second to load

    return Source("digits", {"all": load_digits().images.astype(np.uint8)})


def _read_photos(size: int) -> Source:
    """Cut scikit-learn's two photographs into size x size images: train overlapping, valid and test not."""
    require(size in PHOTO_SIZES, "size", size, f"{' or '.join(map(str, PHOTO_SIZES))} for photos")
    from sklearn.datasets import load_sample_images  # as above

    photos = load_sample_images().images
    parts = {}
    for split, letter, stride in (("train", "N", PHOTO_TRAIN_STRIDE), ("valid", "V", size), ("test", "T", size)):
        runs = [match.span() for match in re.finditer(f"{letter}+", PHOTO_BANDS)]
        parts[split] = np.stack(
            [
                photo[top : top + size, left : left + size]
                for photo in photos
                for first, end in runs
                for top in range(0, photo.shape[0] - size + 1, stride)
                for left in range(first * PHOTO_BAND_WIDTH, end * PHOTO_BAND_WIDTH - size + 1, stride)
            ]
        )
    return Source("photos", parts, f"by disjoint vertical bands of both photographs, cut into {size}x{size} images")


def numpy_source(path: Path) -> Source:
    """Read the arrays of a `.npy` or `.npz` file."""
    return _read_npz(path) if path.suffix.lower() == ".npz" else Source(str(path), {"all": read_npy(path)})


def _read_npz(path: Path) -> Source:
    """Read the arrays under the keys train/valid/test or x_train/x_test, or the one that there is."""
    with Npz(path) as archive:
        keys = archive.keys
        styles = [{split: prefix + split for split in SPLITS if prefix + split in keys} for prefix in ("", "x_")]
        if all(styles):
            found = ", ".join(key for style in styles for key in style.values())
            raise InputError(f"{path}: found keys {found}; wanted train/valid/test or x_train/x_test, not both")
        chosen = styles[0] or styles[1]
        for key in keys:
            meant = meant_split(key) if chosen and key not in chosen.values() else None
            if meant:
                wanted, beside = ("" if styles[0] else "x_") + meant, ", ".join(chosen.values())
                raise InputError(f"{path}: found the key {key} beside {beside}, wanted {wanted}")
        if not chosen and len(keys) != 1:
            found = ", ".join(keys) or "none"
            raise InputError(f"{path}: found keys {found}; wanted train/valid/test, x_train/x_test, or one array")
        parts = archive.read(chosen or {"all": keys[0]})
        # Labels, and the like.
        notes = not_read((key for key in keys if chosen and key not in chosen.values()), "key")
    return Source(str(path), parts, f"by its keys {', '.join(chosen.values())}" if chosen else "", notes=notes)


def _read_folder(folder: Path, crop: tuple[int, int] | None) -> Source:
    """Read CIFAR-10 batches, a DEBD table, ImageNet shards or image files, whichever the folder holds."""
    if is_cifar_folder(folder):
        return read_cifar_folder(folder)
    if is_debd_folder(folder):
        return read_debd_folder(folder)
    if any(folder.glob("*.npz")):
        return _read_imagenet_folder(folder)
    return read_image_folder(folder, crop)


def _read_imagenet_folder(folder: Path) -> Source:
    """Read shards of downsampled ImageNet; its validation set is the test set, as everywhere in the literature."""
    shards: list[tuple[str, Path, int, int]] = []
    for split, pattern in (("train", "train_data*.npz"), ("test", "val_data*.npz")):
        # Shorter names first: train_data_batch_2 comes before train_data_batch_10.
        paths = sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))
        shards += [(split, path, *_imagenet_shape(path)) for path in paths]
    if not shards:
        raise InputError(f"{folder}: found .npz files, but none named train_data_batch_N.npz or val_data.npz")
    side = shards[0][3]
    for _, path, _, other in shards:
        if other != side:
            raise InputError(f"{path}: found images of {other}x{other}, wanted {side}x{side} as in {shards[0][1].name}")
    blocks = [Block(split, images, partial(_read_imagenet_shard, path)) for split, path, images, _ in shards]
    read = [path for _, path, *_ in shards]
    parts = decoded(folder, read, blocks, (side, side, 3))
    note = " (its validation set is the test set)" if "test" in parts else ""
    return Source(str(folder), parts, f"by ImageNet's own shards{note}", notes=not_read(others_in(folder, read)))


def _imagenet_shape(path: Path) -> tuple[int, int]:
    """Say how many images a shard has, and how long their sides are, from its header."""
    with Npz(path) as archive:
        if "data" not in archive.keys:
            raise InputError(f"{path}: found keys {', '.join(archive.keys) or 'none'}, wanted `data`")
        shape, dtype = archive.about("data")
    side = math.isqrt(shape[-1] // 3) if len(shape) == 2 else 0
    if dtype != np.uint8 or len(shape) != 2 or shape[1] != 3 * side * side or side == 0:
        raise InputError(f"{path}: found `data` of {dtype} {shape}, wanted uint8 (N, 3*S*S), channel first")
    return shape[0], side


def _read_imagenet_shard(path: Path) -> UInt8:
    with Npz(path) as archive:
        flat = archive.read(["data"])["data"]
    side = math.isqrt(flat.shape[1] // 3)
    return flat.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
