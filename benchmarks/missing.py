"""HCLTs from data with missing values: on what is seen of each row (exact), and on means in the place of what is not.

    python benchmarks/missing.py PLANTS CIFAR -o benchmarks/missing.json

PLANTS is the binary table of that name of DEBD, CIFAR images of CIFAR-10, of which patches of 4x4 are taken, in the
transform `ycocg`: 48 variables of 256 values. Values go missing completely at random, from training and
validation rows; test rows are complete. Imputed is the mean of what is seen of a variable, rounded, which for a binary
one is its mode. Both ways have one procedure: a Chow-Liu tree from what they have, EM, the best epoch on validation.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import machine

from pyjuice_lvd import Circuit, julia
from pyjuice_lvd.circuit.rows import mean_filled
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import write_json

GONE = (0.1, 0.3, 0.5)
LATENTS, BATCH, STEPS = 16, 256, (0.3, 0.03)
EPOCHS = {"plants": 40, "cifar10-patches": 20}
PSEUDOCOUNT = {"plants": 0.01, "cifar10-patches": 1.0}
PATCHES = {"train": 40_000, "valid": 2_000, "test": 5_000}

Parts = dict[str, npt.NDArray[Any]]


def patches_of(images: Path, seed: int) -> Parts:
    """Take 4x4 patches of CIFAR-10, one of each image, at places that the seed chooses."""
    splits, rng = load_data(images), np.random.default_rng(seed)
    parts = {}
    for name, count in PATCHES.items():
        stored = color_transform("ycocg", 3).forward(getattr(splits, name)[:count])
        patches = to_patches(stored, (4, 4))
        parts[name] = patches[np.arange(len(patches)), rng.integers(0, patches.shape[1], len(patches))]
    return parts


def learn(name: str, parts: Parts, masks: Parts | None, cats: int, seed: int) -> dict[str, Any]:
    """Learn from training rows, or what is seen of them; returns the mean log-likelihood of test rows in nats."""
    started, (mask, valid_mask) = time.monotonic(), (masks["train"], masks["valid"]) if masks else (None, None)
    circuit = Circuit.hclt(parts["train"], mask=mask, num_latents=LATENTS, num_cats=cats, seed=seed)
    history = circuit.fit_em(
        parts["train"], mask=mask, valid=parts["valid"], valid_mask=valid_mask, epochs=EPOCHS[name], batch_size=BATCH,
        step_size=STEPS, pseudocount=PSEUDOCOUNT[name], patience=EPOCHS[name], seed=seed,
    )  # fmt: skip
    scores = circuit.log_likelihood(parts["test"])
    return {
        "test": float(scores.mean()),
        "std_error": float(scores.std(ddof=1) / np.sqrt(len(scores))),
        "epoch": history.best,
        "seconds": round(time.monotonic() - started, 1),
    }


def measure(name: str, parts: Parts, cats: int, seeds: list[int]) -> dict[str, Any]:
    """Compare the two ways on one data set, at each share of missing values, beside learning from all of it."""
    rows = {split: len(part) for split, part in parts.items()}
    found: dict[str, Any] = {"rows": rows, "dims": parts["train"].shape[1]}
    for seed in seeds:
        rng, own = np.random.default_rng(seed), found.setdefault(f"seed {seed}", {})
        own["complete"] = learn(name, parts, None, cats, seed)
        for share in GONE:
            masks = {split: rng.random(parts[split].shape) < share for split in ("train", "valid")}
            filled = {split: np.rint(mean_filled(parts[split], masks[split])).astype(np.uint8) for split in masks}
            own[f"{share:.0%} missing"] = {
                "exact": learn(name, parts, masks, cats, seed),
                "imputed": learn(name, {**filled, "test": parts["test"]}, None, cats, seed),
            }
            print(f"{name}, seed {seed}, {share:.0%}: {own[f'{share:.0%} missing']}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plants", type=Path, metavar="PLANTS", help="plants.npz")
    parser.add_argument("cifar", type=Path, metavar="CIFAR", help="its images")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=0, help="default: LVD_THREADS, else all cores")
    options = parser.parse_args()
    threads, started = julia.start(threads=options.threads or None).threads, time.monotonic()
    try:
        splits = load_data(options.plants, method="hclt")
        plants = {split: getattr(splits, split) for split in ("train", "valid", "test")}
        sets = {
            "plants": measure("plants", plants, 2, options.seeds),
            "cifar10-patches": measure("cifar10-patches", patches_of(options.cifar, 0), 256, options.seeds),
        }
    except InputError as error:
        print(f"missing: error: {error}", file=sys.stderr)
        return error.exit_status
    write_json(
        options.output,
        {
            "benchmark": "mean test log-likelihood of complete rows, nats, from training rows with missing values",
            "latents": LATENTS,
            "em": {"epochs": EPOCHS, "batch_size": BATCH, "step_size": STEPS, "pseudocount": PSEUDOCOUNT},
            "threads": threads,
            "seconds": round(time.monotonic() - started, 1),
            "machine": machine(),
            "sets": sets,
        },
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
