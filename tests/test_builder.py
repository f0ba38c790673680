"""Circuits made unit by unit, as graphs, and drawn."""

import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd import Circuit, CircuitBuilder
from pyjuice_lvd.errors import InputError


def everything(*categories: int) -> np.ndarray:
    return np.array(list(itertools.product(*map(range, categories))))


def small() -> tuple[CircuitBuilder, list[int]]:
    """Two heads that share products, which share inputs of every kind."""
    b = CircuitBuilder(num_vars=3)
    x = [b.categorical(0, [0.2, 0.8]), b.categorical(0, [0.5, 0.5])]
    y = [b.indicator(1, 0), b.indicator(1, 2)]
    z = b.binomial(2, 3, 0.3)
    p = [b.product([x[k], y[k], z]) for k in range(2)]
    return b, [b.sum(p, [0.3, 0.7]), b.sum(p, [0.9, 0.1])]


def test_likelihoods_are_those_of_the_units(tmp_path: Path) -> None:
    b, heads = small()
    assert (len(b), heads) == (9, [7, 8])
    pc = b.build(heads, head_weights=[1, 3])
    assert (pc.num_vars, pc.num_heads, pc.num_nodes, pc.num_edges) == (3, 2, 9, 10)
    assert pc.num_params == 2 * 2 + 1 + 2 * 2  # categoricals, the binomial, sums
    Z = everything(2, 3, 4)
    binomial = np.array([0.343, 0.441, 0.189, 0.027])
    first = np.array([0.2, 0.8])[Z[:, 0]] * (Z[:, 1] == 0) * binomial[Z[:, 2]]
    second = 0.5 * (Z[:, 1] == 2) * binomial[Z[:, 2]]
    wanted = np.stack([0.3 * first + 0.7 * second, 0.9 * first + 0.1 * second], axis=1)
    np.testing.assert_allclose(np.exp(pc.log_likelihood(Z, head="all")), wanted, rtol=1e-5)
    np.testing.assert_allclose(pc.head_weights, [0.25, 0.75])
    # A unit's number is its id in the file, and in the flows.
    pc.save(tmp_path / "pc.jpc")
    lines = (tmp_path / "pc.jpc").read_text().splitlines()
    assert "c heads 7 8" in lines
    assert [line.split()[0] for line in lines if line[0] != "c"][1:] == [*"CCIIBPPSSS"]
    assert "I 3 0 2 2" in lines
    np.testing.assert_allclose(
        np.exp(Circuit.load(tmp_path / "pc.jpc").log_likelihood(Z, head="all")), wanted, rtol=1e-5
    )
    np.testing.assert_allclose(pc.flows([[0, 0, 1], [1, 2, 0]], heads=[0, 1]).nodes[[2, 3, 4, 7, 8]], [1, 1, 2, 1, 1])


def test_em_is_that_of_any_other_circuit() -> None:
    """A naive Bayes mixture by hand learns as the same structure from `mixture` does."""
    rng = np.random.default_rng(0)
    X = np.where(rng.random((300, 1)) < 0.4, rng.random((300, 4)) < 0.9, rng.random((300, 4)) < 0.2).astype(int)
    tables = rng.dirichlet([2, 2], (2, 4))
    b = CircuitBuilder(num_vars=4)
    components = [b.product([b.categorical(v, tables[k, v]) for v in range(4)]) for k in range(2)]
    mine = b.build([b.sum(components, [0.6, 0.4])])
    parts = []
    for k in range(2):
        part = Circuit.fully_factorized(num_vars=4, num_cats=2)
        part.parameters()[1][:] = tables[k].ravel()
        parts.append(part)
    theirs = Circuit.mixture(parts, weights=[0.6, 0.4])
    np.testing.assert_allclose(mine.log_likelihood(X), theirs.log_likelihood(X), rtol=1e-5)
    settings = {"epochs": 50, "batch_size": 300, "step_size": 1.0, "pseudocount": 0}
    np.testing.assert_allclose(mine.fit_em(X, **settings), theirs.fit_em(X, **settings), rtol=1e-4)
    weights = np.sort(mine.parameters()[0][-2:])
    np.testing.assert_allclose(weights, [0.4, 0.6], atol=0.1)


