"""The one Julia of this process: its start, its calls, its threads and signals."""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyjuice_lvd.errors import InputError, JuliaError, JuliaUnavailableError
from pyjuice_lvd.julia import libjulia, signals, via_juliacall
from pyjuice_lvd.julia.extras import ENVIRONMENT
from pyjuice_lvd.julia.find import Choice, Started, choose, depot_trouble, juliacall_has_started, sources
from pyjuice_lvd.julia.values import Value, decode, encode, released
from pyjuice_lvd.machine import machine_cores

MAX_RESULTS = 16
_PAUSED = -2
_Entry = ctypes.CFUNCTYPE(  # unlike PYFUNCTYPE, it lets other Python threads run during a call
    ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(Value), ctypes.POINTER(Value), ctypes.c_int32
)

# Loads the package and gives the address of its C entry, or "!" and what went wrong. Its value is a String in any case.
# The package is the project of its folder, first in the load path: Julia finds its extensions there, and others' in it.
# Julia keeps one precompiled LVDJuice in a depot, wherever its sources are. A depot inside the user's for each folder
# of sources keeps those of two checkouts, or of two installed versions, apart; extensions look for it there later.
# From Julia 1.9 on it holds machine code, and a process takes code that was compiled by a higher level of optimisation
# than its own as soon as there is some: sums would be rounded otherwise than the day before. Each level has its own.
BOOT = """
let package = String(UInt8{package})
    try
        package in LOAD_PATH || pushfirst!(LOAD_PATH, package)
        foreach(entry -> entry in LOAD_PATH || push!(LOAD_PATH, entry), ("{extras}", "@stdlib"))
        level = VERSION < v"1.9" ? "" : string("-O", Base.JLOptions().opt_level)
        depot = joinpath(first(DEPOT_PATH), "lvd-juice", string(hash(package); base = 16) * level)
        pushfirst!(DEPOT_PATH, depot)
        try
            @eval Main using LVDJuice
        finally
            popfirst!(DEPOT_PATH)
        end
        insert!(DEPOT_PATH, 2, depot)
        string(Base.invokelatest(() -> Main.LVDJuice.Boundary.open_door()))  # the name is younger than this expression
    catch e
        string("!", sprint(showerror, e))
    end
end
"""


@dataclass(frozen=True)
class Info:
    """The Julia that runs: which bridge and why, version, threads, CPU and paths."""

    bridge: str
    why: str
    version: str
    threads: int
    cpu_target: str  # what code is generated for
    cpu_name: str  # what LLVM calls this CPU; 'generic' if it is newer than this LLVM
    executable: Path
    bindir: Path
    sysimage: Path
    sources: Path
    depot: Path


