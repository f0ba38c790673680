"""The circuits that are timed, their parity with an independent evaluation, and their timings beside sgemm's."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import threadpoolctl  # type: ignore[import-untyped]

from pyjuice_lvd import julia
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.devices import backend
from pyjuice_lvd.circuit.engine import Engine
from pyjuice_lvd.circuit.rows import as_heads, as_weights
from pyjuice_lvd.errors import LVDJuiceError

TOLERANCE = 1e-5
"""The largest relative error of a circuit whose timings count."""

FORWARD_FLOPS, BACKWARD_FLOPS = 2, 4
"""Useful operations of a sum's edge for each sample: w x for a value; w r and x r for its child's flow and its own."""

SUM, CATEGORICAL = 2, 3  # kinds of units, as in julia/src/circuits/circuit.jl
PARITY_ROWS = 8
SGEMM_SIZE = 1024
STEP_SIZE, PSEUDOCOUNT = 0.1, 0.1

Times = npt.NDArray[np.float64]


class ParityError(LVDJuiceError):
    """A circuit that is timed gives other answers than the independent evaluation: its timings mean nothing."""


@dataclass(frozen=True)
class Case:
    """An HCLT over a random tree, and random rows, as many as a batch has."""

    name: str
    num_vars: int
    num_latents: int
    num_cats: int
    batch_size: int

    def parent(self) -> npt.NDArray[np.int64]:
        """Draw the tree: a parent for each variable, -1 for the root."""
        rng = np.random.default_rng(self.num_vars)
        return np.array([-1, *(rng.integers(0, i) for i in range(1, self.num_vars))])

    def circuit(self) -> Circuit:
        """Make the circuit, untrained."""
        return Circuit.from_tree(self.parent(), num_latents=self.num_latents, num_cats=self.num_cats)

    def rows(self, n: int) -> npt.NDArray[np.uint8]:
        """Draw rows, uint8 (n, num_vars)."""
        return np.random.default_rng(n).integers(0, self.num_cats, (n, self.num_vars), np.uint8)


CASES = (
    Case("image", num_vars=256, num_latents=16, num_cats=256, batch_size=128),
    Case("patch", num_vars=48, num_latents=16, num_cats=256, batch_size=256),
    Case("128 latents", num_vars=32, num_latents=128, num_cats=16, batch_size=256),
    Case("256 latents", num_vars=16, num_latents=256, num_cats=16, batch_size=256),
)


@dataclass(frozen=True)
class Effort:
    """How long timings take: `rounds` times, every piece of work has its turn of `share` seconds."""

    rounds: int
    share: float


def engine_of(circuit: Circuit) -> Engine:
    """Give what stands behind a circuit, which the public face has no need of."""
    return circuit.engine


def sum_edges(circuit: Circuit) -> int:
    """Count the edges of sums."""
    arrays = engine_of(circuit).arrays()
    return int(np.diff(arrays["child_start"])[arrays["kind"] == SUM].sum())


def check_parity(name: str, circuit: Circuit, X: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Hold a circuit to LVDJuice's evaluation unit by unit, in the log domain and Float64, on a few rows.

    Returns the largest relative errors of their log-likelihoods, and of the parameters after one whole EM step on them
    (the circuit then gets its parameters back). Raises ParityError, which names the case, for one above TOLERANCE.
    """
    rows, handle = X[:PARITY_ROWS], engine_of(circuit).circuit
    reference = julia.call("Bench.reference_log_likelihood", handle, rows)
    errors = {"log_likelihood": relative_error(circuit.log_likelihood(rows), reference)}
    wanted = julia.call("Bench.reference_step", handle, rows, PSEUDOCOUNT)
    before = [array.copy() for array in circuit.parameters()]
    circuit.fit_em(rows, epochs=1, batch_size=len(rows), step_size=1.0, pseudocount=PSEUDOCOUNT)
    found = circuit.parameters()
    errors["em_step"] = max(relative_error(a, b) for a, b in zip(found, wanted, strict=True))
    for array, values in zip(found, before, strict=True):
        array[:] = values
    for what, error in errors.items():
        if not error < TOLERANCE:
            raise ParityError(f"case {name!r}: relative error {error:.1e} of {what}, wanted below {TOLERANCE:.0e}")
    return errors


