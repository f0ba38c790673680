"""The model in a folder, of whatever kind it is."""

from __future__ import annotations

import os
from pathlib import Path

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.models.base import DensityModel, described
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.offsets import OffsetModel
from pyjuice_lvd.models.whole import CircuitModel

_KINDS: dict[str, type[DensityModel]] = {kind.format: kind for kind in (CircuitModel, JointModel, OffsetModel)}


def model_kind(folder: str | os.PathLike[str]) -> type[DensityModel]:
    """Say of which class the model in a folder is, by its `model.json`; no circuit is read, and Julia not started.

    Raises InputError where the file is missing, damaged or of no such class.
    """
    path = Path(folder)
    found = described(path)["format"]
    if found not in _KINDS:
        raise InputError(f"{path / names.DESCRIPTION}: found format {found!r}, wanted {' or '.join(map(repr, _KINDS))}")
    return _KINDS[found]


def load_model(folder: str | os.PathLike[str]) -> DensityModel:
    """Read what `DensityModel.save` wrote; raises InputError where a file is missing or damaged."""
    return model_kind(folder).load(folder)
