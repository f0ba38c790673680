"""Settings as runs and models keep them: all of them, with the version that wrote them, and read by later versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.settings.sections import (
    CircuitSettings,
    EinetSettings,
    HCLTSettings,
    OffsetSettings,
    Settings,
    SparseHCLTSettings,
    WindowSettings,
)
from pyjuice_lvd.settings.tables import checked, merged, missing
from pyjuice_lvd.versions import version_of

VERSION = "version"
"""The entry, beside the settings, that says which version of lvd-juice wrote them."""


def before(table: Mapping[str, Any]) -> dict[str, Any]:
    """Say, for each setting that came later than a run could be, what was done without it: by name.

    `table` are the settings that the run has. A new setting gets a line here, and keeps it.
    """
    circuit, hclt = table.get("circuit", {}), table.get("hclt", {})
    return {
        "data.flip": False,
        "clusters.tied": True,
        "refining.rounds": 0,
        "circuit.start": "random",
        "circuit.patience": 0,
        "growing.epochs": circuit.get("epochs", CircuitSettings.epochs),
        "prior.memory": 4.0,  # the same outcome
        "finetuning.epochs": 0,
        "finetuning.candidates": 0,
        "hclt.leaves": "categorical",
        "rat_spn.leaves": "categorical",
        **{f"offsets.{key}": value for key, value in vars(OffsetSettings()).items()},  # none: the others do nothing
        "hclt.search": False,
        "hclt.start": "random",
        **{f"sparse_hclt.{key}": value for key, value in vars(SparseHCLTSettings()).items()},
        "sparse_hclt.step_size": hclt.get("step_size", HCLTSettings.step_size),
        **{f"einet.{key}": value for key, value in vars(EinetSettings()).items()},  # of a method that there was not
        **{f"windows.{key}": value for key, value in vars(WindowSettings()).items()},
    }


def kept(settings: Settings) -> dict[str, Any]:
    """Give settings as they are kept: nested tables of TOML values, and the version that this is."""
    return {VERSION: version_of("lvd-juice") or "unknown", **settings.to_dict()}


def restored(table: Mapping[str, Any], source: str = "", *, whole: bool = True) -> Settings:
    """Make settings of what was kept, by this version or by another; `source` begins every message.

    What an earlier version did not know is set to what it did. Raises InputError as `Settings.from_dict` does, and
    as `check_whole` unless only some were kept.
    """
    found = {key: value for key, value in table.items() if key != VERSION}
    own, this = table.get(VERSION), version_of("lvd-juice")
    try:
        given = checked(Settings, found, source)
        if whole:
            check_whole(table, source)
        return Settings.from_dict(merged(_old(found), given))
    except InputError as error:
        by = f"; it was written by version {own} of lvd-juice, this is {this}" if own not in (None, this) else ""
        said = str(error)  # of settings that do not go together, without the source
        raise InputError(f"{said if said.startswith(source) else source + said}{by}") from error


def check_whole(table: Mapping[str, Any], source: str = "") -> None:
    """Raise InputError where a setting is missing that was kept: the file was cut short.

    From before there was a version, whole sections may be missing.
    """
    for name in missing(Settings, merged(_old(table), table)):
        if VERSION in table or name.rpartition(".")[0] in ("", *table):
            raise InputError(f"{source}has no {name}: damaged, wanted all settings")


def _old(table: Mapping[str, Any]) -> dict[str, Any]:
    """Give what `before` says, as nested tables."""
    old: dict[str, Any] = {}
    for name, value in before(table).items():
        section, _, key = name.partition(".")
        old.setdefault(section, {})[key] = value
    return old
