"""What the inputs of each variable are, where a circuit's structure is made: their kinds, and where they start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import integer, one_of, plain_array
from pyjuice_lvd.circuit.rows import Mask, Table, categories_of, some_rows
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.settings.choices import LEAVES

_MOST_BINS = 32

_MOST_DEVIATIONS = 1e4
"""So far from 0 may real values lie: the inputs' parameters are of single precision."""

MOST = 1e12
"""The largest real number that variables may have (`MOST_NUMBER` in circuits/numbers.jl)."""

_MOST_CATEGORIES = 2**31
"""No circuit has more: whoever makes it says so, by the number that was given."""

_ROWS = 2**16
"""So many rows say where inputs start."""

Leaves = str | Sequence[str]
"""One kind for all variables, or that of each."""


def kinds_of(leaves: Leaves) -> list[str]:
    """Give the kind of all variables' inputs, or of each; raises InputError for others than there are."""
    kinds: list[Any] = list(leaves) if isinstance(leaves, list | tuple | np.ndarray) else [leaves]
    for kind in kinds:
        one_of("leaves", kind, LEAVES)
    return kinds


def check_number(kinds: Sequence[str], num_vars: int) -> None:
    """Raise InputError unless there is one kind for all variables, or one for each."""
    if len(kinds) not in (1, num_vars):
        raise InputError(f"leaves: found {len(kinds)} kinds, wanted one, or one for each of {num_vars} variables")


def over_numbers(kinds: Sequence[str], num_vars: int) -> npt.NDArray[np.bool_]:
    """Say which variables have numbers, and no categories: bool (V,)."""
    return np.broadcast_to([kind in ("poisson", "gaussian") for kind in kinds], num_vars)


def categories_for(kinds: Sequence[str], table: Table, hidden: Mask | None = None) -> int:
    """Count the categories of those variables that have them: the largest value seen, plus 1; 1 where none has."""
    own = ~over_numbers(kinds, table.shape[1])
    if not own.any():
        return 1
    known = table[:, own]
    if known.dtype.kind == "f" and not np.isfinite(known).all():
        known = np.where(np.isfinite(known), known, 0)  # refused where it is looked at
    return categories_of(known, None if hidden is None else hidden[:, own])


def categories_given(
    num_cats: int | npt.ArrayLike, kinds: Sequence[str], num_vars: int
) -> tuple[int, npt.NDArray[np.int64] | None]:
    """Check `num_cats`, of all variables or of each: the largest, and those of each, int64 (V,), if they are given.

    Variables that have numbers have no categories, whatever is given for them.
    """
    array = plain_array("num_cats", num_cats)
    if array.ndim == 0:
        return integer("num_cats", num_cats), None
    if array.shape != (num_vars,) or array.dtype.kind not in "iu":
        raise InputError(f"num_cats: found {array.dtype} {array.shape}, wanted an integer, or integers ({num_vars},)")
    each = np.where(over_numbers(kinds, num_vars), 1, array).astype(np.int64)
    if each.min(initial=1) < 1:
        raise InputError(f"num_cats: found {each.min()} for variable {each.argmin()}, wanted at least 1")
    return int(each.max(initial=1)), each


def check_values(
    kinds: Sequence[str],
    table: Table,
    num_cats: int,
    hidden: Mask | None = None,
    each: npt.NDArray[np.int64] | None = None,
) -> None:
    """Raise InputError that names the first value seen which its variable cannot have.

    Where all variables have as many categories as one another, and no numbers, these are checked as they are counted.
    """
    kind_of = np.broadcast_to(kinds, table.shape[1])
    if not over_numbers(kinds, table.shape[1]).any() and each is None:
        return
    for variable, kind in enumerate(kind_of):
        most = num_cats if each is None else int(each[variable])
        column = table[:, variable]
        match kind:
            case "gaussian":
                wrong, wanted = ~np.isfinite(column), "a finite number"
            case "poisson":
                wrong, wanted = ~((column >= 0) & (column == np.floor(column))), "counts from 0"
            case _:
                inside = (column >= 0) & (column < most)
                wrong, wanted = ~(inside & (column == np.floor(column))), f"categories, 0..{most - 1}"
        if hidden is not None:
            wrong &= ~hidden[:, variable]
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(f"X: row {row}, variable {variable}: found {column[row]}, wanted {wanted} ({kind})")
        if kind == "gaussian":
            check_spread(_seen(column, hidden, variable), f"X: variable {variable}")


