"""Masks of images: which pixels are hidden; checked, made by name, read from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import plain_array
from pyjuice_lvd.data.color import ColorTransform
from pyjuice_lvd.data.image_files import read_image_file
from pyjuice_lvd.data.numpy_files import read_npy
from pyjuice_lvd.errors import InputError

Hidden = npt.NDArray[np.bool_]
"""(N, H, W, C), True where a channel of a pixel is hidden."""

MASKS = ("left", "right", "top", "bottom", "center")
"""Names of masks; what is named is hidden."""


def as_image_mask(mask: npt.ArrayLike, shape: tuple[int, ...], color: ColorTransform | None = None) -> Hidden:
    """Check a mask of images of `shape` (N, H, W, C), modelled through `color`, and spread it to that shape.

    Takes bool (H, W), (N, H, W) or (N, H, W, C), True where a pixel is hidden; the result shares its memory. Raises
    InputError for any other dtype or shape, and where channels of one pixel are hidden apart though `color` mixes them.
    """
    array = plain_array("mask", mask)
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


def known_first(hidden: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Count the pixels, row after row, before those that are hidden, bool (N, H, W): int64 (N,).

    Raises InputError where known pixels come after hidden ones.
    """
    flat = hidden.reshape(len(hidden), -1)
    known: npt.NDArray[np.int64] = np.count_nonzero(~flat, axis=1).astype(np.int64)
    if (flat != (np.arange(flat.shape[1]) >= known[:, None])).any():
        raise InputError(
            "mask: found known pixels after hidden ones, row after row; wanted one that hides the last pixels of an "
            "image, as `bottom`: a model of windows goes on from what comes before"
        )
    return known


def read_mask(mask: str, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Make the mask of a name of `MASKS`, or read a file's: bool (H, W), True where a pixel is hidden.

    "left", "right", "top" and "bottom" hide that half (of an odd side, the larger one), "center" the middle half of
    both sides. A file is a `.npy` of bool, or of 0 and 255, or an image of black and white; True, 255 and white are
    hidden.
    Raises InputError that names the file where it is no such mask of that size or hides nothing.
    """
    if mask in MASKS:
        hidden = np.zeros((height, width), bool)
        rows, columns = slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)
        hidden[
            {
                "left": (slice(None), slice((width + 1) // 2)),
                "right": (slice(None), slice(width // 2, None)),
                "top": (slice((height + 1) // 2), slice(None)),
                "bottom": (slice(height // 2, None), slice(None)),
                "center": (rows, columns),
            }[mask]
        ] = True
        return hidden
    path = Path(mask)
    if not path.exists():
        raise InputError(f"mask: found {mask!r}, wanted {', '.join(MASKS)} or a file")
    found = _read_npy(path) if path.suffix.lower() == ".npy" else _read_picture(path)
    if found.shape != (height, width):
        raise InputError(f"{path}: found a mask of {found.shape}, wanted ({height}, {width}) as the images")
    if not found.any():
        raise InputError(f"{path}: found a mask that hides nothing, wanted white (True, 255) where pixels are hidden")
    return found


def _read_npy(path: Path) -> npt.NDArray[np.bool_]:
    array = read_npy(path)
    if array.dtype == np.bool_:
        return np.asarray(array)
    if array.dtype != np.uint8:
        raise InputError(f"{path}: found dtype {array.dtype}, wanted bool, or uint8 of 0 and 255")
    return _white(path, array)


def _read_picture(path: Path) -> npt.NDArray[np.bool_]:
    pixels = read_image_file(path, None)
    if (pixels != pixels[..., :1]).any():
        raise InputError(f"{path}: found colours, wanted black and white: a mask")
    return _white(path, pixels[..., 0])


def _white(path: Path, array: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    odd = array[(array != 0) & (array != 255)]
    if odd.size:
        raise InputError(f"{path}: found the value {odd[0]}, wanted 0 (known) and 255 (hidden) only")
    return np.asarray(array == 255)
