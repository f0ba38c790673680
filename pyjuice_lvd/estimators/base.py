"""What the estimators share: settings, validation data set apart, scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_is_fitted

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.images import as_images, crop_images
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.settings import Settings

Array = npt.NDArray[Any]


class DensityEstimator(DensityMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no type hints
    """A density model behind scikit-learn's interface; a subclass fits `model_` by `settings_`."""

    progress: Progress | None
    settings_: Settings
    model_: Any

    def score_samples(self, X: Array) -> npt.NDArray[np.float64]:
        """log p(x) of every entry of X, float64 (N,), in nats. Raises InputError where X does not fit the model."""
        self._check_fitted()
        scores: npt.NDArray[np.float64] = self.model_.score_samples(self._checked(X), progress=self.progress or SILENT)
        return scores

    def score(self, X: Array, y: object = None) -> float:
        """Mean log p(x) in nats."""
        return float(self.score_samples(X).mean())

    def bpd(self, X: Array) -> float:
        """Bits per dimension, in the protocol of the settings (`settings_.data`: colour transform and crop)."""
        return float(-self.score(X) / (np.log(2) * self.model_.dims))

    def _check_fitted(self) -> None:
        check_is_fitted(self, "model_")

    def _checked(self, X: Array) -> Array:
        """Check X and crop it as the settings say: images, uint8 (N, H, W, C)."""
        return crop_images(as_images(X, "X"), self.settings_.data.crop or None, "X")

    def _set_apart(self, data: Array) -> tuple[Array, Array]:
        """Take, by seed, the validation part out of checked data: (train, valid)."""
        if len(data) < 2:
            raise InputError(f"X: found n_samples = {len(data)}, wanted at least 2: one is set apart to stop early by")
        order = np.random.default_rng(self.settings_.seed).permutation(len(data))
        held_out = max(1, round(self.settings_.data.valid_fraction * len(data)))
        return data[np.sort(order[held_out:])], data[np.sort(order[:held_out])]