def check_spread(seen: Table, name: str) -> None:
    """Raise InputError, whose line begins with `name`, where real numbers are far from 0 for how they vary."""
    if len(seen) and abs(seen.mean()) > _MOST_DEVIATIONS * seen.std() > 0:
        found = f"a mean of {seen.mean():.6g} with a deviation of {seen.std():.3g}"
        raise InputError(f"{name}: found {found}, wanted values nearer to 0: subtract the mean")


def _seen(column: Table, hidden: Mask | None, variable: int) -> Table:
    return column if hidden is None else column[~hidden[:, variable]]


def in_bins(
    kinds: Sequence[str], table: Table, num_cats: int | npt.NDArray[np.int64], hidden: Mask | None = None
) -> tuple[Table, int]:
    """Give a table whose numbers are categories, for mutual information, and how many those are.

    A bin of numbers holds about as many rows as any other of its variable. There are about as many bins as the cube
    root of the rows, up to 32: dependencies show, and chance does not. Beside other kinds, levels in order of which
    there are more than 32 go into bins, too. What is hidden has category 0.
    """
    num_vars = table.shape[1]
    each = np.broadcast_to(num_cats, num_vars)
    numbers = over_numbers(kinds, num_vars)
    if len(set(kinds)) > 1:
        ordered = np.array([kind != "categorical" for kind in kinds])
        numbers = numbers | (ordered & (each > _MOST_BINS))
    if not numbers.any():
        return (table if table.dtype.kind in "iu" else table.astype(np.int32)), int(each.max())
    wanted = int(np.clip(round(len(table) ** (1 / 3)), 2, _MOST_BINS))
    found = np.empty(table.shape, np.int32)
    for variable, column in enumerate(table.T):
        if numbers[variable]:
            seen = _seen(column, hidden, variable)
            edges = np.unique(np.quantile(seen, np.arange(1, wanted) / wanted)) if len(seen) else seen
            found[:, variable] = np.searchsorted(edges, column, side="right")
        else:
            found[:, variable] = column if hidden is None else np.where(hidden[:, variable], 0, column)
    return found, max(wanted, int(each[~numbers].max(initial=1)))


def standardised(table: Table) -> npt.NDArray[np.float32]:
    """Give the columns a mean of 0 and a deviation of 1: float32 (N, V); a constant column is 0."""
    spread = table.std(axis=0, dtype=np.float64)
    centred = table - table.mean(axis=0, dtype=np.float64)
    return np.asarray(centred / np.where(spread > 0, spread, 1), np.float32)


def leaves_for(
    kinds: Sequence[str],
    num_cats: int,
    table: Table | None = None,
    hidden: Mask | None = None,
    *,
    own: bool = False,
    each: npt.NDArray[np.int64] | None = None,
) -> julia.Handle:
    """Give Julia's `Leaf`, of all variables or of each, over `num_cats` categories; a table says where inputs start.

    With `own`, a variable of the table has as many categories as its largest value seen asks for; `each` says how many
    each has. Without a table, real numbers are taken to be standardised. Raises InputError for counts, of which nothing
    is known then.
    """
    num_cats = min(num_cats, _MOST_CATEGORIES)
    if table is None:
        if "poisson" in kinds:
            raise InputError("leaves: found 'poisson' without data, wanted another: nothing is known of the rates")
        numbers = over_numbers(kinds, len(kinds))
        centres = np.where(numbers, 0.0, (num_cats - 1) / 2)
        spreads = np.where(numbers, 1.0, abs(num_cats - 1) / np.sqrt(12))
    else:
        rows = some_rows(len(table), _ROWS, 0)
        seen = np.ma.masked_array(table[rows], False if hidden is None else hidden[rows])
        centres = np.ma.filled(seen.mean(axis=0, dtype=np.float64), 0.0)  # 0, too, where nothing is seen
        spreads = np.ma.filled(seen.std(axis=0, dtype=np.float64), 0.0)
    count = max(len(kinds), len(centres))
    names = " ".join(np.broadcast_to(kinds, count))
    cats: int | Table = num_cats if each is None else each
    if table is not None and own:
        cats = np.ma.filled(np.ma.masked_array(table, False if hidden is None else hidden).max(axis=0), 0) + 1
    categories = np.where(over_numbers(kinds, count), 0, cats).astype(np.int64)
    starts = (np.broadcast_to(array, count).copy() for array in (centres, spreads))
    handle: julia.Handle = julia.call("leaves_of", names, categories, *starts)
    return handle
