"""`Circuit`, the Python face of the engine. The engine's own tests are in julia/test."""

import contextlib
import gzip
import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd import Circuit
from pyjuice_lvd.circuit import Evidence, Statistics
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_arrays, write_arrays
from pyjuice_lvd.progress import SILENT

Silent = type(SILENT)


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 3, (400, 5), dtype=np.uint8)
    X[:, 3] = (X[:, 0] + (rng.random(400) < 0.1)) % 3
    return X


def test_likelihoods_of_all_assignments_sum_to_one(data: np.ndarray) -> None:
    pc = Circuit.hclt(data, num_latents=4, num_cats=3, heads=2, seed=1)
    pc.fit_em(data, heads=data[:, 0] % 2, epochs=3)
    everything = np.array(list(itertools.product(range(3), repeat=5)))
    scores = pc.log_likelihood(everything, head="all")
    assert scores.shape == (243, 2)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(np.exp(scores).sum(0), 1, atol=1e-6)
    np.testing.assert_array_equal(pc.log_likelihood(everything, head=1), scores[:, 1])


def test_em_learns_the_dependence(data: np.ndarray) -> None:
    pc = Circuit.hclt(data, num_latents=9, num_cats=3)
    history = pc.fit_em(data, epochs=60, batch_size=32)
    assert len(history) == 60
    independent = -5 * np.log(3)
    assert history[0] < history[-1]
    assert pc.log_likelihood(data).mean() > independent + 0.3


def test_heads_specialise(data: np.ndarray) -> None:
    heads = (data[:, 0] == 0).astype(int)
    pc = Circuit.hclt(data, num_latents=4, num_cats=3, heads=2)
    pc.fit_em(data, heads=heads, epochs=20, batch_size=32)
    scores = pc.log_likelihood(data, head="all")
    assert (scores.argmax(1) == heads).mean() > 0.95


def test_sizes(data: np.ndarray) -> None:
    pc = Circuit.hclt(data, num_latents=4, num_cats=3, heads=2)
    assert (pc.num_vars, pc.num_heads) == (5, 2)
    assert pc.num_params == 5 * 4 * 3 + 4 * 4 * 4 + 2 * 4


def test_same_seed_same_parameters(data: np.ndarray) -> None:
    def trained(seed: int) -> np.ndarray:
        pc = Circuit.hclt(data, num_latents=4, num_cats=3, seed=seed)
        pc.fit_em(data, epochs=2, seed=seed)
        return pc.parameters()[1].copy()

    np.testing.assert_array_equal(trained(0), trained(0))
    assert not np.array_equal(trained(0), trained(1))


def test_parameters_are_the_circuits_own_memory(data: np.ndarray) -> None:
    pc = Circuit.hclt(data, num_latents=4, num_cats=3)
    before = pc.log_likelihood(data)
    _, leaf = pc.parameters()
    kept = leaf.copy()
    leaf[:] = 1 / 3
    np.testing.assert_allclose(pc.log_likelihood(data), -5 * np.log(3), rtol=1e-6)
    leaf[:] = kept
    np.testing.assert_array_equal(pc.log_likelihood(data), before)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">i4"])
def test_any_integers_and_any_memory_order(data: np.ndarray, dtype: str) -> None:
    pc = Circuit.hclt(data, num_latents=4, num_cats=3)
    expected = pc.log_likelihood(data)
    np.testing.assert_array_equal(pc.log_likelihood(np.asfortranarray(data.astype(dtype))), expected)
    np.testing.assert_array_equal(pc.log_likelihood(data.tolist()), expected)
    np.testing.assert_array_equal(
        pc.fit_em(data.astype(dtype), epochs=1), Circuit.hclt(data, num_latents=4).fit_em(data, epochs=1)
    )


def test_booleans() -> None:
    X = np.random.default_rng(0).random((50, 3)) < 0.5
    pc = Circuit.hclt(X, num_latents=2)
    np.testing.assert_array_equal(pc.log_likelihood(X), pc.log_likelihood(X.astype(int)))


def test_soft_evidence_sums_over_the_categories(data: np.ndarray) -> None:
    pc = Circuit.hclt(data[:, :3], num_latents=3, num_cats=3)
    scores = np.random.default_rng(1).normal(-40, 5, (7, 3, 3)).astype(np.float32)
    z = np.array(list(itertools.product(range(3), repeat=3)))
    prior = pc.log_likelihood(z)
    terms = prior + scores[:, np.arange(3), z].sum(-1, dtype=np.float64)
    top = terms.max(1)
    expected = top + np.log(np.exp(terms - top[:, None]).sum(1))
    np.testing.assert_allclose(pc.log_likelihood(Evidence(scores)), expected, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".safetensors", ".jpc", ".jpc.gz"])
def test_save_and_load(data: np.ndarray, tmp_path: Path, suffix: str) -> None:
    pc = Circuit.hclt(data, num_latents=4, num_cats=3, heads=2)
    path = tmp_path / f"model{suffix}"
    pc.save(path)
    again = Circuit.load(path)
    np.testing.assert_allclose(again.log_likelihood(data, head="all"), pc.log_likelihood(data, head="all"), rtol=1e-6)
    assert repr(again) == repr(pc)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=rf"model{re.escape(suffix)}: ") as caught:
        Circuit.load(path)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".jpc", ".jpc.gz"])
