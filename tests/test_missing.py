"""Missing values: EM, flows, structure and early stopping on what is seen of each row, against enumeration."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from commands import lvd_juice

from pyjuice_lvd import HCLT, RATSPN, Circuit
from pyjuice_lvd.circuit import Evidence
from pyjuice_lvd.circuit.hclt import chow_liu_parents, hidden_states
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.evaluate.merit import factorized_bpd, figures_of_merit
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


# --- estimators, tables and their figures -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patterns() -> tuple[np.ndarray, np.ndarray]:
    """A table whose rows follow one of two patterns, and what is missing of it."""
    rng = np.random.default_rng(5)
    rows = np.where(rng.random((600, 1)) < 0.5, [[0, 1, 2, 0, 1, 2]], [[2, 2, 0, 1, 0, 0]])
    rows = np.where(rng.random((600, 6)) < 0.1, rng.integers(0, 3, (600, 6)), rows)
    return rows, rng.random(rows.shape) < 0.3


def test_all_that_people_write_for_missing_values_is_the_same(patterns: tuple[np.ndarray, np.ndarray]) -> None:
    pandas = pytest.importorskip("pandas")
    rows, mask = patterns
    floats = np.where(mask, np.nan, rows)
    frame = pandas.DataFrame(floats, columns=list("abcdef"))
    objects = rows.astype(object)
    objects[mask] = None
    forms = [
        floats.astype(np.float32), objects, objects.tolist(), np.ma.masked_array(rows, mask), np.where(mask, -1, rows),
        frame, frame.astype("Int64"), frame.astype(object), pandas.DataFrame({"x": frame["a"]}).join(frame.iloc[:, 1:]),
        np.where(mask, 99.0, floats), np.ma.masked_invalid(floats), np.ma.masked_array(rows.astype(np.uint8), mask),
        np.where(mask, 99, rows).astype(np.uint8),
    ]  # fmt: skip
    wanted = HCLT(num_latents=4, epochs=3).fit(floats)
    scores = wanted.score_samples(floats)
    for number, form in enumerate(forms):
        stands_for = {4: -1, 9: 99, 12: 99}.get(number)
        model = HCLT(num_latents=4, epochs=3, missing=stands_for).fit(form)
        np.testing.assert_array_equal(model.score_samples(form), scores)
        assert model.model_.num_cats == 3
    np.testing.assert_allclose(wanted.score_samples(rows, mask=mask), scores)


@pytest.mark.parametrize("kind", [HCLT, RATSPN])
def test_a_table_with_missing_values(kind: type, patterns: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    rows, mask = patterns
    incomplete = np.where(mask, np.nan, rows)
    model = kind(epochs=20, batch_size=32).fit(incomplete[:500])
    independent = -6 * (0.525 * np.log(0.525) + 0.025 * np.log(0.025) + 0.45 * np.log(0.45))
    assert model.score_samples(rows[500:]).mean() > -independent + 0.8  # the patterns are learned all the same
    scores = model.score_samples(incomplete[500:])
    seen = (~mask[500:]).sum()
    assert model.bpd(incomplete[500:]) == pytest.approx(-scores.sum() / np.log(2) / seen)
    assert model.score(incomplete[500:]) == pytest.approx(scores.mean())
    filled = model.inpaint(incomplete[500:], n_samples=9)
    known = ~mask[500:]
    assert filled.shape == (9, 100, 6)
    assert (filled[:, known] == rows[500:][known]).all()
    assert (filled[:, ~known] == rows[500:][~known]).mean() > 0.75
    more = np.arange(6) >= 4
    also = model.inpaint(incomplete[500:], more, n_samples=2)
    assert (also[:, known & ~more] == rows[500:][known & ~more]).all()
    marginals = model.marginals(incomplete[500:])
    np.testing.assert_allclose(marginals.sum(2), 1, rtol=1e-5)
    np.testing.assert_array_equal(marginals[known].argmax(1), rows[500:][known])
    with pytest.raises(InputError, match="mask: found None, wanted bool"):
        model.inpaint(rows[500:])
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(kind.load(tmp_path / "model").score_samples(incomplete[500:]), scores)


def test_a_mixture_of_trees_learns_from_what_is_seen(patterns: tuple[np.ndarray, np.ndarray]) -> None:
    rows, mask = patterns
    incomplete = np.where(mask, np.nan, rows)
    one, two = (HCLT(num_latents=1, num_trees=trees, epochs=20, batch_size=32).fit(incomplete) for trees in (1, 2))
    assert two.score(rows) > one.score(rows) + 1.5  # one latent state: a tree is a product of columns


def test_tables_that_are_none_are_refused_with_the_place(patterns: tuple[np.ndarray, np.ndarray]) -> None:
    pandas = pytest.importorskip("pandas")
    rows, mask = patterns
    floats = np.where(mask, np.nan, rows)
    halves, texts = floats.copy(), rows.astype(object)
    halves[3, 1], texts[4, 2], texts[0, 0] = 0.5, "red", None
    infinite, empty = np.where(mask, np.inf, floats), np.where(np.arange(6) == 2, np.nan, floats)
    for X, parameters, part in (
        (halves, {}, r"^X: found float64 \(600, 6\), wanted integers \(N, V\), or NaN .*: 0\.5 in row 3, column 2$"),
        (infinite, {}, r"^X: found float64 .*: inf in row \d+, column \d"),
        (texts, {}, r"^X: found 'red' in row 4, column 3, wanted integers"),
        (np.where(mask, -1, rows), {}, r"^X: found -1 in column 1, wanted categories from 0 \(missing=-1, if"),
        (np.where(mask, -2, rows), {"missing": -1}, "^X: found -2 in column 1, wanted categories from 0$"),
        (rows, {"missing": 0.5}, r"^missing: found 0\.5 \(a number\), wanted an integer"),
        (empty, {}, "^X: found missing values only in column 3, wanted at least one value"),
    ):
        with pytest.raises(InputError, match=part):
            HCLT(**parameters).fit(X)
    with pytest.raises(InputError, match=r"0\.5 in row 3, column 2 \(b\)$"):
        RATSPN().fit(pandas.DataFrame(halves, columns=list("abcdef")))
    model = HCLT(num_latents=2, epochs=1).fit(floats)
    with pytest.raises(InputError, match="X: found missing values only, wanted at least one that is seen"):
        model.bpd(np.full((2, 6), np.nan))
    np.testing.assert_allclose(model.score_samples(np.full((2, 6), np.nan)), 0, atol=1e-6)


def test_figures_of_rows_with_missing_values() -> None:
    rng = np.random.default_rng(6)
    seen = rng.integers(0, 9, 400)
    scores = -seen * np.log(2) * 1.5 + rng.normal(0, 0.1, 400)
    figures = figures_of_merit(scores, 8, seen)
    assert figures["bpd"] == pytest.approx(-scores.sum() / np.log(2) / seen.sum())
    assert figures["nll_nats"] == pytest.approx(-scores.mean())
    assert (figures["n"], figures["dims"]) == (400, 8)
    assert figures["seen"] == pytest.approx(seen.mean() / 8)
    draws = rng.integers(0, 400, (2000, 400))  # the bootstrap's deviation of the same ratio
    ratios = -scores[draws].sum(1) / np.log(2) / seen[draws].sum(1)
    assert figures["std_error_bpd"] == pytest.approx(ratios.std(), rel=0.15)
    full = figures_of_merit(scores, 8, np.full(400, 8))
    assert full == figures_of_merit(scores, 8)
    assert "seen" not in full
    train = rng.integers(0, 3, (300, 2))
    hidden = np.where(rng.random(train.shape) < 0.5, -1, train)
    counts = np.array([np.bincount(hidden[hidden[:, v] >= 0, v], minlength=3) for v in range(2)])
    bits = -np.log2((counts + 0.1 / 3) / (counts.sum(1, keepdims=True) + 0.1))
    cells = np.argwhere(hidden >= 0)
    expected = np.mean([bits[v, hidden[n, v]] for n, v in cells])
    found = factorized_bpd(hidden, hidden, hidden, 3)
    assert found == pytest.approx(expected, rel=1e-6)
    assert factorized_bpd(train, train, train, 3) != found
    nothing = np.full((5, 2), -1)
    assert factorized_bpd(hidden, nothing, hidden, 3) == pytest.approx(expected, rel=1e-6)
    assert factorized_bpd(hidden, hidden, nothing, 3) is None


def test_fit_and_eval_take_tables_with_empty_cells(patterns: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    rows, mask = patterns
    lines = [
        ",".join("" if hole else str(value) for value, hole in zip(*row, strict=True))
        for row in zip(rows, mask, strict=True)
    ]
    (tmp_path / "x.csv").write_text("\n".join(["a,b,c,d,e,f", *lines]) + "\n")
    options = ["--method", "hclt", "--set", "hclt.epochs=5", "--set", "hclt.latents=4", "--json"]
    fitted = lvd_juice("fit", tmp_path / "x.csv", "-o", tmp_path / "run", *options)
    result = json.loads(fitted.stdout)
    assert f"x.csv: {int(mask.sum()):,} of 3,600 values are missing" in fitted.stderr
    assert result["bpd"] < result["bpd_factorized"]
    assert 0.6 < result["seen"] < 0.8
    assert result["dims"] == 6
    again = json.loads(lvd_juice("eval", tmp_path / "run", tmp_path / "x.csv", "--json").stdout)
    for name in ("bpd", "nll_nats", "std_error_bpd", "n", "seen"):
        assert again[name] == pytest.approx(result[name], rel=1e-6)
    complete = tmp_path / "full.csv"
    np.savetxt(complete, rows, "%d", ",", header="a,b,c,d,e,f", comments="")
    assert "seen" not in json.loads(lvd_juice("eval", tmp_path / "run", complete, "--json").stdout)
    model = HCLT.load(tmp_path / "run")
    assert model.score_samples(np.where(mask, np.nan, rows)[:5]).shape == (5,)
