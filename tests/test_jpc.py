"""The text format `.jpc` against a reader of our own here, straight from its definition."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd import Circuit
from pyjuice_lvd.errors import InputError

HALF = math.log(0.5)


def probability(text: str, x: tuple[int, ...]) -> float:
    """Evaluate the last unit of a `.jpc` file."""
    lines = [line.split(" ") for line in text.splitlines() if not line.startswith("c ")]
    assert lines[0] == ["jpc", str(len(lines) - 1)]
    values: list[float] = []
    for unit, (kind, number, vtree, *fields) in enumerate(lines[1:]):
        assert (number, vtree) == (str(unit), "0")
        if kind == "L":
            literal = int(fields[0])
            values.append(float(x[abs(literal) - 1] == (literal > 0)))
        elif kind == "I":
            values.append(float(x[int(fields[0]) - 1] == int(fields[1])))
        elif kind == "C":
            values.append(math.exp(float(fields[1 + x[int(fields[0]) - 1]])))
        elif kind == "B":
            trials, p, k = int(fields[1]), math.exp(float(fields[2])), x[int(fields[0]) - 1]
            values.append(math.comb(trials, k) * p**k * (1 - p) ** (trials - k))
        elif kind == "P":
            assert len(fields) == 1 + int(fields[0])
            values.append(math.prod(values[int(child)] for child in fields[1:]))
        else:
            assert kind == "S"
            assert len(fields) == 1 + 2 * int(fields[0])
            edges = zip(fields[1::2], fields[2::2], strict=True)
            values.append(sum(values[int(child)] * math.exp(float(weight)) for child, weight in edges))
    return values[-1]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("structure", ["hclt", "rat-spn", "factorized"])
def test_a_written_file_means_the_circuit(tmp_path: Path, structure: str, heads: int) -> None:
    rng = np.random.default_rng(heads)
    X = rng.integers(0, 3, (200, 4))
    if structure == "hclt":
        circuit = Circuit.hclt(X, num_latents=3, num_cats=3, heads=heads, seed=1)
    elif structure == "rat-spn":
        circuit = Circuit.rat_spn(
            num_vars=4, depth=2, replicas=2, num_sums=2, num_inputs=3, num_cats=3, heads=heads, seed=1
        )
    else:
        circuit = Circuit.fully_factorized(num_vars=4, num_cats=3, heads=heads)
    circuit.fit_em(X, heads=rng.integers(0, heads, 200), epochs=5, batch_size=50)
    circuit.save(tmp_path / "model.jpc")
    text = (tmp_path / "model.jpc").read_bytes().decode("ascii")
    assert "\r" not in text
    assert "Inf" not in text
    every = list(itertools.product(range(3), repeat=4))
    # With several heads, the file's root is their uniform mixture.
    mixture = np.exp(circuit.log_likelihood(np.array(every), head="all")).mean(axis=1)
    np.testing.assert_allclose([probability(text, x) for x in every], mixture, rtol=1e-5)
    header = [line for line in text.splitlines() if line.startswith("c heads ")]
    again = Circuit.load(tmp_path / "model.jpc")
    assert (len(header), again.num_heads, again.num_nodes) == (heads > 1, heads, circuit.num_nodes)
    again.save(tmp_path / "again.jpc")
    assert (tmp_path / "again.jpc").read_bytes() == (tmp_path / "model.jpc").read_bytes()


def test_a_file_from_elsewhere(tmp_path: Path) -> None:
    text = (
        f"c by hand\njpc 9\nL 0 0 1\nL 1 0 -1\nI 2 0 2 0\nI 3 0 2 2\nB 4 0 3 3 {HALF}\n"
        f"P 5 0 3 0 2 4\nP 6 0 3 1 3 4\nS 7 0 2 5 {math.log(0.3)} 6 {math.log(0.7)}\nS 8 0 1 7 0.0\n"
    )
    (tmp_path / "model.jpc").write_text(text)
    circuit = Circuit.load(tmp_path / "model.jpc")
    assert (circuit.num_vars, circuit.num_heads, circuit.num_nodes, circuit.num_edges) == (3, 1, 9, 9)
    every = list(itertools.product(range(2), range(3), range(4)))
    with np.errstate(divide="ignore"):
        expected = np.log([probability(text, x) for x in every])
    np.testing.assert_allclose(circuit.log_likelihood(np.array(every)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "found no line `jpc COUNT`"),
        ("jpc 1000000000000\nL 0 0 1\n", "ends after 1 of 1000000000000 units"),
        ("jpc 1\nB 0 0 1 2000000000 -0.5\n", "line 2: unit 0: 2000000001 categories"),
        (f"jpc 2\nC 0 0 1 {HALF} {HALF}\nS 1 0 1 0 -0.1\n", "line 3: unit 1: its parameters sum to 0.90"),
        ("jpc 2\nL 0 0 1\nP 1 0 1 1\n", "line 3: found 1 for a child, wanted 0..0"),
        ("jpc 3\nL 0 0 1\nL 1 0 2\nS 2 0 2 0 -0.6931472 1 -0.6931472\n", "unit 2: a sum over different scopes"),
        ("jpc 3\nL 0 0 1\nL 1 0 -1\nP 2 0 2 0 1\n", "unit 2: a product over overlapping scopes: variable 1"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "bad.jpc"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        Circuit.load(path)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")
