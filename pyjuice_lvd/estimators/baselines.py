"""The estimators HCLT, SparseHCLT, RATSPN and EINET: one circuit over whole images, or over the rows of a table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import integer, plain_array
from pyjuice_lvd.data.columns import (
    Choice,
    Column,
    as_frame,
    columns_of,
    differ,
    in_numbers,
    in_words,
    is_frame,
    restored_columns,
)
from pyjuice_lvd.data.load import IMAGE_CATEGORIES
from pyjuice_lvd.data.missing import as_incomplete_table
from pyjuice_lvd.data.source import column_name
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.estimators.base import Array, DensityEstimator, RandomState
from pyjuice_lvd.learn.baselines import learn_circuit
from pyjuice_lvd.learn.sizes import check_categories, check_fit
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.progress import Progress
from pyjuice_lvd.settings import resolve
from pyjuice_lvd.settings.choices import LEAVES_OF_LEVELS


class _Baseline(DensityEstimator):
    """Learns by EM, from images or tables; a subclass names its method, and its parameters' settings."""

    _section: ClassVar[str]
    _settings_of: ClassVar[dict[str, str]]
    """Names of the parameters that are settings of the section, and their names there."""

    num_cats: int | None
    missing: int | None
    leaves: Choice
    _framed = False
    columns_: tuple[Column, ...] | None = None

    def fit(self, X: Array, y: object = None) -> Self:
        """Learn from images, uint8 (N, H, W[, C]), or a table, integers (N, V) from 0, of which some may be missing.

        `HCLT` takes data frames whose columns differ, too (docs/leaves.md).
        Missing is what is NaN (in floats that are whole numbers otherwise), None, pandas' NA, hidden by numpy's mask,
        or the number `missing`. A row is learned from what is seen of it, exactly, if values are missing at random.
        Some are set apart, by seed, to stop early by. Raises InputError where the data or a setting are not what is
        wanted.
        """
        base = self._resolved()
        self.columns_ = self._columns(X)
        self.settings_ = resolve(base=base, config=self._given_sections())
        data = self._checked(X, fitting=True)
        cats = IMAGE_CATEGORIES if data.ndim == 4 else self._num_cats(data)
        columns = self.columns_
        if columns is not None and not differ(columns):
            self.columns_, columns = tuple(column._replace(num_cats=cats) for column in columns), None
        train, valid = self._set_apart(data)
        self.n_features_in_ = int(np.prod(data.shape[1:]))
        self.model_: CircuitModel = learn_circuit(
            train, valid, self.settings_, num_cats=cats, columns=columns, progress=self._shown
        )
        return self

    def _columns(self, X: Array) -> tuple[Column, ...] | None:
        """Say what each column is, where they may differ: here they must not."""
        return None

    def _described_columns(self) -> Any:
        found = super()._described_columns()
        if self.columns_ is None and self.missing is None:
            return found
        columns = None if self.columns_ is None else [column._asdict() for column in self.columns_]
        leaves = self.leaves if isinstance(self.leaves, str | Mapping | None) else list(self.leaves)
        return {"names": found, "frame": self._framed, "columns": columns, "leaves": leaves, "missing": self.missing}

    def _restore_columns(self, columns: Any, path: Path) -> None:
        if not isinstance(columns, dict):
            super()._restore_columns(columns, path)
            return
        if columns.get("names"):
            super()._restore_columns(columns["names"], path)
        if columns.get("columns"):
            self.columns_ = restored_columns(columns["columns"], path)
            self.leaves = columns.get("leaves")
        if columns.get("missing") is not None:
            self.missing = integer(f"{path}: missing", columns["missing"])
        self._framed = columns.get("frame") is True

    def _given_sections(self) -> dict[str, dict[str, Any]]:
        """Name the settings that are set, section by section."""
        return {self._section: self._given()}

    def _given(self) -> dict[str, Any]:
        """Name the settings of the section that are set."""
        return {name: getattr(self, own) for own, name in self._settings_of.items() if getattr(self, own) is not None}

    def _as_data(self, X: Array) -> Array:
        if self.columns_ is not None:
            if not is_frame(X) and not isinstance(X, np.ma.MaskedArray):
                X = plain_array("X", X)
            if X.ndim != 2 or X.shape[1] != len(self.columns_):
                raise InputError(f"X: found shape {X.shape}, wanted a table (N, {len(self.columns_)})")
            return in_numbers(X, self.columns_, missing=self.missing)
        array = X if isinstance(X, np.ma.MaskedArray) else plain_array("X", X)
        if array.ndim == 2:
            return as_incomplete_table(array, self.missing, columns=getattr(self, "feature_names_in_", ()))
        if array.ndim not in (3, 4):
            raise InputError(f"X: found shape {array.shape}, wanted images (N, H, W[, C]), or a table (N, V)")
        return super()._as_data(array)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True  # a missing value of a table
        return tags

    def _num_cats(self, table: Array) -> int:
        if table.size == 0:
            raise InputError(f"X: found shape {table.shape}, wanted at least one row and one variable")
        if self.columns_ is not None and differ(self.columns_):
            most = max(self.columns_, key=lambda column: column.num_cats)
            largest = f"X: found {most.num_cats} categories in {most.name!r}"
            check_fit(table.shape, self.settings_, max(1, most.num_cats), largest=largest)
            return max(1, most.num_cats)
        names = getattr(self, "feature_names_in_", ())
        if (empty := (table < 0).all(axis=0)).any():
            raise InputError(
                f"X: found missing values only in {column_name(names, int(empty.argmax()))}, wanted at least one value"
            )
        largest = f"X: found {table.max()} in {column_name(names, int(table.max(axis=0).argmax()))}"
        cats = int(table.max()) + 1 if self.num_cats is None else integer("num_cats", self.num_cats)
        if table.max() >= cats:
            raise InputError(f"{largest}, wanted 0..{cats - 1} for num_cats = {cats}")
        if self.num_cats is None:
            check_categories(cats, len(table), largest)
        check_fit(table.shape, self.settings_, cats, largest=largest if self.num_cats is None else None)
        return cats


