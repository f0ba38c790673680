"""Where circuits are evaluated and learned: on the CPU, or on arrays of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from pyjuice_lvd import julia
from pyjuice_lvd.checks import one_of
from pyjuice_lvd.errors import InputError, JuliaError

CPU = "cpu"
NAMES = (CPU, "cuda", "array")
"""Names of devices: "array" is the device engine on Julia's own arrays, so on the CPU, to try what a GPU would do."""
CIRCUIT_DEVICES = ("auto", *NAMES)

_CURRENT: ContextVar[str] = ContextVar("device", default=CPU)


def current() -> str:
    """Name the device in use: "cpu", "cuda" or "array"."""
    return _CURRENT.get()


@contextmanager
def use_device(device: str) -> Iterator[str]:
    """Within the block, evaluate and learn circuits on a device.

    Likelihoods, EM, flows and what goes by them (prune, grow) run there, and the counts of pairs of variables behind
    Chow-Liu trees; sampling, marginals, max-product on the CPU.
    Gives the name of the device; "auto" is the one of the block around this one, or "cpu".

    Parameters
    ----------
    device : "auto", "cpu", "cuda" or "array"
        "array": the code of GPUs on Julia's own arrays, on the CPU.

    Raises
    ------
    InputError
        Where the device is not there: without CUDA.jl (`lvd-juice setup --with cuda`), or a GPU that it can use.

    """
    token = _CURRENT.set(usable(device))
    try:
        yield _CURRENT.get()
    finally:
        _CURRENT.reset(token)


def usable(device: str) -> str:
    """Name the device that `device` stands for, once it is known to work."""
    one_of("device", device, CIRCUIT_DEVICES)
    if device == "auto":
        return current()
    if device == CPU:
        return CPU
    _backend(device)
    return device


def backend() -> tuple[julia.Handle, ...]:
    """Give the last argument of jobs that run on the device in use: Julia's backend, or none on the CPU."""
    return () if current() == CPU else (_backend(current()),)


@cache
def _backend(device: str) -> julia.Handle:
    if device == "cuda":
        _load_cuda()
    handle: julia.Handle = julia.call("backend", device)
    return handle


def _load_cuda() -> None:
    """Load CUDA.jl and what LVDJuice does with it; raises InputError where it is not installed, or does not load."""
    try:
        julia.load_extension("LVDJuiceCUDAExt")
    except (InputError, JuliaError) as error:
        why = str(error).splitlines()[0].rstrip(":")
        raise InputError(
            f"device: found 'cuda', but Julia cannot load CUDA.jl ({why}); `lvd-juice setup --with cuda` installs it"
        ) from error
