"""Juice.jl beside us: circuits go over and come back, likelihoods, files; where it is installed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from commands import lvd_juice

from pyjuice_lvd import Circuit, julia
from pyjuice_lvd.circuit import Evidence
from pyjuice_lvd.circuit.juice import EXTENSION
from pyjuice_lvd.errors import InputError, JuliaError

PAGE = Path(__file__).parent.parent / "docs" / "juice.md"
rng = np.random.default_rng(4)


def installed() -> bool:
    try:
        julia.load_extension(EXTENSION)
    except (InputError, JuliaError):
        return False
    return True


@pytest.fixture(scope="module")
def juice() -> None:
    if not installed():
        pytest.skip("ProbabilisticCircuits.jl is not installed")


def circuits() -> list[Circuit]:
    """An HCLT, a pruned and grown one, a RAT-SPN, and one with inputs of all kinds and several heads."""
    X = rng.integers(0, 3, (300, 6))
    hclt = Circuit.hclt(X, num_latents=5, heads=2, seed=1)
    hclt.fit_em(X, heads=X[:, 0] % 2, epochs=2)
    small = hclt.prune(X, heads=X[:, 0] % 2, keep=0.4)
    grown = small.grow(X, heads=X[:, 0] % 2, select=[1], threshold=5)
    return [hclt, small, grown, Circuit.rat_spn(num_vars=6, depth=2, replicas=3, num_sums=3, num_inputs=2, num_cats=3)]


MIXED = """c heads 8 9
jpc 11
L 0 0 1
L 1 0 -1
I 2 0 2 3
C 3 0 2 -1.3862944 -1.3862944 -1.3862944 -1.3862944
B 4 0 3 2 -1.2039728
P 5 0 3 0 2 4
P 6 0 3 1 3 4
P 7 0 3 0 3 4
S 8 0 2 5 -0.6931472 6 -0.6931472
S 9 0 2 6 -1.3862944 7 -0.28768207
S 10 0 2 8 -0.6931472 9 -0.6931472
"""


def test_without_the_package_one_line_says_how_to_get_it() -> None:
    if installed():
        pytest.skip("ProbabilisticCircuits.jl is installed")
    pc = Circuit.fully_factorized(num_vars=2, num_cats=2)
    for call in (pc.to_juice, lambda: pc.log_likelihood([[0, 1]], engine="juice")):
        with pytest.raises(InputError, match=r"ProbabilisticCircuits.*`lvd-juice setup --with juice`"):
            call()


def test_fit_says_what_its_engine_lacks(tmp_path: Path) -> None:
    np.save(tmp_path / "table.npy", np.random.default_rng(0).integers(0, 2, (30, 3)))

    def fit(method: str) -> str:
        command = ("fit", tmp_path / "table.npy", "-o", tmp_path / "run", "--method", method, "--engine", "juice")
        found = lvd_juice(*command, check=False)
        assert found.returncode == 2
        assert not (tmp_path / "run").exists()
        return found.stderr

    assert "--engine: found juice with method einet, wanted hclt or rat-spn" in fit("einet")
    wanted = "CUDA GPUs alone" if installed() else "`lvd-juice setup --with juice` installs it"
    assert wanted in fit("hclt")


def test_what_is_refused_without_looking_for_the_package() -> None:
    pc = Circuit.fully_factorized(num_vars=2, num_cats=2)
    with pytest.raises(InputError, match="engine: found 'cirkit', wanted one of lvdjuice, juice"):
        pc.log_likelihood([[0, 1]], engine="cirkit")
    with pytest.raises(InputError, match="engine: found 'juice' with Evidence"):
        pc.log_likelihood(Evidence(np.zeros((1, 2, 2), np.float32)), engine="juice")
    with pytest.raises(InputError, match=r"circuit: found str, wanted a julia\.Handle"):
        Circuit.from_juice("circuit.jpc")
    with pytest.raises(InputError, match=r"head: found 1, wanted 0\.\.0"):
        pc.to_juice(head=1)


@pytest.mark.usefixtures("juice")
def test_likelihoods_are_the_same() -> None:
    X, mask = rng.integers(0, 3, (80, 6)), rng.random((80, 6)) < 0.3
    for pc in circuits():
        for hidden in (None, mask):
            wanted = pc.log_likelihood(X, mask=hidden, head="all")
            found = pc.log_likelihood(X, mask=hidden, head="all", engine="juice")
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    wide = rng.integers(0, 256, (20, 300))
    pc = Circuit.hclt(wide, num_latents=4, num_cats=256)
    assert pc.log_likelihood(wide).max() < -1000
    np.testing.assert_allclose(pc.log_likelihood(wide, engine="juice"), pc.log_likelihood(wide), rtol=1e-5)
    assert pc.log_likelihood(wide[:0], engine="juice").shape == (0,)


@pytest.mark.usefixtures("juice")
def test_there_and_back_is_the_same_circuit(tmp_path: Path) -> None:
    (tmp_path / "mixed.jpc").write_text(MIXED)
    X = np.array(np.meshgrid([0, 1], range(4), range(3))).reshape(3, -1).T
    mixed = Circuit.load(tmp_path / "mixed.jpc")
    for pc in (*circuits(), mixed):
        data = X if pc is mixed else rng.integers(0, 3, (50, 6))
        for head in range(pc.num_heads):
            back = Circuit.from_juice(pc.to_juice(head=head))
            np.testing.assert_allclose(back.log_likelihood(data), pc.log_likelihood(data, head=head), rtol=1e-6)
        both = np.log(np.exp(pc.log_likelihood(data, head="all")) @ pc.head_weights)
        np.testing.assert_allclose(Circuit.from_juice(pc.to_juice()).log_likelihood(data), both, rtol=1e-5)
    assert Circuit.from_juice(mixed.to_juice(head=0)).num_nodes == 8  # what head 1 alone reaches is left out
    assert julia.call("ProbabilisticCircuits.num_nodes", mixed.to_juice(head=1)) == 7


@pytest.mark.usefixtures("juice")
def test_each_reads_what_the_other_writes(tmp_path: Path) -> None:
    for number, pc in enumerate(circuits()):
        ours, theirs, again = (tmp_path / f"{name}{number}.jpc" for name in ("ours", "theirs", "again"))
        pc.save(ours)
        read = julia.evaluate(f'import ProbabilisticCircuits; read("{ours}", ProbabilisticCircuits.ProbCircuit)')
        julia.call("ProbabilisticCircuits.write", str(theirs), read)
        Circuit.load(theirs).save(again)
        X = rng.integers(0, 3, (30, 6))
        both = np.log(np.exp(pc.log_likelihood(X, head="all")) @ pc.head_weights)
        np.testing.assert_allclose(Circuit.load(again).log_likelihood(X), both, rtol=1e-5)
        Circuit.load(again).save(tmp_path / "more.jpc")
        assert (tmp_path / "more.jpc").read_bytes() == again.read_bytes()


@pytest.mark.usefixtures("juice")
def test_deep_circuits_go_over() -> None:
    deep = Circuit.from_tree(np.arange(-1, 20_000 - 1), num_latents=2, num_cats=2)
    back = Circuit.from_juice(deep.to_juice())
    X = rng.integers(0, 2, (3, 20_000))
    np.testing.assert_allclose(back.log_likelihood(X), deep.log_likelihood(X), rtol=1e-6)


@pytest.mark.usefixtures("juice")
def test_circuits_that_are_none() -> None:
    julia.evaluate("import ProbabilisticCircuits as P")
    with pytest.raises(InputError, match="a sum over different scopes"):
        Circuit.from_juice(
            julia.evaluate("P.summate(P.InputNode(1, P.Categorical(2)), P.InputNode(2, P.Categorical(2)))")
        )
    with pytest.raises(InputError, match="its parameters sum to"):
        Circuit.from_juice(julia.evaluate("P.InputNode(1, P.Categorical([0f0, 0f0]))"))


@pytest.mark.usefixtures("juice")
def test_the_page_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    exec(code, {})
