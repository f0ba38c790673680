"""Images to learn from: DATA (DESIGN 3.1) as validated uint8 arrays, split into train, valid and test."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.sources import SPLITS, Source, read_source

UInt8 = npt.NDArray[np.uint8]
Data = str | Path | npt.NDArray[Any]


@dataclass(frozen=True)
class ImageSplits:
    """Images uint8 (N, H, W, C), C = 1 (grey) or 3 (RGB), and where they come from.

    `how` says in one line how they were split. `digest` is the SHA-256 of all images of a source without a test set, by
    which `load_test_images` knows that source again; it is empty where the test set is the source's own.
    """

    train: UInt8
    valid: UInt8
    test: UInt8
    source: str
    how: str
    digest: str


def load_images(
    data: Data,
    *,
    crop: str | tuple[int, int] | None = None,
    size: int = 32,
    seed: int = 0,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> ImageSplits:
    """Load DATA and split it into disjoint, C-contiguous train, valid and test images.

    `data` is `digits`, `photos`, a `.npy` or `.npz` file, a folder (image files, CIFAR-10 batches or ImageNet shards),
    or an array as `as_images` takes it. `crop`, "HxW" or (H, W), keeps the top-left pixels of every image. `size`, 16
    or 32, is the side of the images that `photos` are cut into; other data keep their own. `seed` gives the permutation
    from which come the valid and test images that the source does not set apart itself: `valid_fraction` and
    `test_fraction` of those that it has, at least one each. The same arguments give the same splits.

    Raises InputError if the data cannot be read, are no 8-bit images of one size, or are too few to split.
    """
    return _split(_read(data, crop, size), seed, valid_fraction, test_fraction)


def load_test_images(
    data: Data,
    *,
    digest: str,
    crop: str | tuple[int, int] | None = None,
    size: int = 32,
    seed: int = 0,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> tuple[UInt8, str]:
    """Load the images of DATA, uint8 (N, H, W, C), that a run may be tested on, and say in one line which they are.

    They are the source's own test images; else, if `digest` (`ImageSplits.digest` of the fit) shows it to be the source
    that the run was fitted on, the same test split as then; else all of its images (those under "train", if it names
    its parts), because the run was fitted on none. The other arguments, as for `load_images`, are those of the fit.

    Raises InputError as `load_images` does.
    """
    source = _read(data, crop, size)
    if "test" in source.parts:
        return source.parts["test"], f"test images of {source.name} {source.how}"
    pool = _pool(source)
    if digest_of(pool) != digest:
        return np.ascontiguousarray(pool), f"all {len(pool)} images of {source.name}, which the run was not fitted on"
    splits = _split(source, seed, valid_fraction, test_fraction)
    return splits.test, splits.how


def as_images(array: npt.ArrayLike, name: str = "images") -> UInt8:
    """Check that an array holds 8-bit images and give it a channel axis: (N, H, W, C), C = 1 (grey) or 3 (RGB).

    Takes uint8 (N, H, W) or (N, H, W, C); the result shares its memory. Raises InputError, whose line begins with
    `name`, for any other dtype or shape and for an array without pixels.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8:
        nan = " with NaN values" if array.dtype.kind in "fc" and bool(np.isnan(array).any()) else ""
        raise InputError(f"{name}: found dtype {array.dtype}{nan}, wanted uint8 (values 0..255)")
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        hint = " (channels last)" if images.ndim == 4 and images.shape[1] in (1, 3) else ""
        raise InputError(f"{name}: found shape {array.shape}, wanted (N, H, W), (N, H, W, 1) or (N, H, W, 3){hint}")
    if images.size == 0:
        raise InputError(f"{name}: found shape {array.shape}, wanted at least one image of at least one pixel")
    return images


