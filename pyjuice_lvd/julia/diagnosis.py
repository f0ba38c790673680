"""What Julia there is, which bridge takes it, and what is missing: for `lvd-juice doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyjuice_lvd.errors import LVDJuiceError
from pyjuice_lvd.julia.extras import EXTRAS, Extra
from pyjuice_lvd.julia.find import Julia, find_for_juliacall, find_for_libjulia, prefix
from pyjuice_lvd.julia.session import Info, call, start


@dataclass(frozen=True)
class Diagnosis:
    """`info` of the Julia that was started, or the `problem` that kept it from starting."""

    bridges: dict[str, str]  # for each bridge: the Julia that it can run, or why it cannot
    info: Info | None
    problem: str | None
    prefix: Path
    prefix_filled: bool
    extras: dict[str, str | None]  # by the name that `setup --with` takes: the version that is installed, if any


def diagnose() -> Diagnosis:
    """Look for Julia in every way, then start it as a program would. Never raises for a Julia that cannot run."""
    bridges = {}
    for bridge, find in (("juliacall", find_for_juliacall), ("libjulia", find_for_libjulia)):
        try:
            bridges[bridge] = _describe(find())
        except LVDJuiceError as failure:
            bridges[bridge] = f"no: {failure}"
    info, problem = None, None
    try:
        info = start()
    except LVDJuiceError as failure:
        problem = str(failure)
    extras = {name: _version(extra) if info else None for name, extra in EXTRAS.items()}
    return Diagnosis(bridges, info, problem, prefix(), (prefix() / "bin" / "julia").exists(), extras)


def _version(extra: Extra) -> str | None:
    return call("installed_version", extra.package, extra.uuid) or None


def _describe(julia: Julia) -> str:
    return f"can run Julia {'.'.join(map(str, julia.version))}, {julia.executable} ({julia.source})"
