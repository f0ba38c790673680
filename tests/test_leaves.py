"""Kinds of inputs: logistic over levels, Poisson over counts, Gaussian over real numbers; alone and together."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from commands import lvd_juice
from scipy import stats
from sklearn.datasets import load_digits

from pyjuice_lvd import HCLT, RATSPN, Circuit
from pyjuice_lvd.circuit.leaves import in_bins
from pyjuice_lvd.errors import InputError

MIXED = ["categorical", "gaussian", "poisson", "gaussian"]


def mixed_table(n: int = 600, seed: int = 0) -> npt.NDArray[np.float64]:
    """Rows of a category, and numbers that follow from it."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, 3, n)
    return np.stack([z, rng.normal(4 * z, 0.5), rng.poisson(1 + 6 * z), 100 + rng.normal(0, 20, n)], axis=1)


@pytest.fixture(scope="module")
def mixed() -> Circuit:
    pc = Circuit.hclt(mixed_table(), num_latents=4, leaves=MIXED, start="clusters")
    pc.fit_em(mixed_table(), epochs=15, batch_size=200, step_size=(0.5, 0.1))
    return pc


def test_logistic_leaves_sum_to_1_and_have_few_parameters() -> None:
    X = np.random.default_rng(0).integers(0, 5, (300, 3))
    pc = Circuit.hclt(X, num_latents=3, leaves="logistic")
    pc.fit_em(X, epochs=3)
    every = np.array(list(itertools.product(range(5), repeat=3)))
    assert np.exp(pc.log_likelihood(every)).sum() == pytest.approx(1, rel=1e-5)
    assert pc.num_params == Circuit.hclt(X, num_latents=3).num_params - 3 * 3 * (5 - 2)


def test_logistic_leaves_on_digits_generalise_better() -> None:
    X = load_digits().images.reshape(-1, 64).astype(np.uint8)
    scores = {}
    for leaves in ("categorical", "logistic"):
        pc = Circuit.hclt(X[:1200], num_latents=8, num_cats=17, leaves=leaves, start="clusters")
        pc.fit_em(X[:1200], epochs=8, step_size=(0.5, 0.05), pseudocount=0.05)
        scores[leaves] = pc.log_likelihood(X[1200:]).mean()
    assert scores["logistic"] > scores["categorical"] + 1


def test_a_rat_spn_with_logistic_leaves() -> None:
    X = load_digits().images.reshape(-1, 64).astype(np.uint8)
    sizes = {"num_vars": 64, "depth": 3, "replicas": 2, "num_sums": 4, "num_inputs": 4, "num_cats": 17}
    pc = Circuit.rat_spn(**sizes, leaves="logistic")
    history = pc.fit_em(X[:500], epochs=4)
    assert history[-1] > history[0]
    assert pc.sample(3).dtype == np.uint8


@pytest.mark.parametrize("suffix", [".jpc", ".jpc.gz", ".safetensors"])
def test_files_keep_the_leaves(mixed: Circuit, tmp_path: Path, suffix: str) -> None:
    for name, pc, X in (
        ("mixed", mixed, mixed_table()),
        ("logistic", Circuit.from_tree([-1, 0], num_latents=2, num_cats=9, leaves="logistic"), np.array([[0, 8]])),
    ):
        path = tmp_path / f"{name}{suffix}"
        pc.save(path)
        again = Circuit.load(path)
        np.testing.assert_allclose(again.log_likelihood(X), pc.log_likelihood(X), rtol=1e-5, atol=1e-5)
        assert again.num_params == pc.num_params


