"""Readers of DATA (docs/data.md): each form of data as arrays, with the split that the source itself has."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyjuice_lvd.data.cifar import is_cifar_folder, read_cifar_folder
from pyjuice_lvd.data.table_files import is_debd_folder, read_csv, read_debd_folder
from pyjuice_lvd.errors import InputError

Array = npt.NDArray[Any]
UInt8 = npt.NDArray[np.uint8]

BUNDLED = ("digits", "photos")
SPLITS = ("train", "valid", "test")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

PHOTO_SIZES = (16, 32)
# What becomes of the photographs' columns, 32 at a time: N train, V valid, T test. The bands of each kind lie at even
# distances, so that each kind sees all that a photograph shows; a band is as wide as a whole number of images.
PHOTO_BANDS = 2 * "VNTNNNNTNN"
PHOTO_BAND_WIDTH = 32
PHOTO_TRAIN_STRIDE = 8  # overlapping training images: thousands of them from two photographs


@dataclass(frozen=True)
class Source:
    """Images or tables as a source holds them, not yet validated.

    `parts` has some of the keys "train", "valid" and "test", or the one key "all" if the source has no split. `how`
    says where its split comes from, in words that follow the names of the parts.
    """

    name: str
    parts: dict[str, Array]
    how: str = ""


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
        if path.suffix.lower() == ".csv":
            return Source(str(path), {"all": read_csv(path)})
        if path.suffix.lower() not in (".npy", ".npz"):
            found = path.suffix or "suffix-less"
            raise InputError(f"{path}: found a {found} file, wanted .npy, .npz, .csv or a folder")
        return _read_numpy(path)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged or unreadable file into one line that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        if (
            "pickle" in reason
        ):  # numpy's wording for object arrays and for bytes that are no numpy file; it advises pickle
            reason = "damaged, or pickled objects, which are never loaded"
        raise InputError(f"{path}: cannot be read ({reason or type(error).__name__})") from error


def _read_digits() -> Source:
    """Read scikit-learn's 1,797 grey digits of 8x8 pixels with their own 17 levels 0..16, not rescaled."""
    from sklearn.datasets import load_digits  # imported where used: scikit-learn takes a second to load

    return Source("digits", {"all": load_digits().images.astype(np.uint8)})


def _read_photos(size: int) -> Source:
    """Cut scikit-learn's two photographs into size x size images: train overlapping, valid and test not."""
    from sklearn.datasets import load_sample_images  # as above

    if size not in PHOTO_SIZES:
        raise InputError(f"size: found {size}, wanted {' or '.join(map(str, PHOTO_SIZES))} for photos")
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


def _read_numpy(path: Path) -> Source:
    """Read a `.npy` array, or a `.npz` with keys train/valid/test, x_train/x_test, or one array."""
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return Source(str(path), {"all": loaded})
    with loaded as archive:
        styles = [
            {split: prefix + split for split in SPLITS if prefix + split in archive.files} for prefix in ("", "x_")
        ]
        if all(styles):
            found = ", ".join(key for keys in styles for key in keys.values())
            raise InputError(f"{path}: found keys {found}; wanted train/valid/test or x_train/x_test, not both")
        keys = styles[0] or styles[1]
        if keys:
            parts = {split: archive[key] for split, key in keys.items()}
            return Source(str(path), parts, f"by its keys {', '.join(keys.values())}")
        if len(archive.files) != 1:
            found = ", ".join(archive.files) or "none"
            raise InputError(f"{path}: found keys {found}; wanted train/valid/test, x_train/x_test, or one array")
        return Source(str(path), {"all": archive[archive.files[0]]})


def _read_folder(folder: Path, crop: tuple[int, int] | None) -> Source:
    """Read CIFAR-10 batches, a DEBD table, ImageNet shards or image files, whichever the folder holds."""
    if is_cifar_folder(folder):
        return Source(str(folder), dict(read_cifar_folder(folder)), "by CIFAR-10's own batches")
    if is_debd_folder(folder):
        parts, names = read_debd_folder(folder)
        return Source(str(folder), parts, f"by its files {names}")
    if any(folder.glob("*.npz")):
        return _read_imagenet_folder(folder)
    return _read_image_folder(folder, crop)


