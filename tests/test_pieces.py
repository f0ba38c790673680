"""Long calls come back within: the same circuits come out of them, and Ctrl-C is heard."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyjuice_lvd import Circuit, julia
from pyjuice_lvd.circuit import Evidence
from pyjuice_lvd.julia import session

CATS = 40


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What each call at the door returned."""
    julia.start()
    assert session._session is not None
    entry, counts = session._session.entry, []

    def counted(*arguments: Any) -> int:
        counts.append(entry(*arguments))
        return counts[-1]

    monkeypatch.setattr(session._session, "entry", counted)
    yield counts
    set_piece(0.1)


def set_piece(seconds: float) -> None:
    julia.evaluate(f"LVDJuice.Boundary.PIECE[] = {seconds}; nothing")


@pytest.fixture(scope="module")
def pc() -> Circuit:
    parent = [-1, *((i - 1) // 2 for i in range(1, 100))]
    return Circuit.from_tree(parent, num_latents=32, num_cats=CATS, heads=2, seed=1)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, CATS, (3000, 100), dtype=np.uint8)


def arrays(made: object) -> list[np.ndarray]:
    if isinstance(made, Circuit):
        return [array.copy() for array in made.engine.arrays().values()]
    return [np.asarray(made)]


WIDE = {"num_vars": 60, "depth": 3, "replicas": 5, "num_sums": 10, "num_inputs": 10, "num_cats": CATS}


@pytest.mark.parametrize(
    "make",
    [
        lambda pc, X: Circuit.rat_spn(**WIDE, seed=2),
        lambda pc, X: Circuit.einet(shape=(6, 6, 1), steps=1, num_sums=8, num_cats=CATS, seed=2),
        lambda pc, X: Circuit.fully_factorized(num_vars=200, num_cats=CATS, heads=100),
        lambda pc, X: Circuit.hclt(X, num_latents=24, num_cats=CATS, seed=3),
        lambda pc, X: Circuit.hclt(X[:, :10], num_latents=3, num_cats=CATS, start="clusters", seed=3),
        lambda pc, X: Circuit.mixture([pc, pc], weights=[1, 3]),
        lambda pc, X: Circuit.side_by_side([pc, pc]),
        lambda pc, X: pc.with_heads([1]),
        lambda pc, X: pc.prune(X, min_flow=1e-3),
        lambda pc, X: pc.prune(X[:100], min_flow=0),
        lambda pc, X: pc.prune(X, keep=0.3),
        lambda pc, X: pc.grow(X, heads=0, select=[0], threshold=0.01, seed=4),
        lambda pc, X: pc.posterior_marginals(X[:300], np.arange(100) < 50),
        lambda pc, X: pc.mpe(X[:300], np.arange(100) < 50),
        lambda pc, X: pc.sample(3, X=X[:300], mask=np.arange(100) < 50, seed=5),
        lambda pc, X: pc.log_likelihood(Evidence(-np.tile(X[:500, :, None], (1, 1, CATS)).astype(np.float32))),
    ],
)
def test_calls_that_come_back_wherever_they_can_give_the_same(
    pc: Circuit, rows: np.ndarray, make: Callable[[Circuit, np.ndarray], object], calls: list[int]
) -> None:
    set_piece(float(2**40))
    whole = arrays(make(pc, rows))
    assert session._PAUSED not in calls
    set_piece(0.0)
    pieces = arrays(make(pc, rows))
    assert calls.count(session._PAUSED) >= 2
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("suffix", [".jpc", ".safetensors"])
def test_files_read_and_written_in_pieces_are_the_same(
    pc: Circuit, tmp_path: Path, suffix: str, calls: list[int]
) -> None:
    pc.save(tmp_path / f"whole{suffix}")
    set_piece(0.0)
    Circuit.load(tmp_path / f"whole{suffix}").save(tmp_path / f"pieces{suffix}")
    assert calls.count(session._PAUSED) >= 3
    assert (tmp_path / f"pieces{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_ctrl_c_is_heard_while_a_circuit_is_built(calls: list[int]) -> None:
    def build() -> Circuit:
        return Circuit.rat_spn(**{**WIDE, "num_vars": 400, "num_inputs": 100, "num_cats": 256}, seed=2)

    set_piece(0.002)
    build()
    whole = len(calls)
    assert whole > 40
    calls.clear()

    def interrupt() -> None:
        while len(calls) < 10:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        build()
    thread.join()
    assert 10 <= len(calls) < whole / 2
