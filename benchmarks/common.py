"""What the benchmark scripts share: their machine, ways to learn from one teacher, and the file of several seeds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pyjuice_lvd import julia
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.evaluate.merit import factorized_bpd, figures_of_merit
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import write_json
from pyjuice_lvd.learn.pipeline import distill
from pyjuice_lvd.settings import resolve


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


def measure_variants(
    data: str, preset: str, ways: Mapping[str, tuple[str, Sequence[str]]], *, images: int | None, seed: int
) -> dict[str, Any]:
    """Learn from one teacher in several ways, each a method and settings, `section.key=value`; returns their figures.

    All learn from the same images, `images` of the training split that the seed chooses, or all. Seconds are those of
    learning, without the teacher's.
    """
    found: dict[str, Any] = {"seed": seed}
    with TemporaryDirectory() as folder:
        for number, (name, (method, own)) in enumerate(ways.items()):
            settings = resolve(preset, None, own, method=method, seed=seed)
            splits = load_data(data, **settings.loading)
            train = splits.train
            if images and images < len(train):
                train = train[np.sort(np.random.default_rng(seed).permutation(len(train))[:images])]
            place = Path(folder) / str(number)
            stages: list[Mapping[str, Any]] = []
            place.mkdir()
            if number:
                (Path(folder) / str(number - 1) / names.TEACHER).rename(place / names.TEACHER)
            started = time.monotonic()
            model = distill(train, splits.valid, settings, folder=place, record=stages.append).model
            seconds = time.monotonic() - started
            seconds -= sum(s["seconds"] for s in stages if s["stage"] == "teacher" and "epoch" not in s)
            scores = model.score_samples(splits.test)
            found[name] = {
                **figures_of_merit(scores, model.dims),
                "train_bpd": model.bpd(train[:: max(1, len(train) // 1000)]),
                "params": model.num_params,
                "seconds": round(seconds, 1),
                "settings": settings.to_dict(),
            }
            print(f"seed {seed}, {name}: {found[name]}", file=sys.stderr, flush=True)
        found["bpd_factorized"] = factorized_bpd(*(model.modelled(x) for x in (train, splits.valid, splits.test)))
        found["protocol"] = model.protocol(settings.data.crop)
        found["train"] = len(train)
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
