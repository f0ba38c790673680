"""Checks of parameters that are single values: their types and ranges, in one line that names what is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.errors import InputError

_T = TypeVar("_T")

_WORDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
_ACCEPTED = {int: Integral, float: Real, str: str, bool: bool}


@dataclass(frozen=True)
class Within:
    """The range of a value: `Annotated[int, Within(lambda n: n > 0, "above 0")]` is a type that `typed` knows."""

    holds: Callable[[Any], bool]
    wanted: str


def least(number: int) -> Within:
    """Give the range from a number on."""
    return Within(lambda value: value >= number, f"at least {number}")


def among(*choices: object) -> Within:
    """Give the range of some values."""
    return Within(lambda value: value in choices, f"one of {', '.join(map(str, choices))}")


NONNEGATIVE = Within(lambda value: 0 <= value < math.inf, "a finite number, 0 or above")
POSITIVE = Within(lambda value: 0 < value < math.inf, "a finite number above 0")
PSEUDOCOUNT = Within(
    lambda value: value == 0 or 1e-30 <= value <= 1e20, "a finite number, 0 or above: 0, or 1e-30 to 1e20"
)
"""What the engine can work with (`check_pseudocount` in learning/em.jl)."""
CROP = Within(
    lambda crop: crop == "" or re.fullmatch("0*[1-9][0-9]{0,8}x0*[1-9][0-9]{0,8}", crop) is not None,
    "HxW in pixels, such as 16x16",
)
"""A crop as text; empty: none."""


def typed(name: str, value: object, wanted: type[_T]) -> _T:
    """Check that a value is an int, float, str or bool, or a tuple of such; returns Python's own.

    Tuples are of a length, `tuple[float, float]`, or of any, `tuple[int, ...]`.
    Numpy's scalars and arrays count as Python's numbers and lists, integers as numbers, lists as tuples; a bool is no
    integer. An annotated type may say its range by `Within`. Raises InputError that says what was found.
    """
    value = _plain(value)
    kind: Any = wanted
    if get_origin(kind) is Annotated:
        found = typed(name, value, get_args(kind)[0])
        for within in get_args(kind)[1:]:
            require(within.holds(found), name, found, within.wanted)
        return cast(_T, found)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        length = None if kinds[1:] == (...,) else len(kinds)
        if not isinstance(value, list | tuple) or length not in (None, len(value)):
            wanted_list = "a list" if length is None else f"a list of {length} values"
            raise InputError(f"{name}: found {_shown(value)}, wanted {wanted_list}")
        kinds = kinds if length else kinds[:1] * len(value)
        return cast(_T, tuple(typed(name, item, each) for item, each in zip(value, kinds, strict=True)))
    if isinstance(value, _ACCEPTED[kind]) and (kind is bool or not isinstance(value, bool)):
        try:
            return cast(_T, kind(value))
        except OverflowError:
            raise InputError(f"{name}: found {_shown(value)}, wanted a number of double precision") from None
    found_kind = _WORDS.get(type(value), type(value).__name__)
    raise InputError(f"{name}: found {_shown(value)} ({found_kind}), wanted {_WORDS[kind]}")


def integer(name: str, value: object, least: int = -(2**63)) -> int:
    """Check that a value is an integer of 64 bits, and not below `least`."""
    found = typed(name, value, int)
    require(found < 2**63, name, found, "an integer of 64 bits")
    require(found >= least, name, found, f"at least {least}")
    return found


def integers(**values: object) -> list[int]:
    """Check several such, by name; their ranges are left to whom they are for."""
    return [integer(name, value) for name, value in values.items()]


def flags(**values: object) -> None:
    """Check that each is true or false, by name: a word such as "no" would count as true."""
    for name, value in values.items():
        typed(name, value, bool)


def number(name: str, value: object) -> float:
    """Check that a value is a number; its range is left to whom it is for."""
    return typed(name, value, float)


def step_sizes(value: object) -> tuple[float, float]:
    """Check EM's step sizes in the first and the last epoch, or one for all; their range is left to EM."""
    value = _plain(value)
    if isinstance(value, list | tuple):
        return typed("step_size", value, tuple[float, float])
    step = number("step_size", value)
    return step, step


def parse_crop(crop: str | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width) of a crop given as "HxW", as (H, W), or not at all ("" or None); else InputError."""
    if crop is None or isinstance(crop, str):
        require(CROP.holds(crop or ""), "crop", crop, CROP.wanted)
        return cast(tuple[int, int], tuple(map(int, crop.split("x")))) if crop else None
    height, width = typed("crop", crop, tuple[int, int])
    require(height >= 1 and width >= 1, "crop", crop, CROP.wanted)
    return height, width


def one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Check that a value is one of the choices."""
    within = among(*choices)
    require(within.holds(_plain(value)), name, value, within.wanted)


def nonnegative(name: str, value: float) -> None:
    """Check that a number is finite, and not negative."""
    require(NONNEGATIVE.holds(value), name, value, NONNEGATIVE.wanted)


def function(name: str, value: object) -> None:
    """Check that a value is something to call, or None."""
    require(value is None or callable(value), name, value, "a function, or None")


def plain_array(name: str, value: npt.ArrayLike | None) -> npt.NDArray[Any]:
    """Take over an array, or what makes one; raises InputError where numpy's mask hides some of it, or it is ragged.

    numpy itself would give what lies beneath the mask.
    """
    if hasattr(value, "toarray"):  # scipy's
        raise InputError(f"{name}: found a sparse {type(value).__name__}, wanted a dense array (.toarray())")
    parts = value if isinstance(value, list | tuple) else (value,)
    hidden = sum(int(np.ma.getmaskarray(part).sum()) for part in parts if isinstance(part, np.ma.MaskedArray))
    if hidden:
        found = f"a masked array with {hidden} hidden values"
        raise InputError(f"{name}: found {found}, wanted a plain array (mask= says what is hidden, where it is taken)")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name}: found {_shown(value)}, wanted an array: rows of one length ({error})") from error


def require(ok: bool, name: str, value: object, wanted: str) -> None:
    """Raise InputError unless `ok`."""
    if not ok:
        raise InputError(f"{name}: found {_shown(value)}, wanted {wanted}")


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _shown(value: object) -> str:
    """Show a value in one line, not a long one."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 80 else f"{line[:77]}..."
