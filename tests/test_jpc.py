"""The text format `.jpc` against a reader of our own here, straight from its definition."""

import gzip
import itertools
import math
import subprocess
import sys
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
@pytest.mark.parametrize("structure", ["hclt", "rat-spn", "einet", "factorized"])
def test_a_written_file_means_the_circuit(tmp_path: Path, structure: str, heads: int) -> None:
    rng = np.random.default_rng(heads)
    X = rng.integers(0, 3, (200, 4))
    if structure == "hclt":
        circuit = Circuit.hclt(X, num_latents=3, num_cats=3, heads=heads, seed=1)
    elif structure == "rat-spn":
        circuit = Circuit.rat_spn(
            num_vars=4, depth=2, replicas=2, num_sums=2, num_inputs=3, num_cats=3, heads=heads, seed=1
        )
    elif structure == "einet":
        circuit = Circuit.einet(shape=(2, 2, 1), steps=1, num_sums=3, num_cats=3, heads=heads, perturbation=0.9, seed=1)
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


@pytest.mark.parametrize("suffix", [".jpc", ".jpc.gz"])
def test_lines_may_end_anywhere_in_the_pieces_of_a_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    circuit = Circuit.rat_spn(num_vars=5, depth=2, replicas=2, num_sums=2, num_inputs=2, num_cats=3, heads=2, seed=1)
    circuit.save(tmp_path / f"a{suffix}")
    for size in (1, 7, 1000):
        monkeypatch.setattr("pyjuice_lvd.circuit.files._CHUNK", size)
        Circuit.load(tmp_path / f"a{suffix}").save(tmp_path / f"b{suffix}")
        assert (tmp_path / f"b{suffix}").read_bytes() == (tmp_path / f"a{suffix}").read_bytes()


def test_a_file_that_packs_too_well_is_packed_less_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = Circuit.fully_factorized(num_vars=40, num_cats=256)  # 10,000 times the same number
    circuit.save(tmp_path / "small.jpc.gz")
    monkeypatch.setattr("pyjuice_lvd.circuit.files._UNPACKED_FREE", 1000)
    with pytest.raises(InputError, match=r"small\.jpc\.gz: unpacks to more than 100 times its size"):
        Circuit.load(tmp_path / "small.jpc.gz")
    circuit.save(tmp_path / "large.jpc.gz")
    assert Circuit.load(tmp_path / "large.jpc.gz").num_params == circuit.num_params
    assert (tmp_path / "large.jpc.gz").stat().st_size > 10 * (tmp_path / "small.jpc.gz").stat().st_size


def test_small_files_take_little_memory_whatever_they_claim(tmp_path: Path) -> None:
    """In a process of its own, whose peak is measured: padding, claims, and contents that pack 1000 times."""
    contents = {
        "claim": b"c " + b" " * 2_000_000 + b"\njpc 1\nI 0 0 1 120000000\n",
        "padding": b"c " + b" " * 15_000_000 + b"\njpc 1\nL 0 0 1\n",
        "line": b"jpc 1\n" + b" " * 15_000_000 + b"L 0 0 1\n",
        "bomb": b"c\n" * 10**8,
        "edges": b"jpc 2\nL 0 0 1\nS 1 0 3000000" + b" 0 -15" * 3_000_000 + b"\n",
        "categories": b"jpc 1\nC 0 0 1" + b" -14" * 4_000_000 + b"\n",
        "trials": b"jpc 1\nB 0 0 1 2000000000 -0.5\n",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.jpc.gz").write_bytes(gzip.compress(content))
    code = """
        import resource, sys
        from pathlib import Path
        from pyjuice_lvd import Circuit
        from pyjuice_lvd.errors import InputError
        Circuit.load(sys.argv[1] + "/padding.jpc.gz")
        for path in sorted(Path(sys.argv[1]).iterdir()):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                said = repr(Circuit.load(path))
            except InputError as error:
                said = str(error).partition(": ")[2]
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10, path.name.split(".")[0], said)
    """
    lines = "\n".join(line[8:] for line in code.splitlines())
    ran = subprocess.run([sys.executable, "-c", lines, str(tmp_path)], capture_output=True, text=True, check=True)
    said = {
        name: (int(megabytes), words) for megabytes, name, words in (x.split(" ", 2) for x in ran.stdout.splitlines())
    }
    assert set(said) == set(contents)
    assert all(megabytes < 130 for megabytes, _ in said.values()), said
    for name, words in (
        ("claim", "line 3: unit 0: 120000001 categories are more than a file of"),
        ("padding", "Circuit(num_vars=1"),
        ("line", "Circuit(num_vars=1"),
        ("bomb", "unpacks to more than 100 times its size, wanted a .jpc.gz"),
        ("edges", "line 3: unit 1: its parameters sum to 0.91"),
        ("categories", "line 2: unit 0: its parameters sum to 3.3"),
        ("trials", "line 2: unit 0: 2000000001 categories are more than a file of"),
    ):
        assert said[name][1].startswith(words)


@pytest.mark.parametrize("suffix", [".jpc", ".jpc.gz", ".safetensors"])
def test_what_cannot_be_read_is_not_written(tmp_path: Path, suffix: str) -> None:
    circuit = Circuit.from_tree([-1, 0], num_latents=2, num_cats=3)
    path = tmp_path / f"model{suffix}"
    circuit.save(path)
    before = path.read_bytes()
    weight, leaf = circuit.parameters()
    edge = int(np.flatnonzero(weight < 1)[0])
    for array, at, value, reason in (
        (weight, edge, np.nan, "parameter NaN is no probability"),
        (weight, edge, -0.5, "parameter -0.5 is no probability"),
        (leaf, 4, np.inf, "parameter Inf is no probability"),
        (leaf, 4, 0.9, "its parameters sum to 1."),
    ):
        kept = array[at]
        array[at] = value
        with pytest.raises(InputError) as raised:
            circuit.save(path)
        assert str(raised.value).startswith(f"{path}: not written: invalid circuit: unit ")
        assert reason in str(raised.value)
        array[at] = kept
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before
    circuit.save(path)
    assert path.read_bytes() == before
