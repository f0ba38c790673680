"""What the commands on a run's model share: the run, checked before anything slow starts, and the file they write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.data.load import load_test_data
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.atomic import check_writable
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.models.base import DensityModel
from pyjuice_lvd.models.load import model_kind
from pyjuice_lvd.settings import Settings


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, its settings, and of which class its model is, which is not loaded yet."""

    directory: RunDirectory
    settings: Settings
    kind: type[DensityModel]

    @classmethod
    def open(cls, path: Path, *, biased_modes: bool = False) -> Run:
        """Open a run; raises InputError where there is none, or its model has no patches to take the modes of."""
        directory = RunDirectory.open_existing(path)
        settings = Settings.from_dict(directory.settings)
        kind = model_kind(directory / names.MODEL)
        if biased_modes and not kind.latents:
            raise InputError(
                f"--biased-modes: found method {settings.method}, wanted lvd-pg or lvd: a model with patches"
            )
        return cls(directory, settings, kind)

    @property
    def method(self) -> str:
        """The method that it was fitted by."""
        return self.settings.method

    def test_data(self, data: str) -> tuple[npt.NDArray[Any], str]:
        """Load what of DATA the run may be tested on, and say in one line what it is (`data.load.load_test_data`)."""
        return load_test_data(data, self.settings, digest=self.directory.data["digest"])

    def load(self) -> DensityModel:
        """Load the model; starts Julia, if it does not run yet."""
        return self.kind.load(self.directory / names.MODEL)

    def protocol(self, model: DensityModel) -> dict[str, Any]:
        """Say what a bpd of the model is a bpd of."""
        return model.protocol(self.settings.data.crop)


def start_julia(settings: Settings, threads: int | None) -> None:
    """Start Julia with as many threads as the option says, or the run's settings do."""
    julia.start(threads=(settings.threads if threads is None else threads) or None)


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
