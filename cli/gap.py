"""`lvd-juice gap`: the teacher's ELBO, the LVD objective and the circuits' log-likelihood, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyjuice_lvd.circuit.devices import use_device
from pyjuice_lvd.circuit.reduce import all_or_none, current
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.distributed import processes
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.evaluate.merit import protocol_text
from pyjuice_lvd.files import names
from pyjuice_lvd.files.atomic import check_writable
from pyjuice_lvd.files.formats import json_text, read_arrays, write_json
from pyjuice_lvd.large import digest_of
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.shapes import ShapeModel
from pyjuice_lvd.progress import Progress, make_progress
from pyjuice_lvd.report.figures import plot_gap
from pyjuice_lvd.report.tables import GAP_TITLES, facts, figure, gap_impossible, gap_rows, lay_out, table
from pyjuice_lvd.settings import Settings

from .fit import prepare
from .models import Run
from .options import GIVEN, PATH, device_option, json_option, quiet_option, threads_option

if TYPE_CHECKING:
    from pyjuice_lvd.evaluate.gap import Bounds
    from pyjuice_lvd.teacher import Teacher


@click.command()
@click.argument("run", type=PATH)
@click.argument("data", type=GIVEN)
@click.option("-o", "--output", type=PATH, metavar="FILE.png", help="The picture [default: RUN/gap.png].")
@threads_option
@device_option
@json_option
@quiet_option
def gap(
    run: Path, data: str, output: Path | None, threads: int | None, device: str | None, as_json: bool, quiet: bool
) -> None:
    """Compare the model in RUN with its teacher on the test images of DATA: docs/gap.md says how to read it.

    The first `gap` of a run takes the DATA that it was fitted on: it learns a prior over the teacher's codes from the
    training images, and keeps it in RUN. The figures are kept as RUN/gap.json, for `report`.
    """
    with processes(start=False) as reducer:
        result = _measured(run, data, output, threads, device, make_progress(quiet or reducer.rank > 0))
        if reducer.rank == 0:
            click.echo(json_text(result) if as_json else _summary(result))


def _measured(
    run: Path, data: str, output: Path | None, threads: int | None, device: str | None, progress: Progress
) -> dict[str, Any]:
    """Measure, and keep figures and picture, which the first of the processes that share the work does."""
    started, first = time.monotonic(), current().rank == 0
    with all_or_none():
        opened = Run.open(run)
        directory, settings = opened.directory, opened.settings
        picture = directory / names.GAP_PICTURE if output is None else output
        kind = opened.kind
        if not issubclass(kind, JointModel | ShapeModel):
            raise InputError(
                f"{run}: a run of method {opened.method}, which has no teacher; wanted one of lvd-pg or lvd"
            )
        if (directory / names.MODEL / names.FEATURES).exists():
            raise InputError(
                f"{run}: learned from features of another encoder, so it has no teacher, whose ELBO is the first of "
                "the three; wanted a run without --features"
            )
        for file in (picture, directory / names.GAP) if first else ():
            check_writable(file)
        test = opened.test_data(data, progress)
    images = test.data
    prepare(settings, threads=threads, device=device)

    from pyjuice_lvd.evaluate.gap import Bounds, measure_gap  # PyTorch: not for --help, nor before the data are checked
    from pyjuice_lvd.teacher import Teacher

    folder = directory / names.MODEL
    model = kind.load(folder)
    teacher = Teacher.load(folder / names.TEACHER, device=device or settings.device)
    bounds = Bounds.kept(folder)
    # Older versions left mirror images out where they learned the centres.
    if bounds is None or (settings.data.flip and bounds.centres is not None and not bounds.mirror_images):
        bounds = _learn_bounds(teacher, folder, data, settings, directory.data["train_digest"], progress)
    with use_device(device or settings.device):
        measured = measure_gap(model, teacher, bounds, images, progress=progress)
    of = opened.protocol(model)
    result = {
        "method": opened.method,
        **measured.figures(),
        "protocol": of,
        "code_prior": bounds.about,
        "images": test.how,
        "picture": str(picture),
        "seconds": time.monotonic() - started,
    }
    if first:
        plot_gap(picture, measured, protocol_text(of))
        write_json(directory / names.GAP, result)
    return result


def _learn_bounds(
    teacher: Teacher, folder: Path, data: str, settings: Settings, digest: str, progress: Progress
) -> Bounds:
    """Learn what the bounds need from the images that the run was fitted on, if DATA are those."""
    from pyjuice_lvd.evaluate.gap import Bounds

    wanted = "wanted the run's own, which the first `gap` of a run learns a prior over the teacher's codes from"
    try:
        splits = load_data(data, **settings.loading)
    except InputError as error:
        raise InputError(f"{error}; {wanted}") from error
    if digest_of(splits.train) != digest:
        raise InputError(f"{data}: found other training images than the run was fitted on; {wanted}")
    outer = None
    if not (settings.refining.rounds or settings.offsets.steps):
        outer = read_arrays(folder / names.LABELS)[0]["outer"]
    return Bounds.learn(
        teacher, outer, splits.train, splits.valid, seed=settings.seed, folder=folder, progress=progress
    )


def _summary(result: Mapping[str, Any]) -> str:
    """Lay out the result for people: each quantity, and how far it is above the one before."""
    parts = (f"{name} {figure(nats, 1)} nats" for name, nats in result["teacher_elbo_parts"].items())
    about = {
        "of": f"{result['n']:,} images, {protocol_text(result['protocol'])}",
        **({"probability 0": gap_impossible(result)} if "impossible" in result else {}),
        "teacher ELBO of": ", ".join(parts),
        "images": result["images"],
        "picture": result["picture"],
    }
    return lay_out(table(GAP_TITLES, gap_rows(result)), facts(about.items()))
