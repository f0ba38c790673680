"""Masks of images: which pixels are hidden."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.color import ColorTransform
from pyjuice_lvd.errors import InputError

Hidden = npt.NDArray[np.bool_]
"""(N, H, W, C), True where a channel of a pixel is hidden."""


def as_image_mask(mask: npt.ArrayLike, shape: tuple[int, ...], color: ColorTransform | None = None) -> Hidden:
    """Check a mask of images of `shape` (N, H, W, C), modelled through `color`, and spread it to that shape.

    Takes bool (H, W), (N, H, W) or (N, H, W, C), True where a pixel is hidden; the result shares its memory. Raises
    InputError for any other dtype or shape, and where channels of one pixel are hidden apart though `color` mixes them.
    """
    array = np.asarray(mask)
    pixels = array[..., None] if array.ndim < 4 else array
    if array.dtype != np.bool_ or array.shape not in (shape[1:3], shape[:3], shape):
        raise InputError(
            f"mask: found {array.dtype} {array.shape}, wanted bool {shape[1:3]}, {shape[:3]} or {shape}, "
            "True where a pixel is hidden"
        )
    if color is not None and color.name != "rgb" and (pixels != pixels[..., :1]).any():
        raise InputError(
            f"mask: found channels of one pixel hidden apart, wanted whole pixels: {color.name} mixes channels"
        )
    return np.broadcast_to(pixels, shape)
