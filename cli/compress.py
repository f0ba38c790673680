"""`lvd-juice compress`: images, or rows of a table, as one small file, without loss."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyjuice_lvd.codec.names import check_names, png_names
from pyjuice_lvd.data.splits import noun
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.atomic import atomic_write, check_writable
from pyjuice_lvd.progress import Progress, make_progress
from pyjuice_lvd.units import bits_per_dimension_of_bytes

from .models import SUFFIX, Run, start_julia
from .options import GIVEN, PATH, emit, json_option, quiet_option, threads_option


@click.command()
@click.argument("run", type=PATH)
@click.argument("data", type=GIVEN)
@click.option("-o", "--output", type=PATH, required=True, metavar=f"FILE{SUFFIX}", help="The file to write.")
@click.option("--test", "test_only", is_flag=True, help="Only the test images, or rows: those that eval scores.")
@threads_option
@json_option
@quiet_option
def compress(
    run: Path, data: str, output: Path, test_only: bool, threads: int | None, as_json: bool, quiet: bool
) -> None:
    """Code the images, or rows, of DATA with the model in RUN, without loss: `decompress` gives the same pixels back.

    All of DATA, in its order, its train, valid and test parts one after another. The same model is needed to decode.
    Of a folder of images without subfolders the names of the files are kept.
    """
    started = time.monotonic()
    if output.suffix != SUFFIX:
        raise InputError(f"{output}: wanted a file named {SUFFIX}")
    check_writable(output)
    opened = Run.open(run)
    opened.check_codec()
    progress = make_progress(quiet)
    part = opened.data_to_code(data, progress, test_only=test_only)
    images, names = part.data, _names(data, part.files, progress)
    start_julia(opened.settings, threads)
    model = opened.load()
    with atomic_write(output) as file:
        model.compress_to(file, images, names=names, progress=progress)
    size = output.stat().st_size
    emit(
        {
            "method": opened.method,
            "n": len(images),
            "bytes": size,
            "bytes_raw": images.nbytes,
            "bpd": bits_per_dimension_of_bytes(size, len(images), model.dims),
            "output": output,
            "protocol": opened.protocol(model),
            "seconds": time.monotonic() - started,
            noun(images): part.how,
        },
        as_json,
    )


def _names(data: str, files: tuple[str, ...], progress: Progress) -> tuple[str, ...]:
    """Name the images as files of a folder that decompress writes; not at all where that cannot be everywhere."""
    names = png_names(files)
    try:
        check_names(names, data)
    except InputError as error:
        progress.log(f"{error}; no names are kept")
        return ()
    return names
