"""`lvd-juice inpaint`: draw the hidden pixels of test images, given the others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from pyjuice_lvd.data.masks import MASKS, known_first, read_mask
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import write_npy
from pyjuice_lvd.machine import check_result
from pyjuice_lvd.progress import make_progress
from pyjuice_lvd.report.grids import IMAGE_BYTES, plot_inpainting

from .models import Run, exact_option, modes_option, output_option, start_julia
from .options import GIVEN, PATH, emit, json_option, quiet_option, seed_option, threads_option


@click.command()
@click.argument("run", type=PATH)
@click.argument("data", type=GIVEN)
@click.option(
    "--mask",
    type=GIVEN,
    required=True,
    metavar="|".join((*MASKS, "FILE")),
    help="What is hidden: a part, or the white of a picture, or what is True in a .npy, of the image's size.",
)
@click.option("-n", "count", type=click.IntRange(min=1), default=8, show_default=True, help="Samples of each image.")
@click.option(
    "--images",
    "how_many",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    help="How many of the test images, at even distances.",
)
@output_option
@exact_option
@modes_option
@seed_option
@threads_option
@json_option
@quiet_option
def inpaint(
    run: Path,
    data: str,
    mask: str,
    count: int,
    how_many: int,
    output: Path,
    exact: bool,
    biased_modes: bool,
    seed: int | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Draw samples of the hidden pixels of some test images of DATA, exactly, given their other pixels.

    A hidden pixel's colour outside the RGB cube goes to the nearest one inside, except with --exact.

    A picture has, for each image, itself, what is known of it, the samples, and the posterior mean, where the model has
    one. An array has the samples, uint8 (n, images, H, W, C). Of method `windows`, what is hidden must come last, row
    after row, as `bottom` does.
    """
    started = time.monotonic()
    opened = Run.open(run, biased_modes=biased_modes)
    progress = make_progress(quiet)
    if opened.image_shape is None:
        raise InputError(f"{run}: found a model of tables, wanted one of images, to hide a part of")
    part = opened.test_data(data, progress)
    test = part.data
    hidden = read_mask(mask, test.shape[1], test.shape[2])
    if opened.kind.in_order:
        known_first(hidden[None])
    chosen = np.linspace(0, len(test) - 1, min(how_many, len(test))).round().astype(int)
    picture = output.suffix.lower() == ".png"
    check_result("-n", count, count * len(chosen) * max(opened.dims, IMAGE_BYTES if picture else 0))
    start_julia(opened.settings, threads)
    model = opened.load()
    images, seed = test[chosen], 0 if seed is None else seed
    ask: dict[str, Any] = {"n_samples": count, "seed": seed, "biased_modes": biased_modes, "progress": progress}
    drawn = as_drawn = model.inpaint(images, hidden, exact=exact, **ask)
    if model.wraps_around:
        as_drawn = model.inpaint(images, hidden, exact=not exact, **ask)
    if picture:
        means = None if model.in_order else model.posterior_mean(images, hidden, exact=exact, progress=progress)
        plot_inpainting(output, images, hidden, drawn, means, "biased" if biased_modes else "sample")
    else:
        write_npy(output, drawn)
    emit(
        {
            "method": opened.method,
            "what": "most probable patches of drawn z (biased)" if biased_modes else "conditional samples",
            "n": count,
            "images": len(chosen),
            "which": f"{', '.join(map(str, chosen))} of {part.how}",
            "mask": mask,
            "hidden_fraction": float(hidden.mean()),
            "shape": drawn.shape,
            "seed": seed,
            "exact": exact,
            "share_outside_rgb": model.share_outside_rgb(as_drawn, drawn, hidden),
            "output": output,
            "protocol": opened.protocol(model),
            "seconds": time.monotonic() - started,
        },
        as_json,
    )