def relative_error(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """Give the largest; NaN where one of them has no value."""
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(found - wanted) / np.abs(wanted)))


def batch_job(
    circuit: Circuit, X: npt.NDArray[np.uint8], batch_size: int, epochs: int, *, shuffle: bool = False
) -> julia.Handle:
    """Start an EM job on the device in use, which borrows X."""
    sources = as_heads(None, len(X), 1), as_weights(None, len(X))
    job: julia.Handle = julia.call(
        "em_job", engine_of(circuit).circuit, X, None, *sources, epochs, batch_size, STEP_SIZE, STEP_SIZE, PSEUDOCOUNT,
        shuffle, 0, 0, *backend(),
    )  # fmt: skip
    return job


def time_circuit(circuit: Circuit, X: npt.NDArray[np.uint8], effort: Effort) -> dict[str, Any]:
    """Time EM steps on all of X as one batch, all likelihoods, and sgemm on one thread, in turn: sgemm on the CPU.

    Gives milliseconds (the least and the median) and GFLOP/s (of the least): for sums, the operations that count are
    FORWARD_FLOPS an edge and sample for a likelihood, and BACKWARD_FLOPS more for an EM step.
    """
    job = batch_job(circuit, X, len(X), 1)
    seconds: tuple[list[Times], ...] = ([], [], [])
    for _ in range(effort.rounds):
        turn = (*julia.call("Bench.timings", job, X, effort.share), time_sgemm(effort.share))
        for times, more in zip(seconds, turn, strict=True):
            times.append(more)
    em, likelihood, sgemm = map(np.concatenate, seconds)
    work, rate = sum_edges(circuit) * len(X), _gflops(2 * SGEMM_SIZE**3, sgemm)
    em_rate = _gflops((FORWARD_FLOPS + BACKWARD_FLOPS) * work, em)
    return {
        "edges": sum_edges(circuit),
        "em_step_ms": milliseconds(em),
        "likelihood_ms": milliseconds(likelihood),
        "em_step_gflops": em_rate,
        "likelihood_gflops": _gflops(FORWARD_FLOPS * work, likelihood),
        "sgemm_gflops": rate,
        "em_step_of_sgemm": em_rate / rate,
    }


def time_sgemm(share: float) -> Times:
    """Seconds of each of numpy's products of two square matrices, on one thread, for `share` seconds.

    numpy brings a BLAS of today, whatever Julia runs: the same bar on all of them.
    """
    a = np.ones((SGEMM_SIZE, SGEMM_SIZE), np.float32)
    out = np.empty_like(a)
    seconds: list[float] = []
    with threadpoolctl.threadpool_limits(1, "blas"):
        np.matmul(a, a, out=out)
        while sum(seconds) < share:
            began = time.perf_counter()
            np.matmul(a, a, out=out)
            seconds.append(time.perf_counter() - began)
    return np.array(seconds)


def numpy_blas() -> str:
    """Name the BLAS behind `time_sgemm`, and the kind of CPU that it takes this one for."""
    folder = str(Path(np.__file__).parent)
    for found in threadpoolctl.threadpool_info():
        if found["user_api"] == "blas" and found["filepath"].startswith(folder):
            return " ".join(str(found[key]) for key in ("internal_api", "version", "architecture") if found.get(key))
    return "numpy's own"


def milliseconds(times: Times) -> dict[str, float]:
    """Sum up seconds."""
    return {"min": 1e3 * float(np.min(times)), "median": 1e3 * float(np.median(times))}


def _gflops(operations: float, times: Times) -> float:
    return 1e-9 * operations / float(np.min(times))
