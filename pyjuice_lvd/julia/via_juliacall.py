"""The bridge `juliacall`: lets the juliacall package start Julia >= 1.10; the calls themselves do not go through it."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from pyjuice_lvd.errors import JuliaUnavailableError
from pyjuice_lvd.julia.find import Julia, Started, depot_trouble, juliacall_has_started
from pyjuice_lvd.julia.libjulia import evaluator


def start(julia: Julia, threads: int) -> Started:
    """Start Julia; where somebody has imported juliacall already, take that one."""
    # Without the first, a Julia of several threads crashes sooner or later, for its threads meet by a signal.
    settings = {"handle_signals": "yes", "threads": julia.pools(threads)}
    if juliacall_has_started():
        _warn_of_other_settings(settings)
    with _environment(settings), warnings.catch_warnings():
        # With signals handled by Julia, a PyTorch that was imported earlier does no harm.
        warnings.filterwarnings("ignore", message="torch was imported before juliacall")
        try:
            import juliacall
        except Exception as failure:
            raise JuliaUnavailableError(
                f"juliacall cannot start Julia: {failure}; juliacall and PythonCall.jl must have the same version; mend"
                f" that, or set LVD_JULIA_BRIDGE=libjulia{depot_trouble()}"
            ) from failure

    _outlive_julia(vars(juliacall))
    library = juliacall.CONFIG["lib"]

    def forget() -> None:
        # juliacall registers a function for Python's exit that takes this one out of the library.
        library.jl_atexit_hook = _nothing

    # Not by `juliacall.Main.seval`, for which Julia compiles more than a second in each process. The same library, with
    # functions of our own: juliacall keeps its own declarations. It must hold the GIL, as juliacall's does.
    return Started(evaluator(ctypes.PyDLL(library._name, handle=library._handle)), nullcontext, forget)


def _outlive_julia(values: dict[str, object]) -> None:
    """Keep what juliacall's module holds for ever.

    At Python's exit, after Julia's end, its module would let go of `Main` and others, and PythonCall frees each by a
    call to Julia. That waits for ever where a thread was compiling as Julia stopped it, or is not there after a fork.
    """
    for value in values.values():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _nothing(_: int) -> None:
    """Stand in for Julia's exit."""


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set what the user has not set, for the import alone: child processes choose for themselves."""
    ours = {f"PYTHON_JULIACALL_{name.upper()}": value for name, value in settings.items()}
    ours = {name: value for name, value in ours.items() if name not in os.environ}
    if paths := os.environ.get("JULIA_LOAD_PATH"):  # whatever it is for, juliacall needs its project and the library
        ours["JULIA_LOAD_PATH"] = os.pathsep.join([paths, "@", "@stdlib"])
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _warn_of_other_settings(settings: dict[str, str]) -> None:
    config = sys.modules["juliacall"].CONFIG
    others = {name: config[f"opt_{name}"] for name, value in settings.items() if config[f"opt_{name}"] != value}
    if others:
        found = ", ".join(f"{name}={value}" for name, value in others.items())
        want = ", ".join(f"{name}={settings[name]}" for name in others)
        warnings.warn(
            f"juliacall was imported earlier, with {found}: lvd-juice wants {want}; start Julia by"
            " pyjuice_lvd.julia.start() before that import",
            RuntimeWarning,
            stacklevel=4,
        )