def test_equal_circuits_give_equal_files(data: np.ndarray, tmp_path: Path, suffix: str) -> None:
    pc = Circuit.hclt(data, num_latents=4, num_cats=3)
    for name in ("one", "two"):
        pc.save(tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_prior_weights_of_the_heads(data: np.ndarray, tmp_path: Path) -> None:
    pc = Circuit.hclt(data, num_latents=2, heads=2)
    np.testing.assert_array_equal(pc.head_weights, [0.5, 0.5])
    apart = pc.log_likelihood(data, head="all")
    pc.head_weights = np.array([9, 1])
    np.testing.assert_allclose(pc.head_weights, [0.9, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(pc.log_likelihood(data, head="all"), apart)
    for name in ("a.safetensors", "a.jpc"):
        pc.save(tmp_path / name)
        np.testing.assert_allclose(Circuit.load(tmp_path / name).head_weights, [0.9, 0.1], rtol=1e-6)
    last = (tmp_path / "a.jpc").read_text().splitlines()[-1].split()
    assert (last[0], last[3], *last[5::2]) == ("S", "2", "-0.105360545", "-2.3025851")
    arrays, about = read_arrays(tmp_path / "a.safetensors")
    del arrays["head_weight"]  # as older files are
    write_arrays(tmp_path / "old.safetensors", arrays, about)
    np.testing.assert_array_equal(Circuit.load(tmp_path / "old.safetensors").head_weights, [0.5, 0.5])
    for weights, message in (([1], "(2,)"), ([-1, 2], "-1..2"), ([0, 0], "found zeros only"), ([np.nan, 1], "nan")):
        with pytest.raises(InputError, match=re.escape(message)):
            pc.head_weights = weights
    np.testing.assert_allclose(pc.head_weights, [0.9, 0.1], rtol=1e-6)


def test_a_file_that_claims_too_many_variables_is_refused(data: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    Circuit.hclt(data, num_latents=4, num_cats=3).save(path)
    arrays, metadata = read_arrays(path)
    for claim in (10**15, -1):
        write_arrays(path, arrays, {**metadata, "num_vars": str(claim)})
        with pytest.raises(InputError, match=rf"model\.safetensors: found {claim} variables, wanted 0\.\."):
            Circuit.load(path)


def test_files_that_are_no_circuits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"model\.bin: wanted a file that ends in \.safetensors, \.jpc or \.jpc\.gz"):
        Circuit.load(tmp_path / "model.bin")
    with pytest.raises(InputError, match=r"model\.jpc: cannot be read \(No such file or directory\)"):
        Circuit.load(tmp_path / "model.jpc")
    (tmp_path / "model.jpc").write_text("jpc 1\nC 0 0 1 0.5\n")
    with pytest.raises(InputError, match=r"model\.jpc: line 2: unit 0: its parameters sum to"):
        Circuit.load(tmp_path / "model.jpc")
    (tmp_path / "model.jpc.gz").write_text("not packed")
    with pytest.raises(InputError, match=r"model\.jpc\.gz: damaged \(Not a gzipped file"):
        Circuit.load(tmp_path / "model.jpc.gz")
    monkeypatch.setattr("pyjuice_lvd.circuit.files._UNPACKED_FREE", 2**20)
    (tmp_path / "model.jpc.gz").write_bytes(gzip.compress(b"c\n" * 2**22))
    with pytest.raises(InputError, match="unpacks to more than 100 times its size"):
        Circuit.load(tmp_path / "model.jpc.gz")


def test_builders() -> None:
    rat = Circuit.rat_spn(num_vars=4, depth=2, replicas=2, num_sums=3, num_inputs=2, num_cats=3, heads=2)
    everything = np.array(list(itertools.product(range(3), repeat=4)))
    np.testing.assert_allclose(np.exp(rat.log_likelihood(everything, head="all")).sum(0), 1, atol=1e-5)
    for graph in ({"num_vars": 4, "depth": 2, "replicas": 2}, {"shape": (2, 2, 1), "steps": 1}):
        for leaves in ("categorical", "binomial"):
            net = Circuit.einet(num_sums=3, num_cats=3, leaves=leaves, heads=2, perturbation=0.9, **graph)
            np.testing.assert_allclose(np.exp(net.log_likelihood(everything, head="all")).sum(0), 1, atol=1e-5)
    flat = Circuit.fully_factorized(num_vars=4, num_cats=3)
    np.testing.assert_allclose(flat.log_likelihood(everything), -4 * np.log(3), rtol=1e-6)
    assert Circuit.from_tree([1, -1, 1], num_latents=2, num_cats=3).num_params == 3 * 2 * 3 + 2 * 4 + 2
    with pytest.raises(InputError, match=r"parent: found float64 \(2,\), wanted integers"):
        Circuit.from_tree([0.5, 1.0], num_cats=2)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((2, 5)), "found float64 (2, 5), wanted integers"),
        (np.array([[0.0, np.nan]]), "found NaN"),
        (np.zeros(3, int), "found int64 (3,), wanted integers (N, V)"),
        (np.zeros((2, 4), int), "found 4 variables, wanted the circuit's 5"),
        (np.full((2, 5), 3), "row 0, variable 0: value 3 is outside 0..2"),
        (np.full((2, 5), -1), "value -1 is outside 0..2"),
    ],
)
def test_bad_data_is_named(data: np.ndarray, X: np.ndarray, message: str) -> None:
    pc = Circuit.hclt(data, num_latents=2, num_cats=3)
    with pytest.raises(InputError) as caught:
        pc.log_likelihood(X)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_parameters_are_named(data: np.ndarray, tmp_path: Path) -> None:
    pc = Circuit.hclt(data, num_latents=2, num_cats=3)
    with pytest.raises(InputError, match=r"head: found 1, wanted 0\.\.0"):
        pc.log_likelihood(data, head=1)
    with pytest.raises(InputError, match=r"heads: found int64 \(3,\), wanted integers \(400,\)"):
        pc.fit_em(data, heads=[0, 0, 0])
    with pytest.raises(InputError, match=r"heads: found 0\.\.2, wanted 0\.\.0"):
        pc.fit_em(data, heads=data[:, 0])
    with pytest.raises(InputError, match=r"weights: found float64 \(3,\), wanted numbers \(400,\)"):
        pc.fit_em(data, weights=[0.5, 0.5, 1])
    with pytest.raises(InputError, match=r"weights: row 0: found -1, wanted 0, or a number from 1e-30 to 1e\+30"):
        pc.fit_em(data, weights=np.full(400, -1))
    with pytest.raises(InputError, match="patience: found 0"):
        pc.fit_em(data, valid=data, patience=0)
    for valid, found in (
        (data[:0], "found no rows"),
        (data + 9, r"row 0, variable 0: value \d+ is outside"),
        (data[:, :2], "found 2 variables, wanted the circuit's 5"),
        (data / 2, "found float64"),
        (np.ma.masked_equal(data, 1), "found a masked array"),
    ):
        with pytest.raises(InputError, match=f"^valid: {found}"):
            pc.fit_em(data, valid=valid)
    with pytest.raises(InputError, match=r"^X: row 0, variable 0: value"):
        pc.fit_em(data + 9, valid=data)
    with pytest.raises(InputError, match=r"valid_heads: found 0\.\.2, wanted 0\.\.0"):
        pc.fit_em(data, valid=data, valid_heads=data[:, 0])
    with pytest.raises(InputError, match="num_latents = 0"):
        Circuit.hclt(data, num_latents=0)
    with pytest.raises(InputError, match="found no rows"):
        Circuit.hclt(data[:0])
    with pytest.raises(InputError, match="batch_size = 0"):
        pc.fit_em(data, batch_size=0)
    with pytest.raises(InputError, match=r"wanted a file that ends in \.safetensors"):
        pc.save(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pc, X: pc.fit_em(X, step_size=(0.1,)), "step_size: found (0.1,), wanted a list of 2 values"),
        (lambda pc, X: pc.fit_em(X, step_size=(0.1, 0.2, 0.3)), "step_size: found (0.1, 0.2, 0.3), wanted a list of 2"),
        (lambda pc, X: pc.fit_em(X, step_size="a"), "step_size: found 'a' (a string), wanted a number"),
        (lambda pc, X: pc.fit_em(X, step_size=(0.1, None)), "step_size: found None (NoneType), wanted a number"),
        (lambda pc, X: pc.fit_em(X, step_size=(0.1, np.nan)), "step_size = (0.1, NaN): want numbers in (0, 1]"),
        (lambda pc, X: pc.fit_em(X, epochs=2.5), "epochs: found 2.5 (a number), wanted an integer"),
        (lambda pc, X: pc.fit_em(X, on_epoch=3), "on_epoch: found 3, wanted a function, or None"),
        (lambda pc, X: pc.fit_em(X, valid_heads=X[:, 0] * 0), "valid_heads: found without valid, wanted together with"),
        (lambda pc, X: pc.fit_em(X, checkpoint="a.txt"), "checkpoint: found 'a.txt', wanted the path of a file named"),
        (lambda pc, X: pc.fit_em(X, checkpoint=3), "checkpoint: found 3, wanted the path of a file named .safetensors"),
        (lambda pc, X: pc.sample(10**12), "n: found 1000000000000: the result would take "),
        (lambda pc, X: pc.sample(10**12, X=X, mask=X == 0), "n: found 1000000000000: the result would take "),
        (lambda pc, X: Circuit.hclt(X[:, :0]), "X: found no variables, wanted at least 1"),
        (lambda pc, X: Circuit.hclt(X[:, :0], num_cats=2), "X: found no variables, wanted at least 1"),
        (
            lambda pc, X: Circuit.hclt(X, heads=2, labels=X[:, 0] % 2),
            "labels: found with start = 'random', wanted none",
        ),
        (lambda pc, X: pc.fit_em(X, epochs=-1), "epochs = -1: want 0 or more"),
        (lambda pc, X: pc.fit_em(X, batch_size=2.0), "batch_size: found 2.0 (a number), wanted an integer"),
        (lambda pc, X: pc.fit_em(X, batch_size=None), "batch_size: found None (NoneType), wanted an integer"),
        (lambda pc, X: pc.fit_em(X, seed=None), "seed: found None (NoneType), wanted an integer"),
        (lambda pc, X: pc.fit_em(X, seed=2**63), "seed: found 9223372036854775808, wanted an integer of 64 bits"),
        (lambda pc, X: pc.fit_em(X, shuffle=None), "shuffle: found None (NoneType), wanted true or false"),
        (lambda pc, X: pc.fit_em(X, valid=X, patience=1.5), "patience: found 1.5 (a number), wanted an integer"),
        (lambda pc, X: pc.fit_em(X, pseudocount="a"), "pseudocount: found 'a' (a string), wanted a number"),
        (lambda pc, X: pc.fit_em(X, pseudocount=np.inf), "pseudocount = Inf: want 0, or 1e-30 to 1e20"),
        (lambda pc, X: pc.fit_em(X, pseudocount=np.nan), "pseudocount = NaN: want 0, or 1e-30 to 1e20"),
        (lambda pc, X: pc.fit_em(X, pseudocount=-1), "pseudocount = -1.0: want 0, or 1e-30 to 1e20"),
        (lambda pc, X: pc.fit_em(X, pseudocount=1e39), "pseudocount = 1.0e39: want 0, or 1e-30 to 1e20"),
        (lambda pc, X: pc.fit_em(X, pseudocount=1e-40), "pseudocount = 1.0e-40: want 0, or 1e-30 to 1e20"),
        (lambda pc, X: pc.apply(pc.accumulate(X), pseudocount=np.inf), "pseudocount = Inf: want 0, or"),
        (lambda pc, X: pc.apply(pc.accumulate(X), step_size=None), "step_size: found None (NoneType), wanted a number"),
        (lambda pc, X: Circuit.hclt(X, pseudocount=-1), "pseudocount = -1.0: want 0, or 1e-30 to 1e20"),
        (lambda pc, X: Circuit.hclt(X, pseudocount=np.nan), "pseudocount = NaN: want 0, or 1e-30 to 1e20"),
        (lambda pc, X: Circuit.hclt(X, num_latents=2.0), "num_latents: found 2.0 (a number), wanted an integer"),
        (lambda pc, X: Circuit.hclt(X, num_cats=0), "num_cats = 0: want at least 1"),
        (lambda pc, X: Circuit.hclt(X, heads=True), "heads: found True (true or false), wanted an integer"),
        (lambda pc, X: Circuit.hclt(X, perturbation="a"), "perturbation: found 'a' (a string), wanted a number"),
        (lambda pc, X: Circuit.hclt(X, seed=None), "seed: found None (NoneType), wanted an integer"),
        (
            lambda pc, X: Circuit.from_tree([-1], num_cats=2, num_latents=2.5),
            "num_latents: found 2.5 (a number), wanted",
        ),
        (lambda pc, X: Circuit.from_tree([-1], num_cats=2, seed="a"), "seed: found 'a' (a string), wanted an integer"),
        (lambda pc, X: Circuit.fully_factorized(num_vars=2, num_cats=None), "num_cats: found None (NoneType), wanted"),
        (
            lambda pc, X: Circuit.rat_spn(num_vars=4, depth=1.5, replicas=1, num_sums=1, num_inputs=1, num_cats=2),
            "depth: found 1.5 (a number), wanted an integer",
        ),
        (
            lambda pc, X: Circuit.einet(num_sums=2, num_cats=2, num_vars=4, depth=2),
            "replicas: found None (NoneType), wanted",
        ),
        (
            lambda pc, X: Circuit.einet(num_sums=2, num_cats=2, shape=(2, 2), steps=1),
            "shape: found (2, 2), wanted a list of 3",
        ),
        (lambda pc, X: Circuit.einet(num_sums=2, num_cats=2, shape=(2, 2, 1)), "steps: found None (NoneType), wanted"),
        (
            lambda pc, X: Circuit.einet(num_sums=2, num_cats=2, shape=(2, 2, 1), steps=[2, 0]),
            "steps: found 0, wanted at least 1",
        ),
        (lambda pc, X: Circuit.einet(num_sums=2, num_cats=2, shape=(2, 0, 1), steps=1), "width = 0"),
        (
            lambda pc, X: Circuit.einet(num_sums=2, num_cats=2, shape=(2, 2, 1), steps=1, depth=3),
            "depth: found with shape = (2, 2, 1), wanted num_vars, depth and replicas, or shape and steps",
        ),
        (
            lambda pc, X: Circuit.einet(num_sums=2, num_cats=2, shape=(2, 2, 1), steps=1, leaves="normal"),
            "leaves: found 'normal', wanted one of categorical, binomial",
        ),
        (lambda pc, X: pc.log_likelihood(X, head=np.zeros(60, int)), "head: found int64 (60,), wanted an integer or"),
        (lambda pc, X: pc.log_likelihood(X, head=None), "head: found None, wanted an integer or 'all'"),
        (lambda pc, X: pc.log_likelihood(X, head="each"), "head: found 'each', wanted an integer or 'all'"),
        (lambda pc, X: pc.log_likelihood(X, head=-1), "head: found -1, wanted 0..0"),
        (lambda pc, X: Circuit.mixture([pc], weights="a"), "weights: found <U1 (), wanted numbers (1,)"),
        (lambda pc, X: Circuit.mixture([pc], weights=1.0), "weights: found float64 (), wanted numbers (1,)"),
        (
            lambda pc, X: Circuit.hclt(X, start=np.zeros(2)),
            "start: found array([0., 0.]), wanted one of random, clusters",
        ),
        (lambda pc, X: pc.with_heads(None), "heads: found None, wanted 0..0"),
        (lambda pc, X: pc.sample(2.5), "n: found 2.5 (a number), wanted an integer"),
        (lambda pc, X: pc.sample(None), "n: found None (NoneType), wanted an integer"),
        (lambda pc, X: pc.sample(-1), "n: found -1, wanted at least 0"),
        (lambda pc, X: pc.sample(1, seed=None), "seed: found None (NoneType), wanted an integer"),
        (lambda pc, X: pc.sample(1, head=None), "head: found None, wanted 0..0"),
    ],
)
def test_parameters_that_are_not_what_is_wanted_are_named(
    data: np.ndarray, call: Callable[[Circuit, np.ndarray], object], message: str
) -> None:
    pc = Circuit.hclt(data, num_latents=2, num_cats=3)
    before = [array.copy() for array in pc.parameters()]
    with pytest.raises(InputError) as caught:
        call(pc, data)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    for array, values in zip(pc.parameters(), before, strict=True):
        np.testing.assert_array_equal(array, values)


