"""Put finished runs into one file: their results, the seconds of each stage, their settings, and what `gap` found.

    python benchmarks/collect.py NAME=RUN [NAME=RUN]... -o benchmarks/FILE.json

Paths of this machine are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from common import machine

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import read_json, write_json
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.report.page import stage_seconds


def collect(folder: str) -> dict[str, Any]:
    """Read one run. Raises InputError where it is not finished."""
    run = RunDirectory.open_existing(Path(folder))
    result = {name: value for name, value in run.result.items() if name != "run"}
    source = Path(result["data"]["source"])
    result["data"]["source"] = source.name if source.is_absolute() else str(source)
    found = {
        **result,
        "stages": {stage: seconds and round(seconds, 1) for stage, seconds in stage_seconds(run.metrics()).items()},
        "settings": run.settings,
    }
    if (run / names.GAP).exists():
        gap = read_json(run / names.GAP)
        found["gap"] = {name: value for name, value in gap.items() if name not in ("images", "picture")}
    return found


def main() -> int:
    """Write the file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args()
    try:
        runs = {name: collect(folder) for name, _, folder in (text.partition("=") for text in options.runs)}
    except InputError as error:
        print(f"collect: error: {error}", file=sys.stderr)
        return error.exit_status
    write_json(options.output, {"machine": machine(), "runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
