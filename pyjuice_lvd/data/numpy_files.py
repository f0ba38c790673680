"""Arrays in `.npy` and `.npz` files: never a pickle, and no memory before a file is seen to hold what it claims."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import large
from pyjuice_lvd.data.reading import check_unpacked, reading
from pyjuice_lvd.errors import InputError

Array = npt.NDArray[Any]

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CHUNK = 2**20


def read_npy(path: Path) -> Array:
    """Read the array of a `.npy` file; raises InputError that names it where it is damaged or holds objects."""
    with reading(path), path.open("rb") as file:
        size = path.stat().st_size
        if not size:
            raise InputError(f"{path}: found an empty file, wanted an array")
        return _array(path, file, size) if size < large.LARGE else _mapped(path, file, size)


class Npz:
    """The arrays of a `.npz` file, for use in a `with` block: their shapes by key, and each on demand.

    Raises InputError that names the file where it is damaged, or holds objects where they are asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            self._archive = zipfile.ZipFile(path)
        self._members = {
            info.filename.removesuffix(".npy"): info
            for info in self._archive.infolist()
            if info.filename.endswith(".npy")
        }

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    @property
    def keys(self) -> list[str]:
        """The names of the arrays, in the order of the file."""
        return list(self._members)

    def shape(self, key: str) -> tuple[int, ...]:
        """Say what shape an array has, from its header alone."""
        with reading(self.path), self._opened(key) as file:
            return _header(self.path, file)[0]

    def about(self, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Say what shape and dtype an array has, which must be all there, from its header and its size."""
        size = self._members[key].file_size
        check_unpacked(self.path, size, self.path.stat().st_size)
        with reading(self.path), self._opened(key) as file:
            shape, _, dtype = _whole(self.path, file, size)
        return shape, dtype

    def read(self, keys: Mapping[str, str] | Iterable[str]) -> dict[str, Array]:
        """Read some of the arrays, by names (the mapping's) for keys; together they must not unpack to too much."""
        wanted = dict(keys) if isinstance(keys, Mapping) else {key: key for key in keys}
        total = sum(self._members[key].file_size for key in wanted.values())
        check_unpacked(self.path, total, self.path.stat().st_size)
        found = {}
        for name, key in wanted.items():
            with reading(self.path), self._opened(key) as file:
                found[name] = _array(self.path, file, self._members[key].file_size)
        return found

    def _opened(self, key: str) -> IO[bytes]:
        info = self._members[key]
        if info.compress_type not in _COMPRESSIONS:  # numpy writes no others, and they unpack without measure
            found = f"{self.path}: found the compression {info.compress_type} of {key}"
            raise InputError(f"{found}, wanted deflate or none")
        return self._archive.open(info)


def _header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read what comes before an array's values: its shape, whether it is in Fortran's order, and its dtype."""
    try:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError) as error:
        if isinstance(error, ValueError) and "magic" not in str(error):
            raise
        raise InputError(f"{path}: cannot be read (damaged, or pickled objects, which are never loaded)") from error
    if dtype.hasobject:
        raise InputError(f"{path}: cannot be read (damaged, or pickled objects, which are never loaded)")
    if dtype.kind not in "biufc":
        raise InputError(f"{path}: found values of dtype {dtype}, wanted numbers")
    return shape, fortran, dtype


def _mapped(path: Path, file: IO[bytes], size: int) -> Array:
    """Map the array of a `.npy` file: its pages come and go; what is written to them is ours alone."""
    shape, fortran, dtype = _whole(path, file, size)
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.asarray(np.memmap(path, dtype, "c", file.tell(), shape, order))


def _array(path: Path, file: IO[bytes], size: int) -> Array:
    """Read an array from a file of `size` bytes, unpacked."""
    shape, fortran, dtype = _whole(path, file, size)
    wanted = math.prod(shape) * dtype.itemsize
    flat = large.empty(math.prod(shape), dtype)
    view, filled = memoryview(flat.view(np.uint8)), 0  # type: ignore[arg-type]
    while filled < wanted:
        part = file.read(min(_CHUNK, wanted - filled))
        if not part:
            raise InputError(f"{path}: cannot be read (damaged: it ends too early)")
        view[filled : filled + len(part)] = part
        filled += len(part)
    file.read(1)  # at its end, a zip file's checksum is compared
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _whole(path: Path, file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read what comes before an array's values in a file of `size` bytes, which must be all there."""
    shape, fortran, dtype = _header(path, file)
    wanted, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if wanted != there:
        raise InputError(
            f"{path}: cannot be read (damaged: {there:,} bytes of values, where {dtype} {shape} has {wanted:,})"
        )
    return shape, fortran, dtype
