"""`Circuit.prune` and `Circuit.grow`, against their rules applied to the text of a `.jpc` file."""

import itertools
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd import Circuit, julia
from pyjuice_lvd.circuit import Evidence
from pyjuice_lvd.errors import InputError

V, C = 6, 3
ALL = np.array(list(itertools.product(range(C), repeat=V)))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    X = rng.integers(0, C, (500, V))
    X[:, 3] = np.where(rng.random(500) < 0.8, X[:, 0], X[:, 3])
    X[:, 5] = np.where(rng.random(500) < 0.8, X[:, 2], X[:, 5])
    return X


@pytest.fixture(scope="module", params=["hclt", "rat-spn"])
def pc(request: pytest.FixtureRequest, rows: np.ndarray) -> Circuit:
    if request.param == "hclt":
        pc = Circuit.hclt(rows, num_latents=5, num_cats=C, heads=3, seed=1)
    else:
        sizes = {"num_vars": V, "depth": 2, "replicas": 2, "num_sums": 3, "num_inputs": 4, "num_cats": C}
        pc = Circuit.rat_spn(**sizes, heads=3, seed=1)
    pc.fit_em(rows, heads=rows[:, 0], epochs=10, batch_size=50, step_size=0.5)
    return pc


def read(pc: Circuit, path: Path) -> tuple[list[tuple[str, list[int]]], list[int]]:
    """(kind, children) of each unit of the circuit's file, and the units that are heads."""
    pc.save(path)
    heads: list[int] = []
    units: list[tuple[str, list[int]]] = []
    for line in path.read_text().splitlines():
        kind, *fields = line.split()
        if kind == "c" and fields[0] == "heads":
            heads = [int(field) for field in fields[1:]]
        elif kind == "P":
            units.append((kind, [int(child) for child in fields[3:]]))
        elif kind == "S":
            units.append((kind, [int(child) for child in fields[3::2]]))
        elif kind not in ("c", "jpc"):
            units.append((kind, []))
    return (units[:-1], heads) if heads else (units, [len(units) - 1])


@pytest.mark.parametrize("select", [[1], [2, 0], [0, 1, 2]])
@pytest.mark.parametrize("threshold", [0, 0.05, 0.3, 40, 1e9])
def test_grow_follows_the_rule(
    pc: Circuit, rows: np.ndarray, tmp_path: Path, select: list[int], threshold: float
) -> None:
    heads = rows[:, 0]
    mine = rows[np.isin(heads, select)]
    flow = pc.flows(mine, heads=heads[np.isin(heads, select)]).nodes
    least = threshold * len(mine) if 0 < threshold < 1 else threshold
    units, roots = read(pc, tmp_path / "old.jpc")
    selected = [roots[head] for head in select]
    below = set(selected)
    for unit in reversed(range(len(units))):
        if unit in below:
            below.update(units[unit][1])

    @cache
    def copies(unit: int) -> int:
        kind, children = units[unit]
        if unit in selected:
            return 2
        if kind == "P":
            return max(copies(child) for child in children)
        return 1 + bool(unit in below and flow[unit] >= least)

    expected_units = sum(copies(unit) for unit in range(len(units)))
    expected_edges = sum(
        copies(unit) * (1 if kind == "P" else copies(child))
        for unit, (kind, children) in enumerate(units)
        for child in children
    )
    before = pc.log_likelihood(ALL, head="all")
    grown = pc.grow(rows, heads=heads, select=select, threshold=threshold, noise=0)
    assert (grown.num_nodes, grown.num_edges) == (expected_units, expected_edges)
    new_units, new_heads = read(grown, tmp_path / "new.jpc")
    assert (len(new_units), sum(len(children) for _, children in new_units)) == (expected_units, expected_edges)
    assert len(new_heads) == grown.num_heads == 3 + len(select)
    np.testing.assert_allclose(grown.log_likelihood(ALL, head="all"), before[:, [0, 1, 2, *select]], rtol=1e-5)
    np.testing.assert_array_equal(pc.log_likelihood(ALL, head="all"), before)


