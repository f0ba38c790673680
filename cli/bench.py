"""`lvd-juice bench`: the engine's speed on this machine."""

from __future__ import annotations

import click

from pyjuice_lvd import julia
from pyjuice_lvd.bench import as_text, run_bench
from pyjuice_lvd.circuit.devices import CPU, NAMES, use_device
from pyjuice_lvd.files.formats import json_text
from pyjuice_lvd.progress import make_progress

from .options import json_option, quiet_option


@click.command()
@click.option("--quick", is_flag=True, help="Fewer repetitions and sizes.")
@click.option(
    "--device", type=click.Choice(NAMES), default=CPU, show_default=True, help="Where circuits run (docs/engine.md)."
)
@json_option
@quiet_option
def bench(quick: bool, device: str, as_json: bool, quiet: bool) -> None:
    """Measure the engine's speed on this machine, as ratios taken in one run.

    Each circuit that is timed is first held to an independent evaluation: status 1 if its answers differ. Then come the
    times of EM steps and likelihoods beside sgemm's, their growth with samples, edges and threads, memory and start-up,
    and cirkit's times on the same circuit where it is installed. All on one thread, but for the growth with threads.
    Of other devices than the CPU: times beside sgemm's on the CPU, and their growth with samples and edges.
    """
    julia.start(threads=1)
    with use_device(device):
        result = run_bench(quick=quick, progress=make_progress(quiet))
    click.echo(json_text(result) if as_json else as_text(result))
