"""Readers of a CIFAR-10 folder: binary batches, and python batches, which are pickles, without running the pickles.

A batch's pixels are flat and channel-first: 1024 red values in row-major order, then 1024 green, then 1024 blue.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any, Never

import numpy as np

from pyjuice_lvd.data.source import Source, UInt8, not_read, others_in
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.large import joined

_PIXELS = 3 * 32 * 32
_COMPANIONS = {"batches.meta", "batches.meta.txt", "readme.html"}  # of the batches, and without images
_BATCH = re.compile(r"(?P<split>data_batch_\d+|test_batch)(?P<binary>\.bin)?")


def is_cifar_folder(folder: Path) -> bool:
    """Whether the folder holds at least one file named like a CIFAR-10 batch."""
    return any(_BATCH.fullmatch(path.name) for path in folder.iterdir())


def read_cifar_folder(folder: Path) -> Source:
    """Images of a CIFAR-10 folder: "train" and "test", if there, as uint8 (N, 32, 32, 3) in the order of the batches.

    Raises InputError if a batch is damaged or its pickle holds anything but plain values and numpy arrays.
    """
    batches: dict[str, list[UInt8]] = {}
    matches = [match for path in sorted(folder.iterdir()) if (match := _BATCH.fullmatch(path.name))]
    binary = any(match["binary"] for match in matches)
    read = [match for match in matches if bool(match["binary"]) == binary]  # both forms hold every image twice
    for match in read:
        flat = (_read_binary_batch if binary else _read_python_batch)(folder / match.string)
        images = flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        batches.setdefault("test" if match["split"] == "test_batch" else "train", []).append(images)
    parts = {split: joined(images) for split, images in batches.items()}
    others = set(others_in(folder, (folder / match.string for match in read))) - _COMPANIONS
    return Source(str(folder), dict(parts), "by CIFAR-10's own batches", notes=not_read(others))


def _read_binary_batch(path: Path) -> UInt8:
    """Read records of one label byte and 3072 pixel bytes."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if content.size == 0 or content.size % (1 + _PIXELS):
        raise InputError(f"{path}: found {content.size} bytes, wanted CIFAR-10 records of {1 + _PIXELS} bytes each")
    return content.reshape(-1, 1 + _PIXELS)[:, 1:]


def _read_python_batch(path: Path) -> UInt8:
    """Read the `data` array, uint8 (N, 3072), of a pickled dictionary."""
    try:
        content = path.read_bytes()
        # "latin1" turns the byte strings of Python 2, which wrote the official batches, into str one to one.
        batch = _InertUnpickler(content).load()
    except _ForbiddenError as error:
        raise InputError(f"{path}: its pickle asks for {error}, wanted a CIFAR-10 batch of numpy arrays only") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{path}: damaged pickle ({error}), wanted a CIFAR-10 batch") from error
    data = (batch.get("data") or batch.get(b"data")) if isinstance(batch, dict) else None
    pixels = data.pixels() if isinstance(data, _InertArray) else None
    if pixels is None:
        raise InputError(f"{path}: holds no array `data` of uint8 (N, {_PIXELS}), wanted a CIFAR-10 batch")
    return pixels


class _ForbiddenError(Exception):
    """A pickle named something outside `_STAND_INS`."""


class _InertArray:
    """Stands for a numpy array while unpickling: it keeps what the pickle says and does nothing with it."""

    def __init__(self, *_args: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state  # (version, shape, dtype, Fortran order?, bytes)

    def pixels(self) -> UInt8 | None:
        """Return the array if it is uint8 (N, 3072) in C order with all its bytes, None otherwise."""
        match self.state:
            case (_, (int(n), int(d)), _InertDType(code="u1"), False, bytes() | bytearray() | str() as raw):
                # str: the bytes of Python 2
                content = raw.encode("latin1") if isinstance(raw, str) else raw
                if n > 0 and d == _PIXELS and len(content) == n * d:
                    return np.frombuffer(content, np.uint8).reshape(n, d)
        return None


class _InertDType:
    """Stands for a numpy dtype while unpickling: its code, such as "u1"."""

    def __init__(self, code: Any = None, *_args: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields say nothing about single bytes."""


def _inert_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _InertArray:
    """Stands for numpy's `_frombuffer`, by which pickle protocol 5 rebuilds an array."""
    array = _InertArray()
    array.state = (1, shape, dtype, order != "C", raw)
    return array


def _inert_scalar(*_args: Any) -> None:
    """Stands for a numpy scalar, such as a label, which nobody reads."""


# Every name that a batch may ask for, whichever numpy wrote it. What a pickle can reach is only the inert classes and
# functions above, never numpy's or Python's own code.
_STAND_INS: dict[tuple[str, str], Any] = {("numpy", "ndarray"): _InertArray, ("numpy", "dtype"): _InertDType}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _InertArray
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _inert_scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _inert_buffer


class _InertUnpickler(pickle._Unpickler):
    """Unpickles plain values and inert stand-ins for numpy arrays; refuses every other name.

    It is the unpickler written in Python: the one in C takes memory for whatever number a pickle names.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._left = len(content)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise _ForbiddenError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Never:
        raise _ForbiddenError(f"the external object {pid!r}")

    def _encode(self, text: str, encoding: str) -> bytes:
        """Stand for `_codecs.encode`, by which Python 3 writes bytes into pickles of protocol 2: always latin1."""
        self._left -= len(text)
        if encoding != "latin1" or self._left < 0:  # no more bytes than the file has
            raise ValueError(f"{len(text)} bytes encoded as {encoding!r}")
        return text.encode("latin1")
