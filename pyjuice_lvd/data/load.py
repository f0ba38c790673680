"""DATA (docs/data.md) as images or a table, validated and split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyjuice_lvd.checks import parse_crop
from pyjuice_lvd.data.images import images_of
from pyjuice_lvd.data.source import Array, Source, column_name
from pyjuice_lvd.data.sources import read_source
from pyjuice_lvd.data.splits import Splits, TestPart, noun, split_source, test_part
from pyjuice_lvd.data.table_files import tables_of
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.large import contiguous, joined
from pyjuice_lvd.settings.choices import BASELINES

IMAGE_CATEGORIES = 256

Data = str | Path | Array


def load_data(
    data: Data,
    *,
    method: str | None = None,
    crop: str | tuple[int, int] | None = None,
    size: int = 32,
    seed: int = 0,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> Splits:
    """Load DATA and split it into disjoint, C-contiguous train, valid and test parts.

    Parameters
    ----------
    data : str, Path or array
        A bundled name, a path, or images, uint8 (N, H, W[, C]), or a table, integers (N, V).
    method : str, optional
        What is to learn from it: only some do from tables. None: either.
    crop : "HxW" or (H, W), optional
        Keep the top-left pixels of every image.
    size : int
        16 or 32: side of the images that `photos` is cut into; other data keep their own.
    seed, valid_fraction, test_fraction
        The valid and test parts that the source does not set apart itself are these fractions of what it has, at least
        one each, by a permutation from the seed. The same arguments give the same splits.

    Raises InputError where the data cannot be read, are too few to split, or are not what the method learns from.

    """
    return split_source(_read(data, method, crop, size), seed, valid_fraction, test_fraction)


def load_test_data(
    data: Data,
    *,
    digest: str,
    method: str | None = None,
    crop: str | tuple[int, int] | None = None,
    size: int = 32,
    seed: int = 0,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> TestPart:
    """Load what of DATA a run may be tested on (see `splits.test_part`).

    `digest` is `Splits.digest` of the fit, and the other arguments, as for `load_data`, are those of the fit.
    Raises InputError as `load_data` does.
    """
    return test_part(_read(data, method, crop, size), digest, seed, valid_fraction, test_fraction)


def load_all_data(
    data: Data, *, method: str | None = None, crop: str | tuple[int, int] | None = None, size: int = 32
) -> TestPart:
    """Load all of DATA: its parts, one after another, in the order in which the source has them; or it has one.

    The arguments are as for `load_data`, whose errors it raises.
    """
    source = _read(data, method, crop, size)
    parts = list(source.parts.values())
    whole = contiguous(parts[0]) if len(parts) == 1 else joined(parts)
    named = "" if len(parts) == 1 else f": {', '.join(f'{len(part)} {split}' for split, part in source.parts.items())}"
    how = f"all {len(whole)} {noun(whole)} of {source.name}{named}"
    return TestPart(whole, how, source.columns, source.notes, source.files)


def num_categories(splits: Splits) -> int:
    """Count the categories of each variable: 256 for images; of a table, the largest value of all its parts, plus 1.

    A table's valid and test parts count too, so that a value that training never saw has a probability.
    """
    if splits.train.ndim != 2:
        return IMAGE_CATEGORIES
    return int(max(part.max() for part in (splits.train, splits.valid, splits.test))) + 1


def largest_value(splits: Splits) -> str:
    """Say what the largest value of a table is, and in which column: it makes the number of categories."""
    parts = (splits.train, splits.valid, splits.test)
    column = int(np.max([part.max(axis=0) for part in parts], axis=0).argmax())
    value = max(part[:, column].max() for part in parts)
    return f"{splits.source}: found {value} in {column_name(splits.columns, column)}"


def _read(data: Data, method: str | None, crop: str | tuple[int, int] | None, size: int) -> Source:
    sides = parse_crop(crop)
    source = (
        Source("array", {"all": data}) if isinstance(data, np.ndarray) else read_source(data, size=size, crop=sides)
    )
    table = next((part for part in source.parts.values() if np.ndim(part) == 2), None)
    if table is None:
        return images_of(source, sides)
    if method is not None and method not in BASELINES:
        raise InputError(
            f"{source.name}: found shape {table.shape}, a table, which {', '.join(BASELINES[:-1])} and {BASELINES[-1]} "
            f"learn from; wanted images for method {method}"
        )
    return tables_of(source)