def test_mixed_columns_find_what_follows_from_what(mixed: Circuit) -> None:
    X = mixed_table(4000, seed=1)
    z = X[:, 0]
    # The density that the rows were drawn from.
    truth = np.log(1 / 3) + stats.norm.logpdf(X[:, 1], 4 * z, 0.5) + stats.poisson.logpmf(X[:, 2], 1 + 6 * z)
    truth += stats.norm.logpdf(X[:, 3], 100, 20)
    assert mixed.log_likelihood(X).mean() == pytest.approx(truth.mean(), abs=0.12)
    hidden = np.array([True, False, False, False])
    assert (mixed.posterior_marginals(X[:500], hidden)[:, 0].argmax(axis=1) == z[:500]).mean() > 0.98
    assert (mixed.mpe(X[:500], hidden)[:, 0] == z[:500]).mean() > 0.98


def test_marginals_of_mixed_columns_are_integrals(mixed: Circuit) -> None:
    grid = np.linspace(-30, 40, 4001)
    rows = np.tile([1.0, 0, 7, 90], (len(grid), 1))
    rows[:, 1] = grid
    hidden = np.array([False, True, False, False])
    whole = mixed.log_likelihood(rows[:1], mask=hidden)[0]
    assert np.log(np.trapezoid(np.exp(mixed.log_likelihood(rows)), grid)) == pytest.approx(whole, abs=1e-4)


def test_samples_of_mixed_columns(mixed: Circuit) -> None:
    drawn = mixed.sample(4000, seed=2)
    assert drawn.dtype == np.float64
    assert set(np.unique(drawn[:, 0])) <= {0.0, 1.0, 2.0}
    np.testing.assert_array_equal(drawn[:, 2], np.floor(drawn[:, 2]))
    np.testing.assert_allclose(drawn.mean(axis=0), mixed_table(4000, 3).mean(axis=0), rtol=0.08)
    given = mixed.sample(300, X=[[0, 8.0, 0, 0]], mask=[True, False, True, True])[:, 0]
    assert (given[:, 1] == 8.0).all()
    assert given[:, 2].mean() == pytest.approx(13, abs=1)


def test_counts_alone_are_integers() -> None:
    X = np.random.default_rng(0).poisson([3.0, 400.0], (500, 2))
    pc = Circuit.hclt(X, num_latents=2, leaves="poisson")
    pc.fit_em(X, epochs=10)
    truth = stats.poisson.logpmf(X, [3.0, 400.0]).sum(axis=1).mean()
    assert pc.log_likelihood(X).mean() == pytest.approx(truth, abs=0.1)
    assert pc.sample(5).dtype == np.int32
    with pytest.raises(InputError, match="row 0, variable 1: value -1"):
        pc.log_likelihood([[1, -1]])


