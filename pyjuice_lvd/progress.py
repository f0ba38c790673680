"""Progress of long work on stderr: bars on a terminal, plain lines elsewhere, nothing by default in the library.

Every function that takes long has a parameter `progress: Progress = SILENT`, and says what it does in stages::

    with progress.stage("teacher", total=epochs, unit="epochs") as stage:
        for epoch in range(epochs):
            ...
            stage.advance(bpd=4.52)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    import rich.console
    import rich.progress

Info = float | int | str


class Stage(Protocol):
    """One piece of work under way; `info` are small name=value pairs shown behind the bar, such as `bpd=4.52`."""

    def advance(self, n: float = 1, **info: Info) -> None:
        """Say that `n` more units of work are done."""

    def update(self, *, completed: float, **info: Info) -> None:
        """Say how many units of work are done in all."""


class Progress(Protocol):
    """Where stages and messages are shown."""

    def stage(self, name: str, total: float, unit: str = "") -> AbstractContextManager[Stage]:
        """Open a stage of `total` units of work; stages may follow one another or nest."""

    def log(self, message: str) -> None:
        """Show one line of text."""


class _Silent:
    """Shows nothing: the stage of its own, and what `SILENT` and `--quiet` are."""

    @contextmanager
    def stage(self, name: str, total: float, unit: str = "") -> Iterator[Stage]:
        yield self

    def log(self, message: str) -> None:
        pass

    def advance(self, n: float = 1, **info: Info) -> None:
        pass

    def update(self, *, completed: float, **info: Info) -> None:
        pass


SILENT: Progress = _Silent()


class _Meter:
    """A stage that counts and times its work, and tells `changed` after each step."""

    def __init__(self, name: str, total: float, unit: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.total = total
        self.unit = f" {unit}" if unit else ""
        self.completed = 0.0
        self.info: dict[str, Info] = {}
        self.changed: Callable[[], None] = lambda: None
        self._clock = clock
        self._start = clock()
        self._last = self._start  # when the work last moved on
        self._marks = [(self._start, 0.0)]  # moments and what was done by then, of the later half of the time

    def advance(self, n: float = 1, **info: Info) -> None:
        self.update(completed=self.completed + n, **info)

    def update(self, *, completed: float, **info: Info) -> None:
        self.completed = completed
        self.info |= info
        self._last = now = self._clock()
        if now - self._marks[-1][0] >= (now - self._start) / 32:
            self._marks.append((now, completed))
        while len(self._marks) > 1 and self._marks[1][0] <= (self._start + now) / 2:
            del self._marks[0]
        self.changed()

    def status(self) -> str:
        """How far the work is, its rate and time left, such as `5/20 epochs, 1.2 epochs/s, 12 s left, bpd=4.52`."""
        parts = [self._count()]
        # The mean rate over the later half of the stage: steady where single steps are slow or uneven, and without what
        # is slow but once, as Julia's compiling is, or was done before, by a run that is resumed.
        since, before = self._marks[0]
        if self._last > since and self.completed > before:
            rate = (self.completed - before) / (self._last - since)
            parts.append(f"{rate:,.0f}{self.unit}/s" if rate >= 100 else f"{rate:.2g}{self.unit}/s")
            left = (self.total - self.completed) / rate - (self._clock() - self._last)
            parts.append(f"{_duration(max(left, 0.0))} left")
        return ", ".join(parts + self._facts())

    def outcome(self, *, failed: bool) -> str:
        """Say how the stage ended, such as `done in 34 s, 20/20 epochs, bpd=4.52`."""
        verb = "stopped after" if failed else "done in"
        return ", ".join([f"{verb} {_duration(self._clock() - self._start)}", self._count(), *self._facts()])

    def _count(self) -> str:
        return f"{_number(self.completed)}/{_number(self.total)}{self.unit}"

    def _facts(self) -> list[str]:
        return [f"{name}={f'{value:.4g}' if isinstance(value, float) else value}" for name, value in self.info.items()]


def _number(x: float) -> str:
    return f"{x:,.0f}" if x == round(x) else f"{x:,.1f}"


def _duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class PlainProgress:
    """Plain lines, for logs and pipes: the start and the end of each stage, and now and then one between.

    `stream` is where they go (default: `sys.stderr`), `interval` the least number of seconds between lines that are
    neither, and `clock` gives seconds since any fixed moment.
    """

    def __init__(
        self, stream: TextIO | None = None, *, interval: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._interval = interval
        self._clock = clock
        self._last_line = clock()

    @contextmanager
    def stage(self, name: str, total: float, unit: str = "") -> Iterator[Stage]:
        """Open a stage of `total` units of work."""
        meter = _Meter(name, total, unit, self._clock)

        def changed() -> None:
            if self._clock() - self._last_line >= self._interval and meter.completed < meter.total:
                self.log(f"{name}: {meter.status()}")

        meter.changed = changed
        self.log(f"{name}: started, {_number(total)}{meter.unit}")
        try:
            yield meter
        except BaseException:
            self.log(f"{name}: {meter.outcome(failed=True)}")
            raise
        self.log(f"{name}: {meter.outcome(failed=False)}")

    def log(self, message: str) -> None:
        """Show one line of text."""
        self._last_line = self._clock()
        print(message, file=self._stream, flush=True)


class RichProgress:
    """A bar for each open stage on a terminal; each finished outermost stage stays as one line.

    `console` is where they go (default: one on stderr).
    """

    def __init__(self, console: rich.console.Console | None = None) -> None:
        from rich.console import Console

        self._console = console if console is not None else Console(stderr=True)
        self._bars: rich.progress.Progress | None = None  # what is live now, if anything

    @contextmanager
    def stage(self, name: str, total: float, unit: str = "") -> Iterator[Stage]:
        """Open a stage of `total` units of work."""
        meter = _Meter(name, total, unit, time.monotonic)
        outermost = self._bars is None
        bars = _new_bars(self._console) if self._bars is None else self._bars
        task = bars.add_task(name, total=total, meter=meter)
        meter.changed = lambda: bars.update(task, completed=meter.completed)
        failed = True
        try:
            if outermost:
                self._bars = bars
                bars.start()
            yield meter
            failed = False
        finally:
            bars.remove_task(task)
            if outermost:
                self._bars = None
                bars.stop()  # gives the cursor and stderr back, whatever ended the stage
            if outermost or failed:
                self.log(f"{name}: {meter.outcome(failed=failed)}")

    def log(self, message: str) -> None:
        """Show one line of text."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


def _new_bars(console: rich.console.Console) -> rich.progress.Progress:
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class StatusColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            meter: _Meter = task.fields["meter"]
            return Text(meter.status())

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=24),
        StatusColumn(table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        transient=True,
        redirect_stdout=False,  # stdout carries results, such as --json's object; only stderr belongs to the bars
    )


def make_progress(quiet: bool) -> Progress:
    """Choose for the command line: bars when stderr is a terminal, plain lines when it is not, `SILENT` when quiet."""
    if quiet:
        return SILENT
    if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return RichProgress()
    return PlainProgress()
