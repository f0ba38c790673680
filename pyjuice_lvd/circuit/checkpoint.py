"""Checkpoints of EM: its state between two steps, from which training goes on to the very same outcome."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit.engine import Evidence, Rows
from pyjuice_lvd.circuit.history import History, Validation
from pyjuice_lvd.circuit.reduce import current
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import check_arrays_file, read_arrays, write_arrays
from pyjuice_lvd.shares import shares

_INTERVAL = 10.0
"""Seconds between two writes, at least, and as often the time that one takes: what a crash may cost."""

_KIND = "em checkpoint 3"
_OLDER = "em checkpoint 2"
"""Knows what training it is of, but not of which data."""

Arrays = dict[str, npt.NDArray[Any]]


def digest_of(values: Rows) -> str:
    """Give a digest of rows, heads or weights: the same for the same values, of whatever type of integers."""
    array = values.scores if isinstance(values, Evidence) else values
    digest = hashlib.blake2b(repr((array.shape, array.dtype.kind == "f")).encode(), digest_size=16)
    for part in shares(len(array), max(1, array[:1].size * 4)):
        own = array[part] if array.dtype.kind == "f" else array[part].astype(np.int32, copy=False)
        digest.update(np.ascontiguousarray(own).data)
    return digest.hexdigest()


_ROUNDING = 1e-3
"""How far above 1 a probability may be: what a circuit's parameters may sum to, less 1."""


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
    data : mapping
        Digests of what is learned from (`digest_of`), by name: they must be the same, too; None of what there is none
        of. `valid` is that of the validation set.
    probabilities : bool
        Whether the parameters are probabilities, all of them: else any numbers.

    Raises
    ------
    InputError
        Where the file cannot be written, is damaged or of other training.

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        learned: Sequence[npt.NDArray[np.float32]],
        about: Mapping[str, Any],
        data: Mapping[str, str | None],
        *,
        probabilities: bool = True,
    ) -> None:
        check_arrays_file("checkpoint", path)
        self.path = Path(path)
        self._learned = learned
        self._about = json.loads(json.dumps(about))  # tuples as lists, as in the file
        self._data = dict(data)
        self._probabilities = probabilities
        self._due = time.monotonic() + _INTERVAL
        self._found: tuple[Arrays, dict[str, Any]] | None = None
        if self.path.exists():
            arrays, metadata = read_arrays(path)
            if metadata.get("kind") not in (_KIND, _OLDER):
                raise InputError(f"{path}: found a file of kind {metadata.get('kind')!r}, wanted {_KIND!r}")
            try:
                facts = json.loads(metadata["facts"])
                self._check_training(facts["about"], facts.get("data"), "valid" in arrays)
                self._check_state(arrays, facts)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{path}: damaged ({error}), wanted a checkpoint of EM") from error
            self._found = arrays, facts

    def _check_training(self, about: Mapping[str, Any], data: Mapping[str, Any] | None, validated: bool) -> None:
        for name in self._about | dict(about):
            found, value = about.get(name), self._about.get(name)
            if found != value:
                raise InputError(f"{self.path}: a checkpoint of EM with {name} = {found}, wanted {value} or no file")
        if data is None:  # an older file: it tells whether there was a validation set, and nothing else
            data = {**self._data, "valid": (self._data["valid"] or "unknown") if validated else None}
        for name in self._data | dict(data):
            found, value = data.get(name), self._data.get(name)
            if found == value:
                continue
            if value is None:
                what = f"with {name}; wanted one without"
            elif found is None:
                what = f"without {name}; wanted one with it"
            else:
                what = f"on other {name}; wanted the same"
            raise InputError(f"{self.path}: a checkpoint of EM {what}, or no file")

    def _check_state(self, arrays: Arrays, facts: Mapping[str, Any]) -> None:
        """Raise ValueError or KeyError where something is not what `keep` writes."""
        validated = self._data["valid"] is not None
        for number, own in enumerate(self._learned):
            for name in (f"learned/{number}", *((f"kept/{number}",) if validated else ())):
                found = arrays[name]
                if found.shape != own.shape or found.dtype != own.dtype:
                    raise ValueError(f"{name} is {found.dtype} {found.shape}")
                if self._probabilities and not ((found >= 0) & (found <= 1 + _ROUNDING)).all():
                    raise ValueError(f"{name} holds what is no probability")
                if not np.isfinite(found).all():
                    raise ValueError(f"{name} holds what is no number")
        epochs = len(arrays["train"])
        lengths = {name: arrays[name].shape for name in ("train", *(("valid",) if validated else ()))}
        if any(shape != (epochs,) for shape in lengths.values()) or epochs > self._about["epochs"]:
            raise ValueError(f"histories of {lengths}")
        if not 0 <= facts["best"] <= epochs or facts["position"] < 0 or not isinstance(facts["total"], float):
            raise ValueError(f"best epoch {facts['best']}, {facts['position']} samples, {facts['total']} nats")
        if validated:
            float(arrays["best"])

    def restore(self, history: History, watch: Validation | None) -> tuple[int, float]:
        """Set parameters, history and early stopping to what the file held, if there was one.

        Returns what `keep` was told of the epoch under way; (0, 0.0) without a file.
        """
        if self._found is None:
            return 0, 0.0
        (arrays, facts), self._found = self._found, None
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
        """Write the state, unless that was done a short time ago and need not be `now`; of processes, one does.

        `position` and `total` are the finished samples of the epoch under way, and their log-likelihood.
        """
        began = time.monotonic()
        if (began < self._due and not now) or current().rank:
            return
        arrays: Arrays = {f"learned/{n}": array for n, array in enumerate(self._learned)}
        arrays["train"] = np.array(history, np.float64)
        if watch:
            arrays |= {f"kept/{n}": array for n, array in enumerate(watch.kept)}
            arrays |= {"valid": np.array(history.valid, np.float64), "best": np.array(watch.best, np.float64)}
        facts = {
            "about": self._about, "data": self._data, "best": history.best, "position": position, "total": float(total),
        }  # fmt: skip
        write_arrays(self.path, arrays, {"kind": _KIND, "facts": json.dumps(facts)})
        ended = time.monotonic()
        self._due = ended + _INTERVAL * max(1.0, ended - began)
