"""Tables whose columns differ: what each is, by its type, and its values as numbers and back."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import integer, one_of, typed
from pyjuice_lvd.circuit.leaves import MOST, check_spread
from pyjuice_lvd.circuit.rows import CATEGORIES_A_ROW, MANY_CATEGORIES, Mask, Table
from pyjuice_lvd.data.missing import MISSING, is_missing
from pyjuice_lvd.data.source import column_name
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.settings.choices import LEAVES, LEAVES_OF_LEVELS

AUTO = "auto"
"""In the place of a kind of leaves: the column's type chooses it."""

_CATEGORIES, _LEVELS = 32, 1024
"""Integers from 0 below the first are categories, below the second levels; others are numbers."""

_TEXTS = 256
"""More different texts than this, and than half of the rows, are no categories."""

_WANTED = {
    "categorical": "categories", "binomial": "levels", "logistic": "levels",
    "poisson": "counts from 0", "gaussian": f"finite numbers of at most {MOST:g}",
}  # fmt: skip

Choice = str | Sequence[str] | Mapping[str, str] | None
"""Of leaves: one kind for all columns, that of each, or those of some by name; None: "auto" for data frames."""


class Column(NamedTuple):
    """What a column of a table is."""

    name: str
    leaves: str
    """The kind of its inputs."""
    num_cats: int
    """So many values can it have, from 0; 0: there is no end to them."""
    values: tuple[Any, ...] | None = None
    """What these stand for: texts, truth values, or a data frame's categories; None: for themselves."""

    def __str__(self) -> str:
        """Name it, its kind and its size."""
        return f"{self.name} {self.leaves}" + (f" ({self.num_cats})" if self.num_cats else "")


class _Cells(NamedTuple):
    """A column's values, as they lie."""

    where: str
    values: npt.NDArray[Any]
    missing: Mask
    categories: tuple[Any, ...] | None
    """What the values are numbers of, in a data frame's column of categories."""

    def value(self, row: int) -> Any:
        """Give the value of a row that is not missing."""
        return self.values[row] if self.categories is None else self.categories[self.values[row]]


def is_frame(X: object) -> bool:
    """Say whether something is a data frame of pandas."""
    return hasattr(X, "iloc") and hasattr(X, "columns")


def columns_of(
    X: Any, leaves: Choice, *, missing: int | None = None, num_cats: int | None = None
) -> tuple[Column, ...] | None:
    """Choose what each column of a data frame, or of an array (N, V), is.

    A data frame's categories, texts and truth values are categories; integers from 0 are categories (up to 31), levels
    (up to 1023), or else real numbers, as are floats; of these, such as are all whole numbers count as integers.

    Parameters
    ----------
    X : data frame, or array (N, V)
        Of which some may be missing, as for `as_incomplete_table`.
    leaves : str, sequence or mapping, optional
        The kind of leaves of all, of each, or of some by their names, where not the type chooses it ("auto").
    missing : int, optional
        An integer that stands for a missing value.
    num_cats : int, optional
        Categories of columns of integers that are categories or levels.

    Returns
    -------
    tuple of Column, or None
        None: an array whose columns are all of one kind, a setting's.

    Raises
    ------
    InputError
        Where a column is nothing that inputs can be over, or `leaves` do not fit. The line names the column.

    """
    frame = is_frame(X)
    if leaves is None and frame:
        leaves = AUTO
    if leaves is None or (not frame and isinstance(leaves, str) and leaves in LEAVES_OF_LEVELS):
        return None
    if not len(X):
        raise InputError("X: found no rows, wanted at least 1")
    cells = list(_cells(X, missing))
    names = [str(name) for name in X.columns] if frame else [str(number) for number in range(len(cells))]
    return tuple(
        _column(column, name, kind, num_cats)
        for column, name, kind in zip(cells, names, _kinds(leaves, names), strict=True)
    )


def differ(columns: Sequence[Column]) -> bool:
    """Say whether columns are more than integers of one kind, whose inputs are alike."""
    return len({column.leaves for column in columns}) > 1 or any(
        column.values is not None or column.num_cats == 0 for column in columns
    )


def in_numbers(X: Any, columns: Sequence[Column], *, missing: int | None = None) -> Table:
    """Give a table's values as numbers.

    Returns
    -------
    float64 (N, V), with NaN for what is missing, or, where no column has real numbers, integers (N, V), with -1
        Categories that have names are their numbers, from 0.

    Raises
    ------
    InputError
        That names the first value that its column cannot have.

    """
    found = np.empty((len(X), len(columns)))
    for number, (cells, column) in enumerate(zip(_cells(X, missing), columns, strict=True)):
        if column.values is None:
            found[:, number] = _numbers(cells)
            wrong = _wrong(found[:, number], column.leaves, column.num_cats)
            wanted = _WANTED[column.leaves] + (f", 0..{column.num_cats - 1}" if column.num_cats else "")
        else:
            code_of = {value: code for code, value in enumerate(column.values)}
            for row in np.flatnonzero(~cells.missing).tolist():
                value = cells.value(row)
                found[row, number] = code_of.get(value, -1) if isinstance(value, Hashable) else -1
            found[cells.missing, number] = np.nan
            wrong, wanted = found[:, number] < 0, f"one of {_some(column.values)}"
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(f"X: found {_shown(cells.value(row))} in row {row}, {cells.where}, wanted {wanted}")
    if any(column.leaves == "gaussian" for column in columns):
        return found
    return np.where(np.isnan(found), MISSING, np.nan_to_num(found)).astype(np.int64)


