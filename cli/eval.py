"""`lvd-juice eval`: a run's held-out bpd with its standard error."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyjuice_lvd.data.load import load_test_data
from pyjuice_lvd.data.splits import noun
from pyjuice_lvd.evaluate.merit import figures_of_merit, protocol
from pyjuice_lvd.files.formats import read_json
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.progress import make_progress
from pyjuice_lvd.settings import Settings

from .models import check_data, load_model, start_julia
from .options import emit, json_option, quiet_option, threads_option


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data")
@threads_option
@json_option
@quiet_option
def evaluate(run: Path, data: str, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Report the bpd of the model in RUN on the test images, or rows, of DATA.

    Of the DATA that the run was fitted on, the same test set as then; of other DATA without a test set, all.
    """
    started = time.monotonic()
    directory = RunDirectory.open_existing(run)
    settings = Settings.from_dict(directory.settings)
    rows, which = load_test_data(data, settings, digest=read_json(directory / "data.json")["digest"])
    start_julia(settings, threads)
    model = load_model(directory, settings)
    check_data(model, rows, data)
    scores = model.score_samples(rows, progress=make_progress(quiet))
    emit(
        {
            "method": settings.method,
            **figures_of_merit(scores, model.dims),
            "params": model.num_params,
            "protocol": protocol(settings.data.color, settings.data.crop, rows),
            "seconds": time.monotonic() - started,
            noun(rows): which,
        },
        as_json,
    )
