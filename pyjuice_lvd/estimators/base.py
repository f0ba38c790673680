"""What the estimators share: settings, validation data set apart, scores and other questions to the model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from pyjuice_lvd import julia
from pyjuice_lvd.checks import integer, parse_crop, plain_array, require
from pyjuice_lvd.circuit import Moments
from pyjuice_lvd.data.images import as_images, crop_images
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.atomic import given_path
from pyjuice_lvd.files.formats import read_json, read_toml, write_json, write_toml
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.large import take
from pyjuice_lvd.models.load import load_model
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.settings import Settings, kept, resolve, restored

Array = npt.NDArray[Any]
RandomState = int | np.integer[Any] | np.random.RandomState | None


def seed_of(random_state: RandomState) -> int:
    """Give the seed that `random_state` is, or that scikit-learn's convention draws from it."""
    if random_state is None or isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31))
    return integer("random_state", random_state)


def model_folder(path: str | os.PathLike[str]) -> Path:
    """Give the folder of the model: `path` itself, or that in the directory of a run, which must be finished."""
    path = given_path(path)
    if not (path / names.DATA).exists():  # which a run keeps, and `save` does not
        return path
    return RunDirectory.open_existing(path) / names.MODEL


def _below(kind: type[DensityEstimator]) -> Iterator[type[DensityEstimator]]:
    """Give the estimators that have a method, of all that are loaded."""
    for each in kind.__subclasses__():
        if hasattr(each, "_method"):
            yield each
        yield from _below(each)


def _listed(names: Any) -> str:
    return ", ".join(map(str, list(names)[:5])) + (", ..." if len(names) > 5 else "")


