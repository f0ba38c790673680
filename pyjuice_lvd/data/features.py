"""Files of features of images' patches: those of the images that a model learns from."""

from __future__ import annotations

from pathlib import Path

from pyjuice_lvd.data.source import Array
from pyjuice_lvd.data.sources import numpy_source
from pyjuice_lvd.errors import InputError


def read_features(path: Path) -> Array:
    """Read the features of DATA's training images, or of all where DATA has no split, from a `.npy` or `.npz` file.

    Of an `.npz`, which has the keys of DATA or one array, it is `train` or `x_train`, or that one. Raises InputError
    where the file is damaged or has others only. What is in the array is checked where it is used.
    """
    if path.suffix.lower() not in (".npy", ".npz"):
        raise InputError(f"{path}: wanted features in a .npy or .npz file")
    if not path.is_file():
        raise InputError(f"{path}: no such file, wanted features in a .npy or .npz file")
    parts = numpy_source(path).parts
    for part in ("all", "train"):
        if part in parts:
            return parts[part]
    raise InputError(f"{path}: found keys {', '.join(parts)}, wanted the training images' features")
