"""`lvd-juice report`: a run on one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from pyjuice_lvd.files import names
from pyjuice_lvd.files.atomic import check_writable
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.report.page import write_report

from .options import PATH, emit, json_option, quiet_option


@click.command()
@click.argument("run", type=PATH)
@click.option("-o", "--output", type=PATH, metavar="FILE.html", help="The page [default: RUN/report.html].")
@json_option
@quiet_option
def report(run: Path, output: Path | None, as_json: bool, quiet: bool) -> None:
    """Put the figures, settings and plots of the finished RUN on one HTML page, which needs nothing else.

    All pictures (.png) in RUN are on it: those of `fit`, that of `gap`, and samples if you put them there.
    """
    directory = RunDirectory.open_existing(run)
    page = directory / names.REPORT if output is None else output
    check_writable(page)
    pictures = write_report(directory, page)
    emit({"report": str(page), "pictures": pictures, "bytes": page.stat().st_size}, as_json)
