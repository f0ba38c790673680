"""Tables of integers, masks, heads and weights: checked, in the form that the engine takes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import plain_array
from pyjuice_lvd.errors import InputError

Table = npt.NDArray[Any]
"""Integers (N, V), or float64 where variables have real values; C-contiguous."""

Mask = npt.NDArray[np.bool_]
"""(N, V), C-contiguous; True where a value is hidden."""

_LEAST_WEIGHT, _MOST_WEIGHT = 1e-30, 1e30
"""Of a row that counts: between them, single precision has all digits, and room to add up."""


MANY_CATEGORIES, CATEGORIES_A_ROW = 2**20, 16
"""More categories than this, and than this for each row, are no categories: dates, numbers of customers."""


def as_table(X: npt.ArrayLike, num_vars: int | None = None, name: str = "X") -> Table:
    """Check that `X` is a table of integers (N, V), V = `num_vars` where given; C-contiguous, not copied if it can be.

    Raises InputError, whose line begins with `name`, that says what was found. The values are checked where they are
    used.
    """
    array = plain_array(name, X)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(
            f"{name}: found NaN in {array.dtype} {array.shape}, wanted integers (N, V) (mask= says what is missing)"
        )
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise InputError(f"{name}: found {array.dtype} {array.shape}, wanted integers (N, V)")
    if num_vars is not None and array.shape[1] != num_vars:
        raise InputError(f"{name}: found {array.shape[1]} variables, wanted the circuit's {num_vars}")
    return julia.lendable(array)


def as_numbers(X: npt.ArrayLike, num_vars: int | None = None, name: str = "X") -> Table:
    """Check that `X` is a table of numbers (N, V), as for circuits over real numbers: float64, C-contiguous.

    Raises InputError, whose line begins with `name`, that says what was found. The values are checked where they are
    used.
    """
    array = plain_array(name, X)
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise InputError(f"{name}: found {array.dtype} {array.shape}, wanted numbers (N, V)")
    if num_vars is not None and array.shape[1] != num_vars:
        raise InputError(f"{name}: found {array.shape[1]} variables, wanted the circuit's {num_vars}")
    return julia.lendable(array, np.float64)


def categories_of(table: Table, hidden: Mask | None = None, name: str = "X") -> int:
    """Count the categories of what is seen of a table: the largest value, plus 1.

    Raises InputError where those cannot be meant.
    """
    tops = table.max(axis=0, initial=0, where=True if hidden is None else ~hidden)
    top = int(tops.max(initial=0))
    if top >= max(MANY_CATEGORIES, CATEGORIES_A_ROW * len(table)):
        variable = int(tops.argmax())
        raise InputError(
            f"{name}: variable {variable}: found {top} in {len(table)} rows, "
            "wanted categories, numbered from 0 without large gaps (num_cats, where there are so many)"
        )
    return top + 1


def as_mask(mask: npt.ArrayLike | None, shape: tuple[int, ...], name: str = "mask") -> Mask:
    """Check that `mask` is bool (N, V), or (V,) for all rows, and return it as (N, V)."""
    array = plain_array(name, mask)
    if array.dtype != np.bool_ or array.shape not in (shape, shape[1:]):
        found = "None" if mask is None else f"{array.dtype} {array.shape}"
        raise InputError(f"{name}: found {found}, wanted bool {shape} or {shape[1:]}, True where a value is hidden")
    if array.size and array.view(np.uint8).max() > 1:  # bytes of another program: to numpy, all but 0 is True
        array = array.view(np.uint8) != 0
    return julia.lendable(np.broadcast_to(array, shape))


def as_heads(heads: npt.ArrayLike | None, n: int, num_heads: int, name: str = "heads") -> npt.NDArray[np.int32]:
    """Check that `heads` are integers (n,), or one for all rows, in 0..num_heads - 1; None is head 0 for all."""
    array = plain_array(name, 0 if heads is None else heads)
    if array.shape not in ((n,), ()) or array.dtype.kind not in "iu":
        raise InputError(f"{name}: found {array.dtype} {array.shape}, wanted integers ({n},)")
    if array.size and not (array.min() >= 0 and array.max() < num_heads):
        found = f"{array.min()}..{array.max()}" if array.ndim else array
        raise InputError(f"{name}: found {found}, wanted 0..{num_heads - 1}")
    return julia.lendable(np.broadcast_to(array, (n,)), np.int32)


def given_heads(heads: npt.ArrayLike, n: int, num_heads: int, name: str = "head") -> npt.NDArray[np.int32]:
    """As `as_heads`, of heads that must be named: None is refused."""
    if heads is None:
        raise InputError(f"{name}: found None, wanted 0..{num_heads - 1}")
    return as_heads(heads, n, num_heads, name)


MIXTURE: Literal["mixture"] = "mixture"
"""In place of a head: the mixture of all heads, by their prior weights."""


def mixed(scores: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Give log p of rows under the mixture of heads of such weights, float64 (n,), from each head's, (n, heads)."""
    with np.errstate(divide="ignore"):  # a head of weight 0 has no part
        found: npt.NDArray[np.float64] = np.logaddexp.reduce(scores + np.log(weights), axis=1)
    return found


