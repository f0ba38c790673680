"""Images of compressed files, decoded once: in the cache folder, where they are large.

An entry of the cache is a folder with an `.npy` file of each split, and `source.json`, written last, which says of what
it was made, with digests. It is of the files as they were, by their sizes and times of change. One process makes it,
others that want it wait for that; where it was interrupted, the next one goes on after the last block.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pyjuice_lvd import large
from pyjuice_lvd.data.source import Array, UInt8
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_json, write_json
from pyjuice_lvd.large import cache_folder, digest_of, reserve

_VERSION = 1
"""Of what readers make of files: another one makes all entries anew."""

_ABOUT, _UNDER_WAY, _LOCK = "source.json", "under-way.json", "lock"

Shapes = Mapping[str, tuple[int, ...]]


class Block(NamedTuple):
    """Some images of a split, which `read` gives, uint8 (images, H, W, C): those of a few files."""

    split: str
    images: int
    read: Callable[[], UInt8]


def decoded(source: Path, files: Sequence[Path], blocks: Sequence[Block], shape: tuple[int, ...]) -> dict[str, Array]:
    """Give the images of a source, `shape` (H, W, C) each: blocks of a split follow one another.

    `files` are all that the blocks are read from.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for block in blocks:
        shapes[block.split] = (shapes.get(block.split, (0,))[0] + block.images, *shape)
    if sum(map(math.prod, shapes.values())) < large.LARGE:
        parts: dict[str, Array] = {split: np.empty(own, np.uint8) for split, own in shapes.items()}
        for block, rows in _rows(blocks):
            parts[block.split][rows] = block.read()
        return parts
    stats = [(str(path), path.stat()) for path in files]
    of = {
        "version": _VERSION, "source": str(source.resolve()), "shapes": shapes, "blocks": len(blocks),
        "files": hashlib.sha256(repr([(p, s.st_size, s.st_mtime_ns) for p, s in stats]).encode()).hexdigest(),
    }  # fmt: skip
    folder = cache_folder() / "images" / hashlib.sha256(json.dumps(of).encode()).hexdigest()[:32]
    with _locked(folder):
        if not _is_whole(folder):
            _make(folder, of, blocks, shapes)
        return {split: _array(folder, split, own) for split, own in shapes.items()}


def _rows(blocks: Sequence[Block]) -> Iterator[tuple[Block, slice]]:
    """Give each block with its place in its split."""
    first: dict[str, int] = {}
    for block in blocks:
        start = first.get(block.split, 0)
        first[block.split] = start + block.images
        yield block, slice(start, start + block.images)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of an entry, or wait until they are done; the lock goes with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _array(folder: Path, split: str, shape: tuple[int, ...], mode: Literal["c", "r+"] = "c") -> Array:
    return np.asarray(np.memmap(folder / f"{split}.npy", np.uint8, mode, len(_header(shape)), shape))


def _header(shape: tuple[int, ...]) -> bytes:
    """Give the header of an `.npy` file of such images."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _is_whole(folder: Path) -> bool:
    """Say whether an entry was finished, and its files are what was written then."""
    try:
        about = read_json(folder / _ABOUT)
        digests = {split: tuple(shape) for split, shape in about["shapes"].items()}
        return all(digest_of(_array(folder, split, own)) == about["digests"][split] for split, own in digests.items())
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _make(folder: Path, of: Mapping[str, Any], blocks: Sequence[Block], shapes: Shapes) -> None:
    """Decode all blocks that are not yet there."""
    try:
        done = int(read_json(folder / _UNDER_WAY)["done"])
        parts = {split: _array(folder, split, own, "r+") for split, own in shapes.items()}
    except (InputError, OSError, ValueError, KeyError, TypeError):
        done, parts = 0, {}
        (folder / _ABOUT).unlink(missing_ok=True)
        for split, own in shapes.items():
            with (folder / f"{split}.npy").open("wb") as file:
                reserve(file.fileno(), len(_header(own)) + math.prod(own))
                file.write(_header(own))
            parts[split] = _array(folder, split, own, "r+")
    try:
        for number, (block, rows) in enumerate(_rows(blocks)):
            if number < done:
                continue
            parts[block.split][rows] = block.read()
            write_json(folder / _UNDER_WAY, {"done": number + 1})
    except InputError:  # of a damaged file: nothing will come of it
        shutil.rmtree(folder, ignore_errors=True)
        raise
    digests = {split: digest_of(part) for split, part in parts.items()}
    write_json(folder / _ABOUT, {**of, "digests": digests})
    (folder / _UNDER_WAY).unlink(missing_ok=True)
