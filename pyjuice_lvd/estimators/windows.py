"""The estimator of models of windows, over arrays of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.estimators.base import DensityEstimator, RandomState
from pyjuice_lvd.learn.windows import learn_windows
from pyjuice_lvd.models.windows import WindowModel
from pyjuice_lvd.progress import Progress
from pyjuice_lvd.settings import resolve


class Windows(DensityEstimator):
    """A density model of images pixel by pixel: each given those before it near by, exactly, by one circuit.

    It scores, draws, goes on from the first pixels of images, and compresses; other masks than such, marginals and
    means are refused (docs/windows.md). Parameters that are None have the value of the settings, `[windows]` in
    docs/settings.md.

    Parameters
    ----------
    reach : int, optional
        Rows above, and columns to each side, that say what level a pixel is expected to have.
    pixels : int, optional
        Windows to learn from, at most.
    num_trees, num_latents : int, optional
        Hidden Chow-Liu trees of the mixture, and the latents of each variable.
    epochs, batch_size, step_size, pseudocount, patience : optional
        Of EM, as `windows.epochs` and so on.
    preset : str, optional
        Shipped settings; default: the defaults of docs/settings.md.
    config : str, path or mapping, optional
        Settings over the preset's: a TOML file, or nested tables such as `{"data": {"color": "rgb"}}`.
    random_state : int, RandomState or None
        Seed of everything random, as scikit-learn has it: None draws one.
    progress : Progress, optional
        Where the work is shown; default: nowhere.

    Attributes
    ----------
    model_ : WindowModel
        `model_.circuit` is the circuit over windows.
    settings_ : Settings
    n_features_in_ : int
        Dimensions of an image, H W C.

    """

    _method: ClassVar[str] = "windows"
    _settings_of: ClassVar[dict[str, str]] = {
        "reach": "reach", "pixels": "pixels", "num_trees": "trees", "num_latents": "latents",
        **{name: name for name in ("epochs", "batch_size", "step_size", "pseudocount", "patience")},
    }  # fmt: skip

    def __init__(
        self,
        *,
        reach: int | None = None,
        pixels: int | None = None,
        num_trees: int | None = None,
        num_latents: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        step_size: tuple[float, float] | None = None,
        pseudocount: float | None = None,
        patience: int | None = None,
        preset: str | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        random_state: RandomState = 0,
        progress: Progress | None = None,
    ) -> None:
        self.reach = reach
        self.pixels = pixels
        self.num_trees = num_trees
        self.num_latents = num_latents
        self.epochs = epochs
        self.batch_size = batch_size
        self.step_size = step_size
        self.pseudocount = pseudocount
        self.patience = patience
        self.preset = preset
        self.config = config
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: npt.NDArray[np.uint8], y: object = None) -> Self:
        """Learn from images, uint8 (N, H, W[, C]); some are set apart, by seed, to stop early by.

        Raises InputError where the images or a setting are not what is wanted.
        """
        self.settings_ = resolve(base=self._resolved(), config={"windows": self._given()})
        train, valid = self._set_apart(self._checked(X, fitting=True))
        self.model_: WindowModel = learn_windows(train, valid, self.settings_, progress=self._shown)
        self.n_features_in_ = self.model_.dims
        return self

    def pixel_scores(self, X: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """log p of each pixel given those before it: float64 (N, H, W), in nats, which add up to `score_samples`."""
        data, _ = self._question(X, None)
        return self.model_.pixel_scores(data)