def test_numpys_numbers_are_as_good_as_pythons(data: np.ndarray, tmp_path: Path) -> None:
    def trained(integer: Callable, number: Callable, step_size: object, shuffle: object) -> Circuit:
        pc = Circuit.hclt(
            data, num_latents=integer(2), num_cats=integer(3), heads=integer(2), perturbation=number(0.25),
            pseudocount=number(0.5), seed=integer(3),
        )  # fmt: skip
        pc.fit_em(
            data, epochs=integer(3), batch_size=integer(50), step_size=step_size, pseudocount=number(0.5),
            shuffle=shuffle, seed=integer(4), valid=data, patience=integer(2),
            checkpoint=tmp_path / "em.safetensors",
        )  # fmt: skip
        pc.apply(pc.accumulate(data), step_size=number(0.5), pseudocount=number(0.5))
        heads, options = data[:, 0] % 2, {"threshold": number(0.25), "noise": number(0.125), "seed": integer(5)}
        return pc.prune(data, heads=heads, keep=number(0.75)).grow(data, heads=heads, select=[0], **options)

    expected = trained(int, float, (0.5, 0.5), True)
    for kinds in ((np.int64, np.float32), (np.uint8, np.float16), (np.array, np.array)):
        for step_size in (np.float32(0.5), np.array([0.5, 0.5]), [np.float64(0.5), 0.5]):
            pc = trained(*kinds, step_size, np.True_)
            for array, values in zip(pc.parameters(), expected.parameters(), strict=True):
                np.testing.assert_array_equal(array, values)
    draws = [expected.sample(n, head=head, seed=seed) for n, head, seed in ((4, 1, 2), np.uint8([4, 1, 2]))]
    np.testing.assert_array_equal(*draws)
    scores = [expected.log_likelihood(data, head=head) for head in (1, np.int64(1), np.array(1))]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])
    every = [expected.log_likelihood(data, head=head) for head in ("all", np.str_("all"))]
    np.testing.assert_array_equal(*every)


