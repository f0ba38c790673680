"""One circuit over whole images, or over the rows of a table: what the baselines share, and RATSPN and EINET."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from pyjuice_lvd.checks import integer, plain_array
from pyjuice_lvd.data.columns import (
    Choice,
    Column,
    as_frame,
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
from pyjuice_lvd.settings import Settings, resolve


class Baseline(DensityEstimator):
    """Learns by EM, from images or tables; a subclass names its method, and its parameters' settings."""

    _section: ClassVar[str]

    num_cats: int | None
    missing: int | None
    leaves: Choice
    _framed = False
    """Whether that was a data frame."""
    columns_: tuple[Column, ...] | None = None
    """Of a table whose columns may differ; None: integers from 0."""

    def fit(self, X: Array, y: object = None) -> Self:
        """Learn from images, uint8 (N, H, W[, C]), or a table, integers (N, V) from 0, of which some may be missing.

        `HCLT` takes data frames whose columns differ, too (docs/leaves.md).
        Missing is what is NaN (in floats that are whole numbers otherwise), None, pandas' NA, hidden by numpy's mask,
        or the number `missing`. A row is learned from what is seen of it, exactly, if values are missing at random.
        Some are set apart, by seed, to stop early by. Raises InputError where the data or a setting are not what is
        wanted.
        """
        base = self._resolved()
        self.columns_, self._framed = self._columns(X, base), is_frame(X)
        self.settings_ = resolve(base=base, config=self._given_sections())
        data = self._checked(X, fitting=True)
        cats = IMAGE_CATEGORIES if data.ndim == 4 else self._num_cats(data)
        train, valid = self._set_apart(data)
        self.n_features_in_ = int(np.prod(data.shape[1:]))
        columns = self.columns_ if self.columns_ is not None and differ(self.columns_) else None
        self.model_: CircuitModel = learn_circuit(
            train, valid, self.settings_, num_cats=cats, columns=columns, progress=self._shown
        )
        return self

    def _columns(self, X: Array, base: Settings) -> tuple[Column, ...] | None:
        """Say what each column of a table is, where they may differ: here they must not."""
        return None

    def _given_back(self, values: Array) -> Any:
        if self.columns_ is None:
            return values
        if self._framed and values.ndim == 2:
            return as_frame(values, self.columns_)
        return in_words(values, self.columns_) if any(column.values for column in self.columns_) else values

    def _to_code(self, X: Array) -> Array:
        return X if self.columns_ is None else self._checked(X)

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
        if self.columns_ is not None:
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


SHARED = {name: name for name in ("leaves", "epochs", "batch_size", "step_size", "pseudocount", "patience")}


class RATSPN(Baseline):
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
        "depth": "depth", "replicas": "replicas", "num_sums": "sums", "num_inputs": "inputs", **SHARED,
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


class EINET(Baseline):
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
        "num_sums": "sums", **{name: name for name in ("regions", "steps", "depth", "replicas")}, **SHARED,
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
