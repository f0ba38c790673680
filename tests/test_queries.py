"""Queries on circuits from Python, against enumeration; julia/test has more of them, on random circuits."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd import Circuit
from pyjuice_lvd.circuit import Evidence
from pyjuice_lvd.errors import InputError

V, C = 4, 3
ALL = np.array(list(itertools.product(range(C), repeat=V)))

# One input of each kind, over X1 with 3 values, X2 Boolean, X3 with 3 values.
KINDS = """c a comment
jpc 8
I 0 0 1 2
C 1 0 1 -1.3862944 -1.3862944 -0.6931472
L 2 0 2
L 3 0 -2
B 4 0 3 2 -0.35667494
P 5 0 3 0 2 4
P 6 0 3 1 3 4
S 7 0 2 5 -1.2039728 6 -0.35667494
"""


@pytest.fixture(scope="module")
def pc() -> Circuit:
    rng = np.random.default_rng(0)
    X = rng.integers(0, C, (300, V), dtype=np.uint8)
    X[:, 2] = (X[:, 0] + (rng.random(300) < 0.2)) % C
    pc = Circuit.hclt(X, num_latents=5, num_cats=C, heads=2, seed=1)
    pc.fit_em(X, heads=X[:, 1] % 2, epochs=5, batch_size=50, step_size=0.5)
    return pc


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Circuit:
    path = tmp_path_factory.mktemp("kinds") / "kinds.jpc"
    path.write_text(KINDS)
    return Circuit.load(path)


def questions(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, C, (n, V)), rng.random((n, V)) < 0.5, rng.integers(0, 2, n)


def posterior(pc: Circuit, x: np.ndarray, hidden: np.ndarray, head: int) -> np.ndarray:
    """p(row of ALL | x where it is not hidden)."""
    p = np.exp(pc.log_likelihood(ALL, head=head)) * (hidden | (x == ALL)).all(1)
    return p / p.sum()


def one_hot_sums(p: np.ndarray) -> np.ndarray:
    """Marginals (V, C) of a distribution over ALL."""
    return np.array([[p[ALL[:, i] == k].sum() for k in range(C)] for i in range(V)])


def test_marginalised_values_are_summed_out(pc: Circuit) -> None:
    X, mask, _ = questions(100, 1)
    p = np.exp(pc.log_likelihood(ALL, head="all"))
    expected = [p[(m | (x == ALL)).all(1)].sum(0) for x, m in zip(X, mask, strict=True)]
    scores = pc.log_likelihood(X, mask=mask, head="all")
    np.testing.assert_allclose(np.exp(scores), expected, rtol=1e-5)
    garbage = np.where(mask, -(2**40), X)
    np.testing.assert_array_equal(pc.log_likelihood(garbage, mask=mask, head="all"), scores)
    np.testing.assert_array_equal(
        pc.log_likelihood(X, mask=mask[0]), pc.log_likelihood(X, mask=np.tile(mask[0], (100, 1)))
    )
    np.testing.assert_allclose(pc.log_likelihood(X, mask=np.ones(V, bool)), 0, atol=1e-6)


def test_pieces_do_not_show(pc: Circuit, monkeypatch: pytest.MonkeyPatch) -> None:
    X, mask, heads = questions(700, 2)

    def answers() -> list[np.ndarray]:
        evidence = Evidence(np.log(np.random.default_rng(3).random((300, V, C), np.float32)))
        return [
            pc.log_likelihood(X, mask=mask),
            pc.log_likelihood(evidence, head="all"),
            pc.sample(900, seed=4),
            pc.sample(3, X=X, mask=mask, head=heads, seed=4),
            pc.posterior_marginals(X, mask, head=heads),
            pc.mpe(X, mask, head=heads),
            pc.flows(X, heads=heads).edges,
        ]

    whole = answers()
    monkeypatch.setattr("pyjuice_lvd.circuit.engine.PIECE", 0.0)
    for one, other in zip(whole, answers(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_flows_count_what_passes(pc: Circuit, kinds: Circuit) -> None:
    X, _, heads = questions(90, 5)
    weights = np.random.default_rng(6).random(90)
    flows = pc.flows(X, heads=heads, weights=weights)
    assert (flows.nodes.shape, flows.edges.shape) == ((pc.num_nodes,), (pc.num_edges,))
    assert flows.nodes.dtype == flows.edges.dtype == np.float64
    np.testing.assert_allclose(flows.nodes[-2:], [weights[heads == 0].sum(), weights[heads == 1].sum()], rtol=1e-6)
    # By hand, unit by unit in the file's order: two rows that only the first product allows, one for the second.
    flows = kinds.flows([[2, 1, 0], [0, 0, 1], [2, 1, 2]])
    np.testing.assert_allclose(flows.nodes, [2, 1, 2, 1, 3, 2, 1, 3], rtol=1e-6)
    np.testing.assert_allclose(flows.edges, [2, 2, 2, 1, 1, 1, 2, 1], rtol=1e-6)


def test_flows_follow_the_file_without_edges_of_weight_zero(tmp_path: Path) -> None:
    X = np.random.default_rng(7).integers(0, 2, (200, 3))
    pc = Circuit.from_tree([-1, 0, 1], num_latents=3, num_cats=2, seed=3)
    whole = pc.num_edges
    weight, _ = pc.parameters()
    for e in np.flatnonzero(weight < 1)[[0, 4]]:  # of two sums over three children
        weight[e + 1] += weight[e]
        weight[e] = 0
    pc.save(tmp_path / "pc.jpc")
    again = Circuit.load(tmp_path / "pc.jpc")
    flows = pc.flows(X)
    assert (pc.num_edges, len(flows.edges)) == (whole - 2, whole - 2) == (again.num_edges, len(again.flows(X).edges))
    assert pc.num_params == again.num_params
    np.testing.assert_allclose(flows.edges, again.flows(X).edges, rtol=1e-4)
    stats = pc.accumulate(X)  # for parameters as they lie in memory
    assert stats.edges.shape == weight.shape
    pc.apply(stats)


def test_inputs_of_all_kinds(kinds: Circuit) -> None:
    binomial = np.array([0.3**2, 2 * 0.7 * 0.3, 0.7**2])
    first = 0.3 * np.multiply.outer(np.multiply.outer([0, 0, 1], [0, 1]), binomial)
    second = 0.7 * np.multiply.outer(np.multiply.outer([0.25, 0.25, 0.5], [1, 0]), binomial)
    everything = np.array(list(itertools.product(range(3), range(2), range(3))))
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(kinds.log_likelihood(everything), np.log((first + second).ravel()), rtol=1e-6)
    X = kinds.sample(20_000, seed=1)
    assert abs(X[:, 1].mean() - 0.3) < 4 * np.sqrt(0.21 / 20_000)
    np.testing.assert_allclose(
        kinds.posterior_marginals([[2, 0, 0]], [False, True, True])[0, 1], [0.35 / 0.65, 0.3 / 0.65, 0], rtol=1e-6
    )
    np.testing.assert_array_equal(kinds.mpe([[2, 0, 0]], [False, True, True]), [[2, 0, 2]])
    # EM moves the binomial's probability of success, and an early stop puts it back.
    before = kinds.log_likelihood(everything)
    kinds.fit_em([[0, 0, 0]], epochs=1, step_size=1.0, valid=[[2, 1, 2]])
    np.testing.assert_array_equal(kinds.log_likelihood(everything), before)


def test_samples_have_the_right_frequencies(pc: Circuit) -> None:
    n = 30_000
    X = pc.sample(n, head=1, seed=7)
    assert (X.shape, X.dtype) == ((n, V), np.uint8)
    p = np.exp(pc.log_likelihood(ALL, head=1))
    counts = np.bincount(np.ravel_multi_index(X.T, (C,) * V), minlength=len(ALL))
    assert (np.abs(counts - n * p) < 5 * np.sqrt(n * p) + 1).all()
    np.testing.assert_array_equal(pc.sample(10, head=1, seed=7), X[:10])
    assert (pc.sample(n, head=1, seed=8) != X).any()
    assert pc.sample(0).shape == (0, V)
    several = pc.sample(3, head=[1, 0, 1], seed=7)
    assert several.shape == (3, 3, V)
    np.testing.assert_array_equal(several[:, 0], X[:3])
    of_each = pc.sample(1, head=[0, 1] * 15_000, seed=7)[0]
    for head in (0, 1):
        p = np.exp(pc.log_likelihood(ALL, head=head))
        counts = np.bincount(np.ravel_multi_index(of_each[head::2].T, (C,) * V), minlength=len(ALL))
        assert (np.abs(counts - 15_000 * p) < 5 * np.sqrt(15_000 * p) + 1).all()


def test_conditional_samples_have_the_right_frequencies(pc: Circuit) -> None:
    n, (X, mask, heads) = 5000, questions(4, 8)
    drawn = pc.sample(n, X=X, mask=mask, head=heads, seed=9)
    assert (drawn.shape, drawn.dtype) == ((n, 4, V), np.uint8)
    for row in range(4):
        np.testing.assert_array_equal(drawn[:, row, ~mask[row]], np.tile(X[row, ~mask[row]], (n, 1)))
        p = posterior(pc, X[row], mask[row], heads[row])
        counts = np.bincount(np.ravel_multi_index(drawn[:, row].T, (C,) * V), minlength=len(ALL))
        assert (np.abs(counts - n * p) < 5 * np.sqrt(n * p) + 1).all()
    assert pc.sample(3, X=X[:0], mask=mask[:0]).shape == (3, 0, V)


def test_posterior_marginals(pc: Circuit) -> None:
    X, mask, heads = questions(100, 10)
    marginals = pc.posterior_marginals(X, mask, head=heads)
    assert (marginals.shape, marginals.dtype) == ((100, V, C), np.float64)
    np.testing.assert_allclose(marginals.sum(2), 1, rtol=1e-12)
    for row in range(100):
        np.testing.assert_allclose(
            marginals[row], one_hot_sums(posterior(pc, X[row], mask[row], heads[row])), rtol=1e-5, atol=1e-9
        )
    assert pc.posterior_marginals(X[:0], mask[:0]).shape == (0, V, C)


def test_mpe_keeps_what_is_known_and_finds_the_likely(pc: Circuit) -> None:
    X, mask, heads = questions(200, 11)
    completed = pc.mpe(X, mask, head=heads)
    assert (completed.shape, completed.dtype) == ((200, V), np.uint8)
    np.testing.assert_array_equal(completed[~mask], X[~mask])
    scores = np.exp(pc.log_likelihood(completed, head="all"))[np.arange(200), heads]
    random = np.exp(pc.log_likelihood(np.where(mask, questions(200, 12)[0], X), head="all"))[np.arange(200), heads]
    assert (scores >= random).mean() > 0.9


def test_evidence_answers_every_query(pc: Circuit) -> None:
    rng = np.random.default_rng(13)
    scores = (rng.normal(0, 2, (5, V, C)) - 500).astype(np.float32)
    p = np.exp(pc.log_likelihood(ALL) + (scores[:, np.arange(V), ALL] + 500).sum(-1, dtype=np.float64))
    p /= p.sum(1, keepdims=True)
    marginals = pc.posterior_marginals(Evidence(scores.copy()))
    for row in range(5):
        np.testing.assert_allclose(marginals[row], one_hot_sums(p[row]), rtol=1e-4, atol=1e-6)
    n = 5000
    drawn = pc.sample(n, X=Evidence(scores.copy()), seed=14)
    for row in range(5):
        counts = np.bincount(np.ravel_multi_index(drawn[:, row].T, (C,) * V), minlength=len(ALL))
        assert (np.abs(counts - n * p[row]) < 5 * np.sqrt(n * p[row]) + 1).all()
    sharp = np.where(np.arange(C) == ALL[:7, :, None], 0, -np.inf).astype(np.float32)
    np.testing.assert_array_equal(pc.mpe(Evidence(sharp.copy())), ALL[:7])
    np.testing.assert_allclose(pc.flows(Evidence(sharp)).nodes, pc.flows(ALL[:7]).nodes, rtol=1e-4, atol=1e-6)


def test_evidence_for_what_a_binomials_table_has_lost(tmp_path: Path) -> None:
    (tmp_path / "binomial.jpc").write_text("jpc 1\nB 0 0 1 2000 -6.907755\n")  # 60 of 2000 at 0.001: e-65
    pc = Circuit.load(tmp_path / "binomial.jpc")

    def evidence(*allowed: int) -> Evidence:
        scores = np.full((1, 1, 2001), -np.inf, np.float32)
        scores[0, 0, list(allowed)] = 0
        return Evidence(scores)

    for value in (60, 2000):
        np.testing.assert_allclose(pc.log_likelihood(evidence(value)), pc.log_likelihood([[value]]), rtol=1e-6)
        np.testing.assert_array_equal(pc.sample(20, X=evidence(value)), np.full((20, 1, 1), value))
        np.testing.assert_array_equal(pc.mpe(evidence(value)), [[value]])
        np.testing.assert_array_equal(pc.posterior_marginals(evidence(value))[0, 0], np.arange(2001) == value)
        np.testing.assert_allclose(pc.accumulate(evidence(value)).inputs, np.arange(2001) == value, rtol=1e-6)
    odds = np.exp(np.diff(pc.log_likelihood([[60], [61]])))
    np.testing.assert_allclose(
        pc.posterior_marginals(evidence(60, 61))[0, 0, 60:62], [1 / (1 + odds[0]), odds[0] / (1 + odds[0])], rtol=1e-6
    )


def test_bad_questions_are_named(pc: Circuit, kinds: Circuit, tmp_path: Path) -> None:
    X, mask, _ = questions(100, 15)
    for ask in (
        lambda m: pc.log_likelihood(X, mask=m),
        lambda m: pc.sample(1, X=X, mask=m),
        lambda m: pc.posterior_marginals(X, m),
        lambda m: pc.mpe(X, m),
    ):
        with pytest.raises(InputError, match=r"mask: found int64 \(100, 4\), wanted bool \(100, 4\) or \(4,\)"):
            ask(mask.astype(int))
        with pytest.raises(InputError, match=r"mask: found bool \(99, 4\)"):
            ask(mask[1:])
    with pytest.raises(InputError, match="mask: found None"):
        pc.mpe(X)
    with pytest.raises(InputError, match="mask: found without X"):
        pc.sample(1, mask=mask)
    with pytest.raises(InputError, match="mask: found together with Evidence"):
        pc.mpe(Evidence(np.zeros((100, V, C), np.float32)), mask)
    with pytest.raises(InputError, match="n: found -1"):
        pc.sample(-1)
    with pytest.raises(InputError, match=r"head: found 2, wanted 0\.\.1"):
        pc.sample(1, head=2)
    with pytest.raises(InputError, match=r"head: found int64 \(3,\), wanted integers \(100,\)"):
        pc.mpe(X, mask, head=[0, 1, 0])
    X[90], mask[90] = 5, False
    with pytest.raises(InputError, match=r"X: row 90, variable 0: value 5 is outside 0\.\.2"):
        pc.log_likelihood(X, mask=mask)
    impossible = np.tile([2, 1, 0], (100, 1))
    impossible[77] = [0, 1, 0]
    hidden = [False, False, True]
    for query in (
        lambda: kinds.sample(2, X=impossible, mask=hidden),
        lambda: kinds.posterior_marginals(impossible, hidden),
        lambda: kinds.mpe(impossible, hidden),
    ):
        with pytest.raises(InputError, match="X: row 77: the evidence has probability 0 under head 0"):
            query()
    assert kinds.log_likelihood(impossible, mask=hidden)[77] == -np.inf
    assert kinds.flows(impossible).nodes[-1] == pytest.approx(99)