def test_a_validation_set_stops_training_and_the_best_parameters_are_kept(data: np.ndarray) -> None:
    train, valid = data[:40], data[200:]  # few rows, many latents: EM overfits
    pc = Circuit.hclt(train, num_latents=16, num_cats=3, heads=2)
    history = pc.fit_em(
        train, heads=train[:, 0] % 2, epochs=60, step_size=1.0, pseudocount=0.0,
        valid=valid, valid_heads=valid[:, 0] % 2, patience=4,
    )  # fmt: skip
    assert len(history) == len(history.valid) == history.best + 4 < 60
    assert history.valid[history.best - 1] == max(history.valid)
    scores = pc.log_likelihood(valid, head="all")[np.arange(len(valid)), valid[:, 0] % 2]
    assert scores.mean() == pytest.approx(max(history.valid), rel=1e-9)
    # Trained parameters that only get worse stay as they were.
    before = [array.copy() for array in pc.parameters()]
    worse = pc.fit_em(train[:1], heads=[0], epochs=5, step_size=1.0, pseudocount=0.0, valid=valid, patience=1)
    assert (worse.best, len(worse)) == (0, 1)
    for array, values in zip(pc.parameters(), before, strict=True):
        np.testing.assert_array_equal(array, values)


def test_the_mixture_of_heads(data: np.ndarray, tmp_path: Path) -> None:
    pc = Circuit.hclt(data, num_latents=2, num_cats=3, heads=3)
    pc.fit_em(data, heads=data[:, 0], epochs=2)
    pc.head_weights = [0.5, 0.5, 0]
    scores = pc.log_likelihood(data, head="all")
    wanted = np.log(0.5 * np.exp(scores[:, 0]) + 0.5 * np.exp(scores[:, 1]))
    np.testing.assert_allclose(pc.log_likelihood(data, head="mixture"), wanted, rtol=1e-6)
    # The rows of a validation set count so, if their heads are not known.
    history = pc.fit_em(data[:20], heads=data[:20, 0] % 2, epochs=3, valid=data, valid_heads="mixture", patience=3)
    assert max(history.valid) == pytest.approx(pc.log_likelihood(data, head="mixture").mean(), rel=1e-9)
    with pytest.raises(InputError, match="valid_heads: found 'all', wanted one of mixture"):
        pc.fit_em(data, valid=data, valid_heads="all")
    with pytest.raises(InputError, match="valid_heads: found without valid"):
        pc.fit_em(data, valid_heads="mixture")


