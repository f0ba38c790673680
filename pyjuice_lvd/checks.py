"""Checks of parameters that are single values: their types and ranges, in one line that names what is wrong."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from numbers import Integral, Real
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import numpy as np

from pyjuice_lvd.errors import InputError

_T = TypeVar("_T")

_WORDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
_ACCEPTED = {int: Integral, float: Real, str: str, bool: bool}


def typed(name: str, value: object, wanted: type[_T]) -> _T:
    """Check that a value is an int, float, str or bool, or a tuple of such (`tuple[float, float]`); Python's own.

    Numpy's scalars and arrays count as Python's numbers and lists, integers as numbers, lists as tuples; a bool is no
    integer. Raises InputError that says what was found.
    """
    value = _plain(value)
    kind: Any = wanted
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise InputError(f"{name}: found {_shown(value)}, wanted a list of {len(kinds)} values")
        return cast(_T, tuple(typed(name, item, each) for item, each in zip(value, kinds, strict=True)))
    if isinstance(value, _ACCEPTED[kind]) and (kind is bool or not isinstance(value, bool)):
        return cast(_T, kind(value))
    found = _WORDS.get(type(value), type(value).__name__)
    raise InputError(f"{name}: found {_shown(value)} ({found}), wanted {_WORDS[kind]}")


def type_fields(settings: object, section: str) -> None:
    """Give the fields of a frozen dataclass the types that it declares; raises InputError as `typed` does."""
    for name, kind in get_type_hints(type(settings)).items():
        if not is_dataclass(kind):
            object.__setattr__(settings, name, typed(f"{section}{name}", getattr(settings, name), kind))


def integer(name: str, value: object, least: int = -(2**63)) -> int:
    """Check that a value is an integer of 64 bits, and not below `least`."""
    found = typed(name, value, int)
    require(found < 2**63, name, found, "an integer of 64 bits")
    at_least(name, found, least)
    return found


def integers(**values: object) -> list[int]:
    """Check several such, by name; their ranges are left to whom they are for."""
    return [integer(name, value) for name, value in values.items()]


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


def require(ok: bool, name: str, value: object, wanted: str) -> None:
    """Raise InputError unless `ok`."""
    if not ok:
        raise InputError(f"{name}: found {_shown(value)}, wanted {wanted}")


def one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Check that a value is one of the choices."""
    require(_plain(value) in choices, name, value, f"one of {', '.join(map(str, choices))}")


def at_least(name: str, value: int, least: int) -> None:
    """Check an integer's range."""
    require(value >= least, name, value, f"at least {least}")


def nonnegative(name: str, value: float) -> None:
    """Check that a number is finite, and not negative."""
    require(0 <= value < math.inf, name, value, "a finite number, 0 or above")


def check_pseudocount(name: str, value: float) -> None:
    """Check that a number is a pseudocount that the engine can work with (`check_pseudocount` in learning/em.jl)."""
    require(value == 0 or 1e-30 <= value <= 1e20, name, value, "a finite number, 0 or above: 0, or 1e-30 to 1e20")


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _shown(value: object) -> str:
    """Show a value in one line, not a long one."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 80 else f"{line[:77]}..."
