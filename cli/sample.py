"""`lvd-juice sample`: draw images from a run's model."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import write_npy
from pyjuice_lvd.machine import check_result
from pyjuice_lvd.progress import make_progress
from pyjuice_lvd.report.grids import IMAGE_BYTES, plot_samples

from .models import Run, exact_option, modes_option, output_option, start_julia
from .options import PATH, emit, json_option, quiet_option, seed_option, threads_option


@click.command()
@click.argument("run", type=PATH)
@click.option("-n", "count", type=click.IntRange(min=1), default=16, show_default=True, help="How many.")
@output_option
@exact_option
@modes_option
@seed_option
@threads_option
@json_option
@quiet_option
def sample(
    run: Path,
    count: int,
    output: Path,
    exact: bool,
    biased_modes: bool,
    seed: int | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Draw unbiased samples from the model in RUN: a picture, or an array, uint8 (n, H, W, C).

    A colour outside the RGB cube goes to the nearest one inside, except with --exact.

    Of a model of tables: an array of integers (n, V).
    """
    started = time.monotonic()
    opened = Run.open(run, biased_modes=biased_modes)
    picture = output.suffix.lower() == ".png"
    if picture and opened.image_shape is None:
        raise InputError(f"{output}: found a model of tables in {run}, wanted a file named .npy")
    check_result("-n", count, count * max(opened.dims, IMAGE_BYTES if picture else 0))
    start_julia(opened.settings, threads)
    model = opened.load()
    seed = 0 if seed is None else seed
    progress = make_progress(quiet)
    drawn = as_drawn = model.sample(count, seed=seed, exact=exact, biased_modes=biased_modes, progress=progress)
    if model.wraps_around:
        as_drawn = model.sample(count, seed=seed, exact=not exact, biased_modes=biased_modes, progress=progress)
    if picture:
        title = "biased: most probable patches of drawn z" if biased_modes else "samples"
        plot_samples(output, drawn, f"{opened.method}: {title}")
    else:
        write_npy(output, drawn)
    emit(
        {
            "method": opened.method,
            "what": "most probable patches of drawn z (biased)" if biased_modes else "samples",
            "n": count,
            "shape": drawn.shape,
            "seed": seed,
            "exact": exact,
            "share_outside_rgb": model.share_outside_rgb(as_drawn, drawn),
            "output": output,
            "protocol": opened.protocol(model),
            "seconds": time.monotonic() - started,
        },
        as_json,
    )
