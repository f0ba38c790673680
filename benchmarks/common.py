"""What benchmark scripts share: their machine, arguments, ways to learn from one teacher, and a file of seeds."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.evaluate.merit import factorized_bpd, figures_of_merit
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import write_json
from pyjuice_lvd.learn.pipeline import distill
from pyjuice_lvd.settings import Settings, resolve


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
    data: str,
    preset: str,
    ways: Mapping[str, tuple[str, Sequence[str]]],
    *,
    images: int | None,
    seed: int,
    features: Callable[[npt.NDArray[np.uint8], Settings], npt.NDArray[np.float32]] | None = None,
) -> dict[str, Any]:
    """Learn from one teacher in several ways, each a method and settings, `section.key=value`; returns their figures.

    All learn from the same images, `images` of the training split that the seed chooses, or all. Seconds are those of
    learning, without the teacher's. With `features`, which finds those of training images, no teacher is trained.
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
            given = None if features is None else features(train, settings)
            if number and given is None:
                (Path(folder) / str(number - 1) / names.TEACHER).rename(place / names.TEACHER)
            started = time.monotonic()
            model = distill(train, splits.valid, settings, features=given, folder=place, record=stages.append).model
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


def parser_of(description: str | None, preset: str | None) -> argparse.ArgumentParser:
    """Make the parser of a comparison over several seeds, with the arguments that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--preset", default=preset)
    parser.add_argument("--images", type=int, help="train on so many images, chosen by the seed; default: all")
    parser.add_argument("--set", action="append", default=[], help="a setting of all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=0, help="default: LVD_THREADS, else all cores")
    return parser


def compare(
    options: argparse.Namespace,
    benchmark: str,
    measure: Callable[[argparse.Namespace, int], dict[str, Any]],
    figures: Callable[[dict[str, Any]], Mapping[str, float]],
) -> int:
    """Measure with each seed, and write what each gave, with mean and deviation of its figures; the exit status."""
    started, threads = time.monotonic(), start(options.threads)
    try:
        seeds = [measure(options, seed) for seed in options.seeds]
    except InputError as error:
        print(f"{Path(sys.argv[0]).stem}: error: {error}", file=sys.stderr)
        return error.exit_status
    every = [figures(seed) for seed in seeds]
    values = {name: [each[name] for each in every] for name in every[0]}
    write_json(
        options.output,
        {
            "benchmark": benchmark,
            "data": options.data if not Path(options.data).exists() else Path(options.data).name,
            "threads": threads,
            "machine": machine(),
            "seconds": round(time.monotonic() - started, 1),
            "mean": {name: float(np.mean(own)) for name, own in values.items()},
            "deviation": {name: float(np.std(own, ddof=1)) for name, own in values.items() if len(own) > 1},
            "seeds": seeds,
        },
    )
    return 0
