"""Images as checked arrays: uint8 (N, H, W, C)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import parse_crop, plain_array
from pyjuice_lvd.data.source import Array, Source, UInt8
from pyjuice_lvd.errors import InputError


def as_images(array: npt.ArrayLike, name: str = "images") -> UInt8:
    """Check that an array holds 8-bit images and give it a channel axis: (N, H, W, C), C = 1 (grey) or 3 (RGB).

    Takes uint8 (N, H, W) or (N, H, W, C); the result shares its memory. Raises InputError, whose line begins with
    `name`, for any other dtype or shape and for an array without pixels.
    """
    array = plain_array(name, array)
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
    parts: dict[str, Array] = {}
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