def in_words(rows: Table, columns: Sequence[Column]) -> npt.NDArray[Any]:
    """Put back what numbers stand for: objects (..., V) for float64 or integers (..., V) of `in_numbers`, None for NaN.

    Columns of integers have integers again.
    """
    found = np.empty(rows.shape, object)
    for number, column in enumerate(columns):
        values = rows[..., number]
        if column.values is not None:
            table = np.empty(len(column.values), object)
            table[:] = column.values
            found[..., number] = table[values.astype(np.int64)]
        else:
            found[..., number] = values if column.leaves == "gaussian" else values.astype(np.int64)
    return found


def as_frame(rows: Table, columns: Sequence[Column]) -> Any:
    """Put rows into a data frame, with the names of the columns and what numbers stand for, texts as categories."""
    from pandas import Categorical, DataFrame  # where a frame came from, there is pandas

    found = {}
    for number, column in enumerate(columns):
        values = rows[:, number] if column.leaves == "gaussian" else rows[:, number].astype(np.int64)
        if column.values == (False, True):
            values = values.astype(bool)
        elif column.values is not None:
            values = Categorical.from_codes(values, list(column.values))
        found[number] = values
    frame = DataFrame(found)
    frame.columns = [column.name for column in columns]
    return frame


def restored_columns(described: Any, path: object) -> tuple[Column, ...]:
    """Take over columns that were written as JSON (`Column._asdict`); raises InputError where they are none."""
    try:
        found = tuple(Column(**column) for column in described)
        for column in found:
            typed(f"{path}: {column.name}", column.num_cats, int)
            one_of(f"{path}: {column.name}", column.leaves, LEAVES)
        return tuple(c if c.values is None else c._replace(values=tuple(c.values)) for c in found)
    except TypeError as error:
        raise InputError(f"{path}: found other columns than lvd-juice writes: {error}") from error


def _kinds(leaves: Choice, names: Sequence[str]) -> list[str]:
    """Give the kind of each column, or "auto"."""
    if isinstance(leaves, Mapping):
        leaves = {str(name): kind for name, kind in leaves.items()}
        if unknown := [name for name in leaves if name not in names]:
            raise InputError(f"leaves: found {unknown[0]!r}, wanted columns of X: {_some(names)}")
        kinds = [leaves.get(name, AUTO) for name in names]
    else:
        kinds = [leaves] * len(names) if isinstance(leaves, str) else list(leaves or ())
    if len(kinds) != len(names):
        raise InputError(f"leaves: found {len(kinds)} kinds, wanted one for each of {len(names)} columns")
    for kind in kinds:
        one_of("leaves", kind, (AUTO, *LEAVES))
    return kinds


def _cells(X: Any, missing: int | None) -> Iterator[_Cells]:
    """Take a table apart into its columns."""
    stands_for = None if missing is None else integer("missing", missing)
    names = [str(name) for name in X.columns] if is_frame(X) else ()
    hidden = np.ma.getmaskarray(X) if isinstance(X, np.ma.MaskedArray) else None
    array = None if is_frame(X) else np.ma.getdata(X)
    for number in range(len(names) if array is None else array.shape[1]):
        where, categories = column_name(names, number), None
        if array is None:
            series = X.iloc[:, number]
            if hasattr(series, "cat"):
                categories, series = tuple(series.cat.categories.tolist()), series.cat.codes
            extension = not isinstance(series.dtype, np.dtype)
            values = series.to_numpy(dtype=object) if extension else series.to_numpy()
        else:
            values = array[:, number]
        absent = values < 0 if categories is not None else is_missing(values)
        if hidden is not None:
            absent = absent | hidden[:, number]
        found = _Cells(where, values, absent, categories)
        if stands_for is not None and categories is None and values.dtype.kind in "iuf":
            absent |= values == stands_for
        elif stands_for is not None:
            known = np.flatnonzero(~absent).tolist()
            absent[[row for row in known if _is_number(found.value(row)) and found.value(row) == stands_for]] = True
        yield found


