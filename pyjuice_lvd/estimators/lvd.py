"""The estimators of latent variable distillation, over arrays of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from pyjuice_lvd.circuit.devices import use_device
from pyjuice_lvd.estimators.base import DensityEstimator, RandomState, model_folder, seed_of
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import read_table, write_json
from pyjuice_lvd.large import take
from pyjuice_lvd.learn.features import about, as_features, of_images
from pyjuice_lvd.learn.pipeline import distill
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.shapes import ShapeModel
from pyjuice_lvd.progress import Progress
from pyjuice_lvd.teacher import Teacher


class LVDPG(DensityEstimator):
    """Latent variable distillation with progressive growing: a density model of images with exact likelihoods.

    Parameters
    ----------
    preset : str, optional
        Shipped settings (`tiny`, `small`, ...); default: the defaults of docs/settings.md.
    config : str, path or mapping, optional
        Settings over the preset's: a TOML file, or nested tables such as `{"clusters": {"outer": 8}}`.
    random_state : int, RandomState or None
        Seed of everything random, as scikit-learn has it: None draws one.
    device : "auto", "cpu" or "cuda"
        Where the teacher runs, and with "cuda" the circuits learn; "auto": the teacher on a GPU, if there is one.
    progress : Progress, optional
        Where the work is shown; default: nowhere.

    Attributes
    ----------
    model_ : JointModel, OffsetModel or FieldModel
    teacher_ : Teacher or None
        None where `fit` was given features.
    features_ : dict or None
        The `shape` and `digest` of the features that were learned from, where `fit` was given them.
    settings_ : Settings
    n_features_in_ : int
        Dimensions of an image, H W C.

    """

    _method: ClassVar[str] = "lvd-pg"
    _parameters: ClassVar[tuple[str, ...]] = ("device",)

    def __init__(
        self,
        *,
        preset: str | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        random_state: RandomState = 0,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> None:
        self.preset = preset
        self.config = config
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def fit(
        self, X: npt.NDArray[np.uint8], y: object = None, *, features: npt.NDArray[np.floating[Any]] | None = None
    ) -> Self:
        """Learn from images; some are set apart, by seed, to stop early by.

        Parameters
        ----------
        X : uint8 (N, H, W[, C])
            Images.
        y : object
            Not used.
        features : floats (N, P, D), optional
            Of the images' patches, of any encoder: P patch positions, row by row, of the images as they are modelled
            (`data.crop`). No teacher is trained then. Training sees mirror images (`data.flip`) only where they have
            features, too: (2 N, P, D), those of the images, then those of the images mirrored left to right,
            `X[:, :, ::-1]` (docs/features.md).

        Raises
        ------
        InputError
            Where the images, the features or a setting are not what is wanted.

        """
        self.settings_ = self._resolved()
        data = self._checked(X, fitting=True)
        train, valid = self._parts(len(data))
        own = None
        if features is not None:
            own = of_images(as_features(features, data.shape, self.settings_), train, len(data))
        if self.settings_.threads:
            torch.set_num_threads(self.settings_.threads)
        with use_device(self.settings_.device):
            learned = distill(take(data, train), take(data, valid), self.settings_, features=own, progress=self._shown)
        self.model_: JointModel | ShapeModel = learned.model
        self.teacher_: Teacher | None = learned.teacher
        self.features_: dict[str, Any] | None = None if own is None else about(own)
        self.n_features_in_ = self.model_.dims
        return self

    def sample(
        self, n: int = 1, *, random_state: RandomState = 0, exact: bool = False, biased_modes: bool = False
    ) -> npt.NDArray[np.uint8]:
        """Draw samples: uint8 (n, H, W, C).

        Of the colour transform `ycocg`, a colour outside the RGB cube goes to the nearest one inside; not so with
        `exact`: the same draws, samples of the model as they are. With `biased_modes` they are no samples of the model:
        z is drawn, each patch is then the most probable one of its head (`JointModel.sample`).
        """
        self._check_fitted()
        seed = seed_of(random_state)
        return self.model_.sample(n, seed=seed, exact=exact, biased_modes=biased_modes, progress=self._shown)

    def inpaint(
        self,
        X: npt.NDArray[np.uint8],
        mask: npt.ArrayLike | None = None,
        *,
        n_samples: int = 8,
        random_state: RandomState = 0,
        exact: bool = False,
        biased_modes: bool = False,
    ) -> npt.NDArray[np.uint8]:
        """Draw samples of what is hidden, given the rest: uint8 (n_samples, N, H, W, C).

        X : uint8 (N, H, W[, C]). mask : bool (H, W), (N, H, W) or (N, H, W, C), True where a pixel is hidden; with a
        colour transform, which mixes channels, whole pixels only. Known pixels are as in X. `exact` and `biased_modes`
        as for `sample`. Raises InputError where X or the mask does not fit the model, or p is 0 for what is known.
        """
        data, hidden = self._question(X, mask)
        seed = seed_of(random_state)
        return self.model_.inpaint(
            data, hidden, n_samples=n_samples, seed=seed, exact=exact, biased_modes=biased_modes, progress=self._shown
        )

    def posterior(self, X: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
        """p(z_i = k | what is known of the image), exact: float64 (N, P, K). `X`, `mask`, errors: as for `inpaint`."""
        data, hidden = self._question(X, mask)
        return self.model_.posterior(data, mask=hidden, progress=self._shown)

    def patch_anomaly(self, X: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """-log p(x_i | all other patches) of every patch i, exact: float64 (N, P), in nats (`JointModel`)."""
        data, _ = self._question(X, None)
        return self.model_.patch_anomaly(data, progress=self._shown)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a folder of plain files."""
        super().save(path)
        teacher, features = Path(path) / names.TEACHER, Path(path) / names.FEATURES
        if self.teacher_ is None:
            write_json(features, self.features_)
            teacher.unlink(missing_ok=True)
        else:
            self.teacher_.save(teacher)
            features.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, or the directory of a run that `lvd-juice fit` finished.

        Raises InputError where a file is missing or damaged, or of another method.
        """
        estimator, folder = super().load(path), model_folder(path)
        if (folder / names.FEATURES).exists():
            estimator.teacher_ = None
            table = read_table(folder / names.FEATURES)
            estimator.features_ = {name: table[name] for name in ("shape", "digest")}
        else:
            estimator.features_ = None
            estimator.teacher_ = Teacher.load(folder / names.TEACHER, device=estimator.device)
        return estimator


class LVD(LVDPG):
    """One-shot latent variable distillation: clusters of the teacher's features as they are. Otherwise as LVDPG."""

    _method = "lvd"
