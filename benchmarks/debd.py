"""HCLTs on density estimation benchmark data sets (DEBD): one procedure for all, chosen on the validation split.

    python benchmarks/debd.py DATA -o benchmarks/debd.json

DATA is a folder of NAME.npz files with binary tables under `train`, `valid` and `test`. Every candidate below is
learned on each training split, as `lvd-juice fit --method hclt` does; the one with the best validation likelihood is
measured on the test split.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import machine

from pyjuice_lvd import julia
from pyjuice_lvd.data.load import load_data, num_categories
from pyjuice_lvd.data.splits import Splits
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import write_json
from pyjuice_lvd.learn.baselines import learn_circuit
from pyjuice_lvd.settings import HCLTSettings, Settings

# Mean test log-likelihood in nats, HCLT in Liu and Van den Broeck 2021.
PUBLISHED = {"nltcs": -6.00, "plants": -14.26, "baudio": -39.77, "bnetflix": -56.28, "accidents": -26.74}

_EPOCHS = 40
CANDIDATES = [
    HCLTSettings(trees=trees, latents=latents, pseudocount=pseudocount, epochs=_EPOCHS, patience=_EPOCHS)
    for trees, latents, pseudocount in ((4, 16, 0.001), (4, 16, 0.01), (1, 64, 0.003))
]


def measure(splits: Splits, seed: int) -> dict[str, Any]:
    """Learn all candidates on one data set; returns the figures of the best on validation, and all on validation."""
    started = time.monotonic()
    tried: list[dict[str, Any]] = []
    best, best_valid = None, -np.inf
    for hclt in CANDIDATES:
        settings = Settings(method="hclt", seed=seed, hclt=hclt)
        model = learn_circuit(splits.train, splits.valid, settings, num_cats=num_categories(splits))
        valid = float(model.score_samples(splits.valid).mean())
        tried.append({"trees": hclt.trees, "latents": hclt.latents, "pseudocount": hclt.pseudocount, "valid": valid})
        if valid > best_valid:
            best, best_valid, chosen = model, valid, hclt
    assert best is not None
    scores = best.score_samples(splits.test)
    return {
        "test": float(scores.mean()),
        "std_error": float(scores.std(ddof=1) / np.sqrt(len(scores))),
        "valid": best_valid,
        "settings": asdict(chosen),
        "params": best.num_params,
        "seconds": round(time.monotonic() - started, 1),
        "tried": tried,
    }


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of NAME.npz files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="default: LVD_THREADS, else all cores")
    options = parser.parse_args()
    threads = julia.start(threads=options.threads or None).threads
    started = time.monotonic()
    sets: dict[str, Any] = {}
    try:
        for name, published in PUBLISHED.items():
            splits = load_data(options.data / f"{name}.npz", method="hclt")
            sets[name] = {"published": published, **measure(splits, options.seed)}
            print(f"{name}: test {sets[name]['test']:.3f} nats, published {published}", file=sys.stderr, flush=True)
    except InputError as error:
        print(f"debd: error: {error}", file=sys.stderr)
        return error.exit_status
    write_json(
        options.output,
        {
            "benchmark": "mean test log-likelihood of HCLTs on DEBD, nats",
            "seed": options.seed,
            "threads": threads,
            "seconds": round(time.monotonic() - started, 1),
            "cpu_seconds": round(time.process_time(), 1),
            "machine": machine(),
            "sets": sets,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
