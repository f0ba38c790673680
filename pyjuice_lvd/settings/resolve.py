"""How presets, files and options are put together to a run's settings."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from pyjuice_lvd.checks import one_of, require
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_toml
from pyjuice_lvd.settings.choices import SECTIONS, VARIANTS, WITHOUT_OFFSETS
from pyjuice_lvd.settings.kept import VERSION
from pyjuice_lvd.settings.sections import Settings
from pyjuice_lvd.settings.tables import checked, merged


def preset_names() -> tuple[str, ...]:
    """Name the presets that come with the package."""
    files = resources.files("pyjuice_lvd.settings.presets").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def resolve(
    preset: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
    *,
    base: Settings | None = None,
    method: str | None = None,
    color: str | None = None,
    crop: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Settings:
    """Put settings together, each layer over the ones before it.

    - `base`: what to start from, such as the settings of a run that is resumed; None: the defaults
    - `preset`: the name of a TOML file that comes with the package (see `preset_names`)
    - `config`: the path of a TOML file, or nested tables as it would have them
    - `assignments`: texts `section.key=value` with TOML's values, where a bare word is a string
    - `method`, `color` and `crop` (of `[data]`), `seed`, `threads`, `device`: single settings; None: not given

    Raises InputError that names the preset, file, assignment or setting, what was found and what is wanted.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    if preset is not None:
        one_of("preset", preset, preset_names())
        text = (resources.files("pyjuice_lvd.settings.presets") / f"{preset}.toml").read_text(encoding="utf-8")
        layers.append((f"preset {preset}: ", tomllib.loads(text)))
    if isinstance(config, Mapping):
        layers.append(("", _settings_only(config)))
    elif config is not None:
        require(isinstance(config, str | os.PathLike), "config", config, "the path of a TOML file, or nested tables")
        layers.append((f"{os.fspath(config)}: ", _settings_only(read_toml(config))))
    layers += [(f"--set {text}: ", _assignment(text)) for text in assignments]
    options = {"method": method, "seed": seed, "threads": threads, "device": device}
    data = {"color": color, "crop": crop}
    layers.append(("", {**_given(options), "data": _given(data)}))

    given: dict[str, Any] = {}
    for source, layer in layers:
        given = merged(given, checked(Settings, layer, source))
    # What a variant of progressive growing sets lies under all that is set, in whichever layer.
    variant = VARIANTS.get(given.get("growing", {}).get("variant"), {})
    table = (Settings() if base is None else base).to_dict()
    return Settings.from_dict(merged(merged(table, {"growing": variant}), given))


def without_use(assignments: Iterable[str], settings: Settings) -> list[str]:
    """Name those of the assignments, in order, whose section the method has no use for, or not with these offsets."""
    used = set(SECTIONS[settings.method]) - set(WITHOUT_OFFSETS if settings.offsets.steps else ["offsets"])
    if settings.offsets.steps and settings.offsets.trees == "chow-liu":
        used.add("prior")
    sections = {name for own in SECTIONS.values() for name in own} - used
    return [text for text in assignments if sections & set(_assignment(text))]


def _settings_only(table: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the version that a run's own settings.toml has."""
    return {key: value for key, value in table.items() if key != VERSION}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _assignment(text: str) -> dict[str, Any]:
    """Turn `section.key=value` into nested tables."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not name or not equals:
        raise InputError(f"--set {text}: wanted section.key=value")
    try:
        table = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        if re.search(r"[\s\"'\[\]{}#=]", value):  # broken TOML rather than a bare word
            raise InputError(f"--set {text}: found {value!r}, wanted a TOML value or a bare word") from None
        table = {"value": value}
    if len(table) > 1:  # a line break in the text, and further keys behind it
        raise InputError(f"--set {text!r}: wanted one section.key=value")
    tree: Any = table["value"]
    for part in reversed(name.split(".")):
        tree = {part: tree}
    return dict(tree)
