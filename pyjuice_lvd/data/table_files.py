"""Tables of integers in files: CSV, and folders of the density estimation benchmark data sets (DEBD)."""

from __future__ import annotations

import csv
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.data.missing import MISSING, as_incomplete_table
from pyjuice_lvd.data.reading import reading
from pyjuice_lvd.data.source import Array, Source, column_name, not_read, others_in
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.settings.choices import SPLITS

_SEPARATORS = ",;\t"
_INDEX = ("", "Unnamed: 0")
"""What pandas calls the column that counts the rows."""
_MANY_ROWS = 10
"""So many rows that are counted by the first column are no chance: it is an index, whatever it is called."""
_LARGEST = np.iinfo(np.int32).max - 1
_EMPTY = np.iinfo(np.int64).min
"""What an empty cell is until the table is checked."""
_INTEGER, _WHOLE = "[+-]?[0-9]+", r"[+-]?[0-9]+(\.0*)?"
"""Cells; where some are empty, pandas writes integers as floats."""


class Table(NamedTuple):
    """Integers (N, V), `_EMPTY` in empty cells; the names of the columns, if any; what was passed over, a line each."""

    values: npt.NDArray[np.int64]
    columns: tuple[str, ...]
    notes: tuple[str, ...]


def read_csv(path: Path) -> Source:
    """Read a table from a CSV file (see `read_table`)."""
    table = read_table(path)
    return Source(str(path), {"all": table.values}, columns=table.columns, notes=table.notes)


def read_table(path: Path) -> Table:
    """Read integers, separated by commas, semicolons or tabs, quoted or not, with any line ends.

    A first line without any number names the columns, and so does pandas' `0,1,2,...` where the data have no number as
    large. An empty cell is a missing value; where there are any, whole numbers may have a decimal point, as pandas
    writes them then. Empty lines and lines that begin with `#` are passed over. A first column that counts the rows is
    no variable unless it has a name. Raises InputError that names the file, and the line where one is to blame, for
    anything else.
    """
    with reading(path), path.open(encoding="utf-8-sig") as file:
        lines = _Lines(file)
        begin = list(islice(lines, 2))
        if not begin:
            raise InputError(f"{path}: found no rows, wanted integers separated by commas")
        first = begin[0]
        separator = next((mark for mark in _SEPARATORS if mark in begin[-1]), ",")  # names may have commas
        names = _fields(first, separator)
        unnamed = [str(number) for number in range(len(names) - 1)]  # as pandas writes columns and an index
        named = not any(map(_is_number, names)) or (names[0] in _INDEX and names[1:] == unnamed)
        try:
            values = _parsed(chain(begin[named:], lines), separator)
        except (ValueError, OverflowError, Warning) as error:
            values = _incomplete(path, separator, named, error)
            deque(lines, maxlen=0)  # to its end: it counts what it passes over
    if named and values.shape[1] != len(names):
        raise InputError(f"{path}: found {values.shape[1]} columns, wanted {len(names)} as named ({_some(names)})")
    notes = lines.notes()
    if not named and values[0].tolist() == list(range(values.shape[1])):
        if len(values) > 1 and values.shape[1] > 1 and values[1:].max() < values.shape[1] - 1:
            named, values = True, values[1:]
        else:
            notes += (f"the first line, {first.strip()}, is read as data; if it is a header, give it names",)
    columns = tuple(names) if named else ()
    if values.shape[1] > 1 and (values[:, 0] == values[0, 0] + np.arange(len(values))).all():
        if names[0] in _INDEX if named else len(values) >= _MANY_ROWS:
            raise InputError(
                f"{path}: found a column without a name that counts the rows, wanted variables only: "
                "pandas writes none with to_csv(index=False)"
            )
        if len(values) >= _MANY_ROWS:
            notes += (f"column 1 ({names[0]}) counts the rows, and is read as a variable",)
    return Table(values, columns, notes)


def _parsed(rows: Iterable[str], separator: str, cell: Callable[[str], int] | None = None) -> npt.NDArray[np.int64]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy only warns of numbers like 1.5, and cuts them
        return np.loadtxt(rows, np.int64, comments=None, delimiter=separator, quotechar='"', ndmin=2, converters=cell)


def _incomplete(path: Path, separator: str, named: bool, error: Exception) -> npt.NDArray[np.int64]:
    """Read a table that is no table of integers, as one with empty cells; raises InputError if it is none either."""
    with path.open(encoding="utf-8-sig") as file:
        cells = chain.from_iterable(_fields(line, separator) for line in _Lines(file))
        if all(cells):
            raise _blamed(path, separator, named, error, _INTEGER) from error
    try:
        with path.open(encoding="utf-8-sig") as file:
            return _parsed(islice(_Lines(file), int(named), None), separator, _cell)
    except (ValueError, OverflowError, Warning) as wrong:
        raise _blamed(path, separator, named, wrong, _WHOLE) from wrong


def _cell(text: str) -> int:
    """Read a cell, empty or a whole number; raises ValueError where it is neither."""
    text = text.strip()
    if not text:
        return _EMPTY
    if not re.fullmatch(_WHOLE, text) or abs(value := int(text.partition(".")[0])) > _LARGEST:
        raise ValueError(text)
    return value


class _Lines:
    """The lines of a file that have values, in order; the others are counted."""

    def __init__(self, file: Iterator[str]) -> None:
        self._file = file
        self.number = self._empty = self._held = self._comments = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        for line in self._file:
            self.number += 1
            if line.isspace():
                self._held += 1  # those at the end are no gap
            elif line.startswith("#"):
                self._comments += 1
            else:
                self._empty, self._held = self._empty + self._held, 0
                return line
        raise StopIteration

    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"{count} {what}{'s' if count > 1 else ''} passed over"
            for count, what in ((self._empty, "empty line"), (self._comments, "comment"))
            if count
        )