def test_em_goes_on_from_a_checkpoint_of_such_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0.0)
    X, path = mixed_table(), tmp_path / "em.safetensors"
    make = lambda: Circuit.hclt(X, num_latents=2, leaves=MIXED)  # noqa: E731
    whole, halves = make(), make()
    whole.fit_em(X, epochs=3)

    class StopError(Exception):
        pass

    def stop(history: list[float]) -> None:
        if len(history) == 2:
            raise StopError

    with pytest.raises(StopError):
        halves.fit_em(X, epochs=3, checkpoint=path, on_epoch=stop)
    halves.fit_em(X, epochs=3, checkpoint=path)
    for one, other in zip(whole.parameters(), halves.parameters(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_statistics_of_shares_add_up() -> None:
    X = mixed_table()
    one, other = (Circuit.hclt(X, num_latents=2, leaves=MIXED) for _ in range(2))
    one.apply(one.accumulate(X))
    other.apply(other.accumulate(X[:200]) + other.accumulate(X[200:]))
    np.testing.assert_allclose(one.log_likelihood(X), other.log_likelihood(X), rtol=1e-4)


def test_variables_of_several_kinds_have_categories_of_their_own() -> None:
    X = np.column_stack([np.arange(90) % 3, np.arange(90), np.arange(90) % 7])
    pc = Circuit.hclt(X, num_latents=2, leaves=["categorical", "logistic", "poisson"])
    assert pc.num_params == 2 * (3 + 2 + 1) + 2 * 4 + 2
    assert pc.posterior_marginals(X[:1], [False] * 3).shape == (1, 3, 90)
    with pytest.raises(InputError, match=r"variable 0: value 3 is outside 0[.][.]2"):
        pc.log_likelihood([[3, 0, 0]])


def test_bins_hold_as_many_rows() -> None:
    X = np.column_stack([np.random.default_rng(0).exponential(size=1000), np.zeros(1000), np.arange(1000) % 3])
    found, most = in_bins(["gaussian", "poisson", "categorical"], X, 3)
    assert most == 10
    assert np.bincount(found[:, 0]).tolist() == [100] * 10
    assert len(np.unique(found[:, 1])) == 1
    assert (found[:, 2] == X[:, 2]).all()


@pytest.mark.parametrize(
    ("X", "leaves", "message"),
    [
        ([[0, 1]], "normal", "leaves: found 'normal'"),
        ([[0, 1]], None, "leaves: found None, wanted one of categorical"),
        ([[0, 1, 2]], ["gaussian", "poisson"], "leaves: found 2 kinds, wanted one, or one for each of 3 variables"),
        ([[0.5, 1], [1, 2]], "categorical", "wanted integers"),
        ([[0.5, np.nan]], "gaussian", "row 0, variable 1: found nan, wanted a finite number"),
        ([[0.5, 1.5], [1, 2]], ["gaussian", "poisson"], r"row 0, variable 1: found 1.5, wanted counts from 0"),
        ([[0.5, 1.5], [1, 2]], ["gaussian", "categorical"], r"variable 1: found 1.5, wanted categories, 0..2"),
        ([[1e9, 1], [1e9 + 1, 2]], "gaussian", "variable 0: found a mean of 1e[+]09 with a deviation of 0.5"),
    ],
)
def test_what_does_not_fit_is_named(X: npt.ArrayLike, leaves: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Circuit.hclt(X, num_latents=2, leaves=leaves)


def test_rows_that_a_circuit_of_numbers_cannot_have(mixed: Circuit) -> None:
    with pytest.raises(InputError, match=r"row 0, variable 2: found 0[.]5, wanted a whole number"):
        mixed.log_likelihood([[0, 0, 0.5, 0]])
    with pytest.raises(InputError, match="row 0, variable 1: found Inf"):
        mixed.log_likelihood([[0, np.inf, 0, 0]])
    with pytest.raises(InputError, match="poisson"):
        Circuit.from_tree([-1, 0], num_cats=2, leaves="poisson")
    assert mixed.log_likelihood([[0, 1e7, 0, 0]])[0] < -1e8


def test_the_baselines_take_leaves_and_export_says_what_juice_lacks(tmp_path: Path) -> None:
    images = tmp_path / "images.npy"
    np.save(images, load_digits().images[:200].astype(np.uint8))
    settings = [f"hclt.{each}" for each in ("latents=2", "epochs=1", "leaves=logistic")]
    options = [word for each in settings for word in ("--set", each)]
    run, text = tmp_path / "run", tmp_path / "model.jpc"
    lvd_juice("fit", images, "-o", run, "--method", "hclt", *options)
    refused = lvd_juice("export", run, "-o", text, check=False)
    assert refused.returncode == 2
    assert "logistic inputs, of which Juice.jl has none" in refused.stderr
    assert not text.exists()
    lvd_juice("export", run, "-o", tmp_path / "model.safetensors")
    assert Circuit.load(tmp_path / "model.safetensors").num_params == HCLT.load(run).model_.num_params
    model = RATSPN(depth=2, replicas=1, leaves="logistic", epochs=1).fit(load_digits().images[:200].astype(np.uint8))
    assert model.model_.circuit.has_own_leaves


def test_graphs_name_their_kinds(mixed: Circuit, tmp_path: Path) -> None:
    kinds = [about["kind"] for _, about in mixed.to_networkx().nodes(data=True)]
    assert kinds.count("gaussian") == 2 * kinds.count("poisson") == 8
    mixed.draw(tmp_path / "mixed.svg")
    assert (tmp_path / "mixed.svg").stat().st_size > 1000
