"""Weights of any size, flows too small to count, and rows of probability 0."""

import time
from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd import Circuit

RNG = np.random.default_rng(7)
X = RNG.integers(0, 3, (200, 6))
WEIGHTS = RNG.uniform(0.1, 1, 200)


@pytest.mark.parametrize("num_cats", [3, 256])  # batches of fewer rows than categories learn in another way
@pytest.mark.parametrize("scale", [1e-29, 1e-20, 1e-7, 3.0, 1e20, 1e29])
def test_a_constant_that_all_weights_are_multiplied_by_changes_nothing(scale: float, num_cats: int) -> None:
    fitted = []
    for factor in (1.0, scale):
        pc = Circuit.hclt(X, num_latents=4, num_cats=num_cats, seed=1)
        history = pc.fit_em(X, weights=factor * WEIGHTS, epochs=3, batch_size=100, step_size=1.0, pseudocount=0, seed=2)
        fitted.append((pc, history))
    (plain, expected), (scaled, found) = fitted
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for mine, theirs in zip(scaled.parameters(), plain.parameters(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-28, 1e-8, 1e8, 1e28])
def test_flows_and_statistics_are_in_the_weights_units(scale: float) -> None:
    pc = Circuit.hclt(X, num_latents=4, num_cats=3, seed=1)
    plain, scaled = pc.flows(X, weights=WEIGHTS), pc.flows(X, weights=scale * WEIGHTS)
    np.testing.assert_allclose(scaled.nodes, scale * plain.nodes, rtol=1e-5)
    statistics = pc.accumulate(X, weights=scale * WEIGHTS)
    assert statistics.weight == pytest.approx(scale * WEIGHTS.sum(), rel=1e-6)
    pruned, expected = (pc.prune(X, weights=factor * WEIGHTS, min_flow=0.05) for factor in (scale, 1.0))
    assert pruned.num_edges == expected.num_edges < pc.num_edges
    other = Circuit.hclt(X, num_latents=4, num_cats=3, seed=1)
    pc.apply(statistics, pseudocount=0)
    other.apply(other.accumulate(X, weights=WEIGHTS), pseudocount=0)
    for mine, theirs in zip(pc.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("limit", [1e-30, 1e30])  # in single precision both are a little above themselves
def test_the_limits_of_weights_are_weights_everywhere(limit: float) -> None:
    heads, weights = X[:, 0] % 2, np.full(200, limit)
    pc = Circuit.hclt(X, num_latents=4, num_cats=3, heads=2, seed=1)
    grown = pc.grow(X, heads=heads, select=[0], threshold=0.1, weights=weights)
    assert grown.num_edges == pc.grow(X, heads=heads, select=[0], threshold=0.1).num_edges
    again = weights.astype(np.float32)
    for given in (weights, again, again.astype(float)):
        flows = pc.flows(X, heads=heads, weights=given).nodes
        np.testing.assert_allclose(flows, limit * pc.flows(X, heads=heads).nodes, rtol=1e-5)
        assert np.isfinite(pc.fit_em(X, heads=heads, weights=given, epochs=1)).all()
        assert pc.prune(X, heads=heads, weights=given, min_flow=0).num_edges <= pc.num_edges


def test_a_unit_whose_flow_is_subnormal_keeps_its_parameters(tmp_path: Path) -> None:
    """Its reciprocal would overflow, and the weights become NaN."""
    text = "jpc 7\nC 0 0 1 -0.6931472 -0.6931472\nC 1 0 1 -46.0 -1e-20\nC 2 0 2 -0.6931472 -0.6931472\n"
    text += "C 3 0 2 -46.0 -1e-20\nP 4 0 2 0 2\nP 5 0 2 1 3\nS 6 0 2 4 -0.6931472 5 -0.6931472\n"
    (tmp_path / "m.jpc").write_text(text)
    pc = Circuit.load(tmp_path / "m.jpc")
    rows = np.zeros((64, 2), int)  # 1e-40 as likely under the second component as under the first
    for _ in range(3):
        pc.fit_em(rows, epochs=1, batch_size=64, step_size=1.0, pseudocount=0)
    weight, leaf = pc.parameters()
    assert np.isfinite(weight).all()
    assert np.isfinite(leaf).all()
    assert np.isclose(pc.log_likelihood(rows), 0, atol=1e-6).all()
    pc.save(tmp_path / "again.safetensors")
    assert Circuit.load(tmp_path / "again.safetensors").log_likelihood([[1, 1]])[0] == -np.inf  # never seen


def test_one_impossible_row_costs_what_one_row_costs() -> None:
    """All rows were looked through one by one, 250 times as slow."""
    rows = np.random.default_rng(1).integers(0, 4, (20_000, 40))
    pc = Circuit.hclt(rows[:500], num_latents=16, num_cats=5, seed=0)
    pc.fit_em(rows[:500], epochs=1, batch_size=500, step_size=1.0, pseudocount=0)  # category 4 becomes impossible
    with_one = rows.copy()
    with_one[777, 3] = 4
    assert pc.log_likelihood(with_one[777:778])[0] == -np.inf
    for ask in (pc.flows, pc.accumulate, lambda X: pc.prune(X, min_flow=1e-9)):
        ask(with_one[:1000])  # compiles
        seconds = []
        for X in (rows, with_one):
            began = time.perf_counter()
            ask(X)
            seconds.append(time.perf_counter() - began)
        assert seconds[1] < 10 * seconds[0]
    assert pc.flows(with_one).nodes[-1] == pytest.approx(pc.flows(np.delete(with_one, 777, 0)).nodes[-1])