class _Running:
    """A Julia that runs in this process, whether or not it has loaded LVDJuice: it cannot be started a second time."""

    def __init__(self, choice: Choice, threads: int) -> None:
        self.choice = choice
        self.process = os.getpid()
        self.ended = False
        by_others = juliacall_has_started()
        self.signals = signals.Ours()
        with signals.kept(), self.signals.waiting(), signals.heard():
            bridge = via_juliacall if choice.bridge == "juliacall" else libjulia
            self.started: Started = bridge.start(choice.julia, threads)
        if by_others:
            signals.take_back()
        self.signals.taken()
        atexit.register(self._end)  # just before Julia's own end: the last to be registered is the first to run
        os.register_at_fork(after_in_child=self._forked)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Let Julia load packages: it may precompile them in other processes."""
        self.signals.stand()
        with signals.kept(), self.signals.waiting(), self.started.children():
            yield

    def _end(self) -> None:
        self.signals.stand()
        self.ended = True

    def _forked(self) -> None:
        """Make the child forget Julia, whose other threads are not there: at its exit Julia would wait for them."""
        self.started.forget()
        atexit.unregister(self._end)
        self.signals.give_back()


class _Session:
    """LVDJuice loaded, and the thread that it is called from."""

    def __init__(self, entry: Callable[..., int], running: _Running, folder: Path) -> None:
        self.entry = entry
        self.running = running
        self.thread = threading.get_ident()
        self.busy = False
        version, threads, target, cpu, bindir, image, depot = self.call("Boundary.describe", ())
        choice = running.choice
        paths = (choice.julia.executable, Path(bindir), Path(image), folder, Path(depot))
        self.info = Info(choice.bridge, choice.why, version, threads, target, cpu, *paths)

    def check(self) -> None:
        if os.getpid() != self.running.process:
            raise JuliaError("Julia does not survive a fork: start worker processes with the method 'spawn'")
        if threading.get_ident() != self.thread:
            raise JuliaError("Julia was called from another thread: call it only from the thread that started it")
        if self.busy:
            raise JuliaError("Julia was called from within a call")
        if self.running.ended:
            raise JuliaError("Julia was called after its end, which comes with Python's exit")

    def call(self, name: str, arguments: tuple[object, ...]) -> Any:
        self.check()
        if released and name != "Boundary.release":
            self.call("Boundary.release", (np.array([released.popleft() for _ in range(len(released))]),))
        values = (Value * len(arguments))()
        alive = [
            encode(v, x, f"{name}: argument {i}") for i, (v, x) in enumerate(zip(values, arguments, strict=True), 1)
        ]
        results = (Value * MAX_RESULTS)()
        try:
            self.busy = True
            with self.running.signals.waiting():
                self.running.signals.stand()
                count = self.entry(name.encode(), len(arguments), values, results, MAX_RESULTS)
                while count == _PAUSED:  # a long call comes back now and then: here Ctrl-C is heard
                    self.running.signals.stand()
                    count = self.entry(b"", 0, values, results, MAX_RESULTS)
            del alive
            if count < 0:
                return decode(results[0], arguments)
            return tuple(decode(results[i], arguments) for i in range(count))
        except BaseException:
            # Ctrl-C between the call and here must not leak what Julia holds for us. Releasing twice does no harm.
            released.extend(result.owner for result in results if result.owner)
            raise
        finally:
            self.busy = False


_running: _Running | None = None
_session: _Session | None = None


def start(*, threads: int | None = None, bridge: str | None = None) -> Info:
    """Start Julia in this process, once; later calls return what runs.

    threads: of Julia, else LVD_THREADS, else all cores. bridge: 'juliacall' or 'libjulia', else LVD_JULIA_BRIDGE, else
    the one that can run. Must be called from Python's main thread, and so must every `call`.

    Raises InputError if the arguments are invalid or contradict the Julia that runs, JuliaUnavailableError if none can.
    """
    global _session, _running
    if _session is not None:
        _session.check()
        return _agree(_session.info, threads, bridge)
    if threading.current_thread() is not threading.main_thread():
        raise JuliaError("Julia must be started from the main thread: call pyjuice_lvd.julia.start() there first")
    wanted, folder = _threads(threads), sources()
    if _running is None:
        _running = _Running(choose(bridge), wanted)
    with _running.loading():
        address = _running.started.evaluate(BOOT.format(package=list(os.fsencode(folder.parent)), extras=ENVIRONMENT))
    if address.startswith("!"):
        executable, reason = _running.choice.julia.executable, " ".join(address[1:].split())
        raise JuliaUnavailableError(f"{executable} cannot load {folder / 'LVDJuice.jl'}: {reason}{depot_trouble()}")
    _session = _Session(_Entry(int(address)), _running, folder)
    if threads is not None and threads > (most := _session.info.threads):
        raise InputError(
            f"threads: found {threads}, wanted at most {most}: Julia starts one for each core, and no more"
        )
    return _agree(_session.info, threads, bridge)


def _agree(info: Info, threads: int | None, bridge: str | None) -> Info:
    if threads is not None and threads != info.threads:
        raise InputError(
            f"threads: found {threads}, but Julia runs with {info.threads}, and reads it once as it starts"
        )
    if bridge is not None and bridge != info.bridge:
        raise InputError(f"bridge: found {bridge!r}, but Julia runs through {info.bridge!r} and starts once")
    return info


def _threads(threads: int | None) -> int:
    found, name = (threads, "threads") if threads is not None else (os.environ.get("LVD_THREADS"), "LVD_THREADS")
    if not found and threads is None:
        return machine_cores()
    try:
        count = int(str(found))
    except ValueError:
        count = 0
    if count < 1:
        raise InputError(f"{name}: found {found!r}, want a positive integer")
    return count


def call(name: str, *args: object) -> Any:
    """Call `LVDJuice.<name>(args...)` in Julia, and start Julia if need be.

    args: None, bool, int, float, str, Handle, or numpy arrays of bool, integers, float32 or float64 with up to 6
    dimensions. An array must be C-contiguous and is passed without a copy: a C-ordered (N, V) array is Julia's (V, N)
    Array. Julia may write to it if it is writable. It is lent for the call, and on for as long as a Handle that the
    call returns lives. Results come back as the same kinds, a Julia tuple as a tuple, a Julia Array as a numpy array on
    Julia's memory, which lives as long as any view of it; anything else as a Handle.

    Raises InputError for arguments that cannot cross and for Julia's ArgumentError, DimensionMismatch and DomainError;
    JuliaError, with Julia's message, for every other exception in Julia, and for calls from another thread.
    """
    return _open().call(name, args)


def evaluate(code: str) -> Any:
    """Evaluate Julia code in Main, and start Julia if need be; returns the last expression's value as `call` does."""
    session = _open()
    with session.running.loading():
        return session.call("Boundary.evaluate", (code,))


def load_extension(name: str) -> None:
    """Load an extension of LVDJuice, `julia/ext/<name>.jl`, and the Julia packages that it is for.

    Raises InputError if there is no such extension, or a package that it is for is not installed.
    """
    session = _open()
    with session.running.loading():
        session.call("load_extension", (name,))


def info() -> Info | None:
    """Describe the Julia that runs in this process; None if none has been started."""
    return _session.info if _session is not None else None


def _open() -> _Session:
    if _session is None:
        start()
    assert _session is not None
    return _session
