"""Image files, and folders of them, as arrays; nothing is passed over without a word."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from pyjuice_lvd.data.decoded import Block, decoded
from pyjuice_lvd.data.reading import check_unpacked, reading
from pyjuice_lvd.data.source import Source, UInt8, meant_split, not_read
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.atomic import atomic_folder, naming
from pyjuice_lvd.large import BLOCK
from pyjuice_lvd.settings.choices import SPLITS
from pyjuice_lvd.shares import shares

_GREY = ("1", "L", "LA")
"""Pillow's modes of images without colour."""

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def read_image_folder(folder: Path, crop: tuple[int, int] | None) -> Source:
    """Read image files, those in subfolders too, in sorted order; folders train, valid and test are the splits.

    Symbolic links are followed. The images are grey if every file is, and RGB otherwise.
    """
    found, loops = _files_in(folder)
    names = [name for name in found if name.suffix.lower() in IMAGE_SUFFIXES]
    if not names:
        raise InputError(f"{folder}: found no image files, wanted some of {', '.join(IMAGE_SUFFIXES)}")
    split_of = _splits(folder, names)
    shapes: list[tuple[int, int, int]] = []
    packed = unpacked = 0
    for name in names:
        path = folder / name
        shapes.append(_shape(path, crop))
        if shapes[-1][:2] != shapes[0][:2]:
            wanted = f"{sides(shapes[0])} as in {names[0]} (or a crop)"
            raise InputError(f"{path}: found {sides(shapes[-1])}, wanted {wanted}")
        packed, unpacked = packed + path.stat().st_size, unpacked + math.prod(shapes[-1])
        check_unpacked(folder, unpacked, packed)
    shape = (*shapes[0][:2], max(channels for *_, channels in shapes))
    blocks, files = [], [folder / name for name in names]
    for split in ("all", *SPLITS):
        members = [path for path, name in zip(files, names, strict=True) if split_of[name] == split]
        for part in shares(len(members), math.prod(shape), BLOCK):
            blocks.append(Block(split, part.stop - part.start, partial(_read_block, members[part], crop, shape)))
    parts = decoded(folder, files, blocks, shape)
    how = "" if "all" in parts else f"by its folders {', '.join(parts)}"
    notes = not_read(set(found) - set(names)) + not_read(loops, "link back to a folder above")
    flat = all(len(name.parts) == 1 for name in names)
    return Source(str(folder), parts, how, notes=notes, files=tuple(map(str, names)) if flat else ())


def _read_block(paths: list[Path], crop: tuple[int, int] | None, shape: tuple[int, ...]) -> UInt8:
    """Read images; a grey one among coloured ones gives all three channels its value."""
    images = np.empty((len(paths), *shape), np.uint8)
    for row, path in zip(images, paths, strict=True):
        row[...] = read_image_file(path, crop)
    return images


def _shape(path: Path, crop: tuple[int, int] | None) -> tuple[int, int, int]:
    """Say what shape `read_image_file` gives an image, from its header."""
    with _opened(path) as image:
        height, width, channels = image.height, image.width, 1 if image.mode in _GREY else 3
    if crop is not None and (height < crop[0] or width < crop[1]):
        raise InputError(f"{path}: found {height}x{width}, wanted at least the crop's {sides(crop)}")
    return (height, width, channels) if crop is None else (*crop, channels)


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own measure of what is too large, and of odd metadata
        with Image.open(path) as image:
            check_unpacked(path, image.width * image.height * len(image.getbands()), path.stat().st_size)
            yield image


def read_image_file(path: Path, crop: tuple[int, int] | None) -> UInt8:
    """Read one image: uint8 (H, W, 1) if it is grey and (H, W, 3) otherwise, as stored; transparency is dropped."""
    with _opened(path) as image:
        pixels = _pixels(path, image)
    if crop is None:
        return pixels
    if pixels.shape[0] < crop[0] or pixels.shape[1] < crop[1]:
        raise InputError(f"{path}: found {sides(pixels.shape)}, wanted at least the crop's {sides(crop)}")
    return pixels[: crop[0], : crop[1]].copy()  # a copy, so that the whole image is freed


def write_image_folder(folder: Path, images: UInt8, names: Sequence[str]) -> None:
    """Write images (N, H, W, C) to a new folder, as PNG files of these names, all or none.

    Raises InputError where names are one to the file system, as `a.png` and `A.png` are to some.
    """
    with atomic_folder(folder) as aside:
        for name, image in zip(names, images, strict=True):
            path = aside / name
            if path.exists():
                raise InputError(f"{folder / name}: is the file of two images here")
            with naming(path):
                Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(path)


def sides(shape: tuple[int, ...]) -> str:
    """Write the height and width of a shape (H, W, ...)."""
    return f"{shape[0]}x{shape[1]}"


def _pixels(path: Path, image: ImageFile) -> UInt8:
    # Pillow opens 16-bit colour PNG and TIFF files as "RGB" and cuts them to 8 bits: only the raw mode tells.
    raw_modes = [str(tile[3]) for tile in image.tile] if image.format in ("PNG", "TIFF") else []
    if image.mode[0] in "IF" or any(";16" in mode for mode in raw_modes):
        raise InputError(f"{path}: found pixels of more than 8 bits (mode {image.mode}), wanted 8-bit grey or RGB")
    if image.mode in _GREY:
        return np.asarray(image.convert("L"))[..., None]
    if "transparency" in image.info:  # a palette with transparency loses it by way of RGBA
        return np.asarray(image.convert("RGBA").convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _splits(folder: Path, names: list[Path]) -> dict[Path, str]:
    """Say which split each image is in, by the folder at the top; "all" where there are none."""
    split_of = {name: name.parts[0] if name.parts[0] in SPLITS and len(name.parts) > 1 else "all" for name in names}
    outside = [name for name in names if split_of[name] == "all"]
    if outside and len(outside) < len(names):
        raise InputError(
            f"{folder / outside[0]}: an image beside the folders train, valid, test; wanted all images in them"
        )
    for name in outside:
        meant = meant_split(name.parts[0]) if len(name.parts) > 1 else None
        if meant:
            raise InputError(f"{folder / name.parts[0]}: found a folder of that name, wanted {meant} as the split's")
    return split_of


def _files_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Find the files in a folder and its subfolders, through links too, but for hidden ones: relative paths, sorted.

    Returns them, and the links that lead back to a folder they are in.
    """
    files, loops = [], []

    def walk(relative: Path, above: frozenset[tuple[int, int]]) -> None:
        own = (folder / relative).stat()
        within = above | {(own.st_dev, own.st_ino)}
        for entry in os.scandir(folder / relative):
            name = relative / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                target = (folder / name).stat()  # not entry.stat(): it may not follow links
                (loops.append(name) if (target.st_dev, target.st_ino) in within else walk(name, within))
            elif entry.is_file():
                files.append(name)
            else:
                raise InputError(f"{folder / name}: is no file, or a link to nothing; wanted image files and folders")

    walk(Path(), frozenset())
    return sorted(files), loops
