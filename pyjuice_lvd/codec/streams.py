"""Blocks of images as streams: a range coder, by tables of integers that the model's codec gives, value after value.

Tables are of 24 bits and computed by fixed rules (julia/src/codec), so that encoder and decoder have the same anywhere.
The range coder is constriction's; the integers that it is given are sums and shares that float64 holds exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.errors import InputError

Int32 = npt.NDArray[np.int32]

MOST_IMAGES = 64
"""Of a block: so many share the calls that code a value."""

_BLOCK_BYTES = 2**28
"""About what the images of a block may take while they are coded."""

_TABLES_AT_ONCE = 64

_WORD = np.dtype("<u4")


class Coder:
    """The codec of a model in Julia, and the sizes that it works with."""

    def __init__(self, handle: julia.Handle) -> None:
        self._handle = handle
        self.values, self._widest, image_bytes = map(int, julia.call("coder_size", handle))
        self.images = max(1, min(MOST_IMAGES, _BLOCK_BYTES // max(image_bytes, 1)))
        """How many images make a block."""

    def encode(self, X: Int32, shown: Callable[[float], None]) -> bytes:
        """Code images (n, values), in the codec's order of values; `shown` is told the share that is done."""
        import constriction

        family, encoder = _tables(), constriction.stream.queue.RangeEncoder()
        n, k, width = len(X), _TABLES_AT_ONCE, self._widest * len(X)
        job = julia.call("coding", self._handle, X, False)
        tables, symbols, sizes = np.empty(k * width), np.empty((k, n), np.int32), np.empty(k, np.int32)
        done = 0
        while count := julia.call("next_tables!", tables, symbols, sizes, job):
            for i, size in enumerate(sizes[:count]):
                own = tables[i * width : i * width + n * size]
                encoder.encode(symbols[i], family, own.reshape(n, size))
            done += count
            shown(min(1.0, done / self._most_tables))
        stream: bytes = encoder.get_compressed().astype(_WORD).tobytes()
        return stream

    def decode(self, stream: bytes, n: int, shown: Callable[[float], None]) -> Int32:
        """Decode n images (n, values); raises InputError where the stream is none of this codec."""
        import constriction

        if len(stream) % _WORD.itemsize:
            raise InputError(f"the stream has {len(stream)} bytes, wanted whole words of {_WORD.itemsize}")
        family = _tables()
        decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(stream, _WORD).astype(np.uint32))
        X, table, symbols = np.zeros((n, self.values), np.int32), np.empty(self._widest * n), np.zeros(n, np.int32)
        job = julia.call("coding", self._handle, X, True)
        done = 0
        while size := julia.call("next_table!", table, job, symbols):
            symbols = decoder.decode(family, table[: n * size].reshape(n, size))
            done += 1
            shown(min(1.0, done / self._most_tables))
        return X

    @property
    def _most_tables(self) -> int:
        return 2 * self.values


def _tables() -> Any:
    """Give the family of the coder's models: each is an integer table."""
    import constriction

    return constriction.stream.model.Categorical(perfect=False, lazy=True)
