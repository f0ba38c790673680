"""Copies of what holds a circuit in Julia: each has a circuit of its own, in this process or another."""

import copy
import gc
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd import HCLT, Circuit
from pyjuice_lvd.circuit import Evidence


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (200, 5))


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy])
def test_copies_are_circuits_of_their_own(data: np.ndarray, twin: Callable[[Circuit], Circuit]) -> None:
    pc = Circuit.hclt(data, num_latents=3, heads=2)
    pc.head_weights = [3, 1]
    before = pc.log_likelihood(data, head="all")
    other = twin(pc)
    np.testing.assert_array_equal(other.log_likelihood(data, head="all"), before)
    np.testing.assert_array_equal(other.head_weights, [0.75, 0.25])
    other.fit_em(data, epochs=1)
    assert not np.array_equal(other.log_likelihood(data), before[:, 0])
    del other
    gc.collect()
    np.testing.assert_array_equal(pc.log_likelihood(data, head="all"), before)


def test_a_circuit_goes_to_another_process(data: np.ndarray, tmp_path: Path) -> None:
    pc = Circuit.hclt(data, num_latents=2)
    there = get_context("spawn").Process(target=pc.save, args=(tmp_path / "there.jpc",))
    there.start()
    there.join()
    pc.save(tmp_path / "here.jpc")
    assert (tmp_path / "there.jpc").read_bytes() == (tmp_path / "here.jpc").read_bytes()


def test_a_fitted_estimator_is_left_alone_by_its_copies(data: np.ndarray) -> None:
    model = HCLT(num_latents=2, epochs=1).fit(data)
    scores = model.score_samples(data)
    np.testing.assert_array_equal(copy.deepcopy(model).score_samples(data), scores)
    gc.collect()  # the copy is gone
    np.testing.assert_array_equal(model.score_samples(data), scores)


def test_what_stays_in_julia_is_not_copied() -> None:
    evidence = Evidence(np.zeros((2, 3, 4), np.float32))
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        copy.deepcopy(evidence)
    assert len(evidence) == 2