def test_ctrl_c_during_training_keeps_the_best_parameters(data: np.ndarray) -> None:
    class Impatient(Silent):
        def update(self, *, completed: float, **info: object) -> None:
            if completed >= 3 * len(data):
                raise KeyboardInterrupt

    def trained(epochs: int, **options: object) -> Circuit:
        pc = Circuit.hclt(data, num_latents=4, num_cats=3)
        with contextlib.suppress(KeyboardInterrupt):
            pc.fit_em(data, epochs=epochs, step_size=0.5, seed=1, **options)
        return pc

    stopped = trained(9, valid=data, progress=Impatient())
    np.testing.assert_array_equal(stopped.parameters()[1], trained(2).parameters()[1])


def test_rows_count_as_their_weights_say(data: np.ndarray) -> None:
    weights = np.random.default_rng(2).integers(0, 4, len(data))
    one, other = (Circuit.hclt(data, num_latents=4, num_cats=3) for _ in range(2))
    step = {"epochs": 1, "batch_size": 2000, "step_size": 1.0}
    weighted = one.fit_em(data, weights=weights, **step)
    repeated = other.fit_em(np.repeat(data, weights, axis=0), **step)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-6)
    np.testing.assert_allclose(one.parameters()[1], other.parameters()[1], atol=1e-6)


def test_statistics_of_two_halves_give_the_whole_step(data: np.ndarray) -> None:
    heads, weights = data[:, 0] % 2, np.random.default_rng(3).random(len(data))

    def fresh() -> Circuit:
        return Circuit.hclt(data, num_latents=4, num_cats=3, heads=2)

    whole, parts = fresh(), fresh()
    (mean,) = whole.fit_em(data, heads=heads, weights=weights, epochs=1, batch_size=len(data), step_size=0.5)
    shares = (slice(0, 150), slice(150, 400))
    first, second = (parts.accumulate(data[s], heads=heads[s], weights=weights[s]) for s in shares)
    stats = first + second
    assert stats.edges.shape == (parts.num_edges,)
    assert stats.edges.dtype == stats.inputs.dtype == np.float64
    assert stats.log_likelihood / stats.weight == pytest.approx(mean, rel=1e-6)
    assert stats.inputs.sum() == pytest.approx(weights.sum() * 5, rel=1e-6)
    fresh().apply(first)  # of the same structure
    parts.apply(stats, step_size=0.5)
    for array, values in zip(parts.parameters(), whole.parameters(), strict=True):
        np.testing.assert_allclose(array, values, atol=1e-6)
    other = Circuit.hclt(data, num_latents=3, num_cats=3, heads=2)
    with pytest.raises(InputError, match="statistics: found those of another circuit"):
        other.apply(stats)
    with pytest.raises(InputError, match="statistics: found those of two circuits"):
        stats + other.accumulate(data)
    with pytest.raises(InputError, match=r"step_size = 1\.5"):
        parts.apply(stats, step_size=1.5)