def test_a_hidden_markov_model_is_its_forward_algorithm() -> None:
    rng = np.random.default_rng(1)
    length, states, cats = 5, 3, 4
    start, move = rng.dirichlet(np.ones(states)), rng.dirichlet(np.ones(states), states)
    emit = rng.dirichlet(np.ones(cats), states)
    b = CircuitBuilder(num_vars=length)
    later: list[int] = []
    for t in reversed(range(length)):
        seen = [b.categorical(t, emit[k]) for k in range(states)]
        here = [b.product([seen[k], later[k]]) for k in range(states)] if later else seen
        later = [b.sum(here, move[k]) for k in range(states)]
    pc = b.build([b.sum(here, start)])
    assert pc.num_nodes == len(b) - states  # the last sums, that no head reaches
    X = everything(*[cats] * length)
    alpha = start * emit[:, X[:, 0]].T
    for t in range(1, length):
        alpha = (alpha @ move) * emit[:, X[:, t]].T
    np.testing.assert_allclose(np.exp(pc.log_likelihood(X)), alpha.sum(1), rtol=1e-5)
    hidden = np.arange(length) == 2
    np.testing.assert_allclose(pc.posterior_marginals(X[:5], hidden).sum(2), 1, rtol=1e-5)


def test_a_builder_goes_on() -> None:
    b = CircuitBuilder(num_vars=1)
    x = [b.categorical(0, [0.1, 0.9]), b.categorical(0, [1, 0])]
    one = b.build([x[0]])
    two = b.build([b.sum(x), x[0]])
    assert (one.num_nodes, two.num_nodes, two.num_heads) == (1, 3, 2)
    np.testing.assert_allclose(
        np.exp(two.log_likelihood([[0], [1]], head="all")), [[0.55, 0.1], [0.45, 0.9]], rtol=1e-5
    )
    assert np.exp(one.log_likelihood([[0]])) == pytest.approx(0.1)


def test_categories_are_those_of_all_that_look_at_a_variable() -> None:
    for add, wanted in (
        (lambda b: [b.indicator(0, 1), b.indicator(0, 3)], 4),
        (lambda b: [b.indicator(0, 0)], 2),
        (lambda b: [b.indicator(0, 1), b.categorical(0, [0.2, 0.3, 0.5])], 3),
        (lambda b: [b.binomial(0, 4, 0.5), b.indicator(0, 4)], 5),
    ):
        b = CircuitBuilder(num_vars=1)
        pc = b.build([b.sum(add(b))])
        assert pc.posterior_marginals([[0]], [True]).shape == (1, 1, wanted)
    b = CircuitBuilder(num_vars=1, num_cats=7)
    assert b.build([b.indicator(0, 6)]).posterior_marginals([[0]], [True]).shape == (1, 1, 7)


