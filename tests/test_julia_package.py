"""The Julia package's own tests, run by the Julia that the door found."""

import os
import re
import subprocess
from pathlib import Path

from pyjuice_lvd.julia import find

ROOT = Path(__file__).parent.parent


def test_julia_package() -> None:
    executable = find.choose().julia.executable
    ran = subprocess.run(
        [executable, "--startup-file=no", f"--project={ROOT / 'julia'}", ROOT / "julia" / "test" / "runtests.jl"],
        env={**os.environ, "JULIA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-5000:]
    passed = re.search(r"LVDJuice +\| +(\d+) +(\d+)", ran.stdout)  # "Test Summary: | Pass  Total"
    assert passed, ran.stdout
    assert passed[1] == passed[2]
