"""What the subcommands share: options with the same name and meaning everywhere, and the printing of a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from pyjuice_lvd.evaluate.merit import protocol_text
from pyjuice_lvd.files.formats import json_text
from pyjuice_lvd.report.tables import facts, figure, lay_out, text
from pyjuice_lvd.settings import DEVICES


class _Given(click.types.StringParamType):
    """A text that is there: an empty one is what a variable of a shell is that was never set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value, param, ctx) or self.fail("found '', wanted a name", param, ctx)


class _GivenPath(click.Path):
    """A path that is there: an empty one would be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value, param, ctx) if str(value) else self.fail("found '', wanted a path", param, ctx)


GIVEN = _Given()
PATH = _GivenPath(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=0), help="CPU threads [default: LVD_THREADS, else all]."
)
device_option = click.option(
    "--device", type=click.Choice(DEVICES), help="Where teacher and circuits run; auto: a GPU for the teacher alone."
)
seed_option = click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of everything random.")


def emit(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a command's result on stdout: one JSON object, or a line for each figure."""
    shown = json_text(result) if as_json else lay_out(facts(_rows(result)))
    click.echo(shown.encode(errors="backslashreplace").decode())  # a file's name may be no text


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Write a result for people. A bpd stands beside its protocol and its standard error, never alone."""
    protocol = result.get("protocol")
    for name, value in result.items():
        if name == "protocol" or name.startswith("std_error_"):
            continue
        if not name.startswith("bpd"):
            yield name, text(value)
            continue
        yield (
            name,
            figure(value, 4, result.get(f"std_error_{name}"))
            + ("" if protocol is None else f"  ({protocol_text(protocol)})"),
        )