def _column(cells: _Cells, name: str, kind: str, num_cats: int | None) -> Column:
    """Choose what a column is; `kind` may say so."""
    seen = cells.values[~cells.missing]
    if not len(seen):
        raise InputError(f"X: found missing values only in {cells.where}, wanted at least one value")
    values = _names(cells, seen)
    if values is not None:
        if kind not in (AUTO, "categorical"):
            raise InputError(f"leaves: found {kind!r} for {cells.where}: {_some(values)}, wanted 'categorical'")
        return Column(name, "categorical", len(values), values)
    numbers = _numbers(cells)
    known = numbers[~cells.missing]
    if kind == AUTO:
        if known.min() == -1 and (known == np.floor(known)).all() and known.max() < _LEVELS:
            raise InputError(
                f"X: found -1 in {cells.where}, wanted categories from 0 (missing=-1, if it stands for a missing "
                f"value; leaves={{{name!r}: 'gaussian'}}, if it is a number)"
            )
        levels = bool((known == np.floor(known)).all()) and 0 <= known.min() <= known.max() < _LEVELS
        kind = "gaussian" if not levels else "logistic" if known.max() >= _CATEGORIES else "categorical"
    if kind in ("poisson", "gaussian"):
        check_spread(known[np.isfinite(known)], f"X: {cells.where}")
        return Column(name, kind, 0)
    wrong = _wrong(known, kind, 2**62)
    if wrong.any():
        raise InputError(f"X: found {known[wrong][0]:g} in {cells.where}, wanted {_WANTED[kind]}, from 0 ({kind})")
    cats = int(known.max()) + 1
    if kind == "logistic":
        cats = 1 << (cats - 1).bit_length()  # room above: what comes later may be a little larger
    if num_cats is not None:
        if known.max() >= num_cats:
            raise InputError(f"X: found {known.max():g} in {cells.where}, wanted 0..{num_cats - 1} for {num_cats=}")
        cats = num_cats
    if cats > max(MANY_CATEGORIES, CATEGORIES_A_ROW * len(cells.values)):
        raise InputError(
            f"X: found {known.max():g} in {cells.where}, in {len(cells.values)} rows, "
            f"wanted {_WANTED[kind]}, numbered from 0 without large gaps ({kind})"
        )
    return Column(name, kind, cats)


def _names(cells: _Cells, seen: npt.NDArray[Any]) -> tuple[Any, ...] | None:
    """Give what a column's values are called, where they are no numbers."""
    if cells.categories is not None:
        seen_codes = set(seen.tolist())
        if not all(isinstance(value, str | bool | Real) for value in cells.categories):
            found = type(cells.categories[0]).__name__
            raise InputError(f"X: found categories of {found} in {cells.where}, wanted texts, truth values or numbers")
        gone = {cells.categories[code] for code in set(cells.values.tolist()) - seen_codes if code >= 0}
        return tuple(value for value in cells.categories if value not in gone)  # without what stands for a missing one
    if cells.values.dtype.kind == "b" or (
        cells.values.dtype == object and all(isinstance(value, bool | np.bool_) for value in seen)
    ):
        return (False, True)
    if cells.values.dtype.kind in "iuf" or (cells.values.dtype == object and all(map(_is_number, seen))):
        return None
    if not all(isinstance(value, str) for value in seen):
        kinds = sorted({type(value).__name__ for value in seen})
        what = cells.values.dtype if cells.values.dtype != object else " and ".join(kinds[:3])
        raise InputError(
            f"X: found {what} in {cells.where}, wanted categories, texts, truth values, integers or real numbers"
        )
    texts = tuple(sorted({str(value) for value in seen}))
    if len(texts) > max(_TEXTS, len(cells.values) // 2):
        raise InputError(
            f"X: found {len(texts):,} different texts in {len(cells.values):,} rows in {cells.where}, wanted categories"
        )
    return texts


def _numbers(cells: _Cells) -> npt.NDArray[np.float64]:
    """Give a column's values as numbers, NaN where one is missing."""
    if cells.categories is not None or cells.values.dtype.kind not in "iuf":
        for row in np.flatnonzero(~cells.missing).tolist():
            if not _is_number(value := cells.value(row)):
                raise InputError(f"X: found {_shown(value)} in row {row}, {cells.where}, wanted numbers")
    found = np.full(len(cells.values), np.nan)
    known = np.flatnonzero(~cells.missing)
    found[known] = [cells.value(row) for row in known.tolist()] if cells.categories is not None else cells.values[known]
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def _wrong(numbers: npt.NDArray[np.float64], kind: str, num_cats: int) -> Mask:
    """Say which numbers are none that such a column can have; what is missing is well."""
    if kind == "gaussian":
        return np.asarray(np.abs(numbers) > MOST)  # NaN is not
    with np.errstate(invalid="ignore"):
        wrong = (numbers < 0) | (numbers != np.floor(numbers)) | (numbers >= (num_cats or 2**62))
    return np.asarray(wrong & ~np.isnan(numbers))


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, Real) else repr(value)


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
