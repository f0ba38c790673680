"""What the subcommands share: options with the same name and meaning everywhere, and the printing of a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from pyjuice_lvd.evaluate.merit import protocol_text
from pyjuice_lvd.files.formats import json_text
from pyjuice_lvd.settings import DEVICES

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=0), help="CPU threads [default: LVD_THREADS, else all]."
)
device_option = click.option("--device", type=click.Choice(DEVICES), help="Where the teacher runs.")
seed_option = click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of everything random.")


def emit(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a command's result on stdout: one JSON object, or a line for each figure."""
    click.echo(json_text(result) if as_json else _summary(result))


def _summary(result: Mapping[str, Any]) -> str:
    """Lay out a result for people. A bpd stands beside its protocol and its standard error, never alone."""
    protocol = result.get("protocol")
    rows: list[tuple[str, str]] = []
    for name, value in result.items():
        text = _text(value)
        if name in ("protocol", "std_error_bpd"):
            continue
        if name.startswith("bpd"):
            if name == "bpd" and result.get("std_error_bpd") is not None:
                text += f" ± {_text(result['std_error_bpd'])}"
            if protocol is not None:
                text += f"  ({protocol_text(protocol)})"
        rows.append((name, text))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4f}" if isinstance(value, float) else str(value)
