"""What the commands on a run's model share: loading it, and the file that they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.atomic import atomic_write, check_writable
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.settings import BASELINES, Settings


def load_model(directory: RunDirectory, settings: Settings) -> JointModel | CircuitModel:
    """Load the model of a finished run; Julia has been started."""
    kind = CircuitModel if settings.method in BASELINES else JointModel
    return kind.load(directory / "model")


def start_julia(settings: Settings, threads: int | None) -> None:
    """Start Julia with as many threads as the option says, or the run's settings do."""
    julia.start(threads=(settings.threads if threads is None else threads) or None)


def check_data(model: JointModel | CircuitModel, data: npt.NDArray[Any], name: str) -> None:
    """Raise InputError, whose line begins with `name`, where images or rows do not fit the model."""
    if isinstance(model, CircuitModel):
        model.rows(data, name)
    elif data.shape[1:] != model.image_shape:
        found = data.shape[1:]
        raise InputError(f"{name}: found images of {found}, wanted {model.image_shape} (height, width, channels)")


def _check_output(_: click.Context, __: click.Parameter, value: Path) -> Path:
    """Refuse, before any work is done, a file that could not be written in the end."""
    if value.suffix.lower() not in (".png", ".npy"):
        raise InputError(f"{value}: wanted a file named .png (a picture) or .npy (an array)")
    check_writable(value)
    return value


output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    callback=_check_output,
    help="FILE.png, a picture, or FILE.npy, an array.",
)
modes_option = click.option(
    "--biased-modes", is_flag=True, help="Most probable patches instead of samples: biased (docs/queries.md)."
)


def check_modes(biased_modes: bool, settings: Settings) -> None:
    """Raise InputError where a method has no z to draw and no patches to maximise."""
    if biased_modes and settings.method in BASELINES:
        raise InputError(f"--biased-modes: found method {settings.method}, wanted lvd-pg or lvd: a model with patches")


def write_npy(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write an array to a `.npy` file, aside and renamed."""
    array = np.ascontiguousarray(array)
    with atomic_write(path) as file:
        # Not np.save: where the disk is full, it says how many values were written and not why no more were.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
