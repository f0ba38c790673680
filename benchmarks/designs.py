"""The paper's Fig. 1: what is clustered, and by whom, at equal numbers of heads and about equal size.

    python benchmarks/designs.py DATA -o benchmarks/designs.json --images 5000 [--picture docs/pictures/designs.png]
        [--set section.key=value]... [--growing section.key=value]... [--refined section.key=value]...

DATA is what `lvd-juice fit` takes. For each seed, one-shot `lvd` learns from K-means clusters of raw patches, of the
features of a convolutional teacher, and of those of a teacher that decodes each patch on its own; from the last of
these also growing (`lvd-pg`), one-shot with outer clusters that circuits refined, and both. `--growing` has settings of
`lvd-pg` alone, `--refined` those of refining; all come after the settings below.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import compare, measure_variants, parser_of
from matplotlib.figure import Figure

from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.files.atomic import atomic_write
from pyjuice_lvd.files.formats import read_json
from pyjuice_lvd.settings import Settings

RAW, CONVOLUTIONAL, ONE_SHOT = "raw patches", "convolutional teacher", "independent decoder"
GROWN, REFINED, BOTH = "grown", "refined", "refined and grown"

# For 16x16 pixels and about three million parameters: grown circuits start smaller.
EVERY = [
    "offsets.steps=[]", "data.flip=false", "data.crop=16x16", "teacher.flip=false", "teacher.epochs=6",
    "teacher.decoder=independent", "clusters.outer=16", "refining.rounds=0", "circuit.latents=15", "circuit.epochs=8",
    "circuit.pseudocount=0.1", "prior.epochs=15", "prior.soft_epochs=0", "finetuning.epochs=0",
]  # fmt: skip
GROWING = [
    "circuit.latents=10",
    "growing.epochs=3",
    "growing.threshold=0.15",
    "growing.noise=0.2",
    "growing.min_flow=1e-5",
]
REFINING = ["refining.rounds=6", "refining.latents=8"]

DESIGNS = (RAW, CONVOLUTIONAL, ONE_SHOT, GROWN, REFINED, BOTH)


def pixels(images: npt.NDArray[np.uint8], settings: Settings) -> npt.NDArray[np.float32]:
    """Give patches as they are as their features, float32 (N, P, D): RGB from 0 to 1."""
    return (to_patches(images, settings.teacher.patch) / np.float32(255)).astype(np.float32)


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Learn in all ways from the same images; returns the figures of each."""
    own = [*EVERY, *options.set]
    growing, refined = [*GROWING, *options.growing], [*REFINING, *options.refined]
    groups: list[tuple[dict[str, tuple[str, list[str]]], dict[str, Any]]] = [
        ({RAW: ("lvd", own)}, {"features": pixels}),
        ({CONVOLUTIONAL: ("lvd", [*own, "teacher.decoder=convolutional"])}, {}),
        (
            {
                ONE_SHOT: ("lvd", own),
                GROWN: ("lvd-pg", [*own, *growing]),
                REFINED: ("lvd", [*own, *refined]),
                BOTH: ("lvd-pg", [*own, *growing, *refined]),
            },
            {},
        ),
    ]
    found: dict[str, Any] = {}
    for ways, more in groups:
        found |= measure_variants(options.data, options.preset, ways, images=options.images, seed=seed, **more)
    return found


def draw(path: Path, result: dict[str, Any]) -> None:
    """Draw the test bpd of each design, a dot for each seed and a bar at their mean."""
    figure = Figure(figsize=(7, 3), layout="constrained", dpi=120)
    axes = figure.subplots()
    for row, name in enumerate(DESIGNS):
        values = [seed[name]["bpd"] for seed in result["seeds"]]
        axes.plot(values, [row] * len(values), "o", color="C0", alpha=0.6)
        axes.plot(np.mean(values), row, "|", color="black", markersize=20)
    axes.set(yticks=range(len(DESIGNS)), yticklabels=DESIGNS, xlabel="test bpd, by seed; a line at the mean")
    axes.invert_yaxis()
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = parser_of(__doc__, "tiny")
    parser.add_argument("--growing", action="append", default=[], help="a setting of lvd-pg alone")
    parser.add_argument("--refined", action="append", default=[], help="a setting of what is refined alone")
    parser.add_argument("--picture", type=Path, help="where to draw the figures")
    options = parser.parse_args()
    status = compare(
        options,
        "test bpd of designs at equal size",
        measure,
        lambda seed: {name: seed[name]["bpd"] for name in DESIGNS},
    )
    if options.picture and not status:
        draw(options.picture, read_json(options.output))
    return status


if __name__ == "__main__":
    sys.exit(main())
