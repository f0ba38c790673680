"""Tables of integers in files: CSV, and folders of the density estimation benchmark data sets (DEBD)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.errors import InputError

Array = npt.NDArray[Any]

_SPLITS = ("train", "valid", "test")


def read_csv(path: Path) -> npt.NDArray[np.int64]:
    """Read integers (N, V), separated by commas; a first line without any number is a header.

    Raises InputError that names the file for anything else.
    """
    with path.open(encoding="utf-8-sig") as file:
        header = not any(_is_number(field) for field in file.readline().split(","))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of numbers like 1.5, and cuts them
            table = np.loadtxt(
                path, np.int64, comments=None, delimiter=",", skiprows=int(header), ndmin=2, encoding="utf-8-sig"
            )
    except (ValueError, OverflowError, Warning) as error:
        cause = error.__cause__ or error
        reason = str(cause).split("\n")[0].split(";")[0].rstrip(".")
        raise InputError(f"{path}: found no table of integers ({reason})") from error
    if table.size == 0:
        raise InputError(f"{path}: found no rows, wanted integers separated by commas")
    return table


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def is_debd_folder(folder: Path) -> bool:
    """Whether the folder has a file as DEBD names them, such as `NAME.train.data`."""
    return bool(_debd_files(folder))


def read_debd_folder(folder: Path) -> tuple[dict[str, Array], str]:
    """Read what there is of `NAME.train.data`, `NAME.valid.data` and `NAME.test.data`, integers (N, V) each.

    Returns them by split, and the files' names. Raises InputError where the folder has several tables, or a file is
    damaged.
    """
    paths = _debd_files(folder)
    names = sorted({path.name.rsplit(".", 2)[0] for path in paths})
    if len(names) > 1:
        raise InputError(f"{folder}: found the tables {', '.join(names)}, wanted one")
    parts = {path.name.rsplit(".", 2)[1]: read_csv(path) for path in paths}
    return parts, ", ".join(path.name for path in paths)


def _debd_files(folder: Path) -> list[Path]:
    return [path for split in _SPLITS for path in folder.glob(f"*.{split}.data")]


def tables_of(parts: dict[str, Array], name: str) -> dict[str, Array]:
    """Check that all parts of a source are tables of categories from 0, integers (N, V) with one V.

    Returns them as uint8 if every value fits, else as int32. Raises InputError whose line begins with `name`.
    """
    width = next(iter(parts.values())).shape[1:]
    largest, limit = 0, np.iinfo(np.int32).max - 1
    for split, part in parts.items():
        of = name if split == "all" else f"{name} ({split})"
        if part.ndim != 2 or part.dtype.kind not in "iub" or part.shape[1:] != width or not part.size:
            wanted = f"integers (N, {width[0]})" if len(width) == 1 and width[0] else "integers (N, V)"
            raise InputError(f"{of}: found {part.dtype} {part.shape}, wanted {wanted}, at least one row")
        if part.min() < 0 or part.max() > limit:
            raise InputError(f"{of}: found values {part.min()}..{part.max()}, wanted categories from 0 to {limit}")
        largest = max(largest, int(part.max()))
    dtype = np.uint8 if largest < 256 else np.int32
    return {split: np.ascontiguousarray(part, dtype) for split, part in parts.items()}
