"""`CircuitClassifier`: a head for each class, scikit-learn's interface, and what is missing."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import KFold, cross_val_score
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_array

from pyjuice_lvd import Circuit, CircuitClassifier
from pyjuice_lvd.errors import InputError

SMALL = CircuitClassifier(num_latents=3, epochs=30, batch_size=64)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Four ternary columns and three classes; the second differs from the third in how columns hang together alone."""
    rng = np.random.default_rng(0)
    y = rng.choice(3, 900, p=[0.5, 0.3, 0.2])
    X = rng.integers(0, 3, (900, 4))
    X[y == 0, 0] = 2
    X[y == 1, 2] = X[y == 1, 1]
    X[y == 2, 2] = (X[y == 2, 1] + 1) % 3
    return X, np.array(["a", "b", "c"])[y]


def test_probabilities_are_bayes_rule(data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data
    model = clone(SMALL).fit(X[:600], y[:600])
    assert model.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(model.class_prior_, [(y[:600] == c).mean() for c in "abc"])
    everything = np.array(list(itertools.product(range(3), repeat=4)))
    densities = np.exp(model.circuit_.log_likelihood(everything, head="all"))
    np.testing.assert_allclose(densities.sum(0), 1, rtol=1e-5)
    joint = densities * model.class_prior_
    np.testing.assert_allclose(np.exp(model.joint_log_likelihood(everything)), joint, rtol=1e-5)
    proba = model.predict_proba(everything)
    np.testing.assert_allclose(proba, joint / joint.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(np.log(proba), model.predict_log_proba(everything), atol=1e-6)
    np.testing.assert_array_equal(model.predict(everything), model.classes_[proba.argmax(1)])
    assert model.score(X[600:], y[600:]) > 0.78  # the best there is: 0.83
    # What is missing is summed out.
    hidden = np.where(np.arange(4) == 1, np.nan, everything)
    groups = joint.reshape(3, 3, 3, 3, 3).sum(1, keepdims=True)
    wanted = np.broadcast_to(groups, (3, 3, 3, 3, 3)).reshape(-1, 3)
    np.testing.assert_allclose(model.predict_proba(hidden), wanted / wanted.sum(1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(model.predict_proba(np.full((1, 4), np.nan))[0], model.class_prior_, rtol=1e-5)


def test_inputs_are_shared_and_sums_are_not(data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data
    model = clone(SMALL).fit(X, y)
    one = Circuit.hclt(X, num_latents=3, num_cats=3)
    assert model.circuit_.num_heads == 3
    inputs, sums = 4 * 3 * 3, one.num_params - 4 * 3 * 3
    assert model.circuit_.num_params == inputs + 3 * sums


def test_copies_are_of_the_same_distribution(data: tuple[np.ndarray, np.ndarray]) -> None:
    X, _ = data
    pc = Circuit.hclt(X, num_latents=3, heads=2, seed=1)
    pc.head_weights = [1, 3]
    copies = pc.with_copies(3)
    assert copies.num_heads == 6
    scores = pc.log_likelihood(X, head="all")
    np.testing.assert_allclose(copies.log_likelihood(X, head="all"), np.tile(scores, 3), rtol=1e-5)
    np.testing.assert_allclose(copies.head_weights, np.tile([0.25, 0.75], 3) / 3, rtol=1e-6)
    copies.fit_em(X, heads=np.full(len(X), 4), epochs=1, step_size=1.0)
    found = copies.log_likelihood(X, head="all")
    assert found[:, 4].mean() > scores[:, 0].mean()
    with pytest.raises(InputError, match="copies: found 0, wanted at least 1"):
        pc.with_copies(0)


def test_growing_doubles_the_heads_of_each_class() -> None:
    """A class of two clusters, in which columns that hang together hang together otherwise."""
    rng = np.random.default_rng(1)
    y, cluster = rng.integers(0, 2, 1200), rng.integers(0, 2, 1200)
    X = rng.integers(0, 2, (1200, 6))
    for column in range(1, 6):
        X[:, column] = np.where(
            rng.random(1200) < 0.9, X[:, 0] ^ cluster * (column % 2) ^ y * (column > 3), X[:, column]
        )
    plain = CircuitClassifier(num_latents=2, epochs=20, batch_size=100).fit(X[:800], y[:800])
    grown = CircuitClassifier(num_latents=2, epochs=20, batch_size=100, rounds=1).fit(X[:800], y[:800])
    assert (plain.circuit_.num_heads, grown.circuit_.num_heads) == (2, 4)
    assert grown.head_class_.tolist() == [0, 1, 0, 1]
    own = [model.joint_log_likelihood(X[800:])[np.arange(400), y[800:]].mean() for model in (plain, grown)]
    assert own[1] > own[0] - 0.02
    everything = np.array(list(itertools.product(range(2), repeat=6)))
    for model in (plain, grown):
        np.testing.assert_allclose(np.exp(model.joint_log_likelihood(everything)).sum(0), model.class_prior_, rtol=1e-4)


def test_learning_from_rows_with_missing_values(data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data
    mask = np.random.default_rng(2).random(X.shape) < 0.2
    model = clone(SMALL).set_params(missing=-1).fit(np.where(mask, -1, X)[:600], y[:600])
    assert model.score(X[600:], y[600:]) > 0.75
    with_holes = model.score(np.where(mask, np.nan, X)[600:], y[600:])
    assert 0.55 < with_holes < model.score(X[600:], y[600:])


def test_priors_and_weights(data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data
    model = clone(SMALL).set_params(class_prior=[1, 1, 2]).fit(X, y)
    np.testing.assert_allclose(model.class_prior_, [0.25, 0.25, 0.5])
    np.testing.assert_allclose(model.predict_proba(np.full((1, 4), np.nan))[0], [0.25, 0.25, 0.5], rtol=1e-5)
    weighted = clone(SMALL).set_params(valid_fraction=0).fit(X, y, sample_weight=np.where(y == "c", 5.0, 1.0))
    shares = np.array([(y == "a").sum(), (y == "b").sum(), 5 * (y == "c").sum()])
    np.testing.assert_allclose(weighted.class_prior_, shares / shares.sum(), rtol=1e-6)
    gone = clone(SMALL).set_params(valid_fraction=0).fit(X, y, sample_weight=(y != "a").astype(float))
    assert (gone.predict(X) != "a").all()


def test_better_than_a_circuit_for_each_class_on_digits() -> None:
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    train, test = order[:1200], order[1200:]
    model = CircuitClassifier(epochs=20).fit(X[train], y[train])  # floats, whole numbers
    scores = []
    for digit in range(10):
        own = X[train][y[train] == digit].astype(np.uint8)
        pc = Circuit.hclt(own, num_latents=4, num_cats=17)
        pc.fit_em(own[12:], valid=own[:12], epochs=20, step_size=(0.3, 0.03))
        scores.append(pc.log_likelihood(X[test].astype(np.uint8)) + np.log(len(own)))
    apart = (np.argmax(scores, axis=0) == y[test]).mean()
    assert model.score(X[test], y[test]) > max(0.93, apart)


def test_copies_in_memory(data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data
    model = clone(SMALL).fit(X, y)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # as pools of processes have it
        np.testing.assert_array_equal(other.predict_proba(X[:9]), model.predict_proba(X[:9]))
    folds = KFold(2)
    scores = cross_val_score(clone(SMALL), X[:300], y[:300], cv=folds)
    for score, (train, test) in zip(scores, folds.split(X[:300]), strict=True):
        assert score == pytest.approx(clone(SMALL).fit(X[train], y[train]).score(X[test], y[test]))


def test_what_does_not_fit_is_named(data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data
    model = clone(SMALL).set_params(epochs=1).fit(X, y)
    nine = X.copy()
    nine[4, 1] = 9
    for ask, part in (
        (lambda: model.predict(nine), r"X: found 9 in row 4, column 2; wanted 0\.\.2, the categories that it was"),
        (lambda: model.predict(X / 2), r"X: found float64 \(900, 4\), wanted integers \(N, V\)"),
        (lambda: clone(SMALL).fit(X, y[:5]), "y: found 5 labels for X of shape"),
        (lambda: clone(SMALL).fit(X, None), "y: found None, wanted labels"),
        (lambda: clone(SMALL).fit(X[:0], y[:0]), "y: found 0 labels for X of shape|found no rows"),
        (lambda: clone(SMALL).set_params(rounds=-1).fit(X, y), "rounds: found -1, wanted at least 0"),
        (lambda: clone(SMALL).set_params(threshold=1.5).fit(X, y), r"threshold: found 1\.5, wanted 0 or above"),
        (lambda: clone(SMALL).set_params(valid_fraction=1).fit(X, y), r"valid_fraction: found 1\.0, wanted"),
        (lambda: clone(SMALL).set_params(class_prior=[1, 1]).fit(X, y), r"class_prior: found int64 \(2,\), wanted"),
        (lambda: clone(SMALL).set_params(num_latents=0).fit(X, y), "num_latents = 0: want at least 1"),
    ):
        with pytest.raises(InputError, match=part):
            ask()
    with pytest.raises(NotFittedError):
        CircuitClassifier().predict(X)


class Binned(CircuitClassifier):
    """For scikit-learn's own checks, whose X are real numbers: these become integers, the same for the same number."""

    def _checked(self, X, *, fitting=False):
        levels = np.clip(np.rint(2 * check_array(X, dtype=float, ensure_all_finite="allow-nan")), -8, 7) + 8
        if hasattr(X, "columns"):
            levels = type(X)(levels, columns=X.columns)
        return super()._checked(levels, fitting=fitting)


def test_scikit_learns_own_checks() -> None:
    """All of them, on integers made of what they draw."""
    estimator = Binned(num_latents=2, epochs=30, num_cats=16)
    found = check_estimator(estimator, on_skip=None, on_fail=None)
    failed = {result["check_name"]: repr(result["exception"]) for result in found if result["status"] == "failed"}
    # A row of weight 2 is not the same as two rows: batches, the tree and the rows set apart count rows.
    assert failed.keys() <= {"check_sample_weight_equivalence_on_dense_data"}, failed
    assert sum(result["status"] == "passed" for result in found) > 40
