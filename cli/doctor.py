"""`lvd-juice doctor`: what this machine offers, which bridge to Julia is taken and why, and what is missing."""

from __future__ import annotations

import json
import platform
import subprocess
from typing import Any

import click

import pyjuice_lvd.julia as julia
from pyjuice_lvd.julia.extras import EXTRAS
from pyjuice_lvd.report.tables import facts, lay_out
from pyjuice_lvd.versions import version_of


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Say what is found, which bridge runs Julia and why, and what is missing; status 1 if Julia cannot run."""
    found = examine()
    click.echo(json.dumps(found) if as_json else lay_out(facts(_rows(found))))
    if not found["usable"]:
        context.exit(1)


def examine() -> dict[str, Any]:
    """All findings, in the form that `--json` prints; starts Julia if it can."""
    diagnosis = julia.diagnose()
    info = diagnosis.info
    started = None
    if info is not None:
        started = {name: value if isinstance(value, int) else str(value) for name, value in vars(info).items()}
    return {
        "usable": info is not None,
        "problem": diagnosis.problem,
        "bridges": diagnosis.bridges,
        "julia": started,
        "prefix": str(diagnosis.prefix),
        "prefix_filled": diagnosis.prefix_filled,
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in ("lvd-juice", "torch", "numpy", "scikit-learn", "juliacall")},
        "julia_packages": {EXTRAS[name].package: version for name, version in diagnosis.extras.items()},
        "torch_devices": _torch_devices(),
        "gpus": _gpus(),
    }


def _torch_devices() -> list[str]:
    import torch  # seconds, and only this command's own business

    names = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ["cpu", *names]


def _gpus() -> list[str]:
    """Ask the NVIDIA driver what there is: name, driver's version and memory of each; none where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in ran.stdout.splitlines() if line.strip()] if ran.returncode == 0 else []


def _packages(found: dict[str, Any]) -> str:
    """Say of each Julia package that only some want which version there is, or how to get it."""
    versions = found["julia_packages"]
    return ", ".join(
        f"{extra.package}.jl {versions[extra.package] or f'missing (lvd-juice setup --with {name})'}"
        for name, extra in EXTRAS.items()
    )


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(f"bridge {name}", what) for name, what in found["bridges"].items()]
    if found["julia"] is not None:
        started = found["julia"]
        rows += [
            ("chosen", f"{started['bridge']}: {started['why']}"),
            ("Julia", f"{started['version']}, {started['executable']}"),
            ("threads", f"{started['threads']} (LVD_THREADS or --threads sets them)"),
            ("CPU target", f"{started['cpu_target']} ({started['cpu_name']})"),
            ("system image", started["sysimage"]),
            ("LVDJuice", started["sources"]),
            ("depot", started["depot"]),
        ]
    return [
        *rows,
        ("private prefix", f"{found['prefix']} ({'filled' if found['prefix_filled'] else 'empty'})"),
        ("Python", found["python"]),
        ("packages", ", ".join(f"{name} {number or 'missing'}" for name, number in found["packages"].items())),
        *([("Julia packages", _packages(found))] if found["julia"] is not None else []),
        ("torch devices", ", ".join(found["torch_devices"])),
        ("GPUs", "; ".join(found["gpus"]) or "none that an NVIDIA driver knows"),
        ("missing", found["problem"] or "nothing"),
    ]
