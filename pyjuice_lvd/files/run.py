"""The directory of a run. It holds plain files only.

- `settings.toml`, the run's complete settings, written first: a directory that has it is a run;
- `metrics.jsonl`, one JSON object a line, in the order of the work;
- arrays as safetensors, and whatever else the method keeps;
- `result.json`, the run's figures, written last: a run that has it is finished.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w

from pyjuice_lvd.checks import typed
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.atomic import ASIDE, atomic_write, fsync_folder, given_path, naming
from pyjuice_lvd.files.formats import (
    Entries,
    flat,
    json_text,
    read_bytes,
    read_table,
    read_toml,
    write_json,
    write_toml,
)

Record = Callable[[Mapping[str, Any]], None]
"""What takes a record of the metrics, such as `RunDirectory.log`."""

_MAY_CHANGE = frozenset({"threads", "device", "version"})  # settings of how a run is computed, not of what it is
_ABOUT = ("stage", "cluster", "round", "epoch", "tried")
"""The entries of a metrics record that say which piece of work it is about."""
_TYPES: dict[str, type] = {"stage": str, "cluster": int, "round": int, "epoch": int, "tried": int, "seconds": float}
"""Of entries that mean the same in records of all kinds; what else there is, and is missing, differs."""


class RunDirectory:
    """A run's directory. `run / "model.safetensors"` is the path of a file in it.

    `create` makes or resumes one for writing and locks it until `close` (or the end of a `with` block, or the process's
    death); `open_existing` opens one for reading.
    """

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock  # file descriptor; None for reading
        self._earlier: set[tuple[Any, ...]] = set()  # what the records that a resumed run begins with are about

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        settings: Mapping[str, Any],
        resume: bool = False,
        completed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    ) -> Self:
        """Make a new run, or take up an existing one where `resume` is set, and lock it.

        `settings` (nested tables of TOML values) are kept with a new run, and must equal those of a resumed one, as
        `completed` gives them, except for `threads` and `device`, which do not change what is computed, and for the
        `version` that wrote them.

        Raises InputError when the path is a file or cannot be written, when it holds a run and `resume` is not set or
        holds something else, when there is no run to resume or its settings differ, and when another process has it.
        """
        path = Path(path)
        _check_place(path, resume)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / names.LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}), wanted a writable folder") from error
        run = cls(path, lock)
        try:
            run._take_lock(lock)
            _check_place(path, resume)  # again: another process may have been here before we had the lock
            for leftover in path.rglob(f"{ASIDE}*"):
                if leftover.is_file():
                    leftover.unlink()
            if resume:
                run.check_settings(settings, completed)
                run._drop_torn_line()
                run._earlier = {_about(record) for record in run.metrics()}
            else:
                write_toml(run / names.SETTINGS, settings)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def check(cls, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        """Raise what `create` would of the place, before any work is done; nothing is written."""
        path = Path(path)
        _check_place(path, resume)
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
            raise InputError(f"{path}: cannot be written, wanted a writable folder")
        if (path / names.LOCK).exists():
            lock = os.open(path / names.LOCK, os.O_RDWR)
            run = cls(path, lock)
            try:
                run._be_alone(lock)
            finally:
                run.close()

    @classmethod
    def open_existing(cls, path: str | os.PathLike[str], *, finished: bool = True) -> Self:
        """Open a run for reading; raises InputError when there is none, or when it must be `finished` and is not."""
        run = cls(given_path(path), None)
        _check_folder(run.path)
        if not run.path.exists():
            raise InputError(f"{path}: does not exist, wanted a run directory")
        if not (run / names.SETTINGS).is_file():
            raise InputError(f"{path}: is no run directory (it has no {names.SETTINGS})")
        if not (run / names.DATA).exists() and (run / names.DESCRIPTION).exists():
            raise InputError(f"{path}: is a model that `save` wrote, wanted the directory of a run of lvd-juice fit")
        if finished and not run.finished:
            raise InputError(f"{path}: this run is unfinished; finish it with `lvd-juice fit DATA -o {path} --resume`")
        return run

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"{self.path} keeps what was done; continue it with --resume")
        self.close()

    def close(self) -> None:
        """Let go of the lock; the directory can still be read."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_settings(
        self, settings: Mapping[str, Any], completed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    ) -> None:
        """Raise InputError where the run cannot be resumed with other settings (see `create`)."""
        _check_same(self.path, completed(self.settings), settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the run was made with, as nested tables."""
        return read_toml(self / names.SETTINGS)

    @property
    def data(self) -> dict[str, Any]:
        """What the run learned from: its source, its split, and digests by which the data are known again."""
        return read_table(self / names.DATA)

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self / names.RESULT).is_file()

    @property
    def result(self) -> dict[str, Any]:
        """The figures that `finish` wrote."""
        return dict(read_table(self / names.RESULT))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the run's figures, which makes it a finished run: the last thing that is written."""
        write_json(self / names.RESULT, result)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`: the record as a JSON object, with `time`, seconds since 1970.

        A line is one O_APPEND write and an fsync, not a rewrite of the file: the cost stays the same however long the
        run, and all that a crash can tear is the last line, which readers pass over and `create` removes. In a resumed
        run, the record of work that is done again takes the place of the first one: those about the same `stage`,
        `cluster`, `round` and `epoch`.
        """
        if _about(record) in self._earlier:
            self._earlier.remove(_about(record))
            self._drop_records(_about(record))
        line = (json_text({"time": round(time.time(), 3), **record}) + "\n").encode()
        new = not (self / names.METRICS).exists()
        with naming(self / names.METRICS), (self / names.METRICS).open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if file.write(line) < len(line):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        if new:
            fsync_folder(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """Read the records of `metrics.jsonl`, oldest first.

        Raises InputError when a line but the last is damaged, and later for an entry that a record lacks.
        """
        return self._read_metrics()[0]

    def _read_metrics(self) -> tuple[list[dict[str, Any]], int]:
        """Read the whole records, and how many bytes of the file they take."""
        path = self / names.METRICS
        records: list[dict[str, Any]] = []
        size = 0
        lines = read_bytes(path).splitlines(keepends=True) if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                if number == len(lines):
                    break  # torn by a crash
                raise InputError(f"{path}: line {number} is damaged, wanted a JSON object")
            for name in _TYPES.keys() & record.keys():
                if record[name] is not None:
                    typed(f"{path}: line {number}: {name}", record[name], _TYPES[name])
            records.append(Entries(path, record))
            size += len(line)
        return records, size

    def _drop_torn_line(self) -> None:
        if (self / names.METRICS).exists():
            os.truncate(self / names.METRICS, self._read_metrics()[1])

    def _drop_records(self, about: tuple[Any, ...]) -> None:
        kept = [record for record in self.metrics() if _about(record) != about]
        with atomic_write(self / names.METRICS) as file:
            file.writelines((json_text(record) + "\n").encode() for record in kept)

    def _be_alone(self, lock: int) -> None:
        """Take the lock; raises InputError where another process has it."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process dies
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            raise InputError(f"{self.path}: another fit (process {holder or 'unknown'}) is writing this run") from None

    def _take_lock(self, lock: int) -> None:
        self._be_alone(lock)
        with naming(self / names.LOCK):
            os.truncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _about(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in _ABOUT)


def _check_folder(path: Path) -> None:
    """Raise InputError unless `path` is a folder that can be read, or nothing at all."""
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        elif path.exists():
            raise InputError(f"{path}: is a file, wanted a run directory")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), wanted a run directory") from error


def _check_place(path: Path, resume: bool) -> None:
    """Raise InputError unless a run can be made at `path`, or resumed."""
    _check_folder(path)
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if resume and names.SETTINGS not in found:
        raise InputError(f"{path}: there is no run to resume; leave out --resume to start one")
    if names.SETTINGS in found and not resume:
        raise InputError(f"{path}: holds a run already; continue it with --resume or choose another -o")
    others = [name for name in found if name != names.LOCK and not name.startswith(ASIDE)]
    if others and not resume:
        raise InputError(f"{path}: is not empty (it has {others[0]}) and holds no run; choose another -o")


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise InputError that names the first setting in which a run and its continuation differ."""
    before = flat(tomllib.loads(tomli_w.dumps(old)))
    now = flat(tomllib.loads(tomli_w.dumps(new)))  # as the file has them: tuples as lists
    for name in before | now:
        if name not in _MAY_CHANGE and before.get(name) != now.get(name):
            raise InputError(
                f"{path}: the run's {name} is {before.get(name, 'unset')!r}, found {now.get(name, 'unset')!r}; "
                "resume with the run's own settings or choose another -o"
            )
