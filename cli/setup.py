"""`lvd-juice setup`: provide Julia."""

from __future__ import annotations

import json

import click

from pyjuice_lvd.julia.provide import provide


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def setup(as_json: bool) -> None:
    """Provide Julia: find it, or download it (through juliacall, else from Debian's archive into a private prefix)."""
    choice = provide(lambda line: click.echo(line, err=True))
    version = ".".join(map(str, choice.julia.version))
    if as_json:
        click.echo(
            json.dumps({"bridge": choice.bridge, "version": version, "executable": str(choice.julia.executable)})
        )
    else:
        click.echo(
            f"Julia {version} is ready, through {choice.bridge}: {choice.julia.executable} ({choice.julia.source})"
        )
