"""What the benchmark scripts share: the machine they name, and the file of a comparison over several seeds."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyjuice_lvd import julia
from pyjuice_lvd.files.formats import write_json


def machine() -> dict[str, float | int | None]:
    """Count cores and memory."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cores": os.cpu_count(), "ram_gib": round(ram, 1)}


def start(threads: int) -> int:
    """Give Julia and PyTorch so many threads (0: `LVD_THREADS`, else all cores); returns how many."""
    import torch

    found = julia.start(threads=threads or None).threads
    torch.set_num_threads(found)
    return found


def write_comparison(
    path: Path,
    benchmark: str,
    *,
    data: str,
    threads: int,
    started: float,
    figures: Mapping[str, Sequence[float]],
    seeds: Sequence[Mapping[str, Any]],
) -> None:
    """Write what each seed gave, with mean and standard deviation of each figure; `data` without its folder."""
    write_json(
        path,
        {
            "benchmark": benchmark,
            "data": data if not Path(data).exists() else Path(data).name,
            "threads": threads,
            "machine": machine(),
            "seconds": round(time.monotonic() - started, 1),
            "mean": {name: float(np.mean(values)) for name, values in figures.items()},
            "deviation": {name: float(np.std(values, ddof=1)) for name, values in figures.items() if len(values) > 1},
            "seeds": seeds,
        },
    )
