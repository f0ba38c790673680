"""The paper's Appendix C and Fig. 7: bpd against size, of HCLT, EiNet, RAT-SPN, LVD and LVD-PG on CIFAR-10.

    python benchmarks/appendix.py CIFAR -o benchmarks/appendix.json [--picture docs/pictures/appendix.png]
        [--only "paper, hclt, 4M"]...

CIFAR is what `lvd-juice fit` takes. Each run below is learned, measured on the test images and written to the JSON
file before the next begins; one that is there with the same settings is not done again. The paper's protocol is
`ycc709` on the top-left 16x16 pixels, which is lossy; the same pixels in `ycocg` are lossless.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import machine, start
from matplotlib.figure import Figure

from pyjuice_lvd.data.load import load_data, num_categories
from pyjuice_lvd.data.splits import Splits
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.evaluate.merit import factorized_bpd, figures_of_merit
from pyjuice_lvd.files.atomic import atomic_write
from pyjuice_lvd.files.formats import json_text, read_json, write_json
from pyjuice_lvd.learn.baselines import learn_circuit
from pyjuice_lvd.learn.pipeline import distill
from pyjuice_lvd.models.base import DensityModel
from pyjuice_lvd.settings import BASELINES, Settings, resolve
from pyjuice_lvd.settings.choices import SECTIONS
from pyjuice_lvd.teacher import Teacher
from pyjuice_lvd.units import bits_per_dimension

# Test bpd in the paper's protocol (Liu, Liu, Van den Broeck and Liang 2023, Appendix C).
PUBLISHED = {"hclt": 4.61, "einet": 5.81, "rat-spn": 6.95, "lvd": 4.37, "lvd-pg": 3.87}

Float32 = npt.NDArray[np.float32]

PROTOCOLS = {"paper": {"color": "ycc709", "crop": "16x16"}, "lossless": {"color": "ycocg", "crop": "16x16"}}

# What all sizes of a method have, and what makes a size, in millions of parameters. Teachers are shared.
_TEACHER = ["teacher.epochs=3", "teacher.learning_rate=0.002", "teacher.codes=512"]
_DISTILLED = [*_TEACHER, "circuit.pseudocount=0.03", "circuit.step_size=[0.15,0.01]", "prior.epochs=15"]
COMMON = {
    "hclt": ["hclt.epochs=10"],
    "rat-spn": ["rat_spn.epochs=20", "rat_spn.replicas=1", "rat_spn.pseudocount=0.3"],
    "einet": ["einet.epochs=10", "einet.steps=[8,4,2,1]", "einet.pseudocount=0.3"],
    "lvd": [*_DISTILLED, "circuit.epochs=8", "prior.soft_epochs=2", "finetuning.epochs=0"],
    "lvd-pg": [
        *_DISTILLED, "circuit.epochs=6", "growing.epochs=3", "growing.threshold=0.07", "growing.min_flow=1e-5",
        "refining.rounds=6", "refining.patches=5000", "refining.latents=8",
        "prior.soft_epochs=0", "finetuning.epochs=2", "finetuning.candidates=4", "finetuning.batch_size=2048",
        "finetuning.step_size=[0.15,0.02]", "finetuning.pseudocount=0.03",
    ],
}  # fmt: skip
SIZES: dict[str, dict[str, list[str]]] = {
    "hclt": {"4M": ["hclt.latents=19"], "1M": ["hclt.latents=5"], "16M": ["hclt.latents=65"]},
    "rat-spn": {
        size: [f"rat_spn.sums={units}", f"rat_spn.inputs={units}"]
        for size, units in {"4M": 18, "1M": 5, "16M": 48}.items()
    },
    "einet": {"4M": ["einet.sums=14"], "1M": ["einet.sums=5"], "16M": ["einet.sums=27"]},
    "lvd": {
        "4M": ["clusters.outer=16", "circuit.latents=19"],
        "1M": ["clusters.outer=8", "circuit.latents=10"],
        "16M": ["clusters.outer=32", "circuit.latents=37"],
    },
    "lvd-pg": {
        "4M": ["clusters.outer=16", "circuit.latents=8"],
        "1M": ["clusters.outer=8", "circuit.latents=3"],
        "16M": ["clusters.outer=32", "circuit.latents=22"],
    },
}
RUNS = {"paper": ("4M", "1M", "16M"), "lossless": ("4M",)}
"""The sizes of each protocol, the most important first."""


def every_run(seed: int) -> dict[str, Settings]:
    """Give the settings of all runs by their names."""
    found = {}
    for protocol, sizes in RUNS.items():
        for size in sizes:
            for method, own in SIZES.items():
                given = [*COMMON[method], *own[size]]
                settings = resolve(None, None, given, method=method, seed=seed, **PROTOCOLS[protocol])
                found[f"{protocol}, {method}, {size}"] = settings
    return found


def used(settings: Settings) -> dict[str, Any]:
    """Give what the method uses of its settings."""
    wanted = ("method", "seed", *SECTIONS[settings.method])
    return {name: value for name, value in settings.to_dict().items() if name in wanted}


def learn(data: str, settings: Settings, features: Callable[[Splits, Settings], Float32]) -> dict[str, Any]:
    """Learn one model and measure it; `features` gives those that methods with a teacher learn from."""
    splits = load_data(data, **settings.loading)
    given = None if settings.method in BASELINES else features(splits, settings)
    started, worked = time.monotonic(), time.process_time()
    scores: list[float] = []
    model: DensityModel
    if settings.method in BASELINES:
        model = learn_circuit(
            splits.train, splits.valid, settings, num_cats=num_categories(splits),
            record=lambda entry: scores.append(entry["valid"]) if "epoch" in entry else None,
        )  # fmt: skip
    else:
        model = distill(splits.train, splits.valid, settings, features=given).model
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - worked
    parts = (model.modelled(part) for part in (splits.train, splits.valid, splits.test))
    return {
        "method": settings.method,
        **figures_of_merit(model.score_samples(splits.test), model.dims),
        "valid_bpd": model.bpd(splits.valid),
        "valid_bpd_of_epochs": [bits_per_dimension(score, model.dims) for score in scores],
        "bpd_factorized": factorized_bpd(*parts),
        "params": model.num_params,
        "protocol": model.protocol(settings.data.crop),
        "train": len(splits.train),
        "valid": len(splits.valid),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "settings": used(settings),
    }


def teachers() -> Callable[[Splits, Settings], Float32]:
    """Give what trains a teacher of each kind once, and computes its features of training images."""
    known: dict[str, Float32] = {}

    def features(splits: Splits, settings: Settings) -> Float32:
        kind = json_text([asdict(settings.teacher), asdict(settings.data), settings.seed])
        if kind not in known:
            teacher = Teacher(settings.teacher, color=settings.data.color)
            teacher.fit(splits.train, valid=splits.valid, seed=settings.seed)
            known[kind] = teacher.features(splits.train)
        return known[kind]

    return features


def draw(path: Path, runs: dict[str, Any]) -> None:
    """Draw bpd against size in the paper's protocol, and the paper's figures as dashed lines."""
    figure = Figure(figsize=(6.5, 3.8), layout="constrained", dpi=120)
    axes = figure.subplots()
    for number, (method, published) in enumerate(PUBLISHED.items()):
        found = [run for name, run in runs.items() if name.startswith(f"paper, {method}, ")]
        points = sorted((run["params"] / 1e6, run["bpd"]) for run in found)
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", color=f"C{number}", label=method)
        axes.axhline(published, color=f"C{number}", linestyle="--", linewidth=0.8)
    axes.set(xscale="log", xticks=[1, 2, 4, 8, 16], xticklabels=["1", "2", "4", "8", "16"])
    axes.set(xlabel="million parameters", ylabel="test bpd", title="CIFAR-10, ycc709, top-left 16x16, lossy")
    axes.minorticks_off()
    figure.legend(loc="outside right upper", frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="CIFAR")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write, or to go on with")
    parser.add_argument("--picture", type=Path, help="where to draw bpd against size")
    parser.add_argument("--only", action="append", help="do this run alone, such as `paper, hclt, 4M`; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="default: LVD_THREADS, else all cores")
    options = parser.parse_args()
    every = every_run(options.seed)
    unknown = set(options.only or []) - set(every)
    if unknown:
        parser.error(f"--only: found {sorted(unknown)}, wanted some of {', '.join(map(repr, every))}")
    threads, features = start(options.threads), teachers()
    runs = read_json(options.output)["runs"] if options.output.exists() else {}
    try:
        for name in options.only or every:
            if runs.get(name, {}).get("settings") == used(every[name]):
                continue
            runs[name] = learn(options.data, every[name], features)
            print(f"{name}: {runs[name]['bpd']:.3f} bpd, {runs[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
            write_json(
                options.output,
                {
                    "benchmark": "test bpd of baselines, lvd and lvd-pg by size",
                    "data": Path(options.data).name,
                    "seed": options.seed,
                    "threads": threads,
                    "machine": machine(),
                    "published": PUBLISHED,
                    "runs": {own: runs[own] for own in every if own in runs},
                },
            )
    except InputError as error:
        print(f"appendix: error: {error}", file=sys.stderr)
        return error.exit_status
    if options.picture:
        draw(options.picture, runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
