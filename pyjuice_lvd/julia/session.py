"""The one Julia of this process: its start, its calls, its threads and signals."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyjuice_lvd.errors import InputError, JuliaError, JuliaUnavailableError
from pyjuice_lvd.julia import libjulia, via_juliacall
from pyjuice_lvd.julia.find import Choice, choose, sources
from pyjuice_lvd.julia.values import Value, decode, encode, released

MAX_RESULTS = 16
_PAUSED = -2
_Entry = ctypes.CFUNCTYPE(  # unlike PYFUNCTYPE, it lets other Python threads run during a call
    ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(Value), ctypes.POINTER(Value), ctypes.c_int32
)

# Loads the package and gives the address of its C entry, or "!" and what went wrong. Its value is a String in any case.
# Julia keeps one precompiled LVDJuice in a depot, wherever its sources are. A depot inside the user's for each folder
# of sources keeps those of two checkouts, or of two installed versions, apart.
BOOT = """
let sources = raw"{sources}"
    try
        pushfirst!(LOAD_PATH, sources)
        pushfirst!(DEPOT_PATH, joinpath(first(DEPOT_PATH), "lvd-juice", string(hash(sources); base = 16)))
        try
            @eval Main using LVDJuice
        finally
            popfirst!(DEPOT_PATH)
        end
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


class _Session:
    """Julia started, and the thread and process that it lives in."""

    def __init__(self, entry: Callable[..., int], choice: Choice, folder: Path) -> None:
        self.entry = entry
        self.thread = threading.get_ident()
        self.process = os.getpid()
        self.busy = False
        version, threads, target, cpu, bindir, image, depot = self.call("Boundary.describe", ())
        paths = (choice.julia.executable, Path(bindir), Path(image), folder, Path(depot))
        self.info = Info(choice.bridge, choice.why, version, threads, target, cpu, *paths)

    def check(self) -> None:
        if os.getpid() != self.process:
            raise JuliaError("Julia does not survive a fork: start worker processes with the method 'spawn'")
        if threading.get_ident() != self.thread:
            raise JuliaError("Julia was called from another thread: call it only from the thread that started it")
        if self.busy:
            raise JuliaError("Julia was called from within a call")

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
            count = self.entry(name.encode(), len(arguments), values, results, MAX_RESULTS)
            while count == _PAUSED:  # a long call comes back now and then: here Ctrl-C is heard
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


# A Julia that was started but could not load LVDJuice stays: it cannot be started a second time.
_started: tuple[Choice, Callable[[str], str]] | None = None
_session: _Session | None = None


def start(*, threads: int | None = None, bridge: str | None = None) -> Info:
    """Start Julia in this process, once; later calls return what runs.

    threads: of Julia, else LVD_THREADS, else all cores. bridge: 'juliacall' or 'libjulia', else LVD_JULIA_BRIDGE, else
    the one that can run. Must be called from Python's main thread, and so must every `call`.

    Raises InputError if the arguments are invalid or contradict the Julia that runs, JuliaUnavailableError if none can.
    """
    global _session, _started
    if _session is not None:
        _session.check()
        return _agree(_session.info, threads, bridge)
    if threading.current_thread() is not threading.main_thread():
        raise JuliaError("Julia must be started from the main thread: call pyjuice_lvd.julia.start() there first")
    wanted, folder = _threads(threads), sources()
    if _started is None:
        choice = choose(bridge)
        try:
            _started = choice, _start_bridge(choice, wanted)
        finally:
            _take_back_signals()
    choice, evaluate = _started
    address = evaluate(BOOT.format(sources=folder))
    if address.startswith("!"):
        reason = " ".join(address[1:].split())
        raise JuliaUnavailableError(f"{choice.julia.executable} cannot load {folder / 'LVDJuice.jl'}: {reason}")
    _session = _Session(_Entry(int(address)), choice, folder)
    return _agree(_session.info, threads, bridge)


def _start_bridge(choice: Choice, threads: int) -> Callable[[str], str]:
    return via_juliacall.start(threads) if choice.bridge == "juliacall" else libjulia.start(choice.julia, threads)


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
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        count = int(str(found))
    except ValueError:
        count = 0
    if count < 1:
        raise InputError(f"{name}: found {found!r}, want a positive integer")
    return count


def _take_back_signals() -> None:
    """Julia blocks these in the thread that starts it and waits for them in one of its own: Ctrl-C would be lost."""
    ours = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
    for number in ours:
        handler = signal.getsignal(number)
        if handler is not None:  # None: not installed from Python, nothing to put back
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)


def call(name: str, *args: object) -> Any:
    """Call `LVDJuice.<name>(args...)` in Julia, and start Julia if need be.

    args: None, bool, int, float, str, Handle, or numpy arrays of bool, integers, float32 or float64 with up to 6
    dimensions. An array must be C-contiguous and is passed without a copy: a C-ordered (N, V) array is Julia's (V, N)
    Array, and Julia may write to it; Julia must not keep it beyond the call. Results come back as the same kinds, a
    Julia tuple as a tuple, a Julia Array as a numpy array on Julia's memory, which lives as long as any view of it;
    anything else as a Handle.

    Raises InputError for arguments that cannot cross and for Julia's ArgumentError, DimensionMismatch and DomainError;
    JuliaError, with Julia's message, for every other exception in Julia, and for calls from another thread.
    """
    if _session is None:
        start()
    assert _session is not None
    return _session.call(name, args)


def evaluate(code: str) -> Any:
    """Evaluate Julia code in Main, and start Julia if need be; returns the last expression's value as `call` does."""
    return call("Boundary.evaluate", code)


def info() -> Info | None:
    """Describe the Julia that runs in this process; None if none has been started."""
    return _session.info if _session is not None else None
