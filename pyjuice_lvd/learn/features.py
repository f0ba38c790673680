"""Features of patches that another encoder than our teacher has found: checked, and those of some of the images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import plain_array
from pyjuice_lvd.data.patches import position_grid
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.large import digest_of, take
from pyjuice_lvd.settings import Settings

Float32 = npt.NDArray[np.float32]


def as_features(
    features: npt.ArrayLike, images: tuple[int, ...], settings: Settings, name: str = "features"
) -> Float32:
    """Check features of the patches of images of shape (N, H, W, C), and give them as float32.

    They are floats (N, P, D), P patch positions in row-major order. Where training may learn from mirror images too
    (`data.flip`), they may be (2 N, P, D): those of the images, then those of the images mirrored left to right. Raises
    InputError, whose line begins with `name`, for another shape or type, for values that are not finite in single
    precision, and where a setting asks for what only a teacher has.
    """
    if settings.growing.quantized and settings.method == "lvd-pg" and not settings.offsets.steps:
        raise InputError(f"growing.quantized: found true with {name}, which have no codes; wanted false")
    array = plain_array(name, features)
    rows, columns = position_grid(images[1], images[2], settings.teacher.patch)
    counts = [images[0], 2 * images[0]] if settings.data.flip else [images[0]]
    right = array.dtype.kind == "f" and array.ndim == 3 and array.shape[1:2] == (rows * columns,) and array.size > 0
    if not right or array.shape[0] not in counts:
        wanted = f"({images[0]}, {rows * columns}, D), of {images[0]} images of {rows}x{columns} patches"
        if settings.data.flip:
            wanted += f", or ({counts[1]}, {rows * columns}, D), of their mirror images too"
        raise InputError(f"{name}: found {array.dtype} {array.shape}, wanted floats {wanted}")
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array, np.float32)
    if not (finite := np.isfinite(found).all(axis=2)).all():
        image, position = np.argwhere(~finite)[0]
        raise InputError(f"{name}: image {image}, position {position}: wanted finite numbers, in single precision")
    return found


def of_images(features: Float32, chosen: npt.NDArray[np.integer], count: int) -> Float32:
    """Give the features of some of `count` images, and of their mirror images where there are such."""
    rows = np.concatenate([chosen + first for first in range(0, len(features), count)])
    return take(features, rows)


def settings_for(features: Float32, images: int, settings: Settings) -> Settings:
    """Give the settings of training: without mirror images where there are features of the images alone."""
    if not settings.data.flip or len(features) != images:
        return settings
    return replace(settings, data=replace(settings.data, flip=False))


def about(features: Float32) -> dict[str, Any]:
    """Say which features a model learned from: their shape, and a digest by which they are known again."""
    return {"shape": features.shape, "digest": digest_of(features)}