def which_head(head: int | str, num_heads: int) -> int:
    """Check that `head` is one head, or "all": that is -1."""
    array = np.asarray(head)
    if array.ndim == 0 and array == "all":
        return -1
    if array.size != 1 or array.dtype.kind not in "iu":
        found = f"{array.dtype} {array.shape}" if array.ndim else repr(head)
        raise InputError(f"head: found {found}, wanted an integer or 'all'")
    return int(as_heads(array.item(), 1, num_heads, "head")[0])


def as_weights(weights: npt.ArrayLike | None, n: int, name: str = "weights") -> npt.NDArray[np.float32]:
    """Check that `weights` are numbers (n,), each 0 or of a size that single precision adds up; None is 1 for each."""
    if weights is None:
        return np.ones(n, np.float32)
    array = _numbers(weights, n, name)
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)  # in which the limits are above or below themselves, and allowed
    wrong = ~((array == 0) | ((single >= np.float32(_LEAST_WEIGHT)) & (single <= np.float32(_MOST_WEIGHT))))
    if wrong.any():
        row = int(wrong.argmax())
        wanted = f"0, or a number from {_LEAST_WEIGHT:g} to {_MOST_WEIGHT:g}"
        raise InputError(f"{name}: row {row}: found {array[row]:g}, wanted {wanted}")
    return single


def as_shares(weights: npt.ArrayLike | None, n: int, name: str) -> npt.NDArray[np.float64]:
    """Check that `weights` are finite numbers (n,), at least 0 and not all 0; scale them to sum to 1; None is equal."""
    array = _numbers(np.ones(n) if weights is None else weights, n, name)
    if not (np.isfinite(array) & (array >= 0)).all():
        raise InputError(f"{name}: found {array.min():g}..{array.max():g}, wanted finite numbers, at least 0")
    if not array.any():
        raise InputError(f"{name}: found zeros only, wanted at least one number above 0")
    array = array / array.max()  # the sum of numbers near the largest would be infinite
    return np.asarray(array / array.sum(), np.float64)


def _numbers(values: npt.ArrayLike, n: int, name: str) -> npt.NDArray[np.float64]:
    """Check that `values` are numbers (n,)."""
    array = plain_array(name, values)
    if array.shape != (n,) or array.dtype.kind not in "fiub":
        raise InputError(f"{name}: found {array.dtype} {array.shape}, wanted numbers ({n},)")
    return np.ascontiguousarray(array, np.float64)


def for_engine(table: Table, *, masked: bool = False) -> Table:
    """Take over a table of valid values as uint8, int32 or float64: the engine is compiled for few types."""
    as_it_is = table.dtype == np.float64 or (table.dtype == np.uint8 and not masked)
    return table if as_it_is else table.astype(np.int32, copy=False)


def mean_filled(table: Table, hidden: Mask | None) -> npt.NDArray[np.float32]:
    """Give rows for K-means: float32 (N, V), with the mean of what is seen of a variable where a value is hidden."""
    values = table.astype(np.float32)
    if hidden is None:
        return values
    total = np.where(hidden, 0, values).sum(axis=0, dtype=np.float64)
    return np.where(hidden, (total / np.maximum(1, (~hidden).sum(axis=0))).astype(np.float32), values)


def some_rows(n: int, wanted: int, seed: int) -> npt.NDArray[np.int64] | slice:
    """Choose at most `wanted` of n rows, in order: int64 (wanted,), or all, as they are."""
    if n <= wanted:
        return slice(None)
    rng = np.random.default_rng(seed % 2**64)  # numpy knows no negative seeds
    return np.sort(rng.choice(n, wanted, replace=False))
