"""Arrays that may be larger than memory: worked on in blocks, and, where they are large, kept in files without names.

A large array is a map of such a file in the cache folder: to numpy, PyTorch and Julia it is an array like any other,
and the system keeps as many of its pages in memory as there is room for. The file is gone with the process, however
that ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import mmap
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.machine import in_words
from pyjuice_lvd.shares import shares

Array = npt.NDArray[Any]

LARGE = 2**26
"""Bytes from which on an array lies in a file."""

BLOCK = 2**24
"""Bytes of an array that are worked on at once."""


def cache_folder() -> Path:
    """Give the folder of large arrays, LVD_CACHE or that of the user's caches, which is made where there is none."""
    named = os.environ.get("LVD_CACHE")
    folder = Path(named or Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "lvd-juice"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}), wanted LVD_CACHE to name a folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written, wanted LVD_CACHE to name a folder for large arrays")
    return folder


def empty(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Give an array whose values are anything; raises InputError where the disk has no room for a large one."""
    kind, sides = np.dtype(dtype), (shape,) if isinstance(shape, int) else shape
    size = math.prod(sides) * kind.itemsize
    if size < LARGE:
        return np.empty(sides, kind)
    with tempfile.TemporaryFile(dir=cache_folder()) as file:
        reserve(file.fileno(), size)
        return np.frombuffer(mmap.mmap(file.fileno(), size), kind).reshape(sides)


def reserve(file: int, size: int) -> None:
    """Give an open file so many bytes on the disk: where a map finds none left, the process is killed."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)
    except OSError as error:
        found = f"{cache_folder()} without room for {in_words(size)} ({error.strerror})"
        raise InputError(f"LVD_CACHE: found {found}, wanted a folder with more of it") from error


def blocks(n: int, row: int, unit: int = 1) -> Iterator[slice]:
    """Cut n rows, of so many bytes as they are worked on, into blocks: whole multiples of `unit`, but for the last."""
    for part in shares(-(-n // unit), row * unit, BLOCK):
        yield slice(part.start * unit, min(part.stop * unit, n))


def by_blocks(n: int, compute: Callable[[slice], Array], row: int, unit: int = 1) -> Array:
    """Give what `compute` gives of n rows, block by block (`blocks`), in one array."""
    out: Array | None = None
    for part in blocks(n, row, unit):
        found = compute(part)
        if part == slice(0, n):
            return found
        if out is None:
            out = empty((n, *found.shape[1:]), found.dtype)
        out[part] = found
    return compute(slice(0, 0)) if out is None else out


def _row(array: Array) -> int:
    """Count the bytes of an array's row."""
    return max(1, array.dtype.itemsize * math.prod(array.shape[1:]))


def take(array: Array, rows: npt.NDArray[np.integer[Any]]) -> Array:
    """Give some rows of an array, by their numbers."""
    return by_blocks(len(rows), lambda part: array[rows[part]], _row(array))


def contiguous(array: Array) -> Array:
    """Give an array in C order: itself, if it is."""
    if array.flags.c_contiguous:
        return array
    return by_blocks(len(array), lambda part: np.ascontiguousarray(array[part]), _row(array))


def joined(arrays: Sequence[Array]) -> Array:
    """Put arrays together, one after another."""
    out, first = empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype), 0
    for array in arrays:
        for part in blocks(len(array), _row(array)):
            out[first + part.start : first + part.stop] = array[part]
        first += len(array)
    return out


def digest_of(array: Array) -> str:
    """Give the SHA-256 of an array's shape and values, as hexadecimal digits: by it data are known again."""
    digest = hashlib.sha256(repr(array.shape).encode())
    for part in blocks(len(array), _row(array)):
        digest.update(np.ascontiguousarray(array[part]).data)
    return digest.hexdigest()


# Of labels, integers from 0, in arrays of any shape in C order.


def counts(labels: npt.NDArray[np.integer[Any]], size: int = 0) -> npt.NDArray[np.int64]:
    """Count how often there is each label: int64, at least `size` of them."""
    flat, found = labels.reshape(-1), np.zeros(size, np.int64)
    for part in blocks(len(flat), 8):
        more = np.bincount(flat[part], minlength=len(found))
        more[: len(found)] += found
        found = more
    return found


def places(labels: npt.NDArray[np.integer[Any]], label: int) -> npt.NDArray[np.int64]:
    """Find where a label is: int64, in order."""
    flat = labels.reshape(-1)
    out, first = empty(sum(int((flat[part] == label).sum()) for part in blocks(len(flat), 8)), np.int64), 0
    for part in blocks(len(flat), 8):
        found = np.flatnonzero(flat[part] == label)
        out[first : first + len(found)] = found + part.start
        first += len(found)
    return out


def renumbered(labels: npt.NDArray[np.integer[Any]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Give the labels that there are, ascending, and each one's number among them: int32, of the same shape."""
    used = np.flatnonzero(counts(labels))
    number = np.zeros(int(used[-1]) + 1 if len(used) else 0, np.int32)
    number[used] = np.arange(len(used))
    flat = labels.reshape(-1)
    return used, by_blocks(len(flat), lambda part: number[flat[part]], 8).reshape(labels.shape)


class OwnFolder:
    """A folder of this process' own in the cache folder, `path`, which goes with it.

    What a process that was killed has left goes when the next one on the same machine makes its own.
    """

    def __init__(self) -> None:
        base = cache_folder() / "processes" / socket.gethostname()
        base.mkdir(parents=True, exist_ok=True)
        for left in base.iterdir():
            _remove_if_left(left)
        new = Path(tempfile.mkdtemp(prefix=_NEW, dir=base))
        lock = os.open(new / _LOCK, os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.path = new.rename(base / new.name.removeprefix(_NEW))
        self._end = weakref.finalize(self, _remove, self.path, lock)


_NEW, _LOCK = "new-", "lock"


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder whose process is gone: its lock went with it."""
    if folder.name.startswith(_NEW):
        return
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:  # another process has just removed it
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
    else:
        _remove(folder, lock)
