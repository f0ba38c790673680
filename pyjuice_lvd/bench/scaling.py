"""How cost grows: with samples, edges and threads; memory; and how long a fresh process takes to its first EM step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyjuice_lvd import julia
from pyjuice_lvd.bench.cases import (
    Case,
    Effort,
    batch_job,
    check_parity,
    engine_of,
    milliseconds,
    time_circuit,
)
from pyjuice_lvd.errors import LVDJuiceError

BATCH_SIZE = 256

# The first EM step of a process that does what `fit digits --method hclt` does.
_FIRST_STEP = """
import time
from sklearn.datasets import load_digits
from pyjuice_lvd import Circuit
X = load_digits().data.astype("uint8")
Circuit.hclt(X, num_latents=16, num_cats=17).fit_em(X[:256], epochs=1)
print(time.time())
"""


def time_samples(case: Case, counts: Sequence[int]) -> dict[str, Any]:
    """Time shuffled epochs of EM and all likelihoods for each number of rows; `flatness`: EM's most over its least.

    Means over as many epochs as bring the largest number's rows, so that all take about as long.
    """
    circuit = case.circuit()
    check_parity(case.name, circuit, case.rows(BATCH_SIZE))
    found = []
    for n in counts:
        X, epochs = case.rows(n), max(counts) // n
        job = batch_job(circuit, X, BATCH_SIZE, epochs, shuffle=True)
        began = time.perf_counter()
        for _ in range(epochs):
            julia.call("advance!", job, float("inf"))
        between = time.perf_counter()
        for _ in range(epochs):
            circuit.log_likelihood(X)
        ended = time.perf_counter()
        found.append(
            {
                "samples": n,
                "em_us_per_sample": 1e6 * (between - began) / (epochs * n),
                "likelihood_us_per_sample": 1e6 * (ended - between) / (epochs * n),
            }
        )
    per_sample = [entry["em_us_per_sample"] for entry in found]
    return {"counts": found, "flatness": max(per_sample) / min(per_sample)}


def time_edges(case: Case, fractions: Sequence[float], effort: Effort) -> list[dict[str, Any]]:
    """Time the circuit pruned to each fraction of its edges."""
    dense, X = case.circuit(), case.rows(case.batch_size)
    found: list[dict[str, Any]] = []
    for keep in (1.0, *fractions):
        circuit = dense if keep == 1.0 else dense.prune(X, keep=keep)
        parity = check_parity(f"{case.name}, {keep:.0%} of the edges", circuit, X)
        times = time_circuit(circuit, X, effort)
        found.append({**vars(case), "keep": keep, "parity": parity, **times})
        found[-1]["of_dense"] = times["em_step_ms"]["min"] / found[0]["em_step_ms"]["min"]
    return found


def time_threads(case: Case, counts: Sequence[int], effort: Effort, *, turns: int) -> list[dict[str, Any]]:
    """Time EM steps on each number of threads, in processes of their own: Julia's threads are fixed as it starts.

    Every number has several turns, one after the other, because a machine's speed drifts.
    """
    seconds: dict[int, list[float]] = {threads: [] for threads in counts}
    for threads in (*counts,) * turns:
        fields = json.dumps([vars(case), vars(effort)])
        code = f"from pyjuice_lvd.bench.scaling import worker; worker({fields!r})"
        seconds[threads] += json.loads(_run(code, LVD_THREADS=str(threads)))
    one = min(seconds[counts[0]])
    return [
        {"threads": threads, "em_step_ms": milliseconds(np.array(times)), "speedup": one / min(times)}
        for threads, times in seconds.items()
    ]


def worker(fields: str) -> None:
    """Time EM steps in this process and print the seconds of each as JSON."""
    case, effort = Case(**(given := json.loads(fields))[0]), Effort(**given[1])
    circuit, X = case.circuit(), case.rows(case.batch_size)
    job = batch_job(circuit, X, len(X), 1)
    turns = [julia.call("Bench.timings", job, X, effort.share)[0] for _ in range(effort.rounds)]
    print(json.dumps(np.concatenate(turns).tolist()))


def measure_memory(case: Case) -> dict[str, Any]:
    """Measure an EM job in bytes, beside twice its parameters and a tile for each thread.

    A tile: 64 values and flows of each unit, but of those that take a product's place in the tile only the product's.
    """
    X = case.rows(case.batch_size)
    job, step, parameters, tile = julia.call("Bench.memory", engine_of(case.circuit()).circuit, X)
    info = julia.info()
    bound = 2 * parameters + tile * (info.threads if info else 1)
    return {
        "job_bytes": job,
        "step_allocates_bytes": step,
        "parameter_bytes": parameters,
        "tile_bytes": tile,
        "of_bound": (job + step) / bound,
    }


def time_startup(*, cold: bool) -> dict[str, float]:
    """Time a process from its start to the end of its first EM step; `cold`: also one that must precompile LVDJuice.

    This process has seen to it that LVDJuice is precompiled, and has read the same files.
    """
    found = {"first_em_step_s": _seconds_of_first_step()}
    if cold:
        with tempfile.TemporaryDirectory() as depot:
            depots = os.pathsep.join([depot, os.environ.get("JULIA_DEPOT_PATH", "")])
            found["precompiling_s"] = _seconds_of_first_step(JULIA_DEPOT_PATH=depots)
    return found


def _seconds_of_first_step(**environment: str) -> float:
    began = time.time()
    return float(_run(_FIRST_STEP, **environment)) - began


def _run(code: str, **environment: str) -> str:
    """Run Python code in a fresh process; returns what it prints."""
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        said = (ran.stderr.strip() or f"exit status {ran.returncode}").splitlines()[-1]
        raise LVDJuiceError(f"a process of the benchmark failed: {said}")
    return ran.stdout
