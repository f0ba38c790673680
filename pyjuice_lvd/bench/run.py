"""The whole benchmark, part by part."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyjuice_lvd import julia
from pyjuice_lvd.bench.cases import (
    BACKWARD_FLOPS,
    CASES,
    FORWARD_FLOPS,
    TOLERANCE,
    Case,
    Effort,
    check_parity,
    numpy_blas,
    time_circuit,
)
from pyjuice_lvd.bench.peers import time_peers
from pyjuice_lvd.bench.scaling import measure_memory, time_edges, time_samples, time_startup, time_threads
from pyjuice_lvd.circuit.devices import CPU, current
from pyjuice_lvd.machine import machine_cores
from pyjuice_lvd.progress import SILENT, Progress

PRUNED = (
    Case("64 latents, 16 categories", num_vars=64, num_latents=64, num_cats=16, batch_size=256),
    Case("16 latents, 256 categories", num_vars=256, num_latents=16, num_cats=256, batch_size=128),
)
STREAM = Case("stream", num_vars=32, num_latents=16, num_cats=16, batch_size=256)
THREADED = Case("threads", num_vars=256, num_latents=16, num_cats=256, batch_size=1024)

SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
EDGES = (0.5, 0.25, 0.1)


def run_bench(*, quick: bool = False, progress: Progress = SILENT) -> dict[str, Any]:
    """Measure everything, on one thread but for the scaling in threads, with circuits on the device in use.

    On another device than the CPU, those parts of the result that are the CPU's are empty: peers, threads, memory,
    start-up and targets. `quick`: fewer repetitions and sizes. Raises ParityError where a circuit that is timed gives
    wrong answers.
    """
    began, step_flops = time.monotonic(), FORWARD_FLOPS + BACKWARD_FLOPS
    info, cores = julia.start(), machine_cores()
    effort = Effort(rounds=3, share=0.05) if quick else Effort(rounds=10, share=0.1)
    result: dict[str, Any] = {
        "machine": {
            "cpu": _cpu_name(),
            "cores": cores,
            "system": platform.platform(),
            "python": platform.python_version(),
            "julia": info.version,
            "bridge": info.bridge,
            "blas": numpy_blas(),
            "threads": info.threads,
            "lvd_juice": version("lvd-juice"),
        },
        "device": current(),
        "quick": quick,
        "flops": f"edges of sums x samples x {FORWARD_FLOPS} (likelihood) or {step_flops} (EM step)",
        "tolerance": TOLERANCE,
        "cases": [],
        "peers": [],
        "samples": {},
        "edges": [],
        "threads": [],
        "memory": {},
        "startup": {},
        "targets": [],
    }
    on_cpu = current() == CPU
    with progress.stage("bench", total=len(CASES) + (6 if on_cpu else 2), unit="parts") as stage:
        for case in CASES:
            circuit, X = case.circuit(), case.rows(case.batch_size)
            parity = check_parity(case.name, circuit, X)
            result["cases"].append({**vars(case), "parity": parity, **time_circuit(circuit, X, effort)})
            stage.advance(part=case.name)
        if on_cpu:
            result["peers"] = time_peers(CASES[0], effort)
            stage.advance(part="peers")
        result["samples"] = time_samples(STREAM, SAMPLES[: 2 if quick else None])
        stage.advance(part="samples")
        result["edges"] = [part for case in PRUNED for part in time_edges(case, EDGES[-1:] if quick else EDGES, effort)]
        stage.advance(part="edges")
        if on_cpu:
            counts = (1,) if cores == 1 else (1, cores)
            result["threads"] = time_threads(THREADED, counts, effort, turns=1 if quick else 2)
            stage.advance(part="threads")
            result["memory"] = {case.name: measure_memory(case) for case in CASES}
            stage.advance(part="memory")
            result["startup"] = time_startup(cold=not quick)
            stage.advance(part="startup")
            result["targets"] = _targets(result)
    result["seconds"] = time.monotonic() - began
    return result


def _targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """List what is wanted of the engine and what was found."""
    cases = {case["name"]: case for case in result["cases"]}
    found = [
        ("EM step of the case 'image', ms", "<=", 3.0, cases["image"]["em_step_ms"]["min"]),
        ("EM step with 128 latents, of sgemm", ">=", 0.8, cases["128 latents"]["em_step_of_sgemm"]),
        ("EM step with 256 latents, of sgemm", ">=", 0.8, cases["256 latents"]["em_step_of_sgemm"]),
        *(
            (f"EM step with 10 % of the edges, {part['name']}, of the dense one", "<=", 1 / 3, part["of_dense"])
            for part in result["edges"]
            if part["keep"] == EDGES[-1]
        ),
        ("time per sample, largest over least", "<=", 1.2, result["samples"]["flatness"]),
        ("memory of an EM job, of the bound", "<=", 1.0, max(m["of_bound"] for m in result["memory"].values())),
        ("first EM step of a process, s", "<=", 10.0, result["startup"]["first_em_step_s"]),
    ]
    if result["threads"][-1]["threads"] == 2:
        found.append(("speed-up by 2 threads", ">=", 1.7, result["threads"][-1]["speedup"]))
    found += [
        (
            f"EM step of {peer['peer']}, times ours",
            ">",
            1.0,
            peer["em_step_ms"]["min"] / cases[peer["case"]]["em_step_ms"]["min"],
        )
        for peer in result["peers"]
    ]
    meets = {"<=": float.__le__, ">=": float.__ge__, ">": float.__gt__}
    return [
        {"what": what, "wanted": f"{sign} {bound:.3g}", "found": value, "met": meets[sign](value, bound)}
        for what, sign, bound, value in found
    ]


def _cpu_name() -> str:
    """Name the processor as the system does."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
