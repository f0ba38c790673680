"""Missing values: EM, flows, structure and early stopping on what is seen of each row, against enumeration."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd import Circuit
from pyjuice_lvd.circuit import Evidence
from pyjuice_lvd.circuit.hclt import chow_liu_parents, hidden_states
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.progress import SILENT

N, V, C = 120, 4, 3


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, what is missing of them (one row has nothing left, one lacks nothing), and their heads."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, C, (N, V), dtype=np.uint8)
    X[:, 2] = (X[:, 0] + (rng.random(N) < 0.2)) % C
    mask = rng.random((N, V)) < 0.4
    mask[0], mask[1] = True, False
    return X, mask, X[:, 1] % 2


def circuit() -> Circuit:
    return Circuit.from_tree([-1, 0, 0, 1], num_latents=4, num_cats=C, heads=2, seed=3)


def completed(X: np.ndarray, mask: np.ndarray, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All completions of all rows, the row of each, and how likely it is given what is seen."""
    everything = np.array(list(itertools.product(range(C), repeat=V)))
    p = np.exp(circuit().log_likelihood(everything, head="all"))
    rows, owners, shares = [], [], []
    for n in range(len(X)):
        agree = (mask[n] | (everything == X[n])).all(1)
        own = p[agree, heads[n]]
        rows.append(everything[agree])
        owners.append(np.full(len(own), n))
        shares.append(own / own.sum())
    return np.concatenate(rows), np.concatenate(owners), np.concatenate(shares)


