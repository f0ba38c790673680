"""Whether feedback from circuits pays: growing and refined outer clusters against one-shot labels.

With the same teachers, numbers of heads and no more parameters.

    python benchmarks/growing.py DATA -o benchmarks/growing-NAME.json [--preset tiny] [--images 10000]
        [--set section.key=value]... [--lvd section.key=value]... [--growing section.key=value]...
        [--refined section.key=value]... [--only VARIANT]...

DATA is what `lvd-juice fit` takes. For each seed a teacher is trained, and all variants learn from its features: both
methods as they are, and with the settings of `--refined`, if there are any.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from common import measure_variants, start, write_comparison

from pyjuice_lvd.errors import InputError

METHODS = ("lvd", "lvd-pg")


def variants(options: argparse.Namespace) -> dict[str, tuple[str, list[str]]]:
    """Give the method and settings of each variant, the baseline first."""
    own = dict(zip(METHODS, (options.lvd, options.growing), strict=True))
    plain = {method: (method, [*options.set, *own[method]]) for method in METHODS}
    more = {f"{method}, refined": (method, [*given, *options.refined]) for method, (_, given) in plain.items()}
    every = plain | (more if options.refined else {})
    return {name: variant for name, variant in every.items() if name == METHODS[0] or name in (options.only or every)}


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Learn from one teacher in all ways; returns the figures of each."""
    ways = variants(options)
    found = measure_variants(options.data, options.preset, ways, images=options.images, seed=seed)
    baseline, *others = ways
    found["gain"] = {name: found[baseline]["bpd"] - found[name]["bpd"] for name in others}
    return found


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--images", type=int, help="train on so many images, chosen by the seed; default: all")
    parser.add_argument("--set", action="append", default=[], help="a setting of both methods")
    parser.add_argument("--lvd", action="append", default=[], help="a setting of lvd alone")
    parser.add_argument("--growing", action="append", default=[], help="a setting of lvd-pg alone")
    parser.add_argument("--refined", action="append", default=[], help="a setting of both methods' second variants")
    parser.add_argument("--only", action="append", help="beside `lvd`: `lvd-pg`, `lvd, refined` or `lvd-pg, refined`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=0, help="default: LVD_THREADS, else all cores")
    options = parser.parse_args()
    started, threads = time.monotonic(), start(options.threads)
    try:
        seeds = [measure(options, seed) for seed in options.seeds]
    except InputError as error:
        print(f"growing: error: {error}", file=sys.stderr)
        return error.exit_status
    figures = {name: [each[name]["bpd"] for each in seeds] for name in variants(options)}
    figures |= {f"gain of {name}": [each["gain"][name] for each in seeds] for name in seeds[0]["gain"]}
    write_comparison(
        options.output, "test bpd of one-shot lvd, lvd-pg, and both with refined outer clusters",
        data=options.data, threads=threads, started=started, figures=figures, seeds=seeds,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
