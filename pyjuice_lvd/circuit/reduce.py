"""Work that processes share: what each of them counts is added up, told to all, or gathered in order.

Every process runs the same program on the same data. `current()` says with whom: with nobody, unless the processes of
torchrun were joined (`pyjuice_lvd.distributed`). EM asks it at the start, does the E-step of its own part of each batch
and adds up in between, so that all processes hold the same parameters at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.errors import InputError, LVDJuiceError, RefusedError
from pyjuice_lvd.large import by_blocks, empty

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

Array = npt.NDArray[Any]


class LostProcessError(LVDJuiceError):
    """Another process, or the connection to it, is gone."""


class Reducer:
    """A process alone: there is nothing to add up, and nobody to tell. Others have these methods, too.

    `rank` numbers the process among `size` of them, from 0. All processes must make the same calls in the same order.
    """

    rank: int = 0
    size: int = 1

    def all_reduce(self, *arrays: Array) -> None:
        """Replace arrays of numbers, each C-contiguous, by their sums over all processes: the same bits in all."""

    def start_all_reduce(self, array: Array) -> Callable[[], None]:
        """Begin to replace an array as `all_reduce` does; gives what waits for the end, before which it is in use."""
        self.all_reduce(array)
        return lambda: None

    def broadcast(self, *arrays: Array) -> None:
        """Replace arrays of numbers, each C-contiguous, by those of process 0."""

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """Give what each process has, in their order."""
        return [content]

    def broadcast_bytes(self, content: bytes) -> bytes:
        """Give what process 0 has."""
        return content

    def part(self, n: int, unit: int = 1) -> slice:
        """Give this process' part of n rows: those of all processes, in their order, are all rows.

        Parts are whole multiples of `unit` rows, but for the last.
        """
        units = -(-n // unit)
        first, end = (units * rank // self.size * unit for rank in (self.rank, self.rank + 1))
        return slice(first, min(end, n))

    def gather(self, rows: Array | None) -> Array:
        """Give the rows of all processes, one process after another; None is no row, which not all may have."""
        assert rows is not None
        return rows

    def merged(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Give the named arrays of all processes, no two of which have the same name."""
        return dict(arrays)

    def check_same(self, **values: str) -> None:
        """Raise InputError, in all processes, that names a value which is not the same in all of them."""


