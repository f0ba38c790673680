"""What the settings of models of windows are worth, on validation images.

    python benchmarks/windows.py DATA -o benchmarks/windows.json [--images 20000] [--set windows.pixels=400000]...

DATA is what `lvd-juice fit` takes. For each seed the model by default, with `--set`, is learned, and beside it those
that differ from it as `VARIANTS` has it. Bits per dimension are of 1,000 validation images, at even distances; test
images are not looked at.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
from common import compare, parser_of

from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.learn.windows import learn_windows
from pyjuice_lvd.settings import resolve

VARIANTS: dict[str, tuple[str, ...]] = {
    "by default": (),
    "reach 1": ("windows.reach=1",),
    "reach 2": ("windows.reach=2",),
    "reach 5": ("windows.reach=5",),
    "1 tree, 128 latents": ("windows.trees=1", "windows.latents=128"),
    "16 trees, 32 latents": ("windows.trees=16", "windows.latents=32"),
    "8 trees, 64 latents": ("windows.trees=8", "windows.latents=64"),
    "pseudocount 0.3": ("windows.pseudocount=0.3",),
    "pseudocount 0.003": ("windows.pseudocount=0.003",),
    "smaller steps": ("windows.step_size=[0.2,0.02]",),
    "colours rgb": ("data.color=rgb",),
}


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Learn all variants; returns the figures of each."""
    found: dict[str, Any] = {"seed": seed}
    for name, own in VARIANTS.items():
        settings = resolve(options.preset, None, [*options.set, *own], method="windows", seed=seed)
        splits = load_data(options.data, **settings.loading)
        train = splits.train
        if options.images and options.images < len(train):
            train = train[np.sort(np.random.default_rng(seed).permutation(len(train))[: options.images])]
        started = time.monotonic()
        model = learn_windows(train, splits.valid, settings)
        seconds = time.monotonic() - started
        some = splits.valid[np.linspace(0, len(splits.valid) - 1, min(1000, len(splits.valid))).astype(int)]
        found[name] = {"valid_bpd": model.bpd(some), "params": model.num_params, "seconds": round(seconds, 1)}
        print(f"seed {seed}, {name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Run the benchmark; returns the exit status."""
    return compare(
        parser_of(__doc__, None).parse_args(),
        "bits per dimension of validation images by models of windows",
        measure,
        lambda seed: {name: seed[name]["valid_bpd"] for name in VARIANTS},
    )


if __name__ == "__main__":
    sys.exit(main())
