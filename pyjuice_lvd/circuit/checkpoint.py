"""Checkpoints of EM: its state between two steps, from which training goes on to the very same outcome."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit.history import History, Validation
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_arrays, write_arrays

_INTERVAL = 10.0
"""Seconds between two writes, at least, and as often the time that one takes: what a crash may cost."""

_KIND = "em checkpoint 2"


class Checkpoint:
    """The state of EM between two steps, in a safetensors file.

    Parameters
    ----------
    path : path
        The file; `restore` takes up what it holds, if it exists.
    learned : arrays
        The circuit's parameters, its own memory.
    about : mapping
        What must be the same when training goes on: values that JSON knows.

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        learned: Sequence[npt.NDArray[np.float32]],
        about: Mapping[str, Any],
    ) -> None:
        self.path = Path(path)
        self._learned = learned
        self._about = json.loads(json.dumps(about))  # tuples as lists, as in the file
        self._due = time.monotonic() + _INTERVAL

    def restore(self, history: History, watch: Validation | None) -> tuple[int, float]:
        """Set parameters, history and early stopping to what the file holds, if there is one.

        Returns what `keep` was told of the epoch under way; (0, 0.0) without a file. Raises InputError where it is
        damaged or of other training.
        """
        if not self.path.exists():
            return 0, 0.0
        arrays, metadata = read_arrays(self.path)
        if metadata.get("kind") != _KIND:
            raise InputError(f"{self.path}: found a file of kind {metadata.get('kind')!r}, wanted {_KIND!r}")
        facts = json.loads(metadata["facts"])
        for name, value in self._about.items():
            if facts["about"].get(name) != value:
                found = facts["about"].get(name)
                raise InputError(f"{self.path}: a checkpoint of EM with {name} = {found}, wanted {value} or no file")
        for number, array in enumerate(self._learned):
            array[:] = arrays[f"learned/{number}"]
        history.extend(arrays["train"].tolist())
        if watch:
            history.valid, history.best = arrays["valid"].tolist(), facts["best"]
            watch.best = float(arrays["best"])
            watch.kept = [arrays[f"kept/{number}"] for number in range(len(self._learned))]
        return facts["position"], facts["total"]

    def keep(
        self, history: History, watch: Validation | None, position: int = 0, total: float = 0.0, *, now: bool = False
    ) -> None:
        """Write the state, unless that was done a short time ago and need not be `now`.

        `position` and `total` are the finished samples of the epoch under way, and their log-likelihood.
        """
        began = time.monotonic()
        if began < self._due and not now:
            return
        arrays: dict[str, npt.NDArray[Any]] = {f"learned/{n}": array for n, array in enumerate(self._learned)}
        arrays["train"] = np.array(history, np.float64)
        if watch:
            arrays |= {f"kept/{n}": array for n, array in enumerate(watch.kept)}
            arrays |= {"valid": np.array(history.valid, np.float64), "best": np.array(watch.best, np.float64)}
        facts = {"about": self._about, "best": history.best, "position": position, "total": total}
        write_arrays(self.path, arrays, {"kind": _KIND, "facts": json.dumps(facts)})
        ended = time.monotonic()
        self._due = ended + _INTERVAL * max(1.0, ended - began)