def parse_crop(crop: str | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width) of a crop given as "HxW", as (H, W), or not at all; raises InputError for all else."""
    if crop is None:
        return None
    if isinstance(crop, str):
        match = re.fullmatch(r"(\d+)x(\d+)", crop)
        height, width = (int(match[1]), int(match[2])) if match else (0, 0)
    else:
        height, width = crop
    if height < 1 or width < 1:
        raise InputError(f"crop: found {crop!r}, wanted HxW in pixels, such as 16x16")
    return height, width


def crop_images(images: UInt8, crop: str | tuple[int, int] | None, name: str = "images") -> UInt8:
    """Return the top-left pixels of images (N, H, W, C), as `parse_crop` understands `crop`; shares their memory.

    Raises InputError if the images are smaller than that.
    """
    sides = parse_crop(crop)
    if sides is None:
        return images
    if images.shape[1] < sides[0] or images.shape[2] < sides[1]:
        largest = f"{images.shape[1]}x{images.shape[2]}"
        raise InputError(f"crop: found {sides[0]}x{sides[1]}, wanted at most the {largest} of {name}")
    return images[:, : sides[0], : sides[1]]


def _read(data: Data, crop: str | tuple[int, int] | None, size: int) -> Source:
    """Read DATA: every part uint8 (N, H, W, C), all of one H, W, C, cropped."""
    sides = parse_crop(crop)
    source = (
        Source("array", {"all": data}) if isinstance(data, np.ndarray) else read_source(data, size=size, crop=sides)
    )
    parts: dict[str, UInt8] = {}
    for split, array in source.parts.items():
        name = source.name if split == "all" else f"{source.name} ({split})"
        images = crop_images(as_images(array, name), sides, name)
        first = next(iter(parts.values()), images)
        if images.shape[1:] != first.shape[1:]:
            raise InputError(
                f"{name}: found images of shape {images.shape[1:]}, wanted {first.shape[1:]} as in the others"
            )
        parts[split] = images
    return replace(source, parts=parts)


def _pool(source: Source) -> UInt8:
    """Return the images that the missing splits are taken from."""
    for split in ("all", "train"):
        if split in source.parts:
            return source.parts[split]
    raise InputError(f"{source.name}: found {' and '.join(source.parts)} images only, wanted training images")


def digest_of(images: UInt8) -> str:
    """Return the SHA-256 of images, of any shape, as hexadecimal digits: by it they are known again."""
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def _split(source: Source, seed: int, valid_fraction: float, test_fraction: float) -> ImageSplits:
    """Take the splits that the source does not set apart itself from its training images, by seed."""
    fractions = {"test": test_fraction, "valid": valid_fraction}
    for split, fraction in fractions.items():
        if not 0 < fraction < 1:
            raise InputError(f"{split}_fraction: found {fraction}, wanted a number between 0 and 1")
    pool = _pool(source)
    how = [f"{', '.join(source.parts)} {source.how}"] if source.how else []
    counts = {name: max(1, round(share * len(pool))) for name, share in fractions.items() if name not in source.parts}
    if sum(counts.values()) >= len(pool):
        raise InputError(f"{source.name}: found {len(pool)} images, too few to set apart {_listed(counts)}")
    parts: dict[str, UInt8] = {**source.parts, "train": pool}
    if counts:
        order = np.random.default_rng(seed).permutation(len(pool))
        *taken, rest = np.split(order, np.cumsum(list(counts.values())))
        parts |= {split: pool[rows] for split, rows in zip(counts, taken, strict=True)}
        parts["train"] = pool[rest]
        how.append(f"{_listed(counts)} of {len(pool)} images by seed {seed}, the rest train")
    train, valid, test = (np.ascontiguousarray(parts[split]) for split in SPLITS)
    digest = digest_of(pool) if "test" in counts else ""
    return ImageSplits(train, valid, test, source.name, "; ".join(how), digest)


def _listed(counts: dict[str, int]) -> str:
    return " and ".join(f"{count} {split}" for split, count in counts.items())
