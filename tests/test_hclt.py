"""HCLTs that start from hidden states which K-means finds."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pyjuice_lvd import Circuit
from pyjuice_lvd.circuit.hclt import chow_liu_parents, hidden_states, rows_for_states
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.learn.growing import one_shot
from pyjuice_lvd.progress import SILENT
from pyjuice_lvd.settings import CircuitSettings


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return load_digits().data.astype(np.uint8)


def test_the_tree_joins_what_depends_on_each_other() -> None:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 3, (500, 4))
    X[:, 2] = X[:, 0]
    X[:, 3] = np.where(rng.random(500) < 0.9, X[:, 2], X[:, 3])
    parent = chow_liu_parents(X, 3, 0.1, SILENT)
    edges = {frozenset((i, int(j))) for i, j in enumerate(parent) if j >= 0}
    assert len(edges) == 3
    assert frozenset((0, 2)) in edges


def test_a_state_stands_for_like_values_of_a_variable() -> None:
    rng = np.random.default_rng(1)
    near = rng.integers(0, 4, 900)
    X = np.stack([60 * near + rng.integers(0, 5, 900), rng.integers(0, 256, 900)], axis=1).astype(np.uint8)
    states = hidden_states(X, np.array([-1, 0]), 4, 0, SILENT)
    assert (states.dtype, states.shape) == (np.int32, X.shape)
    assert len({(int(a), int(b)) for a, b in zip(states[:, 0], near, strict=True)}) == 4
    assert np.array_equal(states, hidden_states(X, np.array([-1, 0]), 4, 0, SILENT))


def test_a_neighbour_divides_what_a_variable_has_alike() -> None:
    X = np.array([[7, 0], [7, 200]] * 50, np.uint8)
    states = hidden_states(X, np.array([-1, 0]), 2, 0, SILENT)
    assert set(map(tuple, states.tolist())) in ({(0, 0), (1, 1)}, {(0, 1), (1, 0)})


def test_as_many_rows_as_the_states_call_for() -> None:
    assert rows_for_states(500, 2, 0) == slice(None)
    rows = rows_for_states(100_000, 2, 0)
    assert isinstance(rows, np.ndarray)
    assert len(np.unique(rows)) == len(rows) == 2000
    assert np.array_equal(rows, rows_for_states(100_000, 2, 0))


def test_em_starts_further_on(digits: np.ndarray) -> None:
    X, held_out = digits[:1500], digits[1500:]
    found = {}
    for start in ("random", "clusters"):
        pc = Circuit.hclt(X, num_latents=8, num_cats=17, start=start)
        before = pc.log_likelihood(held_out).mean()
        pc.fit_em(X, epochs=3, batch_size=100)
        found[start] = before, pc.log_likelihood(held_out).mean()
    assert found["clusters"][0] > found["random"][0] + 10
    assert found["clusters"][1] > found["random"][1] + 1


def test_heads_start_from_their_own_rows(digits: np.ndarray) -> None:
    labels = (digits[:, 20:44].mean(axis=1) > digits[:, 20:44].mean()).astype(np.int32)
    pc = Circuit.hclt(digits, num_latents=8, num_cats=17, heads=2, start="clusters", labels=labels)
    scores = pc.log_likelihood(digits, head="all")
    own = scores[np.arange(len(digits)), labels]
    assert (own > scores[np.arange(len(digits)), 1 - labels]).mean() > 0.6


def test_more_states_than_values(digits: np.ndarray) -> None:
    X = (digits > 8).astype(np.uint8)
    pc = Circuit.hclt(X, num_latents=6, num_cats=2, start="clusters")
    history = pc.fit_em(X, epochs=4, batch_size=len(X), step_size=1.0, pseudocount=0.0)
    assert (np.diff(history) > 0).all()
    assert np.isclose(np.exp(pc.log_likelihood(np.zeros((1, 64), np.uint8), mask=np.ones((1, 64), bool))), 1).all()


def test_the_setting_reaches_the_circuit(digits: np.ndarray) -> None:
    h = digits[:, 20:24].astype(np.float32)
    found = {}
    for start in ("random", "clusters"):
        settings = CircuitSettings(latents=4, epochs=1, start=start)
        found[start] = one_shot(digits, h, num_heads=2, num_cats=17, circuit=settings).circuit
    assert not np.allclose(*(pc.log_likelihood(digits[:50]) for pc in found.values()))
    with pytest.raises(InputError, match=r"circuit\.start"):
        CircuitSettings(start="nowhere")


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**40])
def test_any_seed(digits: np.ndarray, seed: int) -> None:
    pc = Circuit.hclt(digits[:, 20:24], num_latents=2, num_cats=17, start="clusters", seed=seed)
    everything = np.ones(4, bool)
    assert pc.log_likelihood(digits[:1, 20:24], mask=everything) == pytest.approx(0, abs=1e-5)
    assert pc.log_likelihood(digits[:, 20:24]).mean() > -4 * np.log(17)  # better than knowing nothing
    assert len(rows_for_states(3000, 2, seed)) == 2000


def test_what_is_refused(digits: np.ndarray) -> None:
    with pytest.raises(InputError, match="num_latents = 0: want at least 1"):
        Circuit.hclt(digits, num_latents=0, start="clusters")
    with pytest.raises(InputError, match="start: found 'warm', wanted one of random, clusters"):
        Circuit.hclt(digits, start="warm")
    with pytest.raises(InputError, match=r"labels: found 0\.\.3, wanted 0\.\.1"):
        Circuit.hclt(digits, heads=2, start="clusters", labels=np.arange(len(digits)) % 4)
