"""`lvd-juice decompress`: the images, or rows, of a file that `lvd-juice compress` wrote."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyjuice_lvd.codec.container import read_header, read_names
from pyjuice_lvd.data.image_files import write_image_folder
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.atomic import check_new_folder, check_writable
from pyjuice_lvd.files.formats import read_bytes, write_npy, write_npz
from pyjuice_lvd.progress import make_progress

from .models import Run, start_julia
from .options import PATH, emit, json_option, quiet_option, threads_option

_ARRAYS = (".npz", ".npy")


@click.command()
@click.argument("run", type=PATH)
@click.argument("file", type=PATH)
@click.option(
    "-o", "--output", type=PATH, required=True, metavar="OUT",
    help="A file named .npz or .npy, or a new folder for .png files.",
)  # fmt: skip
@click.option("--images", "which", metavar="A:B", help="Only images, or rows, A to B - 1; others are not decoded.")
@click.option("--salvage", is_flag=True, help="Leave damaged blocks out, in place of refusing the file.")
@threads_option
@json_option
@quiet_option
def decompress(
    run: Path,
    file: Path,
    output: Path,
    which: str | None,
    salvage: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Decode FILE with the model in RUN that coded it: exactly the images, or rows, that went in.

    An .npz file has them under `images` or `rows`. A folder has .png files, of the names that a folder gave them, else
    000000.png, 000001.png and so on, by number.
    """
    started = time.monotonic()
    opened = Run.open(run)
    opened.check_codec()
    packed = read_bytes(file)
    header, _ = read_header(packed, str(file))
    names: tuple[str, ...] = ()
    if output.suffix in _ARRAYS:
        check_writable(output)
    elif output.suffix or header.noun == "rows":
        raise InputError(
            f"{output}: wanted a file named .npz or .npy" + ("" if header.noun == "rows" else ", or a folder")
        )
    else:
        check_new_folder(output)
        names = read_names(packed, header, str(file))
    start, stop = _range(which, header.n)
    progress = make_progress(quiet)
    lost: list[range] | None = [] if salvage else None
    start_julia(opened.settings, threads)
    model = opened.load()
    found = model.decompress(packed, start=start, stop=stop, lost=lost, name=str(file), progress=progress)
    kept = [i for i in range(start, stop) if not any(i in numbers for numbers in lost or ())]
    if not kept and start < stop:
        raise InputError(f"{file}: damaged: nothing of {header.noun} {start}..{stop - 1} can be decoded")
    if output.suffix == ".npz":
        write_npz(output, {header.noun: found})
    elif output.suffix == ".npy":
        write_npy(output, found)
    else:
        write_image_folder(output, found, [names[i] if names else f"{i:06d}.png" for i in kept])
    for numbers in lost or ():
        progress.log(f"{file}: lost are {header.noun} {numbers.start}..{numbers.stop - 1}: damaged")
    emit(
        {
            "method": opened.method,
            "n": len(found),
            "lost": [[numbers.start, numbers.stop - 1] for numbers in lost or ()],
            "shape": found.shape,
            "output": output,
            "protocol": opened.protocol(model),
            "seconds": time.monotonic() - started,
        },
        as_json,
    )


def _range(which: str | None, n: int) -> tuple[int, int]:
    """Read `A:B`, either of which may be left out."""
    if which is None:
        return 0, n
    first, colon, last = which.partition(":")
    try:
        start, stop = int(first or 0), int(last or n)
    except ValueError:
        start, stop = 0, -1
    if not colon or not 0 <= start < stop <= n:
        raise InputError(f"--images: found {which!r}, wanted A:B with 0 <= A < B <= {n}")
    return start, stop
