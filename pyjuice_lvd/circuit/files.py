"""Circuit files: `.safetensors`, and Juice.jl's text format `.jpc`, plain or as `.jpc.gz`."""

from __future__ import annotations

import errno
import gzip
import os
import tempfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pyjuice_lvd import julia
from pyjuice_lvd.circuit.engine import ARRAYS, PIECE
from pyjuice_lvd.errors import InputError, JuliaError
from pyjuice_lvd.files.atomic import atomic_write, naming
from pyjuice_lvd.files.formats import read_arrays, write_arrays
from pyjuice_lvd.progress import SILENT, Progress

_FORMAT = "lvd-juice circuit 1"

# A .jpc.gz may unpack to so many bytes, and so many times its own size: a small file must not take all memory.
_UNPACKED_FREE = 2**24
_UNPACKED_RATIO = 100
_CHUNK = 2**20

# The highest level makes files 2 % smaller and takes more than three times as long.
_GZIP_LEVEL = 6

# A circuit may have so many variables beyond one for each byte of its file: memory follows the file, not its claims.
_FREE_VARIABLES = 2**16


def write_circuit(
    path: str | os.PathLike[str], circuit: julia.Handle, *, about: str = "", progress: Progress = SILENT
) -> None:
    """Write a circuit to the kind of file that the name says, aside and renamed; `about`: lines for its header.

    Raises InputError where it could not be read again: parameters are no probabilities, or do not sum to 1.
    """
    suffix = circuit_suffix(path)
    try:
        julia.call("check_circuit", circuit)
    except InputError as error:
        raise InputError(f"{path}: not written: {error}") from error
    match suffix:
        case ".safetensors":
            num_vars, *arrays = julia.call("circuit_arrays", circuit)
            tensors = dict(zip(ARRAYS, arrays, strict=True))
            texts = {"about": about} if about else {}
            write_arrays(path, tensors, {"format": _FORMAT, "num_vars": str(num_vars), **texts})
        case ".jpc":
            with atomic_write(path) as file:
                _write_jpc(file.name, circuit, about, progress)
        case _:
            with tempfile.TemporaryDirectory() as folder, atomic_write(path) as file:
                plain = Path(folder) / "model.jpc"
                with naming(plain):
                    _write_jpc(plain, circuit, about, progress)
                _pack(plain, file, progress)


def _write_jpc(path: str | os.PathLike[str], circuit: julia.Handle, about: str, progress: Progress) -> None:
    _, _, units, *_ = julia.call("circuit_size", circuit)
    try:
        writer = julia.call("JpcWriter", os.fspath(path), circuit, about)
        with progress.stage("writing", total=units, unit="units") as stage:
            written = 0
            while written < units:
                written = julia.call("advance!", writer, PIECE)
                stage.update(completed=written)
    except JuliaError as error:
        if "SystemError" not in str(error):
            raise
        raise OSError(errno.EIO, str(error).rpartition(": ")[2]) from error  # such as a full disk; named by `naming`


def _pack(plain: Path, target: BinaryIO, progress: Progress) -> None:
    """Compress a file, but no better than is unpacked again."""
    size = plain.stat().st_size
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        target.seek(0)
        target.truncate()
        # 31: a gzip file, without a time or a name, so that equal circuits give equal files.
        packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31, strategy=strategy)
        with plain.open("rb") as source, progress.stage("packing", total=size, unit="bytes") as stage:
            while chunk := source.read(_CHUNK):
                target.write(packer.compress(chunk))
                stage.advance(len(chunk))
        target.write(packer.flush())
        if size <= _most_unpacked(target.tell()):
            break


def _most_unpacked(size: int) -> int:
    return _UNPACKED_FREE + _UNPACKED_RATIO * size


def read_circuit(path: str | os.PathLike[str]) -> julia.Handle:
    """Read a circuit file; raises InputError if it is missing, damaged or no circuit."""
    suffix = circuit_suffix(path)
    try:
        with Path(path).open("rb"):
            pass
        return _read_safetensors(path) if suffix == ".safetensors" else _read_jpc(path, packed=suffix == ".jpc.gz")
    except (InputError, JuliaError) as error:
        message = " ".join(str(error).split())
        raise InputError(message if message.startswith(f"{path}: ") else f"{path}: {message}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged ({error}), wanted a gzip file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), wanted a circuit file") from error


def _read_safetensors(path: str | os.PathLike[str]) -> julia.Handle:
    arrays, metadata = read_arrays(path)
    if metadata.get("format") != _FORMAT:
        raise InputError(f"found format {metadata.get('format')!r}, wanted {_FORMAT!r}")
    try:
        num_vars = int(metadata["num_vars"])
        # Older files do not say what the heads weigh.
        ordered = [arrays[name] for name in ARRAYS if name in arrays or name != "head_weight"]
    except (KeyError, ValueError) as error:
        raise InputError(f"damaged ({error}), wanted a circuit") from error
    most = _FREE_VARIABLES + Path(path).stat().st_size
    if not 0 <= num_vars <= most:
        raise InputError(f"found {num_vars} variables, wanted 0..{most} in a file of this size")
    circuit: julia.Handle = julia.call("circuit_of", num_vars, *ordered)
    return circuit


def _read_jpc(path: str | os.PathLike[str], *, packed: bool) -> julia.Handle:
    size = Path(path).stat().st_size
    reader, piece = julia.call("jpc_reader", size, packed), np.empty(_CHUNK, np.uint8)
    unpacked = 0
    with gzip.open(path) if packed else Path(path).open("rb") as file:
        while count := file.readinto(piece.data):
            unpacked += count
            if packed and unpacked > _most_unpacked(size):
                raise InputError(f"unpacks to more than {_UNPACKED_RATIO} times its size, wanted a .jpc.gz")
            julia.call("read_piece!", reader, piece[:count])
    circuit: julia.Handle = julia.call("finish!", reader)
    return circuit


def circuit_suffix(path: str | os.PathLike[str]) -> str:
    """Give the end of a circuit file's name, which says what kind it is; raises InputError where there is none."""
    for suffix in (".safetensors", ".jpc", ".jpc.gz"):
        if Path(path).name.endswith(suffix):
            return suffix
    raise InputError(f"{path}: wanted a file that ends in .safetensors, .jpc or .jpc.gz")
