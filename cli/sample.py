"""`lvd-juice sample`: draw images from a run's model."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.evaluate.merit import protocol
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.progress import make_progress
from pyjuice_lvd.report.grids import plot_samples
from pyjuice_lvd.settings import Settings

from .models import check_modes, load_model, modes_option, output_option, start_julia, write_npy
from .options import emit, json_option, quiet_option, seed_option, threads_option


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-n", "count", type=click.IntRange(min=1), default=16, show_default=True, help="How many.")
@output_option
@modes_option
@seed_option
@threads_option
@json_option
@quiet_option
def sample(
    run: Path,
    count: int,
    output: Path,
    biased_modes: bool,
    seed: int | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Draw unbiased samples from the model in RUN: a picture, or an array, uint8 (n, H, W, C).

    Of a model of tables: an array of integers (n, V).
    """
    started = time.monotonic()
    directory = RunDirectory.open_existing(run)
    settings = Settings.from_dict(directory.settings)
    check_modes(biased_modes, settings)
    start_julia(settings, threads)
    model, progress = load_model(directory, settings), make_progress(quiet)
    picture = output.suffix.lower() == ".png"
    if picture and model.image_shape is None:
        raise InputError(f"{output}: found a model of tables in {run}, wanted a file named .npy")
    seed = 0 if seed is None else seed
    if isinstance(model, CircuitModel):
        drawn = model.sample(count, seed=seed, progress=progress)
    else:
        drawn = model.sample(count, seed=seed, biased_modes=biased_modes, progress=progress)
    if picture:
        title = "biased: most probable patches of drawn z" if biased_modes else "samples"
        plot_samples(output, drawn, f"{settings.method}: {title}")
    else:
        write_npy(output, drawn)
    emit(
        {
            "method": settings.method,
            "what": "most probable patches of drawn z (biased)" if biased_modes else "samples",
            "n": count,
            "shape": drawn.shape,
            "seed": seed,
            "output": output,
            "protocol": protocol(settings.data.color, settings.data.crop, drawn),
            "seconds": time.monotonic() - started,
        },
        as_json,
    )