_SHARED = {name: name for name in ("leaves", "epochs", "batch_size", "step_size", "pseudocount", "patience")}


class HCLT(_Baseline):
    """A hidden Chow-Liu tree, or a mixture of several, over whole images or tables (Liu and Van den Broeck 2021).

    Parameters that are None have the value of the settings, `[hclt]` in docs/settings.md.

    Parameters
    ----------
    num_latents : int, optional
        Hidden states of each variable.
    num_trees : int, optional
        Trees, each over the dependencies in a cluster of the data.
    leaves : str, sequence of str, or mapping, optional
        Kind of the inputs: "categorical", "binomial", or "logistic" for values with an order, such as grey levels. Of a
        table, the kind of each column, or of some by their names, also "poisson" and "gaussian"; "auto": by the
        columns' types, which is the default for data frames (docs/leaves.md).
    search : bool, optional
        Whether trees, latents and the pseudocount of a table's model are chosen by validation rows; default: unless
        one of them is given here, or set to another value than its default.
    start : "random" or "clusters", optional
        Where parameters start; `clusters`, for values with an order: from hidden states that K-means finds; the default
        for tables with counts or real numbers.
    epochs, batch_size, step_size, pseudocount, patience : optional
        Of EM, as `hclt.epochs` and so on.
    num_cats : int, optional
        Categories of the variables of a table; default: its largest value, plus 1. Images have 256.
    missing : int, optional
        An integer that stands for a missing value in tables, such as -1, beside NaN and the like.
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
    model_ : CircuitModel
        `model_.circuit` is the circuit.
    settings_ : Settings
    columns_ : tuple of Column, or None
        What each column of a table is, where they differ: its `name`, `leaves`, `num_cats` and `values`.
    n_features_in_ : int
        Variables: the columns of a table; of images H W C.
    feature_names_in_ : ndarray of str
        The names of a table's columns, if X was a data frame. Later tables must have them in the same order.

    """

    _method = "hclt"
    _section = "hclt"
    _settings_of: ClassVar[dict[str, str]] = {
        "num_latents": "latents",
        "num_trees": "trees",
        "search": "search",
        "start": "start",
        **_SHARED,
    }

    def __init__(
        self,
        *,
        num_latents: int | None = None,
        num_trees: int | None = None,
        leaves: Choice = None,
        search: bool | None = None,
        start: str | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        step_size: tuple[float, float] | None = None,
        pseudocount: float | None = None,
        patience: int | None = None,
        num_cats: int | None = None,
        missing: int | None = None,
        preset: str | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        random_state: RandomState = 0,
        progress: Progress | None = None,
    ) -> None:
        self.num_latents = num_latents
        self.num_trees = num_trees
        self.leaves = leaves
        self.search = search
        self.start = start
        self.epochs = epochs
        self.batch_size = batch_size
        self.step_size = step_size
        self.pseudocount = pseudocount
        self.patience = patience
        self.num_cats = num_cats
        self.missing = missing
        self.preset = preset
        self.config = config
        self.random_state = random_state
        self.progress = progress

    def _columns(self, X: Array) -> tuple[Column, ...] | None:
        self._framed = is_frame(X)
        if not self._framed:
            if self.leaves is None or (isinstance(self.leaves, str) and self.leaves in LEAVES_OF_LEVELS):
                return None
            X = X if isinstance(X, np.ma.MaskedArray) else plain_array("X", X)
            if X.ndim != 2:
                return None
        columns = columns_of(X, self.leaves, missing=self.missing, num_cats=self.num_cats)
        if columns is not None and differ(columns):
            self._shown.log(f"columns: {', '.join(map(str, columns))}")
        return columns

    def sample(self, n: int = 1, *, random_state: RandomState = 0, exact: bool = False) -> Any:
        """Draw samples: uint8 (n, H, W, C), or integers (n, V) of a table.

        Of a table whose columns differ: a data frame, if it was one, else numbers, or objects where texts stand for
        them. `exact`: of images with the colour transform `ycocg`, colours outside the RGB cube stay there
        (docs/queries.md).
        """
        return self._given_back(super().sample(n, random_state=random_state, exact=exact))

    def inpaint(self, X: Array, mask: npt.ArrayLike | None = None, **given: Any) -> Array:
        """Draw samples of what is hidden, given the rest, as the other models do.

        Of a table whose columns differ: (n_samples, N, V), objects where texts stand for numbers.
        """
        drawn = super().inpaint(X, mask, **given)
        return in_words(drawn, self.columns_) if self.columns_ is not None and self._in_words else drawn

    def compress(self, X: Array) -> bytes:
        """Code images, or rows, without loss, as the other models do; a table's real numbers are refused."""
        self._check_fitted()
        return super().compress(X if self.columns_ is None else self._checked(X))

    def decompress(self, data: bytes) -> Any:
        """Give back what `compress` coded with this very model, as the other models do, or as `sample` gives tables."""
        return self._given_back(super().decompress(data))

    def _given_back(self, rows: Array) -> Any:
        """Put back what the numbers of rows stand for, in a data frame if it was one."""
        if self.columns_ is None or not (self._framed or self._in_words):
            return rows
        return as_frame(rows, self.columns_) if self._framed else in_words(rows, self.columns_)

    @property
    def _in_words(self) -> bool:
        return any(column.values is not None for column in self.columns_ or ())

    def _given(self) -> dict[str, Any]:
        given = super()._given()
        if self.columns_ is not None:
            given.pop("leaves", None)  # of each column, and no setting
            if not differ(self.columns_):
                given["leaves"] = self.columns_[0].leaves
        if self.start is None and any(column.num_cats == 0 for column in self.columns_ or ()):
            given["start"] = "clusters"
        if not given.keys().isdisjoint(("latents", "trees", "pseudocount")):
            given.setdefault("search", False)
        return given


