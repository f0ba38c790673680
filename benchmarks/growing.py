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
from typing import Any

from common import compare, measure_variants, parser_of

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
    parser = parser_of(__doc__, "tiny")
    parser.add_argument("--lvd", action="append", default=[], help="a setting of lvd alone")
    parser.add_argument("--growing", action="append", default=[], help="a setting of lvd-pg alone")
    parser.add_argument("--refined", action="append", default=[], help="a setting of both methods' second variants")
    parser.add_argument("--only", action="append", help="beside `lvd`: `lvd-pg`, `lvd, refined` or `lvd-pg, refined`")
    options = parser.parse_args()
    return compare(
        options,
        "test bpd of one-shot lvd, lvd-pg, and both with refined outer clusters",
        measure,
        lambda seed: {
            **{name: seed[name]["bpd"] for name in variants(options)},
            **{f"gain of {name}": gain for name, gain in seed["gain"].items()},
        },
    )


if __name__ == "__main__":
    sys.exit(main())
