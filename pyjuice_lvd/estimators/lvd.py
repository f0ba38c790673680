"""The estimators of latent variable distillation, over arrays of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.distill import distill
from pyjuice_lvd.estimators.base import DensityEstimator
from pyjuice_lvd.joint import JointModel
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.runs import read_toml, write_toml
from pyjuice_lvd.settings import Settings, resolve
from pyjuice_lvd.teacher import Teacher


class LVDPG(DensityEstimator):
    """Latent variable distillation with progressive growing: a density model of images with exact likelihoods.

    Parameters
    ----------
    preset : str, optional
        Shipped settings (`tiny`, `small`, ...); default: the defaults of docs/settings.md.
    config : str, path or mapping, optional
        Settings over the preset's: a TOML file, or nested tables such as `{"clusters": {"outer": 8}}`.
    random_state : int
        Seed of everything random.
    device : "auto", "cpu" or "cuda"
        Where the teacher runs.
    progress : Progress, optional
        Where the work is shown; default: nowhere.

    Attributes
    ----------
    model_ : JointModel
    teacher_ : Teacher
    settings_ : Settings

    """

    _method: ClassVar[str] = "lvd-pg"

    def __init__(
        self,
        *,
        preset: str | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        random_state: int = 0,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> None:
        self.preset = preset
        self.config = config
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def fit(self, X: npt.NDArray[np.uint8], y: object = None) -> Self:
        """Learn from images `X`, uint8 (N, H, W[, C]); some are set apart, by seed, to stop early by.

        Raises InputError where the images or a setting are not what is wanted.
        """
        self.settings_: Settings = resolve(
            self.preset, self.config, method=self._method, seed=self.random_state, device=self.device
        )
        train, valid = self._set_apart(self._checked(X))
        learned = distill(train, valid, self.settings_, progress=self.progress or SILENT)
        self.model_: JointModel = learned.model
        self.teacher_: Teacher = learned.teacher
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a folder of plain files."""
        self._check_fitted()
        folder = Path(path)
        self.model_.save(folder)
        self.teacher_.save(folder / "teacher.safetensors")
        write_toml(folder / "settings.toml", self.settings_.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; raises InputError where a file is missing or damaged."""
        folder = Path(path)
        settings = Settings.from_dict(read_toml(folder / "settings.toml"))
        estimator = cls(config=settings.to_dict(), random_state=settings.seed, device=settings.device)
        estimator.model_ = JointModel.load(folder)
        estimator.teacher_ = Teacher.load(folder / "teacher.safetensors", device=settings.device)
        estimator.settings_ = settings
        return estimator


class LVD(LVDPG):
    """One-shot latent variable distillation: clusters of the teacher's features as they are. Otherwise as LVDPG."""

    _method = "lvd"