@pytest.mark.parametrize("options", [{}, {"min_flow": 0.02}, {"min_flow": 0}, {"keep": 0.3}, {"keep": 1}])
def test_prune_follows_the_rule(pc: Circuit, rows: np.ndarray, tmp_path: Path, options: dict[str, float]) -> None:
    heads, weights = rows[:, 0], np.linspace(0.5, 1.5, len(rows))
    edges = iter(pc.flows(rows, heads=heads, weights=weights).edges)
    units, roots = read(pc, tmp_path / "old.jpc")
    flows = [[next(edges) for _ in children] for _, children in units]
    of_sums = sorted((flow for (kind, _), row in zip(units, flows, strict=True) if kind == "S" for flow in row))
    if "keep" in options:
        least = [-1.0, *of_sums][len(of_sums) - round(options["keep"] * len(of_sums))]
    else:
        least = options.get("min_flow", 1e-4) * weights.sum()
    left = []
    for (kind, children), row in zip(units, flows, strict=True):
        kept = [child for child, flow in zip(children, row, strict=True) if kind == "P" or flow > least]
        left.append(kept or children[int(np.argmax(row)) :][:1] if children else [])
    below = set(roots)
    for unit in reversed(range(len(units))):
        if unit in below:
            below.update(left[unit])
    before = pc.log_likelihood(rows, head="all")
    pruned = pc.prune(rows, heads=heads, weights=weights, **options)
    assert pruned.num_nodes == len(below)
    assert pruned.num_edges == sum(len(left[unit]) for unit in below)
    assert pruned.num_heads == 3
    np.testing.assert_array_equal(pc.log_likelihood(rows, head="all"), before)
    np.testing.assert_allclose(np.exp(pruned.log_likelihood(ALL, head="all")).sum(0), 1, rtol=1e-5)
    if options in ({"min_flow": 0}, {"keep": 1}):
        np.testing.assert_allclose(pruned.log_likelihood(rows, head="all"), before, rtol=1e-6)
    if options == {"keep": 0.3}:
        assert pruned.num_params < 0.8 * pc.num_params


def test_pruning_what_learning_left_costs_little(rows: np.ndarray) -> None:
    pc = Circuit.hclt(rows, num_latents=8, num_cats=C, seed=2)
    pc.fit_em(rows, epochs=40, batch_size=50, step_size=(0.5, 0.1))
    pruned = pc.prune(rows, min_flow=1e-3)
    assert pruned.num_edges < pc.num_edges
    assert pruned.log_likelihood(rows).mean() > pc.log_likelihood(rows).mean() - 0.02
    assert pruned.fit_em(rows, epochs=5)[-1] > pc.log_likelihood(rows).mean() - 0.02


def test_soft_evidence() -> None:
    pc = Circuit.hclt(ALL, num_latents=4, num_cats=C, heads=2, seed=1)
    scores = np.log(np.random.default_rng(1).random((60, V, C), np.float32))
    evidence, heads = Evidence(scores), np.arange(60) % 2
    before = pc.log_likelihood(evidence, head="all")
    assert pc.prune(evidence, heads=heads, keep=0.5).num_edges < pc.num_edges
    grown = pc.grow(evidence, heads=heads, select=[1], threshold=0.2, noise=0)
    np.testing.assert_allclose(grown.log_likelihood(evidence, head="all"), before[:, [0, 1, 1]], rtol=1e-5)


def learned_structure(path: Path) -> bytes:
    """The file of a circuit that was grown and pruned."""
    pc = Circuit.from_tree([-1, 0, 0, 1, 1], num_latents=8, num_cats=5, heads=2, seed=1)
    X = np.random.default_rng(0).integers(0, 5, (200, 5))
    pc = pc.grow(X, heads=np.zeros(200, int), select=[0], threshold=20, seed=3)
    pc.prune(X, heads=np.arange(200) % 2, keep=0.5).save(path)
    return path.read_bytes()


