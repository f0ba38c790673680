"""Run directories: everything a run leaves behind, as plain files that no crash can leave half written (DESIGN 3.3).

A run directory holds

- `settings.toml`, the run's complete settings, written first: a directory is a run if it has it;
- `metrics.jsonl`, one JSON object a line, in the order of the work;
- arrays as safetensors, and whatever else the method keeps;
- `result.json`, the run's figures, written last: a run is finished if it has it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import atomic_write, json_line, parse_json, read_json, read_toml, write_json, write_toml