class SparseHCLT(HCLT):
    """A hidden Chow-Liu tree that is pruned and grown by turns (Dang, Liu and Van den Broeck 2022).

    Parameters that are None have the value of the settings, `[hclt]` and `[sparse_hclt]` in docs/settings.md.

    Parameters
    ----------
    rounds : int, optional
        Of pruning, growing and EM, at most; they end with the first that does not improve the validation likelihood.
    keep : float, optional
        Share of the sums' edges that pruning leaves.
    noise : float, optional
        Of growing.
    round_epochs : int, optional
        Of EM in each round, at most.
    num_latents, num_trees, leaves, search, start, epochs : optional
        Of the tree that the rounds begin with, as for `HCLT`.
    batch_size, step_size, pseudocount, patience, num_cats, missing, preset, config, random_state, progress : optional
        As for `HCLT`. So are the attributes.

    """

    _method = "sparse-hclt"
    _rounds: ClassVar[tuple[str, ...]] = ("rounds", "keep", "noise", "round_epochs")

    def __init__(
        self,
        *,
        rounds: int | None = None,
        keep: float | None = None,
        noise: float | None = None,
        round_epochs: int | None = None,
        num_latents: int | None = None,
        num_trees: int | None = None,
        leaves: Choice = None,
        search: bool | None = None,
        start: str | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        step_size: tuple[float, float] | None = None,
        pseudocount: float | None = None,
        patience: int | None = None,
        num_cats: int | None = None,
        missing: int | None = None,
        preset: str | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        random_state: RandomState = 0,
        progress: Progress | None = None,
    ) -> None:
        self.rounds = rounds
        self.keep = keep
        self.noise = noise
        self.round_epochs = round_epochs
        super().__init__(
            num_latents=num_latents, num_trees=num_trees, leaves=leaves, search=search, start=start, epochs=epochs,
            batch_size=batch_size, step_size=step_size, pseudocount=pseudocount, patience=patience, num_cats=num_cats,
            missing=missing, preset=preset, config=config, random_state=random_state, progress=progress,
        )  # fmt: skip

    def _given_sections(self) -> dict[str, dict[str, Any]]:
        own = {name.removeprefix("round_"): getattr(self, name) for name in self._rounds}
        return {**super()._given_sections(), "sparse_hclt": {key: own[key] for key in own if own[key] is not None}}