@pytest.mark.parametrize(
    ("add", "part"),
    [
        (lambda b: b.categorical(3, [0.5, 0.5]), "unit 2 (categorical): variable: found 3, wanted 0..1"),
        (lambda b: b.categorical("a", [1.0]), "unit 2 (categorical): variable: found 'a'"),
        (lambda b: b.categorical(0, [0.5, 0.6]), "unit 2 (categorical): probabilities: they sum to 1.1, wanted 1"),
        (lambda b: b.categorical(0, [1.5, -0.5]), "unit 2 (categorical): probabilities: found -0.5 at 1"),
        (lambda b: b.categorical(0, [np.nan, 1]), "unit 2 (categorical): probabilities: found nan at 0"),
        (lambda b: b.categorical(0, []), "unit 2 (categorical): probabilities: found float64 (0,), wanted numbers"),
        (lambda b: b.categorical(0, [0.2, 0.3, 0.5]), "found 3 categories of variable 0, wanted 2 as in unit 0"),
        (lambda b: b.binomial(0, 4, 0.5), "unit 2 (binomial): found 5 categories of variable 0, wanted 2 as in unit 0"),
        (lambda b: b.indicator(0, 2), "unit 2 (indicator): value: found 2, wanted 0..1 as in unit 0"),
        (lambda b: b.indicator(0, -1), "unit 2 (indicator): value: found -1, wanted at least 0"),
        (lambda b: b.categorical(1, [0.5, 0.5]), "of variable 1, of which an indicator has 2"),
        (lambda b: b.binomial(0, 1, 1.5), "unit 2 (binomial): success: found 1.5, wanted 0 to 1"),
        (lambda b: b.product([0, 5]), "unit 2 (product): child 1: found unit 5, wanted one of the 2 so far"),
        (lambda b: b.product(0), "unit 2 (product): children: found 0, wanted a list of units"),
        (lambda b: b.build(0), "heads: found 0, wanted a list of units"),
        (lambda b: b.product([]), "unit 2 (product): found no children, wanted at least 1"),
        (lambda b: b.product([0, 0]), "unit 2 (product): its children 0 and 0 both look at variable 0"),
        (
            lambda b: b.sum([0, 1], [0.5, 0.5]),
            "child 0 looks at variable 0 and child 1 looks at variable 1; wanted",
        ),
        (lambda b: b.sum([0, 0], [0.5, 0.5]), "unit 2 (sum): its child 0 is there 2 times, wanted once"),
        (lambda b: b.sum([0], [0.5, 0.5]), "unit 2 (sum): weights: found 2, wanted one for each of its 1 children"),
        (lambda b: b.sum([0], [0.5]), "unit 2 (sum): weights: they sum to 0.5, wanted 1"),
        (lambda b: b.sum(["x"]), "unit 2 (sum): child 0: found 'x'"),
        (lambda b: b.build([]), "heads: found none, wanted at least 1"),
        (lambda b: b.build([2]), "heads: found unit 2, wanted one of the 2 so far"),
        (
            lambda b: b.build([0, 1]),
            "heads: unit 0 looks at variable 0 and unit 1 looks at variable 1; wanted",
        ),
        (lambda b: b.build([0], head_weights=[1, 2]), "head_weights: found int64 (2,), wanted numbers (1,)"),
        (lambda b: CircuitBuilder(num_vars=0), "num_vars: found 0, wanted at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_unit(add, part: str) -> None:
    b = CircuitBuilder(num_vars=2)
    b.categorical(0, [0.2, 0.8])
    b.indicator(1, 2)
    with pytest.raises(InputError, match=re.escape(part)):
        add(b)
    assert len(b) == 2  # as it was
    assert b.build([b.product([0, 1])]).num_nodes == 3


def test_a_large_circuit_is_made_in_no_time_and_evaluated_in_blocks() -> None:
    """300 variables, 8 states: the inputs of a variable share a table, sums over the same products a block."""
    rng = np.random.default_rng(2)
    b, later = CircuitBuilder(num_vars=300), []
    for t in reversed(range(300)):
        seen = [b.categorical(t, row) for row in rng.dirichlet(np.ones(4), 8)]
        here = [b.product([seen[k], later[k]]) for k in range(8)] if later else seen
        later = [b.sum(here, row) for row in rng.dirichlet(np.ones(8), 8)]
    pc = b.build(later[:1])
    chain = Circuit.from_tree(np.arange(-1, 299), num_latents=8, num_cats=4)
    assert pc.num_params == chain.num_params
    assert sorted(pc.engine.arrays()["param_stride"]) == sorted(chain.engine.arrays()["param_stride"])
    X = rng.integers(0, 4, (50, 300))
    assert np.isfinite(pc.log_likelihood(X)).all()


# --- graphs and pictures ----------------------------------------------------------------------------------------------


def test_the_graph_has_all_there_is_to_a_circuit() -> None:
    b, heads = small()
    pc = b.build(heads)
    graph = pc.to_networkx()
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (pc.num_nodes, pc.num_edges)
    assert graph.graph == {"num_vars": 3, "heads": [7, 8]}
    assert graph.nodes[7] == {"kind": "sum", "heads": [0]}
    assert graph.edges[7, 6]["weight"] == pytest.approx(0.7)
    assert graph.edges[5, 0] == {}
    assert (graph.nodes[3]["kind"], graph.nodes[3]["variable"]) == ("indicator", 1)
    np.testing.assert_array_equal(graph.nodes[3]["probabilities"], [0, 0, 1])

    def value(unit: int, x: np.ndarray) -> float:
        about = graph.nodes[unit]
        if "variable" in about:
            return float(about["probabilities"][x[about["variable"]]])
        parts = [(value(child, x), data.get("weight", 1)) for _, child, data in graph.out_edges(unit, data=True)]
        return float(np.prod([p for p, _ in parts]) if about["kind"] == "product" else sum(p * w for p, w in parts))

    for x in everything(2, 3, 4):
        found = np.exp(pc.log_likelihood(x[None], head="all"))[0]
        np.testing.assert_allclose([value(head, x) for head in graph.graph["heads"]], found, rtol=1e-5)
    pc.parameters()[0][-1] = 0
    assert not pc.to_networkx().has_edge(8, 6)  # as files have it


def test_pictures_of_small_circuits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b, heads = small()
    pc = b.build(heads)
    for name, begin in (("pc.svg", b"<?xml"), ("pc.png", b"\x89PNG"), ("pc.pdf", b"%PDF")):
        pc.draw(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)
    text = (tmp_path / "pc.svg").read_text()
    assert all(word in text for word in ("head 0", "head 1", "X2", "0.34"))
    b.build([0]).draw(tmp_path / "one.svg")
    with pytest.raises(InputError, match=r"pc\.jpg: wanted a file that ends in \.svg, \.png or \.pdf"):
        pc.draw(tmp_path / "pc.jpg")
    large = Circuit.fully_factorized(num_vars=400, num_cats=2)
    with pytest.raises(InputError, match="draw: found a circuit of 401 units, wanted at most 300"):
        large.draw(tmp_path / "large.svg")
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(InputError, match="to_networkx: found no networkx, wanted it installed"):
        pc.to_networkx()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.svg", "pc.pdf", "pc.png", "pc.svg"]
