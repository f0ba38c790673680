"""The bridge `libjulia`: embeds any Julia >= 1.5 in this process through ctypes."""

from __future__ import annotations

import atexit
import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyjuice_lvd.errors import InputError, JuliaUnavailableError
from pyjuice_lvd.julia.find import Julia, Started

CPU_TARGET = "native"
"""What code is generated for: a generic build of Julia runs SSE2 code unless told so. Tests have others."""


def start(julia: Julia, threads: int) -> Started:
    """Start Julia."""
    optimization = _optimization()
    library = _load_libjulia(julia)
    options = (
        str(julia.executable),
        "--startup-file=no",
        f"--threads={julia.pools(threads)}",
        f"--cpu-target={CPU_TARGET}",
        f"-O{optimization}",
    )
    argv = (ctypes.c_char_p * len(options))(*map(os.fsencode, options))
    argc, pointer = ctypes.c_int(len(options)), ctypes.cast(argv, ctypes.POINTER(ctypes.c_char_p))
    library.jl_parse_opts.restype = None
    library.jl_parse_opts(ctypes.byref(argc), ctypes.byref(pointer))
    # Since 1.9 the name has no suffix; older ones export only the one with it.
    init = getattr(library, "jl_init_with_image", None) or library.jl_init_with_image__threading
    init.argtypes, init.restype = [ctypes.c_char_p, ctypes.c_char_p], None
    init(os.fsencode(julia.bindir), os.fsencode(julia.sysimage))
    library.jl_atexit_hook.argtypes, library.jl_atexit_hook.restype = [ctypes.c_int], None

    def leave() -> None:
        library.jl_atexit_hook(0)  # Julia flushes its streams and runs its finalizers

    atexit.register(leave)

    return Started(evaluator(library), lambda: _libraries_for_children(julia), lambda: atexit.unregister(leave))


def _optimization() -> str:
    """Say how far Julia optimises what it compiles: LVD_JULIA_OPTIMIZE, else as far as it can."""
    found = os.environ.get("LVD_JULIA_OPTIMIZE") or "3"
    if found not in {"0", "1", "2", "3"}:
        raise InputError(f"LVD_JULIA_OPTIMIZE: found {found!r}, want 0, 1, 2 or 3")
    return found


def evaluator(library: ctypes.CDLL) -> Callable[[str], str]:
    """Evaluate code by a libjulia that runs; `Started` says which code."""
    library.jl_eval_string.argtypes, library.jl_eval_string.restype = [ctypes.c_char_p], ctypes.c_void_p
    library.jl_string_ptr.argtypes, library.jl_string_ptr.restype = [ctypes.c_void_p], ctypes.c_char_p

    def evaluate(code: str) -> str:
        answer: bytes = library.jl_string_ptr(library.jl_eval_string(code.encode()))
        return answer.decode()

    return evaluate


def _load_libjulia(julia: Julia) -> ctypes.CDLL:
    """Load libjulia, and of what lies beside it only what the system lacks."""
    folder = julia.libjulia.parent
    # libunwind has functions of the same names as the C++ runtime's (`_Unwind_Resume`). Whoever is loaded first gives
    # them to every extension that is imported later, and with libunwind's a C++ exception there aborts the process.
    with suppress(OSError):  # no such library: no C++ runtime to protect
        ctypes.CDLL("libgcc_s.so.1", mode=ctypes.RTLD_GLOBAL)
    # With a newer libunwind than the one it was built with, every exception in Debian's Julia is a crash. The library
    # that is loaded first serves all who ask for its name.
    unwind = folder / "libunwind.so.8"
    if unwind.exists():
        _load(unwind, folder)
    library = _load(julia.libjulia, folder)
    for path in julia.libraries:
        if path.parent == folder and path != julia.libjulia:
            # Needed by what Julia opens later (BLAS needs libgfortran), when nobody can tell the loader where to look.
            # Not global, or PyTorch, imported later, would take Julia's BLAS for its own.
            try:
                ctypes.CDLL(path.name)
            except OSError:
                _load(path, folder, ctypes.RTLD_LOCAL)
    return library


def _load(path: Path, folder: Path, mode: int = ctypes.RTLD_GLOBAL) -> ctypes.CDLL:
    """Load a library after those of its needs that only `folder` has; the loader's complaint names them one by one."""
    asked: set[str] = set()
    while True:
        try:
            return ctypes.CDLL(str(path), mode=mode)
        except OSError as failure:
            missing = str(failure).partition(":")[0]
            if missing in asked or not (folder / missing).exists() or missing == str(path):
                raise JuliaUnavailableError(f"{path} cannot be loaded: {failure}") from failure
            asked.add(missing)
            _load(folder / missing, folder, mode)


@contextmanager
def _libraries_for_children(julia: Julia) -> Iterator[None]:
    """Julia precompiles packages in a child process, which must find the same libraries."""
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(julia.libjulia.parent), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["LD_LIBRARY_PATH"]
        else:
            os.environ["LD_LIBRARY_PATH"] = before
