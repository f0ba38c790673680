"""What this machine gives us, cores and memory, and sizes in words."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from pyjuice_lvd.errors import InputError

_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def machine_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def machine_memory() -> int:
    """Give the memory of this machine in bytes, or of what of it a container or `ulimit -v` leaves us."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUPS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such limit
            continue
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits)


def check_result(name: str, value: object, size: int) -> None:
    """Raise InputError where the result, so many bytes by the parameter's value, has no room on this machine."""
    if size > (most := machine_memory()):
        raise InputError(
            f"{name}: found {value}: the result would take {in_words(size)} of memory, "
            f"wanted at most the {in_words(most)} of this machine"
        )


def in_words(size: float) -> str:
    """Write a number of bytes: `5.8 GB`."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} PB"
