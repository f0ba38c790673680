"""Typed exceptions: each is one clear line, and knows the exit status that the command line gives it."""

from __future__ import annotations


class LVDJuiceError(Exception):
    """A failed run: exit status 1."""

    exit_status = 1


class InputError(LVDJuiceError, ValueError):
    """Bad input or usage: names the file or parameter, what was found and what is wanted. Exit status 2."""

    exit_status = 2


class RefusedError(InputError):
    """Bad input that another process has found, and says."""


class JuliaError(LVDJuiceError, RuntimeError):
    """An exception raised in Julia, with Julia's message."""


class JuliaUnavailableError(LVDJuiceError, RuntimeError):
    """No usable Julia: missing, too old or broken. The message says what to do."""
