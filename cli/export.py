"""`lvd-juice export`: a run's circuits as files that Juice.jl reads."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.files import circuit_suffix
from pyjuice_lvd.data.color import ColorTransform
from pyjuice_lvd.data.patches import position_grid
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.atomic import check_writable
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.models.written_out import num_params_written_out, written_out
from pyjuice_lvd.progress import make_progress
from pyjuice_lvd.settings import BASELINES, Settings

from .models import load_model
from .options import emit, json_option, quiet_option

_PARTS = ("joint", "patches", "prior")

_MAX_PARAMS = 100_000_000
"""About 1.1 GB as .jpc, and as much memory to write it."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True,
    metavar="MODEL.jpc", help="The file to write: .jpc, .jpc.gz or .safetensors.",
)  # fmt: skip
@click.option(
    "--part", type=click.Choice(_PARTS), default=_PARTS[0], show_default=True,
    help="p(x) as one circuit; p(x|z) of patches, MODEL-0000.jpc, ... for the outer clusters; or p(z) of positions.",
)  # fmt: skip
@click.option(
    "--max-params", type=click.IntRange(min=1), default=_MAX_PARAMS, show_default=True,
    help="Largest number of parameters of a joint circuit.",
)  # fmt: skip
@json_option
@quiet_option
def export(run: Path, output: Path, part: str, max_params: int, as_json: bool, quiet: bool) -> None:
    """Write the circuit of RUN to a file that Juice.jl, and Circuit.load, read.

    The model of lvd-pg and lvd is written out as one circuit over all variables of an image, with copies of the patch
    circuits for each position. The file's header says which variable is which (docs/export.md).
    """
    started = time.monotonic()
    suffix = circuit_suffix(output)
    directory = RunDirectory.open_existing(run)
    settings = Settings.from_dict(directory.settings)
    method = settings.method
    if method in BASELINES and part != "joint":
        raise InputError(f"--part: found {part!r} for a run of {method}, which has one circuit; wanted 'joint'")
    check_writable(output)
    model = load_model(directory, settings)
    circuits = [_whole(model)] if isinstance(model, CircuitModel) else _part(model, part, run, max_params)
    stem = output.name.removesuffix(suffix)
    numbered = [output.with_name(f"{stem}-{index:04d}{suffix}") for index in range(len(circuits))]
    files = numbered if part == "patches" else [output]
    progress = make_progress(quiet)
    for file, (circuit, about) in zip(files, circuits, strict=True):
        circuit.save(file, about=about, progress=progress)
    emit(
        {
            "method": method,
            "part": part,
            "files": [str(file) for file in files],
            "bytes": sum(file.stat().st_size for file in files),
            "variables": circuits[0][0].num_vars,
            "heads": sum(circuit.num_heads for circuit, _ in circuits),
            "units": sum(circuit.num_nodes for circuit, _ in circuits),
            "edges": sum(circuit.num_edges for circuit, _ in circuits),
            "params": sum(circuit.num_params for circuit, _ in circuits),
            "seconds": time.monotonic() - started,
        },
        as_json,
    )


def _whole(model: CircuitModel) -> tuple[Circuit, str]:
    """Give the circuit of a baseline, and what it is, for the header of its file."""
    if model.image_shape is None or model.color is None:
        about = f"p(x) of rows of a table\nvariable 1 + column, values 0..{model.num_cats - 1}"
    else:
        about = f"p(x) of images\n{_variables(model.image_shape, model.color)}"
    return model.circuit, about


def _part(model: JointModel, part: str, run: Path, max_params: int) -> list[tuple[Circuit, str]]:
    """Give the circuits of a part of the joint model, and what each is, for the header of its file."""
    (height, width, channels), (ph, pw) = model.image_shape, model.patch
    if part == "prior":
        rows, columns = position_grid(height, width, model.patch)
        about = (
            f"p(z) of a grid of {rows}x{columns} positions\nvariable 1 + row * {columns} + column, "
            f"values 0..{model.num_latent_values - 1}: the heads of its patch circuits, one circuit after another"
        )
        return [(model.prior, about)]
    if part == "patches":
        variables = _variables((ph, pw, channels), model.color)
        return [
            (circuit, f"p(x | z) {of}, a head for each of z = {values.start}..{values.stop - 1}\n{variables}")
            for positions, circuits in model.groups()
            for of in ("of patches" if model.tied else f"of the patch at position {positions.start}",)
            for circuit, values in circuits
        ]
    params = num_params_written_out(model)
    if params > max_params:
        raise InputError(
            f"{run}: the joint circuit has {params:,} parameters, wanted at most {max_params:,}; raise --max-params, "
            "or write p(x|z) and p(z) apart: --part patches, --part prior"
        )
    return [(written_out(model), f"p(x) of images\n{_variables(model.image_shape, model.color)}")]


def _variables(shape: tuple[int, int, int], color: ColorTransform) -> str:
    height, width, channels = shape
    loss = "lossless" if color.lossless else "LOSSY"
    return (
        f"{height}x{width}x{channels} (height, width, channels), colours {color.name} ({loss})\n"
        f"variable 1 + (row * {width} + column) * {channels} + channel, values 0..255"
    )
