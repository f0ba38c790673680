"""`lvd-juice setup`: provide Julia, and Julia packages that only some want."""

from __future__ import annotations

import json

import click

from pyjuice_lvd.julia.extras import EXTRAS, chosen, install
from pyjuice_lvd.julia.provide import provide

WITH = ", ".join(f"{name} ({extra.package}.jl: {extra.what})" for name, extra in EXTRAS.items())


@click.command()
@click.option("--with", "extras", multiple=True, metavar="NAME", help=f"Install this for that Julia, too: {WITH}.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def setup(extras: tuple[str, ...], as_json: bool) -> None:
    """Provide Julia: find it, or download it (through juliacall, else from Debian's archive into a private prefix)."""
    chosen(extras)  # an unknown name is told before any slow work
    choice = provide(_say)
    if extras:
        install(extras, choice, _say)
    version = ".".join(map(str, choice.julia.version))
    if as_json:
        found = {"bridge": choice.bridge, "version": version, "executable": str(choice.julia.executable)}
        click.echo(json.dumps(found | ({"with": list(dict.fromkeys(extras))} if extras else {})))
    else:
        click.echo(
            f"Julia {version} is ready, through {choice.bridge}: {choice.julia.executable} ({choice.julia.source})"
        )


def _say(line: str) -> None:
    click.echo(line, err=True)
