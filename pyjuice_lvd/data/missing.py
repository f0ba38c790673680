"""Missing values of tables: what people write in their place, and the one number that stands there from here on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import integer, plain_array
from pyjuice_lvd.circuit.rows import Mask, Table, as_table
from pyjuice_lvd.data.source import column_name
from pyjuice_lvd.errors import InputError

MISSING = -1
"""What a table of categories has where a value is missing: no category."""

_LARGEST = np.iinfo(np.int32).max - 1


def as_incomplete_table(
    X: npt.ArrayLike, missing: int | None = None, *, name: str = "X", columns: Sequence[str] = ()
) -> Table:
    """Take over a table (N, V) of integers from 0 of which some may be missing: these are `MISSING` in what comes back.

    Missing is what is NaN or None, pandas' NA, what numpy's mask hides, and what is equal to the integer `missing`;
    floats must be whole numbers otherwise. A table without missing values comes back as it is, if it holds integers.
    Raises InputError that names the first value that is none of these.
    """
    stands_for = None if missing is None else integer("missing", missing)
    hidden: Mask | None = np.ma.getmaskarray(X) if isinstance(X, np.ma.MaskedArray) else None
    values = plain_array(name, np.ma.getdata(X) if isinstance(X, np.ma.MaskedArray) else X)
    if values.dtype == object:
        none = is_missing(values)
        values, hidden = _numbers(values, none, name, columns), _joined(hidden, none)
    if values.dtype.kind == "f":
        hidden = _joined(hidden, np.isnan(values))
        whole = np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < 2**53)
        if not (whole | hidden).all():
            row, column = np.argwhere(~(whole | hidden))[0]
            culprit = f"{values[row, column]:g} in row {row}, {column_name(columns, column)}"
            wanted = "integers (N, V), or NaN where a value is missing"
            raise InputError(f"{name}: found {values.dtype} {values.shape}, wanted {wanted}: {culprit}")
        values = np.where(hidden, 0, values).astype(np.int64)
    table = as_table(values, name=name)
    if stands_for is not None:
        hidden = _joined(hidden, table == stands_for)
    seen = True if hidden is None else ~hidden
    lowest = table.min(axis=0, initial=0, where=seen)
    if lowest.size and lowest.min() < 0:
        column = int(lowest.argmin())
        hint = "" if stands_for is not None else f" (missing={lowest[column]}, if it stands for a missing value)"
        found = f"{lowest[column]} in {column_name(columns, column)}"
        raise InputError(f"{name}: found {found}, wanted categories from 0{hint}")
    if hidden is None or not hidden.any():
        return table
    dtype = np.int32 if table.max(initial=0, where=seen) <= _LARGEST else np.int64
    return np.where(hidden, dtype(MISSING), table.astype(dtype))


def missing_in(table: Table) -> Mask | None:
    """Say where the values of a checked table are `MISSING`, or NaN: bool (N, V), or None where none is."""
    if table.dtype.kind == "f":
        hidden = np.isnan(table)
        return hidden if hidden.any() else None
    if table.dtype.kind == "u" or table.min(initial=0) >= 0:
        return None
    return np.ascontiguousarray(table < 0)


def is_missing(values: npt.NDArray[Any]) -> Mask:
    """Say which values of an array are NaN, None, or pandas' NA."""
    if values.dtype.kind == "f":
        return np.asarray(np.isnan(values), bool)
    if values.dtype == object:
        return np.asarray(np.frompyfunc(_is_none, 1, 1)(values), bool)
    return np.zeros(values.shape, bool)


def _is_none(value: Any) -> bool:
    return value is None or type(value).__name__ == "NAType" or value != value  # NaN, of whatever type


def _joined(one: Mask | None, other: Mask) -> Mask:
    return other if one is None else one | other


def _numbers(values: npt.NDArray[Any], none: Mask, name: str, columns: Sequence[str]) -> npt.NDArray[np.float64]:
    """Turn objects that are numbers, but where `none` says so, into them."""
    try:
        return np.where(none, 0, values).astype(np.float64)
    except (TypeError, ValueError):
        for place in np.argwhere(~none):
            try:
                float(values[tuple(place)])
            except (TypeError, ValueError):
                where = f"row {place[0]}" + (f", {column_name(columns, place[1])}" if len(place) == 2 else "")
                raise InputError(f"{name}: found {values[tuple(place)]!r} in {where}, wanted integers (N, V)") from None
        raise