def test_a_step_is_that_over_all_completions(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    X, mask, heads = data
    rows, owners, shares = completed(X, mask, heads)
    pc = circuit()
    # Edges: the flows of all completions, each as likely as it is. Inputs: of those, what was seen.
    whole = pc.accumulate(rows, heads=heads[owners], weights=shares)
    found = pc.accumulate(np.where(mask, 77, X), mask=mask, heads=heads)  # what is missing is not looked at
    np.testing.assert_allclose(found.edges, whole.edges, rtol=1e-4, atol=1e-4)
    _, leaf = pc.parameters()
    inputs = np.zeros(len(leaf))
    arrays = pc.engine.arrays()
    categoricals = np.flatnonzero(arrays["kind"] == 3)
    for v in range(V):
        seen = ~mask[owners, v]
        own = pc.accumulate(rows[seen], heads=heads[owners[seen]], weights=shares[seen]).inputs
        for unit in categoricals[arrays["variable"][categoricals] == v + 1]:
            places = arrays["param_start"][unit] - 1 + np.arange(C) * arrays["param_stride"][unit]
            inputs[places] = own[places]
    np.testing.assert_allclose(found.inputs, inputs, rtol=1e-4, atol=1e-4)
    assert found.inputs.sum() == pytest.approx((~mask).sum(), rel=1e-5)
    likelihood = pc.log_likelihood(X, mask=mask, head="all")[np.arange(N), heads]
    assert found.log_likelihood == pytest.approx(likelihood.sum(), rel=1e-5)
    # One step by hand, and by `fit_em`.
    weight, leaf = (array.astype(float) for array in pc.parameters())
    for unit in range(pc.num_nodes):
        first, end = arrays["child_start"][unit : unit + 2]
        if arrays["kind"][unit] == 2 and (flow := found.edges[first - 1 : end - 1]).sum() > 0:
            weight[first - 1 : end - 1] = flow / flow.sum()
    for unit in categoricals:
        places = arrays["param_start"][unit] - 1 + np.arange(C) * arrays["param_stride"][unit]
        leaf[places] = inputs[places] / inputs[places].sum()
    history = pc.fit_em(X, mask=mask, heads=heads, epochs=1, batch_size=N, step_size=1.0, pseudocount=0)
    assert history[0] == pytest.approx(likelihood.mean(), rel=1e-5)
    for mine, wanted in zip(pc.parameters(), (weight, leaf), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-3, atol=1e-5)


def test_a_mask_without_a_missing_value_changes_nothing(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    X, _, heads = data
    plain, masked = circuit(), circuit()
    settings = {"heads": heads, "epochs": 3, "batch_size": 50, "seed": 2}
    history = plain.fit_em(X, **settings)
    np.testing.assert_allclose(masked.fit_em(X, mask=np.zeros(V, bool), **settings), history, rtol=1e-6)
    for mine, wanted in zip(masked.parameters(), plain.parameters(), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-6)


def test_a_column_that_is_never_seen_learns_nothing_and_hinders_nothing() -> None:
    X = np.random.default_rng(1).integers(0, C, (N, 3))
    X[:, 1] = X[:, 0]
    hidden = np.array([False, False, True])  # one mask for all rows
    pc = Circuit.from_tree([-1, 0, 1], num_latents=3, num_cats=C, seed=1)
    arrays, (_, leaf) = pc.engine.arrays(), pc.parameters()
    untouched = leaf.copy()
    history = pc.fit_em(X, mask=hidden, epochs=100, batch_size=N, step_size=1.0, pseudocount=0)
    counts = np.bincount(X[:, 0], minlength=C) / N
    assert history[-1] == pytest.approx((counts * np.log(counts)).sum(), abs=0.02)  # the first two are one
    for unit in np.flatnonzero(arrays["kind"] == 3):
        start, stride = (int(arrays[name][unit]) for name in ("param_start", "param_stride"))
        places = start - 1 + np.arange(C) * stride
        assert np.array_equal(leaf[places], untouched[places]) == (arrays["variable"][unit] == 3)


def test_flows_pruning_and_growing(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    X, mask, heads = data
    rows, owners, shares = completed(X, mask, heads)
    pc = circuit()
    found, whole = pc.flows(X, mask=mask, heads=heads), pc.flows(rows, heads=heads[owners], weights=shares)
    np.testing.assert_allclose(found.nodes, whole.nodes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.edges, whole.edges, rtol=1e-4, atol=1e-4)
    for options in ({"min_flow": 0.05}, {"keep": 0.5}):
        pruned = pc.prune(X, mask=mask, heads=heads, **options)
        wanted = pc.prune(rows, heads=heads[owners], weights=shares, **options)
        assert pruned.num_edges == wanted.num_edges < pc.num_edges
    grown = pc.grow(X, mask=mask, heads=heads, select=[1], threshold=5.0)
    wanted = pc.grow(rows, heads=heads[owners], weights=shares, select=[1], threshold=5.0)
    assert (grown.num_heads, grown.num_edges) == (3, wanted.num_edges)


def test_pruning_drops_what_no_completion_can_pass() -> None:
    pc = Circuit.fully_factorized(num_vars=2, num_cats=2, heads=2)
    pc = Circuit.mixture([pc, pc])
    _, leaf = pc.parameters()
    kinds = pc.engine.arrays()
    first = np.flatnonzero((kinds["kind"] == 3) & (kinds["variable"] == 1))[0]
    start, stride = (int(kinds[name][first]) for name in ("param_start", "param_stride"))
    leaf[[start - 1, start - 1 + stride]] = 0, 1  # one component of head 0 has X1 = 1 only
    X = np.zeros((10, 2), int)
    head = pc.with_heads([0])
    assert head.prune(X, min_flow=0).num_edges < head.num_edges
    assert head.prune(X, mask=np.array([True, False]), min_flow=0).num_edges == head.num_edges


def test_the_tree_is_that_of_the_rows_in_which_both_are_seen() -> None:
    rng = np.random.default_rng(2)
    X = rng.integers(0, 4, (3000, 5))
    X[:, 3] = np.where(rng.random(3000) < 0.9, X[:, 0], X[:, 3])
    X[:, 4] = np.where(rng.random(3000) < 0.9, X[:, 1], X[:, 4])
    X[:, 2] = np.where(rng.random(3000) < 0.8, X[:, 1], X[:, 2])
    mask = rng.random(X.shape) < 0.5
    hidden = np.where(mask, 4000, X)  # as large as no category
    joins = [
        {frozenset((i, int(j))) for i, j in enumerate(parent) if j >= 0}
        for parent in (
            chow_liu_parents(hidden, 4, 0.1, SILENT, mask=mask),
            chow_liu_parents(X, 4, 0.1, SILENT),
        )
    ]
    for join in ((0, 3), (1, 4), (1, 2)):
        assert all(frozenset(join) in found for found in joins)
    # Values that are missing together say nothing of each other, and a constant in their place would.
    together = np.broadcast_to((rng.random(3000) < 0.5)[:, None], (3000, 2))
    mask = np.zeros_like(mask)
    mask[:, [0, 2]] = together
    naive = chow_liu_parents(np.where(mask, 0, X), 4, 0.1, SILENT)
    exact = chow_liu_parents(hidden % 4, 4, 0.1, SILENT, mask=mask)
    assert 2 in (naive[0], *np.flatnonzero(naive == 0))
    assert 2 not in (exact[0], *np.flatnonzero(exact == 0))
    pc = Circuit.hclt(np.where(mask, 4000, X), mask=mask, num_latents=2)
    assert pc.posterior_marginals(X[:1], np.ones(5, bool)).shape == (1, 5, 4)  # what is missing is no category


def test_hidden_states_of_missing_values() -> None:
    rng = np.random.default_rng(3)
    X = np.where(rng.random((900, 1)) < 0.5, 20, 220) + rng.integers(0, 8, (900, 3))
    mask = rng.random(X.shape) < 0.3
    states = hidden_states(X, np.array([-1, 0, 1]), 2, 0, SILENT, mask=mask)
    for v in range(3):
        seen = ~mask[:, v]
        assert ((states[seen, v] == states[seen, v][0]) == (X[seen, v] // 100 == X[seen, v][0] // 100)).all()
    pc = Circuit.hclt(np.where(mask, 0, X), mask=mask, num_latents=2, num_cats=256, start="clusters")
    lower = Circuit.hclt(np.where(mask, 0, X), mask=mask, num_latents=2, num_cats=256)
    assert pc.log_likelihood(X).mean() > lower.log_likelihood(X).mean() + 3


def test_early_stopping_and_checkpoints_know_masks(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0)
    X, mask, heads = data
    pc, settings = circuit(), {"heads": heads, "batch_size": 50, "valid": X, "valid_heads": heads}

    def score() -> float:
        return float(pc.log_likelihood(X, mask=~mask, head="all")[np.arange(N), heads].mean())

    before = score()
    history = pc.fit_em(X, mask=mask, valid_mask=~mask, epochs=3, **settings)
    assert max(before, *history.valid) == pytest.approx(score())
    path = tmp_path / "em.safetensors"
    again = circuit()

    def stop(history: list[float]) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again.fit_em(X, mask=mask, valid_mask=~mask, epochs=3, checkpoint=path, on_epoch=stop, **settings)
    for masks, what in (
        ({"mask": mask}, "on other valid"),
        ({"valid_mask": ~mask}, "with mask; wanted one without"),
        ({"mask": ~mask, "valid_mask": ~mask}, "on other mask"),
    ):
        with pytest.raises(InputError, match=what):
            circuit().fit_em(X, **masks, epochs=3, checkpoint=path, **settings)
    resumed = circuit()
    np.testing.assert_array_equal(
        resumed.fit_em(X, mask=mask, valid_mask=~mask, epochs=3, checkpoint=path, **settings), history
    )
    for mine, wanted in zip(resumed.parameters(), pc.parameters(), strict=True):
        np.testing.assert_array_equal(mine, wanted)


def test_shares_of_the_data_add_up(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    X, mask, heads = data
    pc = circuit()
    parts = [pc.accumulate(X[part], mask=mask[part], heads=heads[part]) for part in (slice(0, 50), slice(50, None))]
    whole, total = pc.accumulate(X, mask=mask, heads=heads), parts[0] + parts[1]
    np.testing.assert_allclose(total.inputs, whole.inputs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total.edges, whole.edges, rtol=1e-5, atol=1e-5)


def test_what_is_no_mask_is_refused(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    X, mask, heads = data
    pc = circuit()
    evidence = Evidence(np.zeros((2, V, C), np.float32))
    for ask, part in (
        (lambda: pc.fit_em(X, mask=mask[:, :2]), r"^mask: found bool \(120, 2\), wanted bool \(120, 4\) or \(4,\)"),
        (lambda: pc.flows(X, mask=mask.astype(int)), r"^mask: found int64 \(120, 4\), wanted bool"),
        (lambda: pc.fit_em(X, valid=X, valid_mask=mask[:5]), r"^valid_mask: found bool \(5, 4\), wanted bool"),
        (lambda: pc.fit_em(X, valid_mask=mask), "^valid_mask: found without valid"),
        (lambda: pc.accumulate(evidence, mask=mask[:2]), "^mask: found together with Evidence"),
        (lambda: pc.fit_em(X.astype(float) * np.nan), "^X: found NaN .*mask= says what is missing"),
        (lambda: pc.fit_em(np.where(mask, X, 9), mask=mask), r"^X: row \d+, variable \d: value 9 is outside"),
        (lambda: Circuit.hclt(X, mask=mask[:3]), r"^mask: found bool \(3, 4\)"),
        (lambda: pc.prune(X, mask=mask[:3]), r"^mask: found bool \(3, 4\)"),
        (lambda: pc.grow(X, heads=heads, select=[0], threshold=1.0, mask=mask[:3]), r"^mask: found bool \(3, 4\)"),
    ):
        with pytest.raises(InputError, match=part):
            ask()
