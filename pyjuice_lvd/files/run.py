"""Files that no crash leaves half written, and the run directory made of them.

Every file is written aside, fsynced and renamed: a reader finds the old contents or the new, never a part of them. A
run directory holds plain files only:

- `settings.toml`, the run's complete settings, written first: a directory that has it is a run;
- `metrics.jsonl`, one JSON object a line, in the order of the work;
- arrays as safetensors, and whatever else the method keeps;
- `result.json`, the run's figures, written last: a run that has it is finished.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import secrets
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import tomli_w

from pyjuice_lvd.errors import InputError

_TEXTS = "lvd-juice"  # the entry of a safetensors file's metadata that holds all of ours, as JSON
Record = Callable[[Mapping[str, Any]], None]
"""What takes a record of the metrics, such as `RunDirectory.log`."""

_ASIDE = ".tmp-"  # how the name of a file that is being written begins
_SETTINGS, _METRICS, _RESULT, _LOCK = "settings.toml", "metrics.jsonl", "result.json", ".lock"
_MAY_CHANGE = frozenset({"threads", "device"})  # settings of how a run is computed, not of what it is
_ABOUT = (
    "stage",
    "cluster",
    "round",
    "epoch",
)  # the entries of a metrics record that say which piece of work it is about


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file aside in the same folder; when the block ends well, fsync it and rename it to `path`.

    Yields the file, open for binary writing. Its `.name` is the temporary path, with `path`'s suffix, for writers that
    want a path (they must write into that file, not replace it). When the block raises, the file is removed and `path`
    is as it was.

    Raises
    ------
    InputError
        The folder is missing or cannot be written, or `path` is a folder.
    OSError
        The disk is full or failing.

    """
    target, aside, file = _open_aside(path)
    try:
        with _naming(path), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _fsync_folder(target.parent)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise what `atomic_write` would where `path` cannot be written: before the work, in place of after it."""
    _, aside, file = _open_aside(path)
    file.close()
    aside.unlink()


def _open_aside(path: str | os.PathLike[str]) -> tuple[Path, Path, BinaryIO]:
    """Open a new file beside `path`: returns where the contents belong in the end, the new file's path, and it."""
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    aside = target.with_name(f"{_ASIDE}{secrets.token_hex(4)}-{target.name}")
    try:
        if target.is_dir():
            raise InputError(f"{path}: is a folder, wanted a file to write")
        return target, aside, aside.open("xb")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{path}: cannot be written ({error.strerror}), wanted a file in a writable folder") from error


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give the errors of writing to an open file the file's name: a full disk is reported without one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised by a library, which says what went wrong in words of its own
            raise OSError(errno.EIO, str(error), str(path)) from error
        if error.filename is None:
            error.filename = str(path)
        raise


