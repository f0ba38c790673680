"""`lvd-juice` as tests run it: in this process, where Julia and PyTorch load once, or in one of its own; and Python."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from pyjuice_lvd.cli.main import main


class Ran(NamedTuple):
    """What a command said."""

    returncode: int
    stdout: str
    stderr: str


def lvd_juice(*args: str | Path, check: bool = True) -> Ran:
    """Run a command in this process; unless `check` is False, it must succeed."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = main(list(map(str, args)))
    assert not check or status == 0, err.getvalue()
    return Ran(status, out.getvalue(), err.getvalue())


def lvd_juice_apart(*args: str | Path, check: bool = True) -> Ran:
    """Run a command in a process of its own, for what a process adds: all of its output, its threads, its end."""
    command = [sys.executable, "-m", "pyjuice_lvd.cli", *map(str, args)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert not check or ran.returncode == 0, ran.stderr
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def python(code: str, *args: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
