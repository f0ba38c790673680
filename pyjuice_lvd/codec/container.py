"""The format of `.lvdz` files: a header, and blocks of images that are checked, and decoded, each on its own.

All numbers are little-endian. A file is the signature, the length of the header (u32), the header (JSON), the CRC-32 of
both, the names of the images, if it has them (`packed_names`), and then block after block: its head (`_HEAD`), and the
CRC-32 of that, and its stream.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from pyjuice_lvd.codec.names import check_names
from pyjuice_lvd.errors import InputError

SIGNATURE = b"\x8dLVDZ\r\n\x1a"
"""As PNG has it: no text, and damaged by whatever changes the ends of lines."""

VERSION = 2

_LENGTH = struct.Struct("<I")
_MARK = b"BLCK"
_HEAD = struct.Struct("<4sIIIII")
"""Of a block: its mark, its number, its images, the bytes of its stream, the CRC-32 of these and of the images."""

_MOST_HEADER = 2**16
_MOST_NAME = 256
"""Bytes of a name, with the 0 behind it, at most."""
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


@dataclass(frozen=True)
class Header:
    """What a file holds, and what it takes to read it."""

    model: str
    """Digest of the model: of its structure and all its parameters."""
    protocol: dict[str, Any]
    """Of the model, as a bpd has it."""
    shape: tuple[int, ...]
    """Of an image, (H, W, C), or of a row, (V,)."""
    dtype: str
    n: int
    """Images, or rows."""
    block: int
    """Images of a block; the last has what is left."""
    names: int = 0
    """Bytes of the images' names (`packed_names`) behind the header; 0: they have none."""
    version: int = VERSION

    @property
    def noun(self) -> str:
        """Call what the file holds."""
        return "images" if len(self.shape) == 3 else "rows"

    @property
    def image_bytes(self) -> int:
        """Bytes of an image, or row, when it is decoded."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def blocks(self) -> Iterator[range]:
        """The images of each block."""
        return (range(first, min(first + self.block, self.n)) for first in range(0, self.n, self.block))

    def packed(self) -> bytes:
        """Write the head of a file."""
        text = json.dumps(asdict(self), separators=(",", ":"), sort_keys=True).encode()
        head = _LENGTH.pack(len(text)) + text
        return SIGNATURE + head + _LENGTH.pack(zlib.crc32(head))


class Block(NamedTuple):
    """The stream of a block, and what it must decode to."""

    images: range
    stream: bytes
    checksum: int
    """CRC-32 of the images' bytes."""


class Damaged(NamedTuple):
    """A block that cannot be read."""

    images: range
    reason: str


def packed_names(names: Sequence[str]) -> bytes:
    """Write the images' names: UTF-8 with a 0 behind each, deflated, and the CRC-32 of that."""
    packed = zlib.compress("".join(f"{name}\0" for name in names).encode(), 9)
    return packed + _LENGTH.pack(zlib.crc32(packed))


def read_names(data: bytes, header: Header, name: str) -> tuple[str, ...]:
    """Read the images' names, which may be used as names of files; none where a file has none.

    Raises InputError, whose line begins with `name`, where they are damaged, or none that files of a folder may have.
    """
    if not header.names:
        return ()
    start = read_header(data, name)[1] - header.names
    packed, sums = data[start : start + header.names - _LENGTH.size], data[start + header.names - _LENGTH.size :]
    if len(sums) < _LENGTH.size or zlib.crc32(packed) != _LENGTH.unpack_from(sums)[0]:
        raise InputError(f"{name}: the names of its images are damaged; an .npz or .npy file needs none")
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(packed, header.n * _MOST_NAME).decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{name}: the names of its images are damaged; an .npz or .npy file needs none") from error
    found = tuple(text.split("\0")[:-1])
    if len(found) != header.n or not unpacking.eof:
        raise InputError(f"{name}: found names of {len(found)} images, wanted {header.n}")
    check_names(found, name)
    return found


