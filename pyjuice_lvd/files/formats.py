"""The formats of a run's files: JSON, TOML, and arrays as safetensors; written whole or not at all, never a pickle."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.atomic import atomic_write, check_writable
from pyjuice_lvd.large import contiguous

LARGE_FILE = 2**20
"""Bytes from which on a file's arrays are mapped, not read."""

_KINDS = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16", "uint32": "U32",
    "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64", "float64": "F64",
}  # fmt: skip
"""What safetensors calls numpy's types."""

_TEXTS = "lvd-juice"  # the entry of a safetensors file's metadata that holds all of ours, as JSON


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a whole file; raises InputError that names it when that cannot be."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Turn a result into standard JSON: numpy scalars and arrays become plain numbers, NaN and infinities `null`.

    What no UTF-8 can hold, such as the bytes of a file's name that is none, is escaped, and comes back as it was.
    """
    text = json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()


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


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested tables into one, with names such as `protocol.color`."""
    entries: dict[str, Any] = {}
    for name, value in table.items():
        entries |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return entries


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file (see `json_text`)."""
    with atomic_write(path) as file:
        file.write((json_text(value, indent=2) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; raises InputError when it is missing or damaged."""
    contents = read_bytes(path)
    try:
        return json.loads(contents)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}), wanted JSON") from error


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object; raises InputError when it is missing, damaged or none, and later for an entry it lacks."""
    table = read_json(path)
    if not isinstance(table, dict):
        raise InputError(f"{path}: found a {type(table).__name__}, wanted a JSON object")
    return Entries(path, table)


class Entries(dict[str, Any]):
    """Entries of a file; to ask for one that is not there is an InputError that names the file."""

    def __init__(self, path: str | os.PathLike[str], entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise InputError(f"{self._path}: has no {name!r}: damaged, or written by another version")


def write_toml(path: str | os.PathLike[str], table: Mapping[str, Any]) -> None:
    """Write a TOML file."""
    with atomic_write(path) as file:
        tomli_w.dump(table, file)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file; raises InputError when it is missing or is not TOML."""
    contents = read_bytes(path)
    try:
        return tomllib.loads(contents.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {_one_line(error)}, wanted TOML") from error


def check_arrays_file(name: str, path: object) -> None:
    """Raise InputError, whose line begins with `name`, unless arrays can be written to the file."""
    if not isinstance(path, str | os.PathLike) or Path(path).suffix != ".safetensors":
        raise InputError(f"{name}: found {path!r}, wanted the path of a file named .safetensors")
    check_writable(path)


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays of numbers or Booleans, of any shape and memory order, and texts about them as safetensors.

    One array goes to the file after the other: the library's `save` makes a copy of them all.
    """
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))  # so that all of them are aligned
    header: dict[str, Any] = {"__metadata__": {_TEXTS: json.dumps(dict(metadata), sort_keys=True)}} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + arrays[name].nbytes
        kind = _KINDS[arrays[name].dtype.name]
        header[name] = {"dtype": kind, "shape": arrays[name].shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = contiguous(arrays[name])
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read what `write_arrays` wrote: the arrays (C order, writable) and the metadata.

    Arrays of a large file are maps of it; what is written to them is the process' own. Raises InputError when the file
    is missing, truncated or no safetensors file.
    """
    import safetensors

    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            names = file.keys()
            texts = json.loads((file.metadata() or {}).get(_TEXTS, "{}"))
            about = {str(key): str(texts[key]) for key in texts}
            if Path(path).stat().st_size < LARGE_FILE:
                return {name: file.get_tensor(name) for name in names}, about
            return _maps(path), about
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file, wanted a safetensors file") from error
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: damaged ({_one_line(error)}), wanted a safetensors file") from error


def _maps(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Map the arrays of a file that the library has found sound."""
    content = np.asarray(np.memmap(path, np.uint8, "c"))
    first = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:first].tobytes())
    dtypes, found = {kind: name for name, kind in _KINDS.items()}, {}
    for name, about in header.items():
        if name != "__metadata__":
            start, end = about["data_offsets"]
            found[name] = content[first + start : first + end].view(dtypes[about["dtype"]]).reshape(about["shape"])
    return found


def write_npy(path: str | os.PathLike[str], array: npt.NDArray[np.generic]) -> None:
    """Write an array to a `.npy` file."""
    array = np.ascontiguousarray(array)
    with atomic_write(path) as file:
        # Not np.save: where the disk is full, it says how many values were written and not why no more were.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Write arrays to a `.npz` file, compressed."""
    with atomic_write(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
