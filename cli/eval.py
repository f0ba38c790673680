"""`lvd-juice eval`: a run's held-out bpd with its standard error."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyjuice_lvd.evaluation import figures_of_merit, protocol
from pyjuice_lvd.images import load_test_images
from pyjuice_lvd.joint import JointModel
from pyjuice_lvd.progress import make_progress
from pyjuice_lvd.runs import RunDirectory, read_json
from pyjuice_lvd.settings import Settings

from .fit import use_threads
from .options import emit, json_option, quiet_option, threads_option


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data")
@threads_option
@json_option
@quiet_option
def evaluate(run: Path, data: str, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Report the bpd of the model in RUN on the test images of DATA.

    Of the DATA that the run was fitted on, the same test images as then; of other DATA without test images, all.
    """
    started = time.monotonic()
    directory = RunDirectory.open_existing(run)
    settings = Settings.from_dict(directory.settings)
    images, which = load_test_images(
        data,
        digest=read_json(directory / "data.json")["digest"],
        crop=settings.data.crop or None,
        size=settings.data.size,
        seed=settings.seed,
        valid_fraction=settings.data.valid_fraction,
        test_fraction=settings.data.test_fraction,
    )
    use_threads(settings.threads if threads is None else threads)
    model = JointModel.load(directory / "model")
    scores = model.score_samples(images, progress=make_progress(quiet))
    emit(
        {
            "method": settings.method,
            **figures_of_merit(scores, model.dims),
            "params": model.num_params,
            "protocol": protocol(settings.data.color, settings.data.crop, images.shape[3]),
            "seconds": time.monotonic() - started,
            "images": which,
        },
        as_json,
    )
