"""Splits: the rows or images of a source, divided into train, valid and test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.data.source import Array, Source
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.large import contiguous, digest_of, take
from pyjuice_lvd.settings.choices import SPLITS


@dataclass(frozen=True)
class Splits:
    """Images uint8 (N, H, W, C), C = 1 (grey) or 3 (RGB), or tables of integers (N, V), and where they come from.

    `how` says in one line how they were split. `columns` are the names of a table's columns, if it has any, and `notes`
    say, a line each, what of the source was not read. `digest` is the SHA-256 of all data of a source without a test
    set, by which `test_part` knows that source again; it is empty where the test set is the source's own. Of the `pool`
    images or rows that the source has for training, or of all, `train` is those of the numbers `train_rows`.
    """

    train: Array
    valid: Array
    test: Array
    source: str
    how: str
    digest: str
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    pool: int
    train_rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class TestPart:
    """Images or rows that a run may be tested on, and in one line which they are; the rest as in `Splits`.

    `files` are the names of their image files, where all of a folder is asked for and it has no subfolders.
    """

    data: Array
    how: str
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def split_source(source: Source, seed: int, valid_fraction: float, test_fraction: float) -> Splits:
    """Take the splits that a validated source does not set apart itself from its training data, by seed.

    They are `valid_fraction` and `test_fraction` of those that it has, at least one each. Raises InputError where there
    are too few.
    """
    fractions = {"test": test_fraction, "valid": valid_fraction}
    for split, fraction in fractions.items():
        if not 0 < fraction < 1:
            raise InputError(f"{split}_fraction: found {fraction}, wanted a number between 0 and 1")
    pool = _pool(source)
    how = [f"{', '.join(source.parts)} {source.how}"] if source.how else []
    counts = {name: max(1, round(share * len(pool))) for name, share in fractions.items() if name not in source.parts}
    if sum(counts.values()) >= len(pool):
        raise InputError(f"{source.name}: found {len(pool)} {noun(pool)}, too few to set apart {_listed(counts)}")
    parts: dict[str, Array] = {**source.parts, "train": pool}
    train_rows = np.arange(len(pool))
    if counts:
        order = np.random.default_rng(seed).permutation(len(pool))
        *taken, train_rows = np.split(order, np.cumsum(list(counts.values())))
        parts |= {split: take(pool, rows) for split, rows in zip(counts, taken, strict=True)}
        parts["train"] = take(pool, train_rows)
        how.append(f"{_listed(counts)} of {len(pool)} {noun(pool)} by seed {seed}, the rest train")
    train, valid, test = (contiguous(parts[split]) for split in SPLITS)
    digest = digest_of(pool) if "test" in counts else ""
    return Splits(
        train, valid, test, source.name, "; ".join(how), digest, source.columns, source.notes, len(pool), train_rows
    )


def test_part(source: Source, digest: str, seed: int, valid_fraction: float, test_fraction: float) -> TestPart:
    """Find what of a validated source a run may be tested on.

    It is the source's own test part; else, if `digest` (`Splits.digest` of the fit) shows it to be the source that the
    run was fitted on, the same test split as then; else all (of "train", if the source names its parts), some of which
    the run may have learned from: only a whole source is known again. The other arguments are those of the fit.
    """
    if "test" in source.parts:
        test = source.parts["test"]
        return TestPart(test, f"test {noun(test)} of {source.name} {source.how}", source.columns, source.notes)
    pool = _pool(source)
    if digest_of(pool) != digest:
        which = f"all {len(pool)} {noun(pool)} of {source.name}"
        return TestPart(contiguous(pool), which, source.columns, source.notes)
    splits = split_source(source, seed, valid_fraction, test_fraction)
    return TestPart(splits.test, splits.how, source.columns, source.notes)


def noun(data: Array) -> str:
    """Say what the entries of data are."""
    return "rows" if data.ndim == 2 else "images"


def _pool(source: Source) -> Array:
    """Return the data that the missing splits are taken from."""
    for split in ("all", "train"):
        if split in source.parts:
            return source.parts[split]
    parts = " and ".join(source.parts)
    kind = noun(next(iter(source.parts.values())))
    raise InputError(f"{source.name}: found {parts} {kind} only, wanted training {kind}")


def _listed(counts: dict[str, int]) -> str:
    return " and ".join(f"{count} {split}" for split, count in counts.items())
