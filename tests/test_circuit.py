"""`Circuit`, the Python face of the engine. The engine's own tests are in julia/test."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd import Circuit
from pyjuice_lvd.circuit import Evidence
from pyjuice_lvd.errors import InputError


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


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint16])
def test_any_integers_and_any_memory_order(data: np.ndarray, dtype: type) -> None:
    pc = Circuit.hclt(data, num_latents=4, num_cats=3)
    expected = pc.log_likelihood(data)
    np.testing.assert_array_equal(pc.log_likelihood(np.asfortranarray(data.astype(dtype))), expected)
    np.testing.assert_array_equal(pc.log_likelihood(data.tolist()), expected)


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


def test_save_and_load(data: np.ndarray, tmp_path: Path) -> None:
    pc = Circuit.hclt(data, num_latents=4, num_cats=3, heads=2)
    path = tmp_path / "model.safetensors"
    pc.save(path)
    again = Circuit.load(path)
    np.testing.assert_array_equal(again.log_likelihood(data, head="all"), pc.log_likelihood(data, head="all"))
    assert repr(again) == repr(pc)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        Circuit.load(path)


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
    with pytest.raises(InputError, match=r"head: found 1, wanted 'all' or 0\.\.0"):
        pc.log_likelihood(data, head=1)
    with pytest.raises(InputError, match=r"heads: found int64 \(3,\), wanted integers \(400,\)"):
        pc.fit_em(data, heads=[0, 0, 0])
    with pytest.raises(InputError, match=r"heads: found \(0, 2\), the circuit has heads 0\.\.0"):
        pc.fit_em(data, heads=data[:, 0])
    with pytest.raises(InputError, match="num_latents = 0"):
        Circuit.hclt(data, num_latents=0)
    with pytest.raises(InputError, match="found no rows"):
        Circuit.hclt(data[:0])
    with pytest.raises(InputError, match="batch_size = 0"):
        pc.fit_em(data, batch_size=0)
    with pytest.raises(InputError, match=r"wanted a file that ends in \.safetensors"):
        pc.save(tmp_path / "model.bin")
