"""scikit-learn estimators: fit, score, save and load, over arrays of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_is_fitted

from pyjuice_lvd.distill import distill
from pyjuice_lvd.images import as_images, crop_images
from pyjuice_lvd.joint import JointModel
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.runs import read_toml, write_toml
from pyjuice_lvd.settings import Settings, resolve
from pyjuice_lvd.teacher import Teacher


class LVD(DensityMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no type hints
    """One-shot latent variable distillation: a density model of images with exact likelihoods.

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
        settings = resolve(self.preset, self.config, seed=self.random_state, device=self.device)
        self.settings_: Settings = settings
        images = self._images(X)
        order = np.random.default_rng(settings.seed).permutation(len(images))
        held_out = max(1, round(settings.data.valid_fraction * len(images)))
        learned = distill(
            images[np.sort(order[held_out:])],
            images[np.sort(order[:held_out])],
            settings,
            progress=self.progress or SILENT,
        )
        self.model_: JointModel = learned.model
        self.teacher_: Teacher = learned.teacher
        return self

    def score_samples(self, X: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """log p(x) of every image, float64 (N,), in nats."""
        check_is_fitted(self)
        return self.model_.score_samples(self._images(X), progress=self.progress or SILENT)

    def score(self, X: npt.NDArray[np.uint8], y: object = None) -> float:
        """Mean log p(x) in nats."""
        return float(self.score_samples(X).mean())

    def bpd(self, X: npt.NDArray[np.uint8]) -> float:
        """Bits per dimension, in the protocol of the settings (`settings_.data`: colour transform and crop)."""
        check_is_fitted(self)
        return self.model_.bpd(self._images(X))

    def _images(self, X: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return crop_images(as_images(X, "X"), self.settings_.data.crop or None, "X")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a folder of plain files."""
        check_is_fitted(self)
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
