"""DATA as a method takes it: images or a table, validated and split as the settings say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.data.images import images_of, parse_crop
from pyjuice_lvd.data.sources import Source, read_source
from pyjuice_lvd.data.splits import Splits, split_source, test_part
from pyjuice_lvd.data.table_files import tables_of
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.settings import BASELINES, Settings

IMAGE_CATEGORIES = 256


def load_data(data: str, settings: Settings) -> Splits:
    """Load DATA, images uint8 (N, H, W, C) or a table (N, V) of uint8 or int32, and split it (see docs/data.md).

    Raises InputError where the data cannot be read, are too few to split or not what the method learns from.
    """
    own = settings.data
    return split_source(_read(data, settings), settings.seed, own.valid_fraction, own.test_fraction)


def load_test_data(data: str, settings: Settings, *, digest: str) -> tuple[npt.NDArray[Any], str]:
    """Load what of DATA a run may be tested on, and say in one line what it is (see `splits.test_part`).

    `digest` is `Splits.digest` of the fit. Raises InputError as `load_data` does.
    """
    own = settings.data
    return test_part(_read(data, settings), digest, settings.seed, own.valid_fraction, own.test_fraction)


def num_categories(splits: Splits) -> int:
    """Count the categories of each variable: 256 for images; of a table, the largest value of all its parts, plus 1.

    A table's valid and test parts count too, so that a value that training never saw has a probability.
    """
    if splits.train.ndim != 2:
        return IMAGE_CATEGORIES
    return int(max(part.max() for part in (splits.train, splits.valid, splits.test))) + 1


def _read(data: str, settings: Settings) -> Source:
    source = read_source(data, size=settings.data.size, crop=parse_crop(settings.data.crop or None))
    table = next((part for part in source.parts.values() if np.ndim(part) == 2), None)
    if table is None:
        return images_of(source, settings.data.crop or None)
    if settings.method not in BASELINES:
        raise InputError(
            f"{source.name}: found shape {table.shape}, a table, which {' and '.join(BASELINES)} learn from; "
            f"wanted images for method {settings.method}"
        )
    return replace(source, parts=tables_of(source.parts, source.name))
