"""The Julia package's own tests, run by the Julia that the door found."""

import os
import re
import subprocess
import tomllib
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


def test_the_project_of_a_checkout_is_that_of_the_package() -> None:
    """Two files, because Julia looks for extensions beside the package's own."""
    checkout, package = (tomllib.loads((folder / "Project.toml").read_text()) for folder in (ROOT, ROOT / "julia"))
    assert {key: checkout[key] for key in ("name", "uuid", "version", "deps")} == {
        key: package[key] for key in ("name", "uuid", "version", "deps")
    }
    assert (ROOT / checkout["path"]).is_file()
