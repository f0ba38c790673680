"""Classification by one circuit: a head for each class, over inputs that all share."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from pyjuice_lvd.checks import integer, number, require
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.rows import Mask, Table, as_shares, as_weights, categories_of
from pyjuice_lvd.data.missing import as_incomplete_table, missing_in
from pyjuice_lvd.data.source import column_name
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.estimators.base import RandomState, seed_of
from pyjuice_lvd.progress import SILENT, Progress

_COMMON_EPOCHS = 5
"""EM on all classes together, before each gets sums of its own: inputs that all share are found for all."""

_MIN_FLOW = 1e-5
"""Of the rows: edges with no more flow are pruned after a round of growing, most of whose copies nothing passes."""


class CircuitClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no type hints
    """A classifier of tables by exact densities: p(class | x) in proportion to p(class) p(x | class).

    All classes are heads of one circuit: a hidden Chow-Liu tree over the dependencies in all rows, in which each class
    has sums and products of its own, over inputs that are shared. EM gives each row to the head of its class. Rows with
    missing values, in learning or in prediction, count with what is seen of them, exactly.

    Parameters
    ----------
    num_latents : int
        Hidden states of each variable.
    rounds : int
        Of growing (Algorithm 1 of LVD-PG): each doubles the heads of every class, which becomes their mixture.
    threshold : float
        A round copies the units that at least this share of the rows pass.
    epochs, batch_size, step_size, pseudocount, patience : optional
        Of EM, as for `Circuit.fit_em`; of each round as many epochs.
    valid_fraction : float
        Share of each class that is set apart, by seed, to stop early by; 0: none.
    class_prior : numbers (n_classes,), optional
        p(class) up to a factor, in the order of `classes_`; default: the classes' shares of the rows.
    num_cats : int, optional
        Categories of the variables; default: the largest value that `fit` sees, plus 1.
    missing : int, optional
        An integer that stands for a missing value, such as -1, beside NaN and the like.
    random_state : int, RandomState or None
        Seed of everything random, as scikit-learn has it.
    progress : Progress, optional
        Where the work is shown; default: nowhere.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    circuit_ : Circuit
        Its heads are the classes', `head_class_` of each, with prior weights of p(head).
    head_class_ : int ndarray (num_heads,)
        The place in `classes_` of each head's class.
    class_prior_ : float64 ndarray (n_classes,)
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        The names of the columns, if X was a data frame.

    """

    def __init__(
        self,
        *,
        num_latents: int = 4,
        rounds: int = 0,
        threshold: float = 0.05,
        epochs: int = 50,
        batch_size: int = 256,
        step_size: tuple[float, float] | float = (0.3, 0.03),
        pseudocount: float = 0.1,
        patience: int = 5,
        valid_fraction: float = 0.1,
        class_prior: npt.ArrayLike | None = None,
        num_cats: int | None = None,
        missing: int | None = None,
        random_state: RandomState = 0,
        progress: Progress | None = None,
    ) -> None:
        self.num_latents = num_latents
        self.rounds = rounds
        self.threshold = threshold
        self.epochs = epochs
        self.batch_size = batch_size
        self.step_size = step_size
        self.pseudocount = pseudocount
        self.patience = patience
        self.valid_fraction = valid_fraction
        self.class_prior = class_prior
        self.num_cats = num_cats
        self.missing = missing
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> Self:
        """Learn from a table, integers (N, V) from 0, some perhaps missing (as for `HCLT`), and its labels, (N,).

        `sample_weight`, numbers (N,): what each row counts for; default: 1. Raises InputError where something is not
        what is wanted.
        """
        rounds, fraction = integer("rounds", self.rounds, least=0), number("valid_fraction", self.valid_fraction)
        require(0 <= fraction < 1, "valid_fraction", fraction, "0 or above, below 1")
        threshold, seed = number("threshold", self.threshold), seed_of(self.random_state)
        require(0 <= threshold < 1, "threshold", threshold, "0 or above, below 1: a share of the rows")
        table = self._checked(X, fitting=True)
        if y is None:
            raise InputError("y: found None, wanted labels (N,): requires y to be passed, but the target y is None")
        labels = column_or_1d(y, warn=True)
        if len(labels) != len(table) or not table.size:
            raise InputError(f"y: found {len(labels)} labels for X of shape {table.shape}, wanted one for each row")
        check_classification_targets(labels)
        self.classes_, own = np.unique(labels, return_inverse=True)
        weights = as_weights(sample_weight, len(table), "sample_weight")
        if not weights.any():
            raise InputError("sample_weight: found zeros only, wanted at least one number above 0")
        shares = np.bincount(own, weights, len(self.classes_))
        given = shares if self.class_prior is None else self.class_prior
        self.class_prior_ = as_shares(given, len(self.classes_), "class_prior")
        hidden = missing_in(table)
        self._learn(table, hidden, own.astype(np.int32), weights, rounds, threshold, fraction, seed)
        return self

    def predict_log_proba(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """log p(class | x), or given what is seen of x: float64 (N, n_classes), in the order of `classes_`.

        A row that is impossible under all classes has their prior. Raises InputError where X does not fit.
        """
        joint = self.joint_log_likelihood(X)
        total = logsumexp(joint, axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: npt.NDArray[np.float64] = np.where(total > -np.inf, joint - total, np.log(self.class_prior_))
        return found

    def joint_log_likelihood(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """log p(class) p(x | class), of what is seen of x: float64 (N, n_classes), in nats."""
        check_is_fitted(self, "circuit_")
        table = self._checked(X)
        scores = self.circuit_.log_likelihood(table, mask=missing_in(table), head="all", progress=self._shown)
        with np.errstate(divide="ignore"):
            scores += np.log(self.circuit_.head_weights)
            prior = np.log(self.class_prior_)
        found = np.empty((len(table), len(self.classes_)))
        for place in range(len(self.classes_)):
            heads = self.head_class_ == place
            share = self.circuit_.head_weights[heads].sum()
            found[:, place] = logsumexp(scores[:, heads], axis=1) - np.log(share) + prior[place]
        return found

    def predict_proba(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """p(class | x): as `predict_log_proba`, each row sums to 1."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Give the most probable class of each row, (N,)."""
        best = self.predict_log_proba(X).argmax(axis=1)
        found: npt.NDArray[Any] = self.classes_[best]
        return found

    def _learn(
        self,
        table: Table,
        hidden: Mask | None,
        own: npt.NDArray[np.int32],
        weights: npt.NDArray[np.float32],
        rounds: int,
        threshold: float,
        fraction: float,
        seed: int,
    ) -> None:
        """Learn `circuit_` of checked rows and the places of their classes."""
        apart = _set_apart(own, fraction, seed)
        rows, valid = (_part(table, hidden, part) for part in (~apart, apart))
        own, own_valid, weights = own[~apart], own[apart], weights[~apart]
        cats = categories_of(table, hidden) if self.num_cats is None else integer("num_cats", self.num_cats)
        em: dict[str, Any] = {
            "weights": weights, "batch_size": self.batch_size, "step_size": self.step_size,
            "pseudocount": self.pseudocount, "seed": seed, "progress": self._shown,
        }  # fmt: skip
        common = Circuit.hclt(
            rows["X"], mask=rows["mask"], num_latents=self.num_latents, num_cats=cats, seed=seed, progress=self._shown
        )
        common.fit_em(**rows, **em, epochs=min(_COMMON_EPOCHS, integer("epochs", self.epochs)))
        circuit, head_class = common.with_copies(len(self.classes_)), np.arange(len(self.classes_))
        for stage in range(rounds + 1):
            if stage:
                heads = _best(circuit, head_class, rows, own)
                everyone = np.arange(circuit.num_heads)
                circuit = circuit.grow(
                    **rows, heads=heads, select=everyone, threshold=threshold, seed=seed + stage, weights=weights
                )
                head_class = np.tile(head_class, 2)
            heads = _best(circuit, head_class, rows, own)
            held_out: dict[str, Any] = {}
            if len(own_valid):
                best = _best(circuit, head_class, valid, own_valid)
                held_out = {"valid": valid["X"], "valid_mask": valid["mask"], "valid_heads": best}
            circuit.fit_em(**rows, **em, heads=heads, epochs=self.epochs, patience=self.patience, **held_out)
            if stage:
                circuit = circuit.prune(**rows, heads=heads, weights=weights, min_flow=_MIN_FLOW)
        counts = np.bincount(_best(circuit, head_class, rows, own), weights, circuit.num_heads) + 1e-3
        circuit.head_weights = counts
        self.circuit_, self.head_class_ = circuit, head_class

    def _checked(self, X: npt.ArrayLike, *, fitting: bool = False) -> Table:
        """Check X, and the names of its columns as scikit-learn does; -1 where a value is missing."""
        validate_data(self, X, reset=fitting, skip_check_array=True)
        table = as_incomplete_table(X, self.missing, columns=getattr(self, "feature_names_in_", ()))
        if not fitting:
            most = self.circuit_.engine.categories
            if table.size and table.max() >= most:
                row, column = np.argwhere(table >= most)[0]
                name = column_name(getattr(self, "feature_names_in_", ()), column)
                wanted = f"0..{most - 1}, the categories that it was fitted with"
                raise InputError(f"X: found {table[row, column]} in row {row}, {name}; wanted {wanted}")
        return table

    @property
    def _shown(self) -> Progress:
        return self.progress or SILENT

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _part(table: Table, hidden: Mask | None, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Take some rows, as `Circuit.fit_em` and the like have them."""
    return {"X": table[chosen], "mask": None if hidden is None else hidden[chosen]}


def _set_apart(own: npt.NDArray[np.int32], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Choose rows to stop early by, the same share of every class, rounded down: bool (N,)."""
    apart, rng = np.zeros(len(own), bool), np.random.default_rng(seed)
    for place in np.unique(own):
        members = rng.permutation(np.flatnonzero(own == place))
        apart[members[: int(fraction * len(members))]] = True
    return apart


def _best(
    circuit: Circuit, head_class: npt.NDArray[np.intp], rows: dict[str, Any], own: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Give each row the head of its class under which it is most probable: int32 (N,)."""
    if circuit.num_heads == head_class.max() + 1:
        return own
    scores = circuit.log_likelihood(rows["X"], mask=rows["mask"], head="all")
    return np.asarray(np.where(head_class == own[:, None], scores, -np.inf).argmax(axis=1), np.int32)
