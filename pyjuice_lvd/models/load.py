"""The model in a folder, of whatever kind it is."""

from __future__ import annotations

import os

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.atomic import given_path
from pyjuice_lvd.models.base import DensityModel, described
from pyjuice_lvd.models.field import FieldModel
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.offsets import OffsetModel
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.models.windows import WindowModel
from pyjuice_lvd.settings import OF_PATCHES

_MODELS: tuple[type[DensityModel], ...] = (CircuitModel, JointModel, OffsetModel, FieldModel, WindowModel)
_KINDS = {kind.format: kind for kind in _MODELS}


def model_kind(folder: str | os.PathLike[str], method: str | None = None) -> type[DensityModel]:
    """Say of which class the model in a folder is, by its `model.json`; no circuit is read, and Julia not started.

    Raises InputError where the file is missing, damaged or of no such class, or of none that the method learns.
    """
    path = given_path(folder)
    found = described(path)["format"]
    if found not in _KINDS:
        raise InputError(f"{path / names.DESCRIPTION}: found format {found!r}, wanted {' or '.join(map(repr, _KINDS))}")
    kind = _KINDS[found]
    learned = (method in OF_PATCHES, method == "windows")
    if method is not None and (kind.latents, kind is WindowModel) != learned:
        raise InputError(f"{path / names.DESCRIPTION}: found format {found!r}, wanted a model that {method} learns")
    return kind


def load_model(folder: str | os.PathLike[str], method: str | None = None) -> DensityModel:
    """Read what `DensityModel.save` wrote; raises InputError as `model_kind`, and where another file is damaged."""
    return model_kind(folder, method).load(folder)
