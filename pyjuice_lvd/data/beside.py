"""Colours close by, which say what drawn colours on the border of the RGB cube mean (docs/queries.md)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from pyjuice_lvd.data.color import beyond
from pyjuice_lvd.data.masks import Hidden

UInt8 = npt.NDArray[np.uint8]
Int16 = npt.NDArray[np.int16]

_LITTLE = 16
"""Levels that a drawn channel is beyond 0..255 by chance; saturated colours are by more, mostly (docs/queries.md)."""


def nearest_known(images: UInt8, hidden: Hidden) -> Int16:
    """Give each pixel of images, uint8 (N, H, W, C), the colour of the known pixel that is nearest to it.

    `hidden`: bool (N, H, W, C); a pixel counts as known if any channel of it is. Returns int16 (N, H, W, C), -1 where
    no pixel of the image is known.
    """
    found, masks = np.full(images.shape, -1, np.int16), np.asarray(hidden.all(axis=-1))
    different, which = np.unique(masks.reshape(len(masks), math.prod(masks.shape[1:])), axis=0, return_inverse=True)
    for number, mask in enumerate(different.reshape(-1, *masks.shape[1:])):
        if not mask.all():
            rows, columns = distance_transform_edt(mask, return_distances=False, return_indices=True)
            own = which.ravel() == number
            found[own] = images[own][:, rows, columns]
    return found


def nearest_inside(images: UInt8) -> Int16:
    """Give each drawn colour of `ycocg`, as `nearest` has it, that of the nearest pixel inside the cube.

    `images`: uint8 (N, H, W, 3). Returns int16 (N, H, W, 3), -1 but for channels that are a few levels beyond 0..255.
    """
    far = beyond(images)
    out = np.broadcast_to((far > 0).any(axis=-1, keepdims=True), images.shape)
    return np.where((far > 0) & (far <= _LITTLE), nearest_known(images, out), np.int16(-1))
