"""Settings as nested tables, as TOML has them: names, types and ranges, checked against what declares them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar, TypeVar, get_type_hints

from pyjuice_lvd.checks import require, typed
from pyjuice_lvd.errors import InputError

_T = TypeVar("_T", bound="Section")


class Section:
    """A table of settings: a subclass is a frozen dataclass, whose fields have the types and ranges that it declares.

    `table` is its name; the root has none. A value of the wrong type or out of range is an InputError.
    """

    _table: ClassVar[str] = ""

    def __init_subclass__(cls, table: str = "") -> None:
        cls._table = table

    def __post_init__(self) -> None:
        for key, kind in kinds(type(self)).items():
            value = getattr(self, key)
            if _is_section(kind):
                require(isinstance(value, kind), key, value, kind.__name__)
            else:
                object.__setattr__(self, key, typed(_full(self._table, key), value, kind))


def _kinds(cls: type) -> dict[str, Any]:
    return {key: kind for key, kind in get_type_hints(cls, include_extras=True).items() if not key.startswith("_")}


kinds: Callable[[type], dict[str, Any]] = cache(_kinds)
"""Gives the types of a section's fields, annotated with their ranges."""


def names(root: type) -> list[str]:
    """Name every setting, as `seed` and `circuit.latents`."""
    return [
        _full(key, name) if name else key
        for key, kind in kinds(root).items()
        for name in (kinds(kind) if _is_section(kind) else [""])
    ]


def missing(root: type, table: Mapping[str, Any]) -> list[str]:
    """Name the settings that a nested table has not, in order; those of a section that is no table are there."""
    return [name for name in names(root) if not _has(table, name.split("."))]


def _has(table: Any, keys: list[str]) -> bool:
    return not isinstance(table, Mapping) or not keys or (keys[0] in table and _has(table[keys[0]], keys[1:]))


def from_table(cls: type[_T], table: Mapping[str, Any]) -> _T:
    """Make settings from nested tables; raises InputError as `checked` does."""
    return _made(cls, checked(cls, table))


def checked(root: type, table: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Give the values of nested tables the types that the settings have; `source` begins every message.

    Raises InputError for an unknown name, which says the nearest one, and for a value of the wrong type or range.
    """
    return _checked(root, root, table, "", source)


def merged(table: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested table over another."""
    both = dict(table)
    for key, value in layer.items():
        both[key] = merged(both.get(key, {}), value) if isinstance(value, Mapping) else value
    return both


def lists(value: Any) -> Any:
    """Turn tuples into lists, which TOML and JSON have."""
    if isinstance(value, dict):
        return {key: lists(item) for key, item in value.items()}
    return [lists(item) for item in value] if isinstance(value, tuple) else value


def _checked(root: type, cls: type, table: Mapping[str, Any], section: str, source: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        name, kind = _full(section, key), kinds(cls).get(key)
        if kind is None:
            raise InputError(f"{source}unknown setting {name}; {_nearest(root, cls, section, str(key))}")
        if _is_section(kind):
            if not isinstance(value, Mapping):
                raise InputError(f"{source}{name}: found {value!r}, wanted a table [{name}]")
            found[key] = _checked(root, kind, value, name, source)
        else:
            found[key] = typed(f"{source}{name}", value, kind)
    return found


def _made(cls: type[_T], table: Mapping[str, Any]) -> _T:
    of = kinds(cls)
    return cls(**{key: _made(of[key], value) if _is_section(of[key]) else value for key, value in table.items()})


def _nearest(root: type, cls: type, section: str, key: str) -> str:
    """Name the setting that `key` may stand for, or all that its section has."""
    near = difflib.get_close_matches(key, kinds(cls), n=1)
    if near:
        return f"did you mean {_full(section, near[0])}?"
    # Right key, wrong section: `latents` for `circuit.latents`.
    elsewhere = [name for name in names(root) if name.rpartition(".")[2] == key]
    return f"did you mean {' or '.join(elsewhere)}?" if elsewhere else f"valid are {', '.join(kinds(cls))}"


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _full(section: str, key: object) -> str:
    return f"{section}.{key}" if section else str(key)
