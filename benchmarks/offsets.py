"""What offsets are worth: the same images, teacher, number of shapes and hidden states, with offsets and without.

    python benchmarks/offsets.py DATA -o benchmarks/FILE.json [--preset tiny] [--images 5000]
        [--set section.key=value]... [--without section.key=value]... [--with section.key=value]...

DATA is what `lvd-juice fit` takes. For each seed a teacher is trained, and both models learn from its features. Choose
the settings so that they have as many parameters and take as long: the file has both.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from common import measure_variants, start, write_comparison

from pyjuice_lvd.errors import InputError

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--images", type=int, help="train on so many images, chosen by the seed; default: all")
    parser.add_argument("--set", action="append", default=[], help="a setting of both models")
    parser.add_argument("--without", action="append", default=[], help="a setting of the model without offsets alone")
    parser.add_argument("--with", dest="own", action="append", default=[], help="one of the model with offsets alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=0, help="default: LVD_THREADS, else all cores")
    options = parser.parse_args()
    started, threads = time.monotonic(), start(options.threads)
    try:
        seeds = [measure(options, seed) for seed in options.seeds]
    except InputError as error:
        print(f"offsets: error: {error}", file=sys.stderr)
        return error.exit_status
    figures = {name: [each[name]["bpd"] for each in seeds] for name in (WITHOUT, WITH)}
    write_comparison(
        options.output, "test bpd with and without offsets, at as many parameters and seconds",
        data=options.data, threads=threads, started=started,
        figures=figures | {"gain": [each["gain"] for each in seeds]}, seeds=seeds,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
