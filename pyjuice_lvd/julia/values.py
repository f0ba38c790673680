"""What crosses the boundary: the tagged C struct that `LVDJuice.Boundary` reads and writes, and its Python side."""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.errors import InputError, JuliaError

MAX_DIMS = 6
NOTHING, BOOL, INT, FLOAT, STRING, ARRAY, HANDLE, ERROR, ARGUMENT, READ_ONLY = range(10)

# In the order of Boundary.ELTYPES, whose indices start at 1.
DTYPES = tuple(np.dtype(name) for name in ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"))
ELTYPES = {dtype: code for code, dtype in enumerate(DTYPES, start=1)}

# Keys of Julia's registry whose Python side is gone. Finalizers run in any thread and inside garbage collection, where
# Julia must not be called: they only append here, and the next call releases.
released: deque[int] = deque()


class Value(ctypes.Structure):
    """One argument or result; the same layout as `LVDJuice.Boundary.Value`."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("eltype", ctypes.c_int32),
        ("ndims", ctypes.c_int32),
        ("payload", ctypes.c_uint64),
        ("dims", ctypes.c_int64 * MAX_DIMS),
        ("owner", ctypes.c_int64),
    )


class _Owner:
    """Keeps one result alive in Julia until the last Python reference to it is gone."""

    __slots__ = ("key",)

    def __init__(self, key: int) -> None:
        self.key = key

    def __del__(self) -> None:
        released.append(self.key)

    def __reduce__(self) -> NoReturn:
        # A second owner of the key would let go of what the first one still uses; in another process it means nothing.
        raise TypeError("an object that stays in Julia can be neither copied nor pickled")


Borrowed = tuple[npt.NDArray[Any], ...]
"""Arrays of Python's whose memory something in Julia uses: they must live as long as that does."""


class _Memory(_Owner):
    """The memory of a Julia array, in the form that numpy understands; numpy keeps it as the base of every view."""

    __slots__ = ("__array_interface__", "borrowed")

    def __init__(
        self, key: int, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], borrowed: Borrowed
    ) -> None:
        super().__init__(key)
        self.borrowed = borrowed
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (address, False)}


class Handle(_Owner):
    """A Julia object that stays in Julia; pass it to `call` where the object is meant."""

    __slots__ = ("borrowed", "julia_type")

    def __init__(self, key: int, julia_type: str, borrowed: Borrowed) -> None:
        super().__init__(key)
        self.julia_type = julia_type
        self.borrowed = borrowed

    def __repr__(self) -> str:
        return f"<Julia {self.julia_type}>"


def lendable(array: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """Give an array, of `dtype` or its own, as `call` takes it: copied only if it is not in order, aligned, native."""
    array = np.asarray(array)
    return np.require(array, dtype or array.dtype.newbyteorder("="), ["C", "A"])


def encode(value: Value, x: object, what: str) -> object:
    """Write `x` into `value`; returns what must stay alive during the call. `what` names `x` in an InputError."""
    match x:
        case None:
            value.kind = NOTHING
        case bool() | np.bool_():
            value.kind, value.payload = BOOL, int(x)
        case int() | np.integer():
            if not -(2**63) <= x < 2**63:
                raise InputError(f"{what}: found {x}, want an integer of 64 bits")
            value.kind, value.payload = INT, int(x) % 2**64
        case float() | np.floating():
            value.kind, value.payload = FLOAT, ctypes.c_uint64.from_buffer(ctypes.c_double(float(x))).value
        case str():
            try:
                data = x.encode(errors="surrogateescape")  # the bytes of a file's name, whatever they are
            except UnicodeEncodeError:
                raise InputError(f"{what}: found {x!r}, want text, or a file's name") from None
            pointer = ctypes.c_char_p(data)
            value.kind, value.dims[0] = STRING, len(data)
            value.payload = ctypes.cast(pointer, ctypes.c_void_p).value
            return pointer
        case np.ndarray():
            _encode_array(value, x, what)
        case Handle():
            value.kind, value.owner = HANDLE, x.key
        case _:
            kinds = "None, bool, int, float, str, numpy.ndarray or julia.Handle"
            raise InputError(f"{what}: found {type(x).__name__}, want {kinds}")
    return x


def _encode_array(value: Value, x: npt.NDArray[Any], what: str) -> None:
    code = ELTYPES.get(x.dtype)
    if code is None:
        raise InputError(
            f"{what}: found an array of {x.dtype.str}, want bool, 8 to 64 bit integers, float32 or float64"
        )
    if not (x.flags.c_contiguous and x.flags.aligned):
        fault = "not C-contiguous" if x.flags.aligned else "not aligned"
        raise InputError(f"{what}: found an array {x.shape} that is {fault}, want julia.lendable of it")
    if x.ndim > MAX_DIMS:
        raise InputError(f"{what}: found an array of {x.ndim} dimensions, want at most {MAX_DIMS}")
    if isinstance(x, np.ma.MaskedArray):
        raise InputError(f"{what}: found a masked array, want one without a mask")
    if x.dtype == np.bool_ and x.size and x.view(np.uint8).max() > 1:
        raise InputError(f"{what}: found an array of bool with bytes other than 0 and 1, want 0 and 1")
    value.kind = ARRAY if x.flags.writeable else READ_ONLY
    value.eltype, value.ndims, value.payload = code, x.ndim, x.ctypes.data
    value.dims[: x.ndim] = x.shape[::-1]  # Julia is column-major: the same memory, dimensions reversed


def decode(value: Value, arguments: tuple[object, ...]) -> Any:
    """Return the Python side of one result; raises InputError or JuliaError if it is an error."""
    match value.kind:
        case 0:
            return None
        case 1:
            return value.payload != 0
        case 2:
            return ctypes.c_int64(value.payload).value
        case 3:
            return ctypes.c_double.from_buffer(ctypes.c_uint64(value.payload)).value
        case 4:
            return _text(value, "surrogateescape")
        case 5:
            shape, address = tuple(value.dims[: value.ndims])[::-1], value.payload
            # A Julia array can be another form of an argument's memory, as reshape makes it.
            shared = tuple(x for x in _lent(arguments) if x.ctypes.data <= address < x.ctypes.data + x.nbytes)
            return np.asarray(_Memory(value.owner, address, shape, DTYPES[value.eltype - 1], shared))
        case 6:
            return Handle(value.owner, _text(value), _lent(arguments) if value.eltype else ())
        case 7:
            raise (InputError if value.eltype else JuliaError)(_text(value))
        case _:
            return arguments[value.payload - 1]


def _lent(arguments: tuple[object, ...]) -> Borrowed:
    """All memory of Python's that a call with these arguments can reach."""
    lent: list[npt.NDArray[Any]] = []
    for x in arguments:
        if isinstance(x, np.ndarray):
            lent.append(x)
        elif isinstance(x, Handle):
            lent.extend(x.borrowed)
    return tuple(lent)


def _text(value: Value, errors: str = "replace") -> str:
    return ctypes.string_at(value.payload, value.dims[0]).decode(errors=errors)
