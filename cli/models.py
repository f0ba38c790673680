"""What the commands on a run's model share: the run, checked before anything slow starts, and the file they write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from pyjuice_lvd.data.load import load_all_data, load_test_data
from pyjuice_lvd.data.source import column_name
from pyjuice_lvd.data.splits import TestPart
from pyjuice_lvd.distributed import start_together
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.atomic import check_writable
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.models.base import DensityModel, described
from pyjuice_lvd.models.load import model_kind
from pyjuice_lvd.progress import Progress
from pyjuice_lvd.settings import Settings, restored

from .options import PATH

SUFFIX = ".lvdz"
"""Of a compressed file's name."""


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
        settings = restored(directory.settings, f"{path / names.SETTINGS}: ")
        kind = model_kind(directory / names.MODEL, settings.method)
        if biased_modes and not kind.latents:
            raise InputError(
                f"--biased-modes: found method {settings.method}, wanted lvd-pg or lvd: a model with patches"
            )
        return cls(directory, settings, kind)

    @property
    def method(self) -> str:
        """The method that it was fitted by."""
        return self.settings.method

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """The (H, W, C) of the model's images, or None: a model of tables."""
        shape = described(self.directory / names.MODEL).get("image_shape")
        return None if shape is None else (shape[0], shape[1], shape[2])

    @property
    def dims(self) -> int:
        """Values of an image, H W C, or of a row; as far as it is known without the model."""
        shape = self.image_shape or self.directory.data.get("train", (1, 1))[1:]
        return math.prod(shape)

    def test_data(self, data: str, progress: Progress) -> TestPart:
        """Load what of DATA the run may be tested on; raises InputError where the model is not one of such data."""
        return self._checked(
            data, load_test_data(data, digest=self.directory.data["digest"], **self.settings.loading), progress
        )

    def data_to_code(self, data: str, progress: Progress, *, test_only: bool) -> TestPart:
        """Load what of DATA is to be compressed, as it is; errors as for `test_data`."""
        if not test_only:
            found = load_all_data(data, method=self.method, size=self.settings.data.size)
            part = self._checked(data, found, progress)
        elif self.settings.data.crop:
            raise InputError(f"--test: the run crops images to {self.settings.data.crop}, which cannot be undone")
        else:
            part = self.test_data(data, progress)
        if part.data.ndim == 2 and (part.data < 0).any():
            row, column = np.argwhere(part.data < 0)[0]
            where = f"row {row}, {column_name(part.columns, column)}"
            raise InputError(f"{data}: found a missing value in {where}, wanted complete rows to compress")
        return part

    def check_codec(self) -> None:
        """Raise InputError where the model cannot compress; it is not loaded."""
        self.kind.check_codec(described(self.directory / names.MODEL).get("color"))

    def _checked(self, data: str, test: TestPart, progress: Progress) -> TestPart:
        """Check that data are such as the model learned from."""
        about = self.directory.data
        shape = self.image_shape
        if (shape is None) != (test.data.ndim == 2):
            wanted = "integers (N, V)" if shape is None else f"images {shape}"
            raise InputError(f"{data}: found {test.data.dtype} {test.data.shape}, wanted {wanted} as in training")
        if shape is not None and test.data.shape[1:] != shape:
            raise InputError(f"{data}: found images of {test.data.shape[1:]}, wanted {shape} (height, width, channels)")
        if shape is None:
            categories = described(self.directory / names.MODEL)["num_cats"]
            _check_columns(data, test, about.get("columns", ()), about.get("train", test.data.shape)[1], categories)
        for note in test.notes:
            progress.log(f"{data}: {note}")
        return test

    def load(self) -> DensityModel:
        """Load the model; starts Julia, if it does not run yet."""
        return self.kind.load(self.directory / names.MODEL)

    def protocol(self, model: DensityModel) -> dict[str, Any]:
        """Say what a bpd of the model is a bpd of."""
        return model.protocol(self.settings.data.crop)


def _check_columns(data: str, test: TestPart, names: Sequence[str], width: int, categories: int) -> None:
    """Check the columns of a table, their names and their categories against those that the model learned from."""
    if test.data.shape[1] != width:
        raise InputError(f"{data}: found {test.data.shape[1]} variables, wanted the model's {width}")
    if names and test.columns and tuple(names) != test.columns:
        index = next(index for index, pair in enumerate(zip(names, test.columns, strict=True)) if len(set(pair)) > 1)
        order = ", in the order of training" if sorted(names) == sorted(test.columns) else " as in training"
        raise InputError(f"{data}: found {column_name(test.columns, index)}, wanted {names[index]}{order}")
    largest = test.data.max(axis=0)
    if largest.max() >= categories:
        index = int(largest.argmax())
        raise InputError(
            f"{data}: found {largest[index]} in {column_name(test.columns or names, index)}; "
            f"wanted the categories that the model was fitted with, 0..{categories - 1}"
        )


def start_julia(settings: Settings, threads: int | None) -> None:
    """Start Julia with as many threads as the option says, or the run's settings do."""
    start_together((settings.threads if threads is None else threads) or None)


def _check_output(_: click.Context, __: click.Parameter, value: Path) -> Path:
    """Refuse, before any work is done, a file that could not be written in the end."""
    if value.suffix.lower() not in (".png", ".npy"):
        raise InputError(f"{value}: wanted a file named .png (a picture) or .npy (an array)")
    check_writable(value)
    return value


output_option = click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    callback=_check_output,
    help="FILE.png, a picture, or FILE.npy, an array.",
)
exact_option = click.option(
    "--exact",
    is_flag=True,
    help="Leave colours outside the RGB cube as the model has them, wrapped around (docs/queries.md).",
)
modes_option = click.option(
    "--biased-modes", is_flag=True, help="Most probable patches instead of samples: biased (docs/queries.md)."
)
