"""`lvd-juice eval`: a run's held-out bpd with its standard error."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyjuice_lvd.circuit.devices import CPU, use_device
from pyjuice_lvd.circuit.reduce import all_or_none, spread
from pyjuice_lvd.data.splits import noun
from pyjuice_lvd.distributed import processes
from pyjuice_lvd.evaluate.merit import figures_of_merit
from pyjuice_lvd.progress import make_progress

from .models import Run, start_julia
from .options import GIVEN, PATH, device_option, emit, json_option, quiet_option, threads_option


@click.command("eval")
@click.argument("run", type=PATH)
@click.argument("data", type=GIVEN)
@threads_option
@device_option
@json_option
@quiet_option
def evaluate(run: Path, data: str, threads: int | None, device: str | None, as_json: bool, quiet: bool) -> None:
    """Report the bpd of the model in RUN on the test images, or rows, of DATA.

    Of the DATA that the run was fitted on, the same test set as then; of other DATA without a test set, all.
    """
    started = time.monotonic()
    with processes(start=False) as reducer:
        progress = make_progress(quiet or reducer.rank > 0)
        with all_or_none():
            opened = Run.open(run)
            test = opened.test_data(data, progress)
        start_julia(opened.settings, threads)
        with use_device(device or CPU):
            model = opened.load()
            scores = spread(len(test.data), lambda rows: model.score_samples(test.data[rows], progress=progress))
        if reducer.rank:
            return
        emit(
            {
                "method": opened.method,
                **figures_of_merit(scores, model.dims, model.num_seen(test.data)),
                "params": model.num_params,
                "protocol": opened.protocol(model),
                "seconds": time.monotonic() - started,
                noun(test.data): test.how,
            },
            as_json,
        )
