"""The docs' links lead somewhere, and the worked example of docs/julia.md does what it says, in plain Julia."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from pyjuice_lvd.julia import find

ROOT = Path(__file__).parent.parent
NUMBER = r"-?\d+(?:\.\d+)?"


def test_links_lead_to_files() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert not missing, f"{page.name}: {missing}"


def test_the_julia_example_prints_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "julia.md").read_text()
    (code,) = re.findall(r"```julia\n(.*?)```", page, re.DOTALL)
    (promised,) = re.findall(r"It prints\n\n```\n(.*?)```", page, re.DOTALL)
    script = tmp_path / "example.jl"
    script.write_text(code)
    ran = subprocess.run(
        [find.choose().julia.executable, "--startup-file=no", f"--project={ROOT / 'julia'}", script],
        env={**os.environ, "JULIA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.sub(NUMBER, "#", ran.stdout) == re.sub(NUMBER, "#", promised)
    # Another Julia draws other numbers from the same seed.
    found, wanted = ([float(number) for number in re.findall(NUMBER, text)] for text in (ran.stdout, promised))
    assert found == pytest.approx(wanted, rel=0.05)
