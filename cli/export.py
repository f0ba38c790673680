"""`lvd-juice export`: a run's circuits as files that Juice.jl reads."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyjuice_lvd.circuit.files import circuit_suffix
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.atomic import check_writable
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.windows import WindowModel
from pyjuice_lvd.progress import make_progress

from .models import Run
from .options import PATH, emit, json_option, quiet_option

_PARTS = JointModel.parts + WindowModel.parts  # other kinds of model have some of these

_MAX_PARAMS = 100_000_000
"""About 1.1 GB as .jpc, and as much memory to write it."""


@click.command()
@click.argument("run", type=PATH)
@click.option(
    "-o", "--output", type=PATH, required=True,
    metavar="MODEL.jpc", help="The file to write: .jpc, .jpc.gz or .safetensors.",
)  # fmt: skip
@click.option(
    "--part", type=click.Choice(_PARTS), default=_PARTS[0], show_default=True,
    help="p(x) as one circuit; p(x|z) of patches, MODEL-0000.jpc, ... for the outer clusters; p(z) of positions; "
    "p(window) of method windows.",
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
    check_writable(output)
    opened = Run.open(run)
    if part not in opened.kind.parts:
        wanted = " or ".join(map(repr, opened.kind.parts))
        raise InputError(f"--part: found {part!r} for a run of {opened.method}, wanted {wanted}")
    model = opened.load()
    if part == _PARTS[0] and (params := model.num_params_written_out) > max_params:
        apart = ", or write p(x|z) and p(z) apart: --part patches, --part prior" if len(opened.kind.parts) > 1 else ""
        raise InputError(
            f"{run}: the joint circuit has {params:,} parameters, wanted at most {max_params:,}; "
            f"raise --max-params{apart}"
        )
    circuits = model.exported(part)
    if suffix != ".safetensors" and any(circuit.has_own_leaves for circuit, _ in circuits):
        raise InputError(
            f"{output}: found a model with logistic inputs, of which Juice.jl has none; wanted .safetensors, "
            "which Circuit.load reads"
        )
    stem = output.name.removesuffix(suffix)
    numbered = [output.with_name(f"{stem}-{index:04d}{suffix}") for index in range(len(circuits))]
    files = numbered if part == "patches" else [output]
    progress = make_progress(quiet)
    for file, (circuit, about) in zip(files, circuits, strict=True):
        circuit.save(file, about=about, progress=progress)
    emit(
        {
            "method": opened.method,
            "part": part,
            "files": [str(file) for file in files],
            "bytes": sum(file.stat().st_size for file in files),
            "variables": circuits[0].circuit.num_vars,
            "heads": sum(circuit.num_heads for circuit, _ in circuits),
            "units": sum(circuit.num_nodes for circuit, _ in circuits),
            "edges": sum(circuit.num_edges for circuit, _ in circuits),
            "params": sum(circuit.num_params for circuit, _ in circuits),
            "seconds": time.monotonic() - started,
        },
        as_json,
    )
