"""What the estimators share: settings, validation data set apart, scores and other questions to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from pyjuice_lvd.checks import integer
from pyjuice_lvd.data.images import as_images, crop_images, parse_crop
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import read_toml
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.settings import Settings
from pyjuice_lvd.units import bits_per_dimension

Array = npt.NDArray[Any]
RandomState = int | np.random.RandomState | None


def seed_of(random_state: RandomState) -> int:
    """Give the seed that `random_state` is, or that scikit-learn's convention draws from it."""
    if random_state is None or isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31))
    return integer("random_state", random_state)


class DensityEstimator(DensityMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no type hints
    """A density model behind scikit-learn's interface; a subclass names its method and fits `model_` by `settings_`."""

    _method: ClassVar[str]

    progress: Progress | None
    settings_: Settings
    model_: Any
    n_features_in_: int

    def score_samples(self, X: Array, *, mask: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
        """log p(x) of every entry of X, or of what is not hidden of it: float64 (N,), in nats, exact.

        `X`, `mask`: as for `inpaint`. Raises InputError where they do not fit the model.
        """
        data, hidden = self._question(X, mask)
        scores: npt.NDArray[np.float64] = self.model_.score_samples(data, mask=hidden, progress=self._shown)
        return scores

    def score(self, X: Array, y: object = None) -> float:
        """Mean log p(x) in nats."""
        return float(self.score_samples(X).mean())

    def bpd(self, X: Array) -> float:
        """Bits per dimension, in the protocol of the settings (`settings_.data`: colour transform and crop)."""
        return bits_per_dimension(self.score(X), self.model_.dims)

    def sample(self, n: int = 1, *, random_state: RandomState = 0) -> Array:
        """Draw exact samples: uint8 (n, H, W, C), or integers (n, V) of a table."""
        self._check_fitted()
        drawn: Array = self.model_.sample(n, seed=seed_of(random_state), progress=self._shown)
        return drawn

    def inpaint(self, X: Array, mask: npt.ArrayLike, *, n_samples: int = 8, random_state: RandomState = 0) -> Array:
        """Draw exact samples of what is hidden, given the rest.

        Parameters
        ----------
        X : uint8 (N, H, W[, C]), or integers (N, V)
            Images, or rows of a table.
        mask : bool (H, W), (N, H, W) or (N, H, W, C), or (V,) or (N, V)
            True where a value is hidden. With a colour transform, which mixes channels, whole pixels only.
        n_samples : int
            For each image or row.
        random_state : int, RandomState or None
            Seed of the sampling, as scikit-learn has it.

        Returns
        -------
        uint8 (n_samples, N, H, W, C), or integers (n_samples, N, V)
            What is known is as in X.

        Raises
        ------
        InputError
            Where X or the mask does not fit the model, or p is 0 for what is known.

        """
        data, hidden = self._question(X, mask)
        drawn: Array = self.model_.inpaint(
            data, hidden, n_samples=n_samples, seed=seed_of(random_state), progress=self._shown
        )
        return drawn

    def marginals(self, X: Array, mask: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Give each hidden value's exact distribution, given all that is known: float64 (N, H, W, C, 256).

        The channels are those that are modelled, the colour transform's; of a table it is (N, V, categories). What is
        known has a 1 at its value. `X`, `mask`, errors: as for `inpaint`.
        """
        data, hidden = self._question(X, mask)
        found: npt.NDArray[np.float64] = self.model_.marginals(data, hidden, progress=self._shown)
        return found

    def posterior_mean(self, X: Array, mask: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Give each hidden pixel's mean, given all known pixels: float64 (N, H, W, C), in levels of the image.

        With which colour transform it is exact, the model's own `posterior_mean` says. Known pixels are as in the
        images. `X`, `mask`, errors: as for `inpaint`.
        """
        data, hidden = self._question(X, mask)
        means: npt.NDArray[np.float64] = self.model_.posterior_mean(data, hidden, progress=self._shown)
        return means

    @classmethod
    def _kept_settings(cls, folder: Path) -> Settings:
        """Read the settings of a saved model; raises InputError where they are missing, or of another method."""
        settings = Settings.from_dict(read_toml(folder / names.SETTINGS))
        if settings.method != cls._method:
            raise InputError(f"{folder}: found a model of method {settings.method}, wanted {cls._method}")
        return settings

    def _check_fitted(self) -> None:
        check_is_fitted(self, "model_")

    def _checked(self, X: Array) -> Array:
        """Check X and crop it as the settings say: images, uint8 (N, H, W, C)."""
        return crop_images(as_images(X, "X"), self.settings_.data.crop or None, "X")

    def _question(self, X: Array, mask: npt.ArrayLike | None) -> tuple[Array, Any]:
        """Check X, and crop both it and its mask."""
        self._check_fitted()
        data, hidden = self._checked(X), None if mask is None else np.asarray(mask)
        crop = parse_crop(self.settings_.data.crop or None)
        if crop is not None and hidden is not None and data.ndim == 4:
            rows = (slice(None), slice(crop[0]), slice(crop[1]))
            hidden = hidden[rows] if hidden.ndim > 2 else hidden[rows[1:]]
        return data, hidden

    @property
    def _shown(self) -> Progress:
        return self.progress or SILENT

    def _set_apart(self, data: Array) -> tuple[Array, Array]:
        """Take, by seed, the validation part out of checked data: (train, valid)."""
        if len(data) < 2:
            raise InputError(f"X: found n_samples = {len(data)}, wanted at least 2: one is set apart to stop early by")
        order = np.random.default_rng(self.settings_.seed).permutation(len(data))
        held_out = max(1, round(self.settings_.data.valid_fraction * len(data)))
        return data[np.sort(order[held_out:])], data[np.sort(order[:held_out])]