def _fsync_folder(folder: Path) -> None:
    """Make the folder's entries durable: a rename lives in the folder, not in the file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Turn a result into standard JSON: numpy scalars and arrays become plain numbers, NaN and infinities `null`."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file (see `json_text`)."""
    with atomic_write(path) as file:
        file.write((json_text(value, indent=2) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; raises InputError when it is missing or damaged."""
    contents = _read_bytes(path)
    try:
        return json.loads(contents)
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}), wanted JSON") from error


def write_toml(path: str | os.PathLike[str], table: Mapping[str, Any]) -> None:
    """Write a TOML file."""
    with atomic_write(path) as file:
        tomli_w.dump(table, file)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file; raises InputError when it is missing or is not TOML."""
    contents = _read_bytes(path)
    try:
        return tomllib.loads(contents.decode())
    except ValueError as error:
        raise InputError(f"{path}: {_one_line(error)}, wanted TOML") from error


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays of numbers or Booleans, of any shape and memory order, and texts about them as safetensors."""
    import safetensors.numpy

    # safetensors copies memory as it lies: an array in another order than C's would come back scrambled.
    tensors = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with atomic_write(path) as file:
        # One entry: the library writes several in any order, and equal contents shall give equal bytes.
        texts = {_TEXTS: json.dumps(dict(metadata), sort_keys=True)} if metadata else None
        file.write(safetensors.numpy.save(tensors, metadata=texts))


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read what `write_arrays` wrote: the arrays (C order, writable) and the metadata.

    Raises InputError when the file is missing, truncated or no safetensors file.
    """
    import safetensors

    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            names = file.keys()
            texts = json.loads((file.metadata() or {}).get(_TEXTS, "{}"))
            return {name: file.get_tensor(name) for name in names}, {str(key): str(texts[key]) for key in texts}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file, wanted a safetensors file") from error
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: damaged ({_one_line(error)}), wanted a safetensors file") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


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
    def create(cls, path: str | os.PathLike[str], *, settings: Mapping[str, Any], resume: bool = False) -> Self:
        """Make a new run, or take up an existing one where `resume` is set, and lock it.

        `settings` (nested tables of TOML values) are kept with a new run, and must equal those of a resumed one, except
        for `threads` and `device`, which do not change what is computed.

        Raises InputError when the path is a file or cannot be written, when it holds a run and `resume` is not set or
        holds something else, when there is no run to resume or its settings differ, and when another process has it.
        """
        path = Path(path)
        _check_place(path, resume)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}), wanted a writable folder") from error
        run = cls(path, lock)
        try:
            run._take_lock(lock)
            _check_place(path, resume)  # again: another process may have been here before we had the lock
            for leftover in path.rglob(f"{_ASIDE}*"):
                leftover.unlink()
            if resume:
                _check_same(path, run.settings, settings)
                run._drop_torn_line()
                run._earlier = {_about(record) for record in run.metrics()}
            else:
                write_toml(run / _SETTINGS, settings)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open_existing(cls, path: str | os.PathLike[str], *, finished: bool = True) -> Self:
        """Open a run for reading; raises InputError when there is none, or when it must be `finished` and is not."""
        run = cls(Path(path), None)
        _check_folder(run.path)
        if not run.path.exists():
            raise InputError(f"{path}: does not exist, wanted a run directory")
        if not (run / _SETTINGS).is_file():
            raise InputError(f"{path}: is no run directory (it has no {_SETTINGS})")
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

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the run was made with, as nested tables."""
        return read_toml(self / _SETTINGS)

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self / _RESULT).is_file()

    @property
    def result(self) -> dict[str, Any]:
        """The figures that `finish` wrote."""
        result: dict[str, Any] = read_json(self / _RESULT)
        return result

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the run's figures, which makes it a finished run: the last thing that is written."""
        write_json(self / _RESULT, result)

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
        new = not (self / _METRICS).exists()
        with _naming(self / _METRICS), (self / _METRICS).open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if file.write(line) < len(line):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        if new:
            _fsync_folder(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """Read the records of `metrics.jsonl`, oldest first; raises InputError when a line but the last is damaged."""
        return self._read_metrics()[0]

    def _read_metrics(self) -> tuple[list[dict[str, Any]], int]:
        """Read the whole records, and how many bytes of the file they take."""
        path = self / _METRICS
        records: list[dict[str, Any]] = []
        size = 0
        lines = _read_bytes(path).splitlines(keepends=True) if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if not isinstance(record, dict):
                if number == len(lines):
                    break  # torn by a crash
                raise InputError(f"{path}: line {number} is damaged, wanted a JSON object")
            records.append(record)
            size += len(line)
        return records, size

    def _drop_torn_line(self) -> None:
        if (self / _METRICS).exists():
            os.truncate(self / _METRICS, self._read_metrics()[1])

    def _drop_records(self, about: tuple[Any, ...]) -> None:
        kept = [record for record in self.metrics() if _about(record) != about]
        with atomic_write(self / _METRICS) as file:
            file.writelines((json_text(record) + "\n").encode() for record in kept)

    def _take_lock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process dies
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            raise InputError(f"{self.path}: another fit (process {holder or 'unknown'}) is writing this run") from None
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
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if resume and _SETTINGS not in names:
        raise InputError(f"{path}: there is no run to resume; leave out --resume to start one")
    if _SETTINGS in names and not resume:
        raise InputError(f"{path}: holds a run already; continue it with --resume or choose another -o")
    others = [name for name in names if name != _LOCK and not name.startswith(_ASIDE)]
    if others and not resume:
        raise InputError(f"{path}: is not empty (it has {others[0]}) and holds no run; choose another -o")


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise InputError that names the first setting in which a run and its continuation differ."""
    before = _flat(old)
    now = _flat(tomllib.loads(tomli_w.dumps(new)))  # as the file has them: tuples as lists
    for name in before | now:
        if name not in _MAY_CHANGE and before.get(name) != now.get(name):
            raise InputError(
                f"{path}: the run's {name} is {before.get(name, 'unset')!r}, found {now.get(name, 'unset')!r}; "
                "resume with the run's own settings or choose another -o"
            )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