def test_seeds(pc: Circuit, rows: np.ndarray) -> None:
    options = {"heads": rows[:, 0], "select": [0], "threshold": 20}
    one, same, other = (pc.grow(rows, **options, seed=seed).parameters() for seed in (1, 1, 2))
    for i in range(2):
        np.testing.assert_array_equal(one[i], same[i])
        assert not np.array_equal(one[i], other[i])


def test_threads_do_not_show(tmp_path: Path) -> None:
    threads = "1" if julia.start().threads > 1 else "2"
    code = "import pathlib, sys, test_structure_learning as t; t.learned_structure(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "a.jpc")]
    environment = {**os.environ, "LVD_THREADS": threads}
    subprocess.run(command, env=environment, cwd=Path(__file__).parent, check=True)
    assert learned_structure(tmp_path / "b.jpc") == (tmp_path / "a.jpc").read_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"min_flow": -1}, "min_flow = -1.0: want a number, 0 or more"),
        ({"min_flow": float("nan")}, "min_flow = NaN: want"),
        ({"keep": 0}, "keep = 0.0: want a number in (0, 1]"),
        ({"keep": "a"}, "keep: found 'a' (a string), wanted a number"),
        ({"min_flow": [1]}, "min_flow: found [1] (list), wanted a number"),
        ({"keep": 0.5, "min_flow": 0.1}, "keep: found 0.5 together with min_flow = 0.1, wanted one of them"),
        ({"heads": 3}, "heads: found 3, wanted 0..2"),
        ({"weights": [1, 2]}, "weights: found int64 (2,), wanted numbers (500,)"),
    ],
)
def test_prune_refuses(pc: Circuit, rows: np.ndarray, change: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError) as raised:
        pc.prune(rows, **change)  # type: ignore[arg-type]
    assert str(raised.value).startswith(reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"select": []}, "select: found no head, wanted at least 1"),
        ({"select": [0, 1, 0]}, "select: found a head twice, wanted each at most once"),
        ({"select": [0, 3]}, "select: found (0, 3), the circuit has heads 0..2"),
        ({"select": [0.5]}, "select: found float64 (1,), wanted integers (m,)"),
        ({"threshold": -1}, "threshold = -1.0: want 0 or more"),
        ({"threshold": None}, "threshold: found None (NoneType), wanted a number"),
        ({"noise": "a"}, "noise: found 'a' (a string), wanted a number"),
        ({"seed": None}, "seed: found None (NoneType), wanted an integer"),
        ({"noise": 1e39}, "noise = 1.0e39: want 0 or more, at most 1e20"),
        ({"noise": float("inf")}, "noise = Inf: want 0 or more"),
        ({"heads": [0, 1]}, "heads: found int64 (2,), wanted integers (500,)"),
    ],
)
def test_grow_refuses(pc: Circuit, rows: np.ndarray, change: dict[str, object], reason: str) -> None:
    options: dict[str, object] = {"heads": rows[:, 0], "select": [0], "threshold": 1, **change}
    with pytest.raises(InputError) as raised:
        pc.grow(rows, **options)  # type: ignore[arg-type]
    assert str(raised.value).startswith(reason)


def test_some_of_the_heads_and_heads_of_several_circuits(pc: Circuit, rows: np.ndarray) -> None:
    every = pc.log_likelihood(rows, head="all")
    some = pc.with_heads([2, 0])
    np.testing.assert_allclose(some.log_likelihood(rows, head="all"), every[:, [2, 0]], rtol=1e-6)
    assert some.num_nodes < pc.num_nodes
    again = Circuit.side_by_side([some, pc])
    assert again.num_heads == 5
    np.testing.assert_allclose(again.log_likelihood(rows, head="all"), every[:, [2, 0, 0, 1, 2]], rtol=1e-6)
    with pytest.raises(InputError, match=r"heads: found 0\.\.3, wanted 0\.\.2"):
        pc.with_heads([0, 3])
    other = Circuit.fully_factorized(num_vars=2, num_cats=2)
    with pytest.raises(InputError, match="circuit 1 has 2 variables, the first 6"):
        Circuit.side_by_side([pc, other])
