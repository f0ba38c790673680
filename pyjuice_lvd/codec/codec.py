"""A model as a codec of images, or of rows of a table: files of blocks, from arrays and back."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import integer
from pyjuice_lvd.codec.container import Block, Damaged, Header, packed_block, packed_names, read_blocks, read_header
from pyjuice_lvd.codec.streams import Coder
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.machine import check_result
from pyjuice_lvd.progress import Progress, Stage

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Codec:
    """What it takes to code the images of a model."""

    coder: Coder
    digest: str
    protocol: Mapping[str, Any]
    shape: tuple[int, ...]
    """Of an image, (H, W, C), or of a row, (V,)."""
    to_rows: Callable[[Array], Array]
    """Turns images into integers (n, values), in the coder's order."""
    from_rows: Callable[[Array], Array]

    def compress(self, X: Array, file: BinaryIO, progress: Progress, names: Sequence[str] = ()) -> None:
        """Write checked images, (N, *shape), to a file, block by block; `names`: of all of them, checked, or none."""
        named = packed_names(names) if names else b""
        about = self.digest, dict(self.protocol), self.shape, X.dtype.name, len(X), self.coder.images, len(named)
        header = Header(*about)
        file.write(header.packed() + named)
        with progress.stage("compressing", total=len(X), unit=header.noun) as stage:
            for number, images in enumerate(header.blocks):
                part = X[images.start : images.stop]
                rows = np.require(self.to_rows(part), np.int32, ["C", "A", "W", "O"])
                stream = self.coder.encode(rows, _shown(stage, images, images.start))
                file.write(packed_block(number, len(images), stream, _checksum(part)))

    def decompress(
        self, data: bytes, name: str, start: int, stop: int | None, lost: list[range] | None, progress: Progress
    ) -> Array:
        """Decode images `start` to `stop` of a file (`DensityModel.decompress`)."""
        header, position = read_header(data, name)
        self._check(header, name)
        stop = header.n if stop is None else integer("stop", stop, least=0)
        start = integer("start", start, least=0)
        if not start <= stop <= header.n:
            raise InputError(f"start, stop: found {start}, {stop}, wanted 0 <= start <= stop <= {header.n}, the images")
        asked = [  # what lies behind the last block, which has no images, is passed over where damage is
            block
            for block in read_blocks(data, header, position)
            if (block.images.start < stop and block.images.stop > start) or (not block.images and lost is None)
        ]
        if lost is None:
            _refuse(header, name, [block for block in asked if isinstance(block, Damaged)])
        many = sum(len(block.images) for block in asked)
        check_result(name, f"{many} {header.noun}", many * header.image_bytes)
        parts, done = [np.empty((0, *self.shape), header.dtype)], 0
        with progress.stage("decompressing", total=many, unit=header.noun) as stage:
            for block in asked:
                found = (
                    block
                    if isinstance(block, Damaged)
                    else self._decoded(block, header, _shown(stage, block.images, done))
                )
                done += len(block.images)
                own = range(max(block.images.start, start), min(block.images.stop, stop))
                if isinstance(found, Damaged):
                    if lost is None:
                        _refuse(header, name, [found])
                    else:
                        lost.append(own)
                else:
                    parts.append(found[own.start - block.images.start : own.stop - block.images.start])
        return np.concatenate(parts)

    def _check(self, header: Header, name: str) -> None:
        """Check that a file is one of the model's."""
        if header.shape != self.shape:
            raise InputError(f"{name}: holds {header.noun} {header.shape}, wanted the model's {self.shape}")
        if header.protocol != dict(self.protocol):
            raise InputError(f"{name}: was written in protocol {header.protocol}, wanted {dict(self.protocol)}")
        if header.model != self.digest:
            raise InputError(f"{name}: was written with another model, of digest {header.model}; wanted {self.digest}")

    def _decoded(self, block: Block, header: Header, shown: Callable[[float], None]) -> Array | Damaged:
        """Decode a block; what comes out is what its checksum says, or damaged."""
        try:
            rows = self.coder.decode(block.stream, len(block.images), shown)
            images = self.from_rows(rows).astype(header.dtype, copy=False)
        except (InputError, ValueError, AssertionError) as error:  # the range coder's are of the latter two
            return Damaged(block.images, " ".join(str(error).split()))
        if _checksum(images) != block.checksum:
            return Damaged(block.images, f"its {header.noun} are not those that were coded")
        return images


def _checksum(images: Array) -> int:
    """CRC-32 of images, in C order and little-endian."""
    return zlib.crc32(np.ascontiguousarray(images, images.dtype.newbyteorder("<")).data)


def _shown(stage: Stage, images: range, done: int) -> Callable[[float], None]:
    return lambda share: stage.update(completed=done + share * len(images))


def _refuse(header: Header, name: str, damaged: list[Damaged]) -> None:
    """Raise InputError that says which images are lost, if any are, or what else is wrong."""
    if not damaged:
        return
    if not (losing := [block for block in damaged if block.images]):
        raise InputError(f"{name}: damaged: {damaged[0].reason}")
    lost = ", ".join(f"{block.images.start}..{block.images.stop - 1} ({block.reason})" for block in losing[:3])
    more = f" and {len(losing) - 3} more blocks" if len(losing) > 3 else ""
    others = sum(len(block.images) for block in losing) < header.n
    raise InputError(
        f"{name}: damaged: lost are {header.noun} {lost}{more}"
        + ("; the others can be decoded without them (--salvage, or `lost`)" if others else ": nothing can be decoded")
    )
