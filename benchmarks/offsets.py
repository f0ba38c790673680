"""What offsets are worth: the same images, teacher, number of shapes and hidden states, with offsets and without.

    python benchmarks/offsets.py DATA -o benchmarks/FILE.json [--preset tiny] [--images 5000]
        [--set section.key=value]... [--without section.key=value]... [--with section.key=value]...

DATA is what `lvd-juice fit` takes. For each seed a teacher is trained, and both models learn from its features. Choose
the settings so that they have as many parameters and take as long: the file has both.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from common import compare, measure_variants, parser_of

WITHOUT, WITH = "without offsets", "with offsets"


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Learn both models from one teacher; returns the figures of each."""
    ways = {
        WITHOUT: ("lvd", [*options.set, "offsets.steps=[]", *options.without]),
        WITH: ("lvd", [*options.set, "offsets.steps=[8]", *options.own]),
    }
    found = measure_variants(options.data, options.preset, ways, images=options.images, seed=seed)
    return found | {"gain": found[WITHOUT]["bpd"] - found[WITH]["bpd"]}


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = parser_of(__doc__, "tiny")
    parser.add_argument("--without", action="append", default=[], help="a setting of the model without offsets alone")
    parser.add_argument("--with", dest="own", action="append", default=[], help="one of the model with offsets alone")
    return compare(
        parser.parse_args(),
        "test bpd with and without offsets, at as many parameters and seconds",
        measure,
        lambda seed: {**{name: seed[name]["bpd"] for name in (WITHOUT, WITH)}, "gain": seed["gain"]},
    )


if __name__ == "__main__":
    sys.exit(main())
