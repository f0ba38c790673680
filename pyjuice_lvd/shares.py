"""Work on many rows cut into shares: of bounded memory, or of bounded time."""

from __future__ import annotations

import time
from collections.abc import Iterator

ROOM = 2**27
"""Bytes that are in memory at once of what is worked on, beyond what is asked for."""


def shares(n: int, size: int, room: int | None = None) -> Iterator[slice]:
    """Cut n entries of `size` bytes into shares that fit in `room` bytes (default: `ROOM`), of one entry at least."""
    step = max(1, (ROOM if room is None else room) // size)
    return (slice(first, min(first + step, n)) for first in range(0, n, step))


def paced(n: int, first: int, seconds: float, unit: int) -> Iterator[slice]:
    """Cut n entries into shares that take about so many seconds, going by the one before; the first has about `first`.

    They are whole multiples of `unit` entries, which are worked on together: fewer take as long.
    """
    start, step = 0, unit * max(1, first // unit)
    while start < n:
        began = time.monotonic()
        yield slice(start, min(start + step, n))
        start += step
        change = seconds / max(time.monotonic() - began, 1e-3)
        step = unit * max(1, int(step * min(change, 4.0)) // unit)
