"""What EM on p(x) end to end is worth, after EM on p(x) over p(z) alone.

    python benchmarks/finetuning.py DATA -o benchmarks/finetuning.json [--preset cifar10] [--images 5000]
        [--set section.key=value]...

DATA is what `lvd-juice fit` takes. For each seed a model is learned up to EM on p(z) alone, and measured before and
after it is trained end to end, as `[finetuning]` says, on the same images.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
from common import compare, parser_of

from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.evaluate.merit import figures_of_merit, std_error
from pyjuice_lvd.learn.pipeline import distill
from pyjuice_lvd.models.joint_em import fit_end_to_end
from pyjuice_lvd.settings import resolve
from pyjuice_lvd.units import bits_per_dimension


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Learn a model, and measure it before and after training end to end."""
    settings = resolve(options.preset, None, options.set, seed=seed)
    splits = load_data(options.data, **settings.loading)
    train, own = splits.train, settings.finetuning
    if options.images and options.images < len(train):
        train = train[np.sort(np.random.default_rng(seed).permutation(len(train))[: options.images])]
    started = time.monotonic()
    model = distill(train, splits.valid, replace(settings, finetuning=replace(own, epochs=0))).model
    before, learned = model.score_samples(splits.test), time.monotonic()
    history = fit_end_to_end(
        model,
        train,
        splits.valid,
        epochs=own.epochs,
        step_size=own.step_size,
        batch_size=own.batch_size,
        pseudocount=own.pseudocount,
        prior_pseudocount=settings.prior.pseudocount,
        patience=own.patience,
        seed=seed,
    )
    finetuned, after = time.monotonic(), model.score_samples(splits.test)
    gain = -bits_per_dimension(after - before, model.dims)
    found = {
        "seed": seed,
        "prior_alone": figures_of_merit(before, model.dims),
        "end_to_end": figures_of_merit(after, model.dims),
        "gain": float(gain.mean()),
        "std_error_gain": std_error(gain),
        "valid_bpd": [bits_per_dimension(score, model.dims) for score in history.valid],
        "kept_epoch": history.best,
        "params": model.num_params,
        "heads": model.num_latent_values,
        "train": len(train),
        "protocol": model.protocol(settings.data.crop),
        "seconds": {"before": round(learned - started, 1), "end to end": round(finetuned - learned, 1)},
        "settings": settings.to_dict(),
    }
    print(f"seed {seed}: {found['prior_alone']['bpd']:.4f} -> {found['end_to_end']['bpd']:.4f}", file=sys.stderr)
    return found


def main() -> int:
    """Run the benchmark; returns the exit status."""
    return compare(
        parser_of(__doc__, "cifar10").parse_args(),
        "test bpd before and after EM on p(x) end to end",
        measure,
        lambda seed: {**{name: seed[name]["bpd"] for name in ("prior_alone", "end_to_end")}, "gain": seed["gain"]},
    )


if __name__ == "__main__":
    sys.exit(main())
