"""Copies of what holds a circuit in Julia: each has a circuit of its own, in this process or another."""

import copy
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import cross_validate

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
    third = twin(other)
    now = other.log_likelihood(data)
    other.fit_em(data, epochs=1)
    other.head_weights = [1, 9]
    del other
    gc.collect()
    np.testing.assert_array_equal(third.log_likelihood(data), now)  # it is of the moment in which it was made
    np.testing.assert_array_equal(pc.log_likelihood(data, head="all"), before)
    fourth, third.head_weights = twin(third), [1, 1]
    np.testing.assert_array_equal(fourth.head_weights, [0.75, 0.25])


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda pc: pickle.loads(pickle.dumps(pc))])
def test_a_copys_parameters_are_its_own_memory(data: np.ndarray, twin: Callable[[Circuit], Circuit]) -> None:
    pc = Circuit.hclt(data, num_latents=3)
    before = pc.log_likelihood(data)
    other = twin(twin(pc))
    assert repr(other) == repr(pc)
    _, leaf = other.parameters()
    leaf[:] = 0.0
    assert np.isneginf(other.log_likelihood(data)).all()
    other.apply(pc.accumulate(data), pseudocount=1.0)
    assert leaf.all()
    np.testing.assert_array_equal(pc.log_likelihood(data), before)


def test_threads_that_are_not_julias_send_and_receive_circuits(data: np.ndarray) -> None:
    # As a pool of processes does: it pickles what it sends, and unpickles what it receives, in threads of its own.
    pc = Circuit.hclt(data, num_latents=3, heads=2)
    pc.fit_em(data, epochs=1)
    with ThreadPoolExecutor(1) as thread:
        sent = thread.submit(pickle.dumps, pc).result()
        other = thread.submit(pickle.loads, sent).result()
        assert thread.submit(repr, other).result() == repr(pc)
        again = thread.submit(copy.deepcopy, thread.submit(copy.copy, other).result()).result()
        third = thread.submit(pickle.loads, thread.submit(pickle.dumps, again).result()).result()
    for received in (other, again, third):
        np.testing.assert_array_equal(received.log_likelihood(data, head="all"), pc.log_likelihood(data, head="all"))


def test_a_circuit_can_be_looked_at_where_there_is_no_julia(data: np.ndarray, tmp_path: Path) -> None:
    pc = Circuit.hclt(data, num_latents=3, heads=2)
    pc.head_weights = [3, 1]
    (tmp_path / "pc").write_bytes(pickle.dumps(pc))
    code = """if True:
        import pickle, sys
        from pyjuice_lvd.errors import LVDJuiceError
        pc = pickle.load(open(sys.argv[1], "rb"))
        print(pickle.loads(pickle.dumps(pc)), pc.head_weights.tolist())
        try:
            pc.log_likelihood([[0, 0, 0, 0, 0]])
        except LVDJuiceError as error:
            print(type(error).__name__)
    """
    environment = {**os.environ, "LVD_JULIA": str(tmp_path / "none"), "LVD_JULIA_BRIDGE": "libjulia"}
    command = [sys.executable, "-c", code, tmp_path / "pc"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.stdout == f"{pc!r} [0.75, 0.25]\nJuliaUnavailableError\n", ran.stderr


def fitted(model: HCLT, data: np.ndarray) -> HCLT:
    return model.fit(data)


def test_a_pool_of_processes_takes_and_returns_models(data: np.ndarray) -> None:
    here = HCLT(num_latents=2, epochs=1).fit(data)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = pool.submit(fitted, here, data).result(timeout=300)
        scores = pool.submit(here.score_samples, data).result(timeout=300)
    np.testing.assert_array_equal(there.score_samples(data), scores)
    with get_context("spawn").Pool(1) as pool:
        back = pool.apply_async(copy.copy, (there,)).get(timeout=300)
    np.testing.assert_array_equal(back.score_samples(data), scores)


def test_cross_validation_in_processes_returns_its_models(data: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVD_THREADS", "1")  # of each process
    model = HCLT(num_latents=2, epochs=1)
    apart = cross_validate(model, data, cv=2, n_jobs=2, return_estimator=True)
    here = cross_validate(model, data, cv=2, return_estimator=True)
    np.testing.assert_allclose(apart["test_score"], here["test_score"], rtol=1e-6)
    for one, other in zip(apart["estimator"], here["estimator"], strict=True):
        np.testing.assert_allclose(one.score_samples(data), other.score_samples(data), rtol=1e-6)


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