def _read_imagenet_folder(folder: Path) -> Source:
    """Read shards of downsampled ImageNet; its validation set is the test set, as everywhere in the literature."""
    parts: dict[str, Array] = {}
    for split, pattern in (("train", "train_data*.npz"), ("test", "val_data*.npz")):
        # Shorter names first: train_data_batch_2 comes before train_data_batch_10.
        paths = sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))
        shards = [_read_imagenet_shard(path) for path in paths]
        if not shards:
            continue
        for path, shard in zip(paths, shards, strict=True):
            if shard.shape[1:] != shards[0].shape[1:]:
                found, wanted = (_sides(images.shape[1:]) for images in (shard, shards[0]))
                raise InputError(f"{path}: found images of {found}, wanted {wanted} as in {paths[0].name}")
        images = np.empty((sum(map(len, shards)), *shards[0].shape[1:]), np.uint8)
        start = 0
        while shards:  # each shard is freed once copied: the data are in memory once, not twice
            shard = shards.pop(0)
            images[start : start + len(shard)] = shard
            start += len(shard)
        parts[split] = images
    if not parts:
        raise InputError(f"{folder}: found .npz files, but none named train_data_batch_N.npz or val_data.npz")
    note = " (its validation set is the test set)" if "test" in parts else ""
    return Source(str(folder), parts, f"by ImageNet's own shards{note}")


def _read_imagenet_shard(path: Path) -> UInt8:
    with reading(path), np.load(path, allow_pickle=False) as archive:
        if "data" not in archive.files:
            raise InputError(f"{path}: found keys {', '.join(archive.files) or 'none'}, wanted `data`")
        flat: UInt8 = archive["data"]
    side = math.isqrt(flat.shape[-1] // 3) if flat.ndim == 2 else 0
    if flat.dtype != np.uint8 or flat.ndim != 2 or flat.shape[1] != 3 * side * side or side == 0:
        raise InputError(f"{path}: found `data` of {flat.dtype} {flat.shape}, wanted uint8 (N, 3*S*S), channel first")
    return flat.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


def _read_image_folder(folder: Path, crop: tuple[int, int] | None) -> Source:
    """Read image files, those in subfolders too, in sorted order; folders train, valid and test are the splits.

    The images are grey if every file is, and RGB otherwise.
    """
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not names:
        raise InputError(f"{folder}: found no image files, wanted some of {', '.join(IMAGE_SUFFIXES)}")
    split_of = {name: name.parts[0] if name.parts[0] in SPLITS else "all" for name in names}
    found = [split for split in ("all", *SPLITS) if split in split_of.values()]
    if found[0] == "all" and len(found) > 1:
        stray = next(name for name in names if split_of[name] == "all")
        raise InputError(f"{folder / stray}: an image beside the folders train, valid, test; wanted all images in them")
    images = {name: read_image_file(folder / name, crop) for name in names}
    shape = images[names[0]].shape[:2]
    for name, image in images.items():
        if image.shape[:2] != shape:
            raise InputError(
                f"{folder / name}: found {_sides(image.shape)}, wanted {_sides(shape)} as in {names[0]} (or a crop)"
            )
    channels = max(image.shape[2] for image in images.values())
    parts = {}
    for split in found:
        members = [images[name] for name in names if split_of[name] == split]
        parts[split] = np.empty((len(members), *shape, channels), np.uint8)
        for row, image in zip(parts[split], members, strict=True):
            row[...] = image  # a grey image among coloured ones gives all three channels its value
    how = "" if "all" in parts else f"by its folders {', '.join(parts)}"
    return Source(str(folder), parts, how)


def read_image_file(path: Path, crop: tuple[int, int] | None) -> UInt8:
    """Read one image: uint8 (H, W, 1) if it is grey and (H, W, 3) otherwise, as stored; transparency is dropped."""
    with reading(path), Image.open(path) as image:
        # Pillow opens 16-bit colour PNG and TIFF files as "RGB" and cuts them to 8 bits: only the raw mode tells.
        raw_modes = [str(tile[3]) for tile in image.tile] if image.format in ("PNG", "TIFF") else []
        if image.mode[0] in "IF" or any(";16" in mode for mode in raw_modes):
            raise InputError(f"{path}: found pixels of more than 8 bits (mode {image.mode}), wanted 8-bit grey or RGB")
        if image.mode in ("1", "L", "LA"):
            pixels = np.asarray(image.convert("L"))[..., None]
        elif "transparency" in image.info:  # a palette with transparency loses it by way of RGBA
            pixels = np.asarray(image.convert("RGBA").convert("RGB"))
        else:
            pixels = np.asarray(image.convert("RGB"))
    if crop is None:
        return pixels
    if pixels.shape[0] < crop[0] or pixels.shape[1] < crop[1]:
        raise InputError(f"{path}: found {_sides(pixels.shape)}, wanted at least the crop's {_sides(crop)}")
    return pixels[: crop[0], : crop[1]].copy()  # a copy, so that the whole image is freed


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