@pytest.mark.parametrize(
    ("weight", "shown"),
    [(1e37, "1e+37"), (1e300, "1e+300"), (1e-38, "1e-38"), (-1, "-1"), (np.nan, "nan"), (np.inf, "inf")],
)
def test_weights_that_single_precision_cannot_add_up_are_named(data: np.ndarray, weight: float, shown: str) -> None:
    pc, weights = Circuit.fully_factorized(num_vars=data.shape[1], num_cats=3), np.ones(len(data))
    weights[7] = weight
    before = pc.log_likelihood(data)
    wanted = f"weights: row 7: found {shown}, wanted 0, or a number from 1e-30 to 1e+30"
    for learn in (
        lambda: pc.fit_em(data, weights=weights),
        lambda: pc.flows(data, weights=weights),
        lambda: pc.prune(data, weights=weights),
        lambda: pc.accumulate(data, weights=weights),
        lambda: pc.grow(data, heads=0, select=[0], threshold=0, weights=weights),
    ):
        with pytest.raises(InputError) as raised:
            learn()
        assert str(raised.value) == wanted
    np.testing.assert_array_equal(pc.log_likelihood(data), before)


def test_shares_of_any_size(data: np.ndarray) -> None:
    parts = [Circuit.hclt(data, num_latents=2, num_cats=3, seed=seed) for seed in range(2)]
    equal = Circuit.mixture(parts).log_likelihood(data)
    for size in (1e-300, 1e-38, 1e37, 1.7e308):
        np.testing.assert_array_equal(Circuit.mixture(parts, weights=[size, size]).log_likelihood(data), equal)
        pc = Circuit.side_by_side(parts)
        pc.head_weights = [size, size / 4]
        np.testing.assert_allclose(pc.head_weights, [0.8, 0.2], rtol=1e-6)
    with pytest.raises(InputError, match="weights: found nan"):
        Circuit.mixture(parts, weights=[np.nan, 1])


@pytest.mark.parametrize(("score", "shown"), [(np.nan, "NaN"), (np.inf, "Inf")])
def test_evidence_that_is_no_likelihood_is_named(score: float, shown: str) -> None:
    scores = np.zeros((2000, 3, 4), np.float32)
    scores[1999, 2, 3] = scores[5, 1, 2] = score
    scores[0] = -np.inf
    with pytest.raises(InputError) as raised:
        Evidence(scores)
    place = f"evidence: row 5, variable 1, category 2: found {shown}"
    assert str(raised.value) == f"{place}, wanted a log-likelihood, a number or -Inf"


def test_numpys_masks_are_not_ignored(data: np.ndarray) -> None:
    pc = Circuit.fully_factorized(num_vars=data.shape[1], num_cats=3)
    hidden = np.zeros(data.shape, bool)
    np.testing.assert_array_equal(pc.log_likelihood(np.ma.masked_array(data, hidden)), pc.log_likelihood(data))
    hidden[3, 2] = True
    masked = np.ma.masked_array(data, hidden)
    for ask in (
        lambda: pc.log_likelihood(masked),
        lambda: pc.fit_em(masked),
        lambda: Circuit.hclt(masked),
        lambda: pc.fit_em(data, weights=np.ma.masked_equal(np.arange(len(data)), 3)),
        lambda: pc.fit_em(data, heads=np.ma.masked_equal(np.arange(len(data)), 3)),
    ):
        with pytest.raises(InputError, match=r"^(X|weights|heads): found a masked array with 1 hidden values, wanted"):
            ask()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda X: Circuit.hclt(X, num_latents=10**9), "num_latents = 1000000000"),
        (lambda X: Circuit.hclt(X, num_latents=10**18), "num_latents = 1000000000000000000"),
        (lambda X: Circuit.hclt(X, num_cats=2 * 10**9), "num_cats = 2000000000"),
        (lambda X: Circuit.hclt(X, num_cats=2 * 10**9, start="clusters"), "num_cats = 2000000000"),
        (lambda X: Circuit.hclt(X, heads=10**10), "heads = 10000000000"),
        (lambda X: Circuit.from_tree([-1, 0], num_latents=10**7, num_cats=2), "num_latents = 10000000"),
        (lambda X: Circuit.fully_factorized(num_vars=10**6, num_cats=10**6), "num_vars = 1000000, num_cats = 1000000"),
        (
            lambda X: Circuit.rat_spn(num_vars=9, depth=9, replicas=10**10, num_sums=2, num_inputs=2, num_cats=2),
            "replicas = 10000000000",
        ),
        (
            lambda X: Circuit.rat_spn(num_vars=9, depth=2, replicas=2, num_sums=10**6, num_inputs=2, num_cats=2),
            "num_sums = 1000000",
        ),
        (lambda X: Circuit.einet(shape=(640, 640, 3), steps=8, num_sums=40, num_cats=256), "num_sums = 40"),
    ],
)
def test_circuits_larger_than_the_machine_are_refused_at_once(
    data: np.ndarray, make: Callable[[np.ndarray], Circuit], named: str
) -> None:
    began = time.monotonic()
    with pytest.raises(InputError) as raised:
        make(data)
    assert time.monotonic() - began < 5
    assert named in str(raised.value)
    assert re.search(
        r"of this size takes [\d.e+]+ [TP]B of memory, wanted at most the .* of this machine$", str(raised.value)
    )