def packed_block(number: int, count: int, stream: bytes, checksum: int) -> bytes:
    """Write a block."""
    head = _HEAD.pack(_MARK, number, count, len(stream), zlib.crc32(stream), checksum)
    return head + _LENGTH.pack(zlib.crc32(head)) + stream


def read_header(data: bytes, name: str) -> tuple[Header, int]:
    """Read the head of a file: the header, and where its blocks begin, behind the names.

    Raises InputError, whose line begins with `name`, where it is no such file, or damaged, or of another version.
    """
    if not data.startswith(SIGNATURE):
        raise InputError(f"{name}: found no .lvdz signature, wanted a file that `compress` wrote")
    start = len(SIGNATURE)
    length = _LENGTH.unpack_from(data, start)[0] if len(data) >= start + _LENGTH.size else _MOST_HEADER + 1
    end = start + _LENGTH.size + length
    if length > _MOST_HEADER or len(data) < end + _LENGTH.size:
        raise InputError(f"{name}: its header is damaged or cut off: nothing can be decoded")
    if zlib.crc32(data[start:end]) != _LENGTH.unpack_from(data, end)[0]:
        raise InputError(f"{name}: its header is damaged (its checksum differs): nothing can be decoded")
    header = _header(data[start + _LENGTH.size : end], name)
    return header, end + _LENGTH.size + header.names


def _header(text: bytes, name: str) -> Header:
    """Make the header of its JSON, whose checksum was right: it is what some version wrote."""
    try:
        table = json.loads(text)
        version = table["version"]
        if version == VERSION:
            header = Header(**{field.name: table[field.name] for field in fields(Header)})
            header = Header(**{**vars(header), "shape": tuple(map(int, header.shape))})
            sizes = (*header.shape, header.n, header.block)
            right = header.dtype in _DTYPES and 1 <= min(sizes) <= max(sizes) < 2**48 and len(header.shape) in (1, 3)
            right = right and (header.names == 0 or header.names > _LENGTH.size)
            right = right and isinstance(header.protocol, dict) and isinstance(header.model, str)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{name}: its header is not one of version {VERSION} of the format") from error
    if version != VERSION:
        raise InputError(f"{name}: found version {version!s:.20} of the format, wanted {VERSION}")
    if not right:
        raise InputError(f"{name}: its header has sizes or a type that no images have")
    return header


def read_blocks(data: bytes, header: Header, start: int) -> Iterator[Block | Damaged]:
    """Read block after block, from byte `start` on: all that the header promises are found, or said to be damaged.

    Behind a damaged head, the next block is looked for by its mark. What lies behind the last block is `Damaged` too,
    and has no images.
    """
    position, first = start, 0
    while first < header.n:
        found = _find(data, position, header, first)
        if found is None:
            yield Damaged(range(first, header.n), "cut off, or their heads are damaged")
            return
        images, position, size, stream_sum, checksum = found
        if images.start > first:
            yield Damaged(range(first, images.start), "their heads are damaged or missing")
        stream = data[position : position + size]
        position, first = position + size, images.stop
        if zlib.crc32(stream) == stream_sum and len(stream) == size:
            yield Block(images, stream, checksum)
        else:
            yield Damaged(images, "its checksum differs" if len(stream) == size else "it is cut off")
    if position < len(data):
        yield Damaged(range(header.n, header.n), f"found {len(data) - position} bytes behind its last block, wanted 0")


def _find(data: bytes, position: int, header: Header, first: int) -> tuple[range, int, int, int, int] | None:
    """Find the next block, from image `first` on: its images, its stream's begin and length, its checksums."""
    while (position := data.find(_MARK, position)) >= 0:
        end = position + _HEAD.size
        if end + _LENGTH.size <= len(data) and zlib.crc32(data[position:end]) == _LENGTH.unpack_from(data, end)[0]:
            _, number, count, size, stream_sum, checksum = _HEAD.unpack_from(data, position)
            start = number * header.block
            images = range(start, max(start, min(start + header.block, header.n)))
            if start >= first and 0 < len(images) == count:
                return images, end + _LENGTH.size, size, stream_sum, checksum
        position += 1
    return None
