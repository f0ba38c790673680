"""What the commands on a run's model share: loading it, and the file that they write."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit_model import CircuitModel
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.joint import JointModel
from pyjuice_lvd.runs import RunDirectory, atomic_write
from pyjuice_lvd.settings import BASELINES, Settings


def load_model(directory: RunDirectory, settings: Settings) -> JointModel | CircuitModel:
    """Load the model of a finished run; Julia has been started."""
    kind = CircuitModel if settings.method in BASELINES else JointModel
    return kind.load(directory / "model")


def start_julia(settings: Settings, threads: int | None) -> None:
    """Start Julia with as many threads as the option says, or the run's settings do."""
    julia.start(threads=(settings.threads if threads is None else threads) or None)


def _check_output(_: click.Context, __: click.Parameter, value: Path) -> Path:
    """Refuse, before any work is done, a file that could not be written in the end."""
    if value.suffix.lower() not in (".png", ".npy"):
        raise InputError(f"{value}: wanted a file named .png (a picture) or .npy (an array)")
    if not value.parent.is_dir():
        raise InputError(f"{value}: there is no folder {value.parent} to write it to")
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
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)