class RATSPN(_Baseline):
    """A random and tensorised sum-product network over whole images or tables (Peharz et al. 2019).

    Parameters that are None have the value of the settings, `[rat_spn]` in docs/settings.md.

    Parameters
    ----------
    depth, replicas : int, optional
        So many times the variables are cut into random halves, `depth` times over.
    num_sums, num_inputs : int, optional
        Sums of each region; factorised distributions of a region that is not cut.
    leaves : str, optional
        Kind of the inputs: "categorical", or "logistic" for values with an order, such as grey levels.
    epochs, batch_size, step_size, pseudocount, patience : optional
        Of EM, as `rat_spn.epochs` and so on.
    num_cats : int, optional
        Categories of the variables of a table; default: its largest value, plus 1. Images have 256.
    missing : int, optional
        An integer that stands for a missing value in tables, such as -1, beside NaN and the like.
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
    model_ : CircuitModel
        `model_.circuit` is the circuit.
    settings_ : Settings
    n_features_in_ : int
        Variables: the columns of a table; of images H W C.
    feature_names_in_ : ndarray of str
        The names of a table's columns, if X was a data frame. Later tables must have them in the same order.

    """

    _method = "rat-spn"
    _section = "rat_spn"
    _settings_of: ClassVar[dict[str, str]] = {
        "depth": "depth", "replicas": "replicas", "num_sums": "sums", "num_inputs": "inputs", **_SHARED,
    }  # fmt: skip

    def __init__(
        self,
        *,
        depth: int | None = None,
        replicas: int | None = None,
        num_sums: int | None = None,
        num_inputs: int | None = None,
        leaves: str | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        step_size: tuple[float, float] | None = None,
        pseudocount: float | None = None,
        patience: int | None = None,
        num_cats: int | None = None,
        missing: int | None = None,
        preset: str | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        random_state: RandomState = 0,
        progress: Progress | None = None,
    ) -> None:
        self.depth = depth
        self.replicas = replicas
        self.num_sums = num_sums
        self.num_inputs = num_inputs
        self.leaves = leaves
        self.epochs = epochs
        self.batch_size = batch_size
        self.step_size = step_size
        self.pseudocount = pseudocount
        self.patience = patience
        self.num_cats = num_cats
        self.missing = missing
        self.preset = preset
        self.config = config
        self.random_state = random_state
        self.progress = progress


class EINET(_Baseline):
    """An einsum network over whole images or tables (Peharz et al. 2020a).

    Parameters that are None have the value of the settings, `[einet]` in docs/settings.md.

    Parameters
    ----------
    num_sums : int, optional
        Units of each region.
    regions : "auto", "random" or "grid", optional
        The region graph; `auto`: a grid over the pixels of images, random for tables.
    steps : integers, optional
        Of a grid: rectangles are cut at multiples of the first of these that has any within, in pixels.
    depth, replicas : int, optional
        Of a random graph: so many times the variables are cut into random halves, `depth` times over.
    leaves : str, optional
        The inputs' kind: "categorical", "binomial", or "logistic" for values with an order, such as grey levels.
    epochs, batch_size, step_size, pseudocount, patience : optional
        Of EM, as `einet.epochs` and so on.
    num_cats : int, optional
        Categories of the variables of a table; default: its largest value, plus 1. Images have 256.
    missing : int, optional
        An integer that stands for a missing value in tables, such as -1, beside NaN and the like.
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
    model_ : CircuitModel
        `model_.circuit` is the circuit.
    settings_ : Settings
    n_features_in_ : int
        Variables: the columns of a table; of images H W C.
    feature_names_in_ : ndarray of str
        The names of a table's columns, if X was a data frame. Later tables must have them in the same order.

    """

    _method = "einet"
    _section = "einet"
    _settings_of: ClassVar[dict[str, str]] = {
        "num_sums": "sums", **{name: name for name in ("regions", "steps", "depth", "replicas")}, **_SHARED,
    }  # fmt: skip

    def __init__(
        self,
        *,
        num_sums: int | None = None,
        regions: str | None = None,
        steps: tuple[int, ...] | None = None,
        depth: int | None = None,
        replicas: int | None = None,
        leaves: str | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        step_size: tuple[float, float] | None = None,
        pseudocount: float | None = None,
        patience: int | None = None,
        num_cats: int | None = None,
        missing: int | None = None,
        preset: str | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        random_state: RandomState = 0,
        progress: Progress | None = None,
    ) -> None:
        self.num_sums = num_sums
        self.regions = regions
        self.steps = steps
        self.depth = depth
        self.replicas = replicas
        self.leaves = leaves
        self.epochs = epochs
        self.batch_size = batch_size
        self.step_size = step_size
        self.pseudocount = pseudocount
        self.patience = patience
        self.num_cats = num_cats
        self.missing = missing
        self.preset = preset
        self.config = config
        self.random_state = random_state
        self.progress = progress
