"""The steps of a job of EM in Julia: those of this process alone, or of all that share its batches."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from pyjuice_lvd import julia
from pyjuice_lvd.circuit.engine import PIECE
from pyjuice_lvd.circuit.reduce import current

_LEAST = 2**19
"""Floats that are worth a transfer of their own: 4 MiB take some milliseconds."""


class Steps:
    """Goes on with a job, `job`, made of the same data and parameters in each process.

    What all processes count of a batch is added up in Float64, beside the seconds that each of them took: `shown` is
    what the progress line says of the slowest. The counts of one circuit travel while those of the next are made.
    """

    def __init__(self, job: julia.Handle) -> None:
        self.job = job
        self.shown: dict[str, str] = {}
        self._reducer = current()
        if self._reducer.size > 1:
            julia.call("share_out!", job, self._reducer.rank + 1, self._reducer.size)
            self._flat = np.zeros(int(julia.call("flat_values", job)) + self._reducer.size)
            self._seconds = np.zeros(self._reducer.size)
            self._began = time.monotonic()

    def advance(self) -> tuple[int, int, float]:
        """Go on for a while, at most to the end of an epoch.

        Returns how many epochs are finished, how many samples of the one under way, and their mean log-likelihood, or
        that of the epoch that has just ended, in nats: the same in all processes.
        """
        found: tuple[int, int, float]
        if self._reducer.size == 1:
            found = julia.call("advance!", self.job, PIECE)
            return found
        started = time.monotonic()
        while True:
            found = self._batch()
            if found[1] == 0 or time.monotonic() - started > PIECE:
                return found

    def _batch(self) -> tuple[int, int, float]:
        sums: list[Callable[[], None]] = []
        sent, finished = 0, False
        while not finished:
            counted, finished = julia.call("expect_part!", self._flat, self.job)
            if finished:
                own = self._flat[-self._reducer.size :]
                own[:] = 0
                own[self._reducer.rank] = time.monotonic() - self._began
                counted = len(self._flat)
            if finished or counted - sent >= _LEAST:
                sums.append(self._reducer.start_all_reduce(self._flat[sent:counted]))
                sent = counted
        for wait in sums:
            wait()
        self._began = time.monotonic()
        self._seconds += own
        slowest = int(self._seconds.argmax())
        self.shown = {"slowest": f"process {slowest}, {self._seconds[slowest] / self._seconds.mean():.2f} of the mean"}
        found: tuple[int, int, float] = julia.call("maximise_batch!", self.job, self._flat)
        return found
