"""Find a Julia on this machine, and choose the bridge that will run it. Nothing here starts Julia in this process."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pyjuice_lvd.errors import InputError, JuliaUnavailableError

BRIDGES = ("juliacall", "libjulia")
OLDEST = (1, 5)
OLDEST_FOR_JULIACALL = (1, 10)
REMEDY = "run `lvd-juice setup`, or install Julia >= 1.10 and put it on PATH"
PROBE_SECONDS = 120
SETTINGS = ("JULIA_LOAD_PATH", "JULIA_PROJECT", "JULIA_DEPOT_PATH", "JULIA_NUM_THREADS", "JULIA_BINDIR")

# One line per fact. The list of loaded libraries finds libjulia under whatever name this version gives it.
PROBE = """
import Libdl
println(VERSION.major, '.', VERSION.minor, '.', VERSION.patch)
println(Sys.BINDIR)
println(unsafe_string(Base.JLOptions().image_file))
foreach(println, Libdl.dllist())
"""


@dataclass(frozen=True)
class Julia:
    """A Julia executable that ran, and what it said about itself."""

    executable: Path
    source: str  # where it was found, in words
    version: tuple[int, int, int]
    bindir: Path
    sysimage: Path
    libjulia: Path
    libraries: tuple[Path, ...]  # all that it has loaded when it is up

    def pools(self, threads: int) -> str:
        """Say `threads` in a way that every version understands alike.

        1.12 keeps one more for interactive tasks, and the main thread in it, unless told otherwise.
        """
        return f"{threads},0" if self.version >= (1, 12) else str(threads)


@dataclass(frozen=True)
class Choice:
    """The bridge to take, the Julia that it runs, and why."""

    bridge: str
    why: str
    julia: Julia


@dataclass(frozen=True)
class Started:
    """A Julia that runs in this process, as its bridge gives it."""

    evaluate: Callable[[str], str]  # code whose value is a Julia String, and that never throws
    children: Callable[[], AbstractContextManager[None]]  # while Julia may start another of its kind
    forget: Callable[[], None]  # in a forked process, which must not run what Julia does at its exit


def prefix() -> Path:
    """Name the private prefix that `lvd-juice setup` fills, whether or not it is there."""
    data = os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()
    return Path(data) / "lvd-juice" / "julia"


def probe(executable: Path, source: str) -> Julia:
    """Run a Julia once and ask it who it is.

    Raises JuliaUnavailableError if it does not run, is older than 1.5 or has no shared libjulia to embed.
    """
    command = [str(executable), "--startup-file=no", "--history-file=no", "-O0", "--compile=min", "-e", PROBE]
    # What a user has set for programs in Julia must not make this one look broken.
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    try:
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise JuliaUnavailableError(f"{executable} ({source}) does not run: {failure}") from failure
    lines = ran.stdout.splitlines()
    if ran.returncode != 0:
        said = (ran.stderr.strip() or ran.stdout.strip() or f"exit status {ran.returncode}").splitlines()[0]
        raise JuliaUnavailableError(f"{executable} ({source}) is broken: {said}")
    try:
        major, minor, patch = map(int, lines[0].split("."))
        bindir, sysimage, *libraries = map(Path, lines[1:])
    except (IndexError, ValueError):
        said = repr(lines[0]) if lines else "nothing"
        raise JuliaUnavailableError(f"{executable} ({source}) is not a Julia: its version is {said}") from None
    if (major, minor) < OLDEST:
        raise JuliaUnavailableError(f"{executable} ({source}) is too old: found Julia {lines[0]}, want 1.5 or newer")
    libjulia = next((path for path in libraries if path.name.startswith("libjulia.")), None)
    if libjulia is None or not libjulia.exists():
        raise JuliaUnavailableError(f"{executable} ({source}) has no shared libjulia to embed")
    return Julia(executable, source, (major, minor, patch), bindir, sysimage, libjulia, tuple(libraries))


def find_for_libjulia() -> Julia:
    """Find the Julia to embed: LVD_JULIA and no other if it is set, else PATH's, else the private prefix's."""
    reasons = []
    for executable, source in _executables():
        try:
            return probe(executable, source)
        except JuliaUnavailableError as failure:
            reasons.append(str(failure))
    raise JuliaUnavailableError("; ".join(reasons) or "no Julia found by LVD_JULIA, on PATH or in the private prefix")


def _executables() -> Iterator[tuple[Path, str]]:
    if named := os.environ.get("LVD_JULIA"):
        yield Path(named), "LVD_JULIA"
        return
    if on_path := shutil.which("julia"):
        yield Path(on_path), "on PATH"
    private = prefix() / "bin" / "julia"
    if private.exists():
        yield private, "from `lvd-juice setup`"


def find_for_juliacall() -> Julia:
    """Find the Julia that juliacall would start without the network; raises JuliaUnavailableError if there is none."""
    if importlib.util.find_spec("juliacall") is None:
        raise JuliaUnavailableError("juliacall is not installed")
    executable = os.environ.get("PYTHON_JULIACALL_EXE")
    project = os.environ.get("PYTHON_JULIACALL_PROJECT")
    if executable and project:
        julia = probe(Path(shutil.which(executable) or executable), "PYTHON_JULIACALL_EXE")
    elif executable or project:
        raise JuliaUnavailableError("PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT: found only one of the two")
    else:
        julia = probe(_resolved_by_juliapkg(), "resolved by juliapkg")
    if julia.version < OLDEST_FOR_JULIACALL:
        found = ".".join(map(str, julia.version))
        raise JuliaUnavailableError(f"juliacall: {julia.executable} is Julia {found}, want 1.10 or newer")
    return julia


def _resolved_by_juliapkg() -> Path:
    import juliapkg  # type: ignore[import-untyped]
    import juliapkg.state  # type: ignore[import-untyped]

    juliapkg.offline(True)  # for this process: only `lvd-juice setup` may download, and it does so in another
    # A dry run leaves files behind where nothing was ever resolved, so look first.
    if not Path(juliapkg.state.STATE["meta"]).exists() or not juliapkg.resolve(dry_run=True):
        raise JuliaUnavailableError("juliacall has no Julia of its own yet")
    return Path(juliapkg.executable())


def choose(bridge: str | None = None) -> Choice:
    """Choose the bridge: the argument, else LVD_JULIA_BRIDGE, else juliacall where it has a Julia, else libjulia.

    Raises InputError for an unknown bridge, JuliaUnavailableError with the reasons and the remedy if no bridge can run.
    """
    wanted, by = (bridge, "bridge") if bridge is not None else (os.environ.get("LVD_JULIA_BRIDGE"), "LVD_JULIA_BRIDGE")
    if wanted and wanted not in BRIDGES:
        raise InputError(f"{by}: found {wanted!r}, want one of {', '.join(BRIDGES)}")
    # An embedded Julia cannot be had twice: where juliacall has started one, it is the one.
    started = juliacall_has_started()
    if started and wanted == "libjulia":
        raise InputError(f"{by}: found 'libjulia', but juliacall has already started Julia in this process")
    try:
        if wanted == "juliacall" or started:
            why = f"{by} asks for it" if wanted else "juliacall has already started Julia in this process"
            return Choice("juliacall", why, find_for_juliacall())
        if wanted == "libjulia":
            return Choice("libjulia", f"{by} asks for it", find_for_libjulia())
        if os.environ.get("LVD_JULIA"):
            return Choice("libjulia", "LVD_JULIA names a Julia to embed", find_for_libjulia())
        return _choose_freely()
    except JuliaUnavailableError as failure:
        raise JuliaUnavailableError(f"{failure}; {REMEDY}") from None


def _choose_freely() -> Choice:
    try:
        julia = find_for_juliacall()
        return Choice("juliacall", "it has a Julia of its own, 1.10 or newer", julia)
    except JuliaUnavailableError as failure:
        return Choice("libjulia", str(failure), find_for_libjulia())


def juliacall_has_started() -> bool:
    """Whether someone has imported juliacall in this process, and thereby started Julia."""
    module = sys.modules.get("juliacall")
    return module is not None and bool(module.CONFIG["inited"])


def sources() -> Path:
    """Locate the folder of LVDJuice.jl, in that of its project: inside the installed package, or a checkout's."""
    here = Path(__file__).resolve().parent
    for folder in (here / "LVDJuice" / "src", here.parents[1] / "julia" / "src"):
        if (folder / "LVDJuice.jl").exists():
            return folder
    raise JuliaUnavailableError(f"LVDJuice.jl is not in {here}: reinstall lvd-juice")


def depot_trouble() -> str:
    """Say what is wrong with the depot, where Julia keeps what it precompiles: the end of a line, or nothing."""
    depots = os.environ.get("JULIA_DEPOT_PATH", "~/.julia").split(os.pathsep)
    if not any(depots):
        return "; found no depot in JULIA_DEPOT_PATH: unset it, or name a folder"
    depot = Path(depots[0] or "~/.julia").expanduser()
    try:
        depot.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=depot).close()
    except OSError as failure:
        return f"; cannot write to {depot} ({failure.strerror}): set JULIA_DEPOT_PATH to a folder where you can"
    return ""