def _fields(line: str, separator: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _blamed(path: Path, separator: str, named: bool, error: Exception, cell: str) -> InputError:
    """Find the first line that is no row of cells of this kind, or of empty ones, numbered as editors do, from 1."""
    with path.open(encoding="utf-8-sig") as file:
        lines, width = _Lines(file), 0
        for line in lines:
            if named and not width:
                width = -1  # the names are passed over
                continue
            values = _fields(line, separator)
            at = f"{path}: line {lines.number}"
            if 0 < width != len(values):
                return InputError(
                    f"{at}: found {len(values)} value{'s' * (len(values) != 1)}, wanted {width} as in the lines before"
                )
            width = len(values)
            for column, value in enumerate(values, start=1):
                if value and (not re.fullmatch(cell, value) or abs(int(value.partition(".")[0])) > _LARGEST):
                    wanted = f"an integer from 0 to {_LARGEST}"
                    return InputError(f"{at}, column {column}: found {value!r}, wanted {wanted}")
    if width <= 0:
        return InputError(f"{path}: found no rows, wanted integers separated by commas")
    return InputError(f"{path}: found no table of integers ({error})")


def is_debd_folder(folder: Path) -> bool:
    """Whether the folder has a file as DEBD names them, such as `NAME.train.data`."""
    return bool(_debd_files(folder))


def read_debd_folder(folder: Path) -> Source:
    """Read what there is of `NAME.train.data`, `NAME.valid.data` and `NAME.test.data`, integers (N, V) each.

    Raises InputError where the folder has several tables, or a file is damaged.
    """
    paths = _debd_files(folder)
    names = sorted({path.name.rsplit(".", 2)[0] for path in paths})
    if len(names) > 1:
        raise InputError(f"{folder}: found the tables {', '.join(names)}, wanted one")
    tables = {path: read_table(path) for path in paths}
    columns = tables[paths[0]].columns
    for path, table in tables.items():
        if table.columns != columns:
            found, wanted = _some(table.columns), _some(columns)
            raise InputError(f"{path}: found the columns {found}, wanted {wanted} as in {paths[0].name}")
    parts: dict[str, Array] = {path.name.rsplit(".", 2)[1]: table.values for path, table in tables.items()}
    notes = tuple(f"{path.name}: {note}" for path, table in tables.items() for note in table.notes)
    files = ", ".join(path.name for path in paths)
    notes += not_read(others_in(folder, paths))
    return Source(str(folder), parts, f"by its files {files}", columns, notes)


def _some(columns: Sequence[str]) -> str:
    return ", ".join(columns[:3]) + (", ..." if len(columns) > 3 else "") if columns else "without names"


def _debd_files(folder: Path) -> list[Path]:
    return [path for split in SPLITS for path in folder.glob(f"*.{split}.data")]


def tables_of(source: Source) -> Source:
    """Check that all parts of a source are tables of categories from 0, integers (N, V) with one V.

    Gives them as uint8 if every value is there and fits, else as int32, `MISSING` where one is missing: an empty cell,
    or NaN among floats that are whole numbers. Raises InputError that names the source, and the column.
    """
    width = next(iter(source.parts.values())).shape[1:]
    tables: dict[str, Array] = {}
    holes: dict[str, npt.NDArray[np.bool_]] = {}
    floats = any(_has_nan(part) for part in source.parts.values())  # without a NaN, floats are no categories
    for split, part in source.parts.items():
        of = source.name if split == "all" else f"{source.name} ({split})"
        table = as_incomplete_table(part, name=of, columns=source.columns) if floats and part.ndim == 2 else part
        if table.ndim != 2 or table.dtype.kind not in "iub" or table.shape[1:] != width or not table.size:
            wanted = f"integers (N, {width[0]})" if len(width) == 1 and width[0] else "integers (N, V)"
            raise InputError(f"{of}: found {part.dtype} {part.shape}, wanted {wanted}, at least one row")
        hole = table == (MISSING if floats else _EMPTY)
        tables[split], holes[split] = np.where(hole, 0, table), hole
        for bad, extreme in ((tables[split].min(axis=0) < 0, np.min), (tables[split].max(axis=0) > _LARGEST, np.max)):
            if bad.any():
                column = int(np.flatnonzero(bad)[0])
                found = extreme(tables[split][:, column])
                name = column_name(source.columns, column)
                raise InputError(f"{of}: found {found} in {name}, wanted categories from 0 to {_LARGEST}")
    empty = np.logical_and.reduce([hole.all(axis=0) for hole in holes.values()])
    if empty.any():
        name = column_name(source.columns, int(empty.argmax()))
        raise InputError(f"{source.name}: found no value in {name}, wanted at least one")
    missing, most = sum(int(hole.sum()) for hole in holes.values()), max(int(part.max()) for part in tables.values())
    if not missing:
        dtype = np.uint8 if most <= np.iinfo(np.uint8).max else np.int32
        return replace(source, parts={split: np.ascontiguousarray(part, dtype) for split, part in tables.items()})
    note = f"{missing:,} of {sum(part.size for part in tables.values()):,} values are missing"
    parts = {split: np.where(holes[split], np.int32(MISSING), part.astype(np.int32)) for split, part in tables.items()}
    return replace(source, parts=parts, notes=(*source.notes, note))


def _has_nan(part: Array) -> bool:
    return part.ndim == 2 and part.dtype.kind == "f" and bool(np.isnan(part).any())
