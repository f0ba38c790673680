"""The estimators HCLT and SparseHCLT: hidden Chow-Liu trees over images, and tables with columns of all kinds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from pyjuice_lvd.checks import plain_array
from pyjuice_lvd.data.columns import Choice, Column, columns_of, differ, is_frame
from pyjuice_lvd.estimators.base import Array, RandomState
from pyjuice_lvd.estimators.baselines import SHARED, Baseline
from pyjuice_lvd.progress import Progress
from pyjuice_lvd.settings import HCLTSettings, Settings


class HCLT(Baseline):
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
        **SHARED,
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

    def _columns(self, X: Array, base: Settings) -> tuple[Column, ...] | None:
        leaves = self.leaves
        if leaves is None and base.hclt.leaves != HCLTSettings.leaves:
            leaves = base.hclt.leaves
        if not is_frame(X) and not isinstance(X, np.ma.MaskedArray):
            X = plain_array("X", X)
        if X.ndim != 2:
            return None
        columns = columns_of(X, leaves, missing=self.missing, num_cats=self.num_cats)
        if columns is not None and differ(columns):
            self._shown.log(f"columns: {', '.join(map(str, columns))}")
        return columns

    def _given(self) -> dict[str, Any]:
        given = super()._given()
        if self.columns_ is not None:
            given.pop("leaves", None)
            if not differ(self.columns_):  # one kind for all is a setting
                given["leaves"] = self.columns_[0].leaves
            if self.start is None and any(column.num_cats == 0 for column in self.columns_):
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
    round_step_size : (float, float), optional
        EM's, in the first and in the last epoch of each round; linear in between.
    num_latents, num_trees, leaves, search, start, epochs : optional
        Of the tree that the rounds begin with, as for `HCLT`.
    batch_size, step_size, pseudocount, patience, num_cats, missing, preset, config, random_state, progress : optional
        As for `HCLT`. So are the attributes.

    """

    _method = "sparse-hclt"
    _rounds: ClassVar[tuple[str, ...]] = ("rounds", "keep", "noise", "round_epochs", "round_step_size")

    def __init__(
        self,
        *,
        rounds: int | None = None,
        keep: float | None = None,
        noise: float | None = None,
        round_epochs: int | None = None,
        round_step_size: tuple[float, float] | None = None,
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
        self.round_step_size = round_step_size
        super().__init__(
            num_latents=num_latents, num_trees=num_trees, leaves=leaves, search=search, start=start, epochs=epochs,
            batch_size=batch_size, step_size=step_size, pseudocount=pseudocount, patience=patience, num_cats=num_cats,
            missing=missing, preset=preset, config=config, random_state=random_state, progress=progress,
        )  # fmt: skip

    def _given_sections(self) -> dict[str, dict[str, Any]]:
        own = {name.removeprefix("round_"): getattr(self, name) for name in self._rounds}
        return {**super()._given_sections(), "sparse_hclt": {key: own[key] for key in own if own[key] is not None}}