def test_numbers_that_are_no_categories_are_named(data: np.ndarray) -> None:
    for value in (20240115, 2 * 10**9, 2**40):
        dated = data.astype(np.int64)
        dated[5, 2] = value
        for start in ("random", "clusters"):
            with pytest.raises(InputError, match=f"^X: variable 2: found {value} in 400 rows, wanted categories"):
                Circuit.hclt(dated, start=start)


def test_a_mixture_is_the_weighted_sum(data: np.ndarray) -> None:
    parts = [Circuit.hclt(data[i::2], num_latents=3, num_cats=3, seed=i, perturbation=0.9) for i in range(2)]
    expected = 0.25 * np.exp(parts[0].log_likelihood(data)) + 0.75 * np.exp(parts[1].log_likelihood(data))
    mixed = Circuit.mixture(parts, weights=[1, 3])
    np.testing.assert_allclose(np.exp(mixed.log_likelihood(data)), expected, rtol=1e-5)
    assert mixed.num_heads == 1
    before = mixed.log_likelihood(data).mean()
    mixed.fit_em(data, epochs=3)
    assert mixed.log_likelihood(data).mean() > before
    equal = sum(np.exp(part.log_likelihood(data)) for part in parts) / 2
    np.testing.assert_allclose(np.exp(Circuit.mixture(parts).log_likelihood(data)), equal, rtol=1e-5)
    with pytest.raises(InputError, match="found no circuits"):
        Circuit.mixture([])
    with pytest.raises(InputError, match=r"weights: found int64 \(1,\), wanted numbers \(2,\)"):
        Circuit.mixture(parts, weights=[1])


class Stop(Exception):  # noqa: N818
    pass


def test_statistics_that_are_no_counts_are_refused(data: np.ndarray) -> None:
    pc = Circuit.hclt(data, num_latents=2, num_cats=3)
    stats, before = pc.accumulate(data), [array.copy() for array in pc.parameters()]

    def changed(name: str, place: int, value: float) -> Statistics:
        counts = getattr(stats, name).copy()
        counts[place] = value
        return replace(stats, **{name: counts})

    n, m = len(stats.edges), len(stats.inputs)
    for wrong, message in (
        (replace(stats, edges=stats.edges[:-1]), rf"found edges float64 \({n - 1},\), wanted numbers \({n},\)"),
        (replace(stats, inputs=np.append(stats.inputs, 1.0)), rf"found inputs float64 \({m + 1},\), wanted"),
        (replace(stats, inputs=stats.inputs[:, None]), rf"found inputs float64 \({m}, 1\), wanted"),
        (replace(stats, edges=stats.edges.astype(str)), "found edges <U"),
        (changed("edges", 3, np.nan), "found nan in edges, at 3; wanted finite counts, at least 0"),
        (changed("inputs", 0, np.inf), "found inf in inputs, at 0"),
        (changed("inputs", 1, -1e-3), "found -0.001 in inputs, at 1"),
    ):
        with pytest.raises(InputError, match=f"statistics: {message}"):
            pc.apply(wrong)
    with pytest.raises(InputError, match="statistics: found edges"):
        _ = stats + replace(stats, edges=stats.edges[:-1])
    for array, values in zip(pc.parameters(), before, strict=True):
        np.testing.assert_array_equal(array, values)
    single, other = Circuit.hclt(data, num_latents=2, num_cats=3), Circuit.hclt(data, num_latents=2, num_cats=3)
    single.apply(replace(stats, edges=stats.edges.astype(np.float32), inputs=stats.inputs.astype(np.float32)))
    other.apply(stats)
    for array, values in zip(single.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(array, values, rtol=1e-5)


@pytest.mark.parametrize("with_valid", [True, False])
def test_training_goes_on_from_a_checkpoint_to_the_same_end(
    data: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_valid: bool
) -> None:
    monkeypatch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0)
    train, valid = data[:60], data[200:] if with_valid else None  # few rows: EM overfits, and stops early

    def trained(**options: object) -> tuple[Circuit, list[float], list[float], int]:
        pc = Circuit.hclt(train, num_latents=16, num_cats=3, seed=1)
        history = pc.fit_em(
            train, epochs=40, batch_size=16, step_size=(0.5, 0.1), pseudocount=0.01, valid=valid, patience=4, **options
        )
        return pc, list(history), history.valid, history.best

    def stop(history: list[float]) -> None:
        if len(history) == 4:
            raise Stop

    undisturbed = trained()
    path = tmp_path / "em.safetensors"
    with pytest.raises(Stop):
        trained(checkpoint=path, on_epoch=stop)
    seen: list[int] = []
    resumed = trained(checkpoint=path, on_epoch=lambda history: seen.append(len(history)))
    assert seen[0] == 4  # the last checkpoint is that of epoch 3
    assert resumed[1:] == undisturbed[1:]
    for mine, wanted in zip(resumed[0].parameters(), undisturbed[0].parameters(), strict=True):
        np.testing.assert_array_equal(mine, wanted)


