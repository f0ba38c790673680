"""The estimators HCLT and RATSPN: one circuit over whole images, or over the rows of a table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from pyjuice_lvd.checks import integer
from pyjuice_lvd.circuit.rows import as_table
from pyjuice_lvd.data.load import IMAGE_CATEGORIES
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.estimators.base import Array, DensityEstimator
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import write_toml
from pyjuice_lvd.learn.baselines import learn_circuit
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.progress import Progress
from pyjuice_lvd.settings import Settings, resolve


class _Baseline(DensityEstimator):
    """Learns by EM, from images or tables; a subclass names its method, and its parameters' settings."""

    _section: ClassVar[str]
    _settings_of: ClassVar[dict[str, str]]
    """Names of the parameters that are settings of the section, and their names there."""

    num_cats: int | None
    preset: str | None
    config: str | os.PathLike[str] | Mapping[str, Any] | None
    random_state: int

    def fit(self, X: Array, y: object = None) -> Self:
        """Learn from images, uint8 (N, H, W[, C]), or a table, integers (N, V) from 0.

        Some are set apart, by seed, to stop early by. Raises InputError where the data or a setting are not what is
        wanted.
        """
        given = {name: getattr(self, own) for own, name in self._settings_of.items() if getattr(self, own) is not None}
        base = resolve(self.preset, self.config, method=self._method, seed=self.random_state)
        self.settings_: Settings = resolve(base=base, config={self._section: given})
        data = self._checked(X)
        cats = IMAGE_CATEGORIES if data.ndim == 4 else self._num_cats(data)
        train, valid = self._set_apart(data)
        self.n_features_in_ = int(np.prod(data.shape[1:]))
        self.model_: CircuitModel = learn_circuit(train, valid, self.settings_, num_cats=cats, progress=self._shown)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a folder of plain files."""
        self._check_fitted()
        folder = Path(path)
        self.model_.save(folder)
        write_toml(folder / names.SETTINGS, self.settings_.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; raises InputError where a file is missing or damaged, or of another method."""
        folder = Path(path)
        settings = cls._kept_settings(folder)
        estimator = cls(config=settings.to_dict(), random_state=settings.seed)
        estimator.model_ = CircuitModel.load(folder)
        estimator.settings_ = settings
        estimator.n_features_in_ = estimator.model_.dims
        return estimator

    def _checked(self, X: Array) -> Array:
        return as_table(X) if np.ndim(X) == 2 else super()._checked(X)

    def _num_cats(self, table: Array) -> int:
        if table.size == 0:
            raise InputError(f"X: found shape {table.shape}, wanted at least one row and one variable")
        if table.min() < 0:
            raise InputError(f"X: found {table.min()}, wanted categories from 0")
        cats = int(table.max()) + 1 if self.num_cats is None else integer("num_cats", self.num_cats)
        if table.max() >= cats:
            raise InputError(f"X: found {table.max()}, wanted 0..{cats - 1} for num_cats = {cats}")
        return cats


_EM = {name: name for name in ("epochs", "batch_size", "step_size", "pseudocount", "patience")}


class HCLT(_Baseline):
    """A hidden Chow-Liu tree, or a mixture of several, over whole images or tables (Liu and Van den Broeck 2021).

    Parameters that are None have the value of the settings, `[hclt]` in docs/settings.md.

    Parameters
    ----------
    num_latents : int, optional
        Hidden states of each variable.
    num_trees : int, optional
        Trees, each over the dependencies in a cluster of the data.
    epochs, batch_size, step_size, pseudocount, patience : optional
        Of EM, as `hclt.epochs` and so on.
    num_cats : int, optional
        Categories of the variables of a table; default: its largest value, plus 1. Images have 256.
    preset : str, optional
        Shipped settings; default: the defaults of docs/settings.md.
    config : str, path or mapping, optional
        Settings over the preset's: a TOML file, or nested tables such as `{"data": {"color": "rgb"}}`.
    random_state : int
        Seed of everything random.
    progress : Progress, optional
        Where the work is shown; default: nowhere.

    Attributes
    ----------
    model_ : CircuitModel
        `model_.circuit` is the circuit.
    settings_ : Settings
    n_features_in_ : int
        Variables: the columns of a table; of images H W C.

    """

    _method = "hclt"
    _section = "hclt"
    _settings_of: ClassVar[dict[str, str]] = {"num_latents": "latents", "num_trees": "trees", **_EM}

    def __init__(
        self,
        *,
        num_latents: int | None = None,
        num_trees: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        step_size: tuple[float, float] | None = None,
        pseudocount: float | None = None,
        patience: int | None = None,
        num_cats: int | None = None,
        preset: str | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        random_state: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.num_latents = num_latents
        self.num_trees = num_trees
        self.epochs = epochs
        self.batch_size = batch_size
        self.step_size = step_size
        self.pseudocount = pseudocount
        self.patience = patience
        self.num_cats = num_cats
        self.preset = preset
        self.config = config
        self.random_state = random_state
        self.progress = progress


class RATSPN(_Baseline):
    """A random and tensorised sum-product network over whole images or tables (Peharz et al. 2019).

    Parameters that are None have the value of the settings, `[rat_spn]` in docs/settings.md.

    Parameters
    ----------
    depth, replicas : int, optional
        So many times the variables are cut into random halves, `depth` times over.
    num_sums, num_inputs : int, optional
        Sums of each region; factorised distributions of a region that is not cut.
    epochs, batch_size, step_size, pseudocount, patience : optional
        Of EM, as `rat_spn.epochs` and so on.
    num_cats : int, optional
        Categories of the variables of a table; default: its largest value, plus 1. Images have 256.
    preset : str, optional
        Shipped settings; default: the defaults of docs/settings.md.
    config : str, path or mapping, optional
        Settings over the preset's: a TOML file, or nested tables such as `{"data": {"color": "rgb"}}`.
    random_state : int
        Seed of everything random.
    progress : Progress, optional
        Where the work is shown; default: nowhere.

    Attributes
    ----------
    model_ : CircuitModel
        `model_.circuit` is the circuit.
    settings_ : Settings
    n_features_in_ : int
        Variables: the columns of a table; of images H W C.

    """

    _method = "rat-spn"
    _section = "rat_spn"
    _settings_of: ClassVar[dict[str, str]] = {
        "depth": "depth", "replicas": "replicas", "num_sums": "sums", "num_inputs": "inputs", **_EM,
    }  # fmt: skip

    def __init__(
        self,
        *,
        depth: int | None = None,
        replicas: int | None = None,
        num_sums: int | None = None,
        num_inputs: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        step_size: tuple[float, float] | None = None,
        pseudocount: float | None = None,
        patience: int | None = None,
        num_cats: int | None = None,
        preset: str | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        random_state: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.depth = depth
        self.replicas = replicas
        self.num_sums = num_sums
        self.num_inputs = num_inputs
        self.epochs = epochs
        self.batch_size = batch_size
        self.step_size = step_size
        self.pseudocount = pseudocount
        self.patience = patience
        self.num_cats = num_cats
        self.preset = preset
        self.config = config
        self.random_state = random_state
        self.progress = progress