class TorchReducer(Reducer):
    """The processes of a group of `torch.distributed` (default: all), whose backend works on a CPU's memory: gloo.

    Arrays are not copied. Every method raises LostProcessError where another process, or the connection to it, is gone.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        import torch.distributed as dist

        self._dist, self._group = dist, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._first = 0 if group is None else dist.get_global_rank(group, 0)

    def all_reduce(self, *arrays: Array) -> None:
        """Add arrays up."""
        for array in arrays:
            if array.size:
                self._do(self._dist.all_reduce, _tensor(array), group=self._group)

    def start_all_reduce(self, array: Array) -> Callable[[], None]:
        """Begin to add an array up."""
        started = self._do(self._dist.all_reduce, _tensor(array), group=self._group, async_op=True)

        def wait() -> None:
            self._do(started.wait)

        return wait

    def broadcast(self, *arrays: Array) -> None:
        """Take process 0's arrays."""
        for array in arrays:
            if array.size:
                self._do(self._dist.broadcast, _tensor(array), self._first, group=self._group)

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """Gather bytes."""
        sizes = np.zeros(self.size, np.int64)
        sizes[self.rank] = len(content)
        self.all_reduce(sizes)
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        found = np.empty((self.size, len(padded)), np.uint8)
        if len(padded):
            self._do(self._dist.all_gather, [_tensor(row) for row in found], _tensor(padded), group=self._group)
        return [row[:size].tobytes() for row, size in zip(found, sizes, strict=True)]

    def broadcast_bytes(self, content: bytes) -> bytes:
        """Take process 0's bytes."""
        size = np.array([len(content)], np.int64)
        self.broadcast(size)
        buffer = np.frombuffer(content, np.uint8).copy() if self.rank == 0 else np.empty(int(size[0]), np.uint8)
        self.broadcast(buffer)
        return buffer.tobytes()

    def gather(self, rows: Array | None) -> Array:
        """Gather rows."""
        about = None if rows is None else [rows.dtype.str, rows.shape]
        found = [json.loads(text) for text in self.gather_bytes(json.dumps(about).encode())]
        dtype, shape = next(each for each in found if each is not None)
        counts = [0 if each is None else each[1][0] for each in found]
        width = int(np.prod(shape[1:]))
        most = max(counts) * width * np.dtype(dtype).itemsize
        mine, parts = np.zeros(most, np.uint8), np.empty((self.size, most), np.uint8)
        if rows is not None:
            mine[: rows.nbytes] = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        self._do(self._dist.all_gather, [_tensor(part) for part in parts], _tensor(mine), group=self._group)
        size = width * np.dtype(dtype).itemsize
        own = [part[: count * size].view(dtype) for part, count in zip(parts, counts, strict=True)]
        return np.concatenate(own).reshape(sum(counts), *shape[1:])

    def merged(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Gather named arrays."""
        import safetensors.numpy

        packed = safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        found: dict[str, Array] = {}
        for content in self.gather_bytes(packed):
            found |= safetensors.numpy.load(content)
        return found

    def check_same(self, **values: str) -> None:
        """Compare values."""
        found = [json.loads(text) for text in self.gather_bytes(json.dumps(values).encode())]
        for rank, theirs in enumerate(found):
            for name in values:
                if theirs.get(name) != found[0][name]:
                    what = name.replace("_", " ")
                    raise InputError(f"{what}: found others in process {rank} than in process 0, wanted the same")

    def _do(self, collective: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return collective(*args, **kwargs)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            # Where it happened in PyTorch's sources, and its good wishes, are of no use to whoever reads the line.
            reason = (reason.rpartition("] ")[2] or reason).partition(". ")[0]
            lost = f"process {self.rank} of {self.size}: another process has ended or cannot be reached ({reason})"
            raise LostProcessError(f"{lost}; what was done is kept, and --resume goes on from it") from error


def _tensor(array: Array) -> torch.Tensor:
    import torch

    return torch.from_numpy(array)


_ALONE = Reducer()
_current: Reducer = _ALONE


def current() -> Reducer:
    """With which processes this one shares its work now."""
    return _current


@contextmanager
def using(reducer: Reducer) -> Iterator[Reducer]:
    """Share work by a reducer in this block."""
    global _current
    before, _current = _current, reducer
    try:
        yield reducer
    finally:
        _current = before


def alone() -> Any:
    """Share nothing in this block: its work is this process' own, whatever the others do."""
    return using(_ALONE)


@contextmanager
def all_or_none() -> Iterator[None]:
    """Where bad input is found in this block by any process, all leave it with an error once all are done with it.

    The first that found some raises its InputError, the others RefusedError. There is no other sharing in the block.
    """
    refused = None
    try:
        yield
    except InputError as error:
        refused = error
    found = current().gather_bytes(str(refused or "").encode())
    if refused is not None and not any(found[: current().rank]):
        raise refused
    if any(found):
        raise RefusedError(next(text for text in found if text).decode())


def spread(n: int, score: Callable[[slice], Array], unit: int = 1, row: int = 0) -> Array:
    """Give `score` of n rows: each process does that of its own part, and has the others' from them, in order.

    What is scored together in units of rows, and might round otherwise in other company, stays together. Where rows
    take so many bytes, `row`, while they are scored, that is done in blocks, and what is found may be `large`.
    """
    reducer = current()

    def together(rows: slice) -> Array:
        if reducer.size == 1:
            return score(rows)
        part = reducer.part(rows.stop - rows.start, unit)
        with alone():
            mine = score(slice(rows.start + part.start, rows.start + part.stop)) if part.stop > part.start else None
        return reducer.gather(mine)

    return by_blocks(n, together, row, unit * reducer.size) if row else together(slice(0, n))


def on_first(compute: Callable[[], Array]) -> Array:
    """Give what process 0 computes, which the others wait for: where work cannot be shared, and all must agree."""
    reducer = current()
    if reducer.size == 1:
        return compute()
    found, about = None, b""
    if reducer.rank == 0:
        with alone():
            found = np.ascontiguousarray(compute())
        about = json.dumps([found.dtype.str, found.shape]).encode()
    dtype, shape = json.loads(reducer.broadcast_bytes(about))
    told: Array = empty(tuple(shape), dtype) if found is None else found
    reducer.broadcast(told.reshape(-1).view(np.uint8))
    return told


def owners(sizes: Sequence[int]) -> list[int]:
    """Share pieces of work of such sizes out: the process of each, so that all have about as much to do."""
    load, owner = [0] * current().size, [0] * len(sizes)
    for piece in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        owner[piece] = load.index(min(load))
        load[owner[piece]] += sizes[piece]
    return owner