def test_a_checkpoint_of_other_training_is_refused(
    data: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0)
    path = tmp_path / "em.safetensors"
    pc = Circuit.hclt(data, num_latents=2, num_cats=3)
    pc.fit_em(data, epochs=2, checkpoint=path)
    with pytest.raises(InputError, match=r"em\.safetensors: a checkpoint of EM with seed = 0, wanted 1 or no file"):
        pc.fit_em(data, epochs=2, seed=1, checkpoint=path)
    with pytest.raises(InputError, match="a checkpoint of EM with structure"):
        Circuit.hclt(data, num_latents=3, num_cats=3).fit_em(data, epochs=2, checkpoint=path)
    rows = len(data)
    others: list[tuple[np.ndarray, dict[str, object], str]] = [
        (data[::-1], {}, "on other rows; wanted the same, or no file"),
        (data, {"weights": np.arange(rows)}, "on other weights"),
        (data, {"valid": data[:5]}, "without valid; wanted one with it, or no file"),
    ]
    before = [array.copy() for array in pc.parameters()]
    for X, options, message in others:
        with pytest.raises(InputError, match=message):
            pc.fit_em(X, epochs=2, checkpoint=path, **options)
    for array, values in zip(pc.parameters(), before, strict=True):
        np.testing.assert_array_equal(array, values)
    pc.fit_em(data.astype(np.int64), epochs=2, checkpoint=path)  # the same values
    two = Circuit.hclt(data, num_latents=2, num_cats=3, heads=2)
    heads, path2 = np.arange(rows) % 2, tmp_path / "two.safetensors"
    valid = {"valid": data[:5], "valid_heads": heads[:5]}
    two.fit_em(data, heads=heads, epochs=2, checkpoint=path2, **valid)
    for options, message in (
        ({"heads": 1 - heads, **valid}, "on other heads"),
        ({"heads": heads, **valid, "valid": data[5:10]}, "on other valid"),
        ({"heads": heads, **valid, "valid_heads": 1 - heads[:5]}, "on other valid"),
        ({"heads": heads}, "with valid; wanted one without, or no file"),
    ):
        with pytest.raises(InputError, match=message):
            two.fit_em(data, epochs=2, checkpoint=path2, **options)
    pc.save(path)
    with pytest.raises(InputError, match="found a file of kind None"):
        pc.fit_em(data, epochs=2, checkpoint=path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="damaged"):
        pc.fit_em(data, epochs=2, checkpoint=path)


@pytest.mark.parametrize("with_valid", [True, False])
def test_a_checkpoint_of_the_version_before_goes_on(
    data: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_valid: bool
) -> None:
    """It says nothing of its data, but whether there was a validation set."""
    monkeypatch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0)
    valid, path = {"valid": data[:20]} if with_valid else {}, tmp_path / "em.safetensors"
    expected = Circuit.hclt(data, num_latents=2, num_cats=3)
    expected.fit_em(data, epochs=3, checkpoint=path, **valid)
    arrays, metadata = read_arrays(path)
    facts = json.loads(metadata["facts"])
    del facts["data"]
    write_arrays(path, arrays, {"kind": "em checkpoint 2", "facts": json.dumps(facts)})
    pc = Circuit.hclt(data, num_latents=2, num_cats=3)
    with pytest.raises(InputError, match="with valid; wanted one without" if with_valid else "without valid"):
        pc.fit_em(data, epochs=3, checkpoint=path, **({} if with_valid else {"valid": data[:20]}))
    pc.fit_em(data, epochs=3, checkpoint=path, **valid)
    for found, wanted in zip(pc.parameters(), expected.parameters(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_damaged_checkpoint_is_named_and_changes_nothing(
    data: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0)
    path, options = tmp_path / "em.safetensors", {"epochs": 3, "valid": data[:20]}
    Circuit.hclt(data, num_latents=2, num_cats=3).fit_em(data, checkpoint=path, **options)
    arrays, metadata = read_arrays(path)
    facts = json.loads(metadata["facts"])
    pc = Circuit.hclt(data, num_latents=2, num_cats=3)
    before = [array.copy() for array in pc.parameters()]
    for name, value in (
        ("learned/0", arrays["learned/0"][:1]),  # of one entry: numpy would spread it over all
        ("learned/1", arrays["learned/1"] * np.nan),
        ("kept/0", arrays["kept/0"].astype(np.float64)),
        ("kept/1", None),
        ("train", np.zeros(2)),
        ("train", np.zeros(9)),
        ("valid", None),
        ("best", np.zeros(3)),
    ):
        changed = {**arrays, name: value}
        write_arrays(path, {key: array for key, array in changed.items() if array is not None}, metadata)
        with pytest.raises(InputError, match=r"em\.safetensors: (damaged|a checkpoint of EM)") as error:
            pc.fit_em(data, checkpoint=path, **options)
        assert "\n" not in str(error.value)
    for change in ({"best": 9}, {"best": "x"}, {"position": -1}, {"total": None}, {"about": 3}, {"data": 3}):
        write_arrays(path, arrays, {**metadata, "facts": json.dumps({**facts, **change})})
        with pytest.raises(InputError, match=r"em\.safetensors: damaged"):
            pc.fit_em(data, checkpoint=path, **options)
    # What another version wrote beside is not passed over.
    for change, message in (
        ({"about": {**facts["about"], "momentum": 3}}, "a checkpoint of EM with momentum = 3, wanted None or no file"),
        ({"data": {**facts["data"], "masks": "abc"}}, "a checkpoint of EM with masks; wanted one without, or no file"),
    ):
        write_arrays(path, arrays, {**metadata, "facts": json.dumps({**facts, **change})})
        with pytest.raises(InputError, match=message):
            pc.fit_em(data, checkpoint=path, **options)
    write_arrays(path, arrays, {"kind": metadata["kind"]})
    with pytest.raises(InputError, match=r"em\.safetensors: damaged"):
        pc.fit_em(data, checkpoint=path, **options)
    for array, values in zip(pc.parameters(), before, strict=True):
        np.testing.assert_array_equal(array, values)


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_work(data: np.ndarray, tmp_path: Path) -> None:
    pc = Circuit.hclt(data, num_latents=2, num_cats=3)
    with pytest.raises(InputError, match=r"none/em\.safetensors: cannot be written"):
        pc.fit_em(data, epochs=1, checkpoint=tmp_path / "none" / "em.safetensors")
