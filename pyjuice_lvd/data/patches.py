"""Images as patches: position i of the grid, in row-major order, holds the pixels that one latent z_i generates."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.errors import InputError

Scalar = TypeVar("Scalar", bound=np.generic)


def position_grid(height: int, width: int, patch: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patch positions on a height x width image.

    Raises InputError if the image is not a
    whole number of patches or a patch side is below 1.
    """
    ph, pw = patch
    if ph < 1 or pw < 1:
        raise InputError(f"patch: found {ph}x{pw}, wanted sides of at least 1 pixel")
    if height % ph or width % pw:
        raise InputError(
            f"patch: found {ph}x{pw} for images of {height}x{width}, wanted a patch whose sides divide the image's"
        )
    return height // ph, width // pw


def to_patches(images: npt.NDArray[Scalar], patch: tuple[int, int]) -> npt.NDArray[Scalar]:
    """Cut images (N, H, W, C), or their masks, into patches (N, P, ph pw C), C-contiguous and of the same dtype.

    The P positions are in row-major order; within a patch the order is row, column, channel. Raises InputError as
    `position_grid` does.
    """
    n, height, width, channels = images.shape
    rows, cols = position_grid(height, width, patch)
    ph, pw = patch
    tiles = images.reshape(n, rows, ph, cols, pw, channels).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(tiles).reshape(n, rows * cols, ph * pw * channels)


def from_patches(
    patches: npt.NDArray[Scalar], image_shape: tuple[int, int, int], patch: tuple[int, int]
) -> npt.NDArray[Scalar]:
    """Put patches (N, P, ph pw C) together again: images (N, H, W, C), where `image_shape` is (H, W, C).

    Raises InputError as `position_grid` does, and if the patches' shape is not that of such images.
    """
    height, width, channels = image_shape
    rows, cols = position_grid(height, width, patch)
    ph, pw = patch
    wanted = (rows * cols, ph * pw * channels)
    if patches.ndim != 3 or patches.shape[1:] != wanted:
        raise InputError(f"patches: found shape {patches.shape}, wanted (N, {wanted[0]}, {wanted[1]})")
    tiles = patches.reshape(-1, rows, cols, ph, pw, channels).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(tiles).reshape(-1, height, width, channels)
