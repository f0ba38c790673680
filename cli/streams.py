"""Standard streams that are closed, full, or read by nobody: results that are lost are an error, logs are not."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TextIO, cast


class _Closed(io.TextIOBase):
    """A standard output that was closed before we started: to print nothing there is no error."""

    def writable(self) -> bool:
        return True

    def write(self, _: str) -> int:
        raise OSError(errno.EBADF, "closed", "standard output")


class _Log(io.TextIOWrapper):
    """A standard error that never fails: work goes on, and its status counts, where nobody can be told."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def prepare() -> None:
    """Make the standard streams fit for use, in a process of our own."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # or the next file that is opened would be taken for it, by libraries that print
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = cast(TextIO, _Closed())
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    else:
        old = cast(io.TextIOWrapper, sys.stderr)
        sys.stderr = _Log(old.buffer, encoding=old.encoding, errors=old.errors, line_buffering=True)
