"""Julia packages that only some users want, for `lvd-juice setup --with`: what they are and where they are installed.

juliacall's Julia has one project, juliapkg's, and they go into it; a project that the user named gets them by Julia's
package manager; a Julia that is embedded through libjulia has them in a shared environment of our own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyjuice_lvd.errors import InputError, JuliaUnavailableError
from pyjuice_lvd.julia.find import OLDEST_FOR_JULIACALL, Choice

ENVIRONMENT = "@lvd-juice-v#.#"
"""The environment of an embedded Julia, which puts its version for the signs. `session.BOOT` makes Julia look there."""


@dataclass(frozen=True)
class Extra:
    """A Julia package, and the versions of it that we work with, in Julia's own notation."""

    package: str
    uuid: str
    compat: str
    what: str


EXTRAS = {
    "cuda": Extra("CUDA", "052768ef-5323-5732-b1bb-66c8b64840ba", "5", "Julia on NVIDIA GPUs"),
    "juice": Extra("ProbabilisticCircuits", "2396afbe-23d7-11ea-1e05-f1aa98e17a44", "0.5", "Juice.jl"),
}

# Both ask the package manager in a process of its own; standard error is what a user is told of a failure.
BY_JULIAPKG = """
import json, sys, juliapkg
juliapkg.add([juliapkg.PkgSpec(name=n, uuid=u, version=v) for n, u, v in json.loads(sys.argv[1])])
juliapkg.resolve()
"""
BY_PKG = """
import Pkg
specs = [String.(split(text, '=')) for text in ARGS]
Pkg.add([Pkg.PackageSpec(name = name, uuid = uuid, version = compat) for (name, uuid, compat) in specs])
Pkg.precompile()
"""


def install(names: Sequence[str], choice: Choice, say: Callable[[str], None]) -> None:
    """Install extras for the Julia that was chosen; what is there already is left as it is. `say` gets a line a step.

    Raises InputError for an unknown name; JuliaUnavailableError, with all as it was, where a package cannot be had.
    """
    extras = chosen(names)
    version = ".".join(map(str, choice.julia.version))
    packages = " and ".join(f"{extra.package}.jl" for extra in extras)
    if choice.julia.version < OLDEST_FOR_JULIACALL:
        raise JuliaUnavailableError(
            f"{packages}: Julia {version} ({choice.julia.executable}) is too old, want 1.10 or newer: install one and"
            " put it on PATH"
        )
    say(f"installing {packages} for Julia {version}; the first time takes minutes")
    pins = [(extra.package, extra.uuid, extra.compat) for extra in extras]
    if choice.bridge == "juliacall" and not os.environ.get("PYTHON_JULIACALL_PROJECT"):
        with _kept_on_failure(_juliapkg_project()):
            _run([sys.executable, "-P", "-c", BY_JULIAPKG, json.dumps(pins)], packages, say)
    else:
        project = os.environ["PYTHON_JULIACALL_PROJECT"] if choice.bridge == "juliacall" else ENVIRONMENT
        julia = [str(choice.julia.executable), f"--project={project}", "--startup-file=no", "-e", BY_PKG]
        _run([*julia, *map("=".join, pins)], packages, say)


def chosen(names: Sequence[str]) -> list[Extra]:
    """Look extras up by name, each once; raises InputError for an unknown one."""
    for name in names:
        if name not in EXTRAS:
            raise InputError(f"--with: found {name!r}, want one of {', '.join(EXTRAS)}")
    return [EXTRAS[name] for name in dict.fromkeys(names)]


def _juliapkg_project() -> Path:
    import juliapkg.state  # type: ignore[import-untyped]

    return Path(juliapkg.state.STATE["project"])


@contextmanager
def _kept_on_failure(project: Path) -> Iterator[None]:
    """Put back a project's own files where the block fails: juliapkg rewrites them first, and then asks the network."""
    names = [path.relative_to(project) for path in (*project.glob("*.toml"), *project.glob("pyjuliapkg/*.json"))]
    with tempfile.TemporaryDirectory() as aside:
        for name in names:
            (Path(aside) / name).parent.mkdir(exist_ok=True)
            shutil.copy2(project / name, Path(aside) / name)  # with its time, by which juliapkg knows it again
        try:
            yield
        except BaseException:
            for path in (*project.glob("*.toml"), *project.glob("pyjuliapkg/*.json")):
                if path.relative_to(project) not in names:
                    path.unlink()
            for name in names:
                shutil.copy2(Path(aside) / name, project / name)
            raise


def _run(command: list[str], packages: str, say: Callable[[str], None]) -> None:
    """Run the package manager and hand on what it says; JuliaUnavailableError with its complaint if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "JULIA_LOAD_PATH"}
    complaint = "no reason given"
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        assert process.stdout is not None
        for line in map(str.rstrip, process.stdout):
            say(line)
            if line.startswith("ERROR: ") and complaint == "no reason given":
                complaint = line.removeprefix("ERROR: ").removesuffix(":")
    if process.returncode != 0:
        raise JuliaUnavailableError(
            f"{packages} cannot be installed: {complaint}; Julia's package server must be within reach, or a depot that"
            " JULIA_DEPOT_PATH names must have them (with JULIA_PKG_OFFLINE=true)"
        )