class DensityEstimator(DensityMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no type hints
    """A density model behind scikit-learn's interface; a subclass names its method and fits `model_` by `settings_`."""

    _method: ClassVar[str]
    _parameters: ClassVar[tuple[str, ...]] = ()
    """Settings that are parameters too, beside the seed, which is `random_state`."""
    _settings_of: ClassVar[dict[str, str]] = {}
    """Names of the parameters that are settings of the method's own section, and their names there."""

    preset: str | None
    config: str | os.PathLike[str] | Mapping[str, Any] | None
    random_state: RandomState
    progress: Progress | None
    settings_: Settings
    model_: Any
    n_features_in_: int
    feature_names_in_: npt.NDArray[Any]

    def score_samples(self, X: Array, *, mask: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
        """log p(x) of every entry of X, or of what is not hidden of it: float64 (N,), in nats, exact.

        `X`, `mask`: as for `inpaint`; what is missing of a table is hidden. Raises InputError where they do not fit.
        """
        data, hidden = self._question(X, mask)
        scores: npt.NDArray[np.float64] = self.model_.score_samples(data, mask=hidden, progress=self._shown)
        return scores

    def score(self, X: Array, y: object = None) -> float:
        """Mean log p(x) in nats."""
        scores = self.score_samples(X)
        if not len(scores):
            raise InputError("X: found no rows, wanted at least 1")
        return float(scores.mean())

    def bpd(self, X: Array) -> float:
        """Bits per dimension, in the protocol of the settings (`settings_.data`: colour transform and crop).

        Of a table with missing values, bits per value that is seen.
        """
        data, _ = self._question(X, None)
        found: float = self.model_.bpd(data)
        return found

    def sample(self, n: int = 1, *, random_state: RandomState = 0, exact: bool = False) -> Any:
        """Draw samples: uint8 (n, H, W, C), or integers (n, V) of a table, or a data frame where `HCLT` had one.

        Of the colour transform `ycocg`, a colour outside the RGB cube goes to the nearest one inside; not so with
        `exact`: the same draws, samples of the model as they are.
        """
        self._check_fitted()
        drawn = self.model_.sample(n, seed=seed_of(random_state), exact=exact, progress=self._shown)
        return self._given_back(drawn)

    def inpaint(
        self,
        X: Array,
        mask: npt.ArrayLike | None = None,
        *,
        n_samples: int = 8,
        random_state: RandomState = 0,
        exact: bool = False,
    ) -> Any:
        """Draw samples of what is hidden, given the rest.

        Parameters
        ----------
        X : uint8 (N, H, W[, C]), or integers (N, V)
            Images, or rows of a table.
        mask : bool (H, W), (N, H, W) or (N, H, W, C), or (V,) or (N, V)
            True where a value is hidden. With a colour transform, which mixes channels, whole pixels only. Of a table
            with missing values, these are hidden, too; None: they alone.
        n_samples : int
            For each image or row.
        random_state : int, RandomState or None
            Seed of the sampling, as scikit-learn has it.
        exact : bool
            As for `sample`: leave colours outside the RGB cube as the model has them.

        Returns
        -------
        uint8 (n_samples, N, H, W, C), or integers (n_samples, N, V)
            What is known is as in X. Of a table whose columns differ (`HCLT`): numbers, or objects where it has texts.

        Raises
        ------
        InputError
            Where X or the mask does not fit the model, or p is 0 for what is known.

        """
        data, hidden = self._question(X, mask)
        drawn = self.model_.inpaint(
            data, hidden, n_samples=n_samples, seed=seed_of(random_state), exact=exact, progress=self._shown
        )
        return self._given_back(drawn)

    def marginals(self, X: Array, mask: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
        """Give each hidden value's exact distribution, given all that is known: float64 (N, H, W, C, 256).

        The channels are those that are modelled, the colour transform's; of a table it is (N, V, categories). What is
        known has a 1 at its value. `X`, `mask`, errors: as for `inpaint`.
        """
        data, hidden = self._question(X, mask)
        found: npt.NDArray[np.float64] = self.model_.marginals(data, hidden, progress=self._shown)
        return found

    def moments(self, X: Array, mask: npt.ArrayLike | None = None) -> Moments:
        """Give each hidden value's exact mean and variance, given all that is known: `.mean` and `.variance`.

        Both float64, of the shape of X: of images the channels that are modelled, as in `marginals`; a table's
        categories count as numbers. What is known has its value, and variance 0. `X`, `mask`, errors: as for `inpaint`.
        """
        data, hidden = self._question(X, mask)
        found: Moments = self.model_.moments(data, hidden, progress=self._shown)
        return found

    def posterior_mean(self, X: Array, mask: npt.ArrayLike, *, exact: bool = False) -> npt.NDArray[np.float64]:
        """Give each hidden pixel's mean, given all known pixels: float64 (N, H, W, C), in levels of the image.

        With which colour transform it is the exact mean of what `inpaint` draws, with the same `exact`, the model's own
        `posterior_mean` says. Known pixels are as in the images. `X`, `mask`, errors: as for `inpaint`.
        """
        data, hidden = self._question(X, mask)
        means: npt.NDArray[np.float64] = self.model_.posterior_mean(data, hidden, exact=exact, progress=self._shown)
        return means

    def compress(self, X: Array) -> bytes:
        """Code images, or rows, without loss: the bytes of an `.lvdz` file (docs/compression.md).

        X: uint8 (N, H, W[, C]) of the model's size, which are not cropped, or integers (N, V). Raises InputError where
        they do not fit, or the model cannot code: its colours lose information.
        """
        self._check_fitted()
        coded: bytes = self.model_.compress(self._to_code(X), progress=self._shown)
        return coded

    def decompress(self, data: bytes) -> Any:
        """Give back what `compress` coded with this very model: uint8 (N, H, W, C), or a table as `sample` gives them.

        Raises InputError where the data are of no such file, of another model, or damaged; `model_.decompress` can
        leave damaged blocks out, and decode some images alone.
        """
        self._check_fitted()
        return self._given_back(self.model_.decompress(data, progress=self._shown))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a folder of plain files; InputError where that is of a run of `fit`."""
        self._check_fitted()
        folder = given_path(path)
        for run in [folder, folder.parent] if folder.name == names.MODEL else [folder]:
            if (run / names.DATA).exists() or (run / names.METRICS).exists():
                raise InputError(f"{folder}: is of a run of `lvd-juice fit`, wanted another folder")
        self.model_.save(folder)
        write_toml(folder / names.SETTINGS, kept(self.settings_))
        if (columns := self._described_columns()) is not None:
            write_json(folder / names.COLUMNS, columns)
        else:
            (folder / names.COLUMNS).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, or the directory of a run that `lvd-juice fit` finished.

        Raises InputError where a file is missing or damaged, or of another method.
        """
        folder, saved = given_path(path), model_folder(path)
        if folder.name == names.MODEL and (folder.parent / names.DATA).exists():
            raise InputError(f"{folder}: is the model of a run, wanted the run: {folder.parent}")
        settings = restored(read_toml(folder / names.SETTINGS), f"{folder / names.SETTINGS}: ")
        if settings.method != cls._method:
            others = [each.__name__ for each in _below(DensityEstimator) if each._method == settings.method]
            opens = f" ({others[0]}.load opens it)" if others else ""
            raise InputError(f"{folder}: found a model of method {settings.method}, wanted {cls._method}{opens}")
        # What a parameter says, and how the work was done, is not said again.
        config = {key: value for key, value in settings.to_dict().items() if isinstance(value, Mapping)}
        given = {name: getattr(settings, name) for name in cls._parameters}
        estimator = cls(config=config, random_state=settings.seed, **given)
        estimator.settings_ = settings
        estimator.model_ = load_model(saved, settings.method)
        estimator.n_features_in_ = estimator.model_.dims
        columns: Any = []
        if saved != folder:
            columns = RunDirectory.open_existing(folder).data.get("columns", [])
        elif (folder / names.COLUMNS).exists():
            columns = read_json(folder / names.COLUMNS)
        if columns:
            estimator._restore_columns(columns, folder / names.COLUMNS)
        return estimator

    def _given_back(self, values: Array) -> Any:
        """Give images, or tables (..., V), as the user has them."""
        return values

    def _to_code(self, X: Array) -> Array:
        """Give what is to be compressed as the model has it."""
        return X

    def _described_columns(self) -> Any:
        """Give what `columns.json` holds of a table's columns, or None: their names."""
        return getattr(self, "feature_names_in_", None)

    def _restore_columns(self, columns: Any, path: Path) -> None:
        """Take over what it holds."""
        self.feature_names_in_ = np.array(columns, dtype=object)

    def _resolved(self) -> Settings:
        """Put the settings together, and start Julia with the threads that they name, if they do."""
        seed = seed_of(self.random_state)
        require(0 <= seed < 2**32, "random_state", self.random_state, "0 to 4294967295")
        own = {name: getattr(self, name) for name in self._parameters}
        given, unset = resolve(None, self.config), Settings()
        for name, value in {"seed": seed, **own}.items():
            found = getattr(given, name)
            if found not in (value, getattr(unset, name)):
                parameter = "random_state" if name == "seed" else name
                raise InputError(
                    f"config: found {name} = {found!r} beside the parameter {parameter} = {value!r}, wanted one of them"
                )
        settings = resolve(self.preset, self.config, method=self._method, seed=seed, **own)
        if settings.threads:
            julia.start(threads=settings.threads)
        return settings

    def _given(self) -> dict[str, Any]:
        """Name the settings of the section that are set."""
        return {name: getattr(self, own) for own, name in self._settings_of.items() if getattr(self, own) is not None}

    def _check_fitted(self) -> None:
        check_is_fitted(self, "model_")

    def _checked(self, X: Array, *, fitting: bool = False) -> Array:
        """Check X, the names of its columns as scikit-learn does, and crop it: images, uint8 (N, H, W, C)."""
        if hasattr(X, "columns") and len(names := list(X.columns)) > len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"X: found two columns named {twice!r}, wanted names that differ")
        validate_data(self, X, reset=fitting, skip_check_array=True, ensure_2d=False)
        return self._as_data(X)

    def _as_data(self, X: Array) -> Array:
        """Check X and crop it as the settings say."""
        return crop_images(as_images(X, "X"), self.settings_.data.crop or None, "X")

    def _question(self, X: Array, mask: npt.ArrayLike | None) -> tuple[Array, Any]:
        """Check X, and crop both it and its mask."""
        self._check_fitted()
        names, own = (getattr(table, "columns", None) for table in (X, mask))
        if names is not None and own is not None and list(names) != list(own):
            raise InputError(f"mask: found columns {_listed(own)}, wanted those of X, {_listed(names)}")
        data, hidden = self._checked(X), None if mask is None else plain_array("mask", mask)
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
        train, valid = self._parts(len(data))
        return take(data, train), take(data, valid)

    def _parts(self, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Say which of n rows are to learn from and which to stop early by."""
        if n < 2:
            raise InputError(f"X: found n_samples = {n}, wanted at least 2: one is set apart to stop early by")
        order = np.random.default_rng(self.settings_.seed).permutation(n)
        held_out = max(1, round(self.settings_.data.valid_fraction * n))
        return np.sort(order[held_out:]), np.sort(order[:held_out])
