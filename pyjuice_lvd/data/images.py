"""Images to learn from: DATA (docs/data.md) as validated uint8 arrays, split into train, valid and test."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.data.sources import Source, read_source
from pyjuice_lvd.data.splits import Splits, split_source, test_part
from pyjuice_lvd.errors import InputError

UInt8 = npt.NDArray[np.uint8]
Data = str | Path | npt.NDArray[Any]


def load_images(
    data: Data,
    *,
    crop: str | tuple[int, int] | None = None,
    size: int = 32,
    seed: int = 0,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> Splits:
    """Load DATA and split it into disjoint, C-contiguous train, valid and test images.

    `data` is `digits`, `photos`, a `.npy` or `.npz` file, a folder (image files, CIFAR-10 batches or ImageNet shards),
    or an array as `as_images` takes it. `crop`, "HxW" or (H, W), keeps the top-left pixels of every image. `size`, 16
    or 32, is the side of the images that `photos` are cut into; other data keep their own. `seed` gives the permutation
    from which come the valid and test images that the source does not set apart itself: `valid_fraction` and
    `test_fraction` of those that it has, at least one each. The same arguments give the same splits.

    Raises InputError if the data cannot be read, are no 8-bit images of one size, or are too few to split.
    """
    return split_source(_read(data, crop, size), seed, valid_fraction, test_fraction)


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

    Which they are is described at `splits.test_part`; `digest` is `Splits.digest` of the fit, and the other arguments,
    as for `load_images`, are those of the fit. Raises InputError as `load_images` does.
    """
    return test_part(_read(data, crop, size), digest, seed, valid_fraction, test_fraction)


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


def mirrored(images: UInt8) -> UInt8:
    """Mirror images (N, H, W, C) left to right; shares their memory."""
    return images[:, :, ::-1]


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


def images_of(source: Source, crop: str | tuple[int, int] | None) -> Source:
    """Check that a source holds images and crop them: every part uint8 (N, H, W, C), all of one H, W, C."""
    parts: dict[str, UInt8] = {}
    for split, array in source.parts.items():
        name = source.name if split == "all" else f"{source.name} ({split})"
        images = crop_images(as_images(array, name), crop, name)
        first = next(iter(parts.values()), images)
        if images.shape[1:] != first.shape[1:]:
            raise InputError(
                f"{name}: found images of shape {images.shape[1:]}, wanted {first.shape[1:]} as in the others"
            )
        parts[split] = images
    return replace(source, parts=parts)


def _read(data: Data, crop: str | tuple[int, int] | None, size: int) -> Source:
    if isinstance(data, np.ndarray):
        return images_of(Source("array", {"all": data}), crop)
    return images_of(read_source(data, size=size, crop=parse_crop(crop)), crop)
