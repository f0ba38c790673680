"""Every reader on small files with damage: a clear error in one line, or something valid; little memory, no crash.

10,000 seeded mutations in all; LVD_FUZZ=20 makes twenty times as many, with other seeds.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import re
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from models import offset_model, tiny_model
from PIL import Image

from pyjuice_lvd import Circuit
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.data.masks import read_mask
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.models.load import load_model
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.settings import resolve, restored

TIMES = int(os.environ.get("LVD_FUZZ", "1"))
MEMORY = 2**29
"""Bytes that reading a damaged file of a few kilobytes may take."""

# ------------------------------------------------------------------------------------------------------------- damage

_NUMBERS = (
    b"0 -1 1e308 nan inf -inf 99999999999999999999 2147483647 2147483648 -9223372036854775808 9223372036854775807 "
    b"1e-320 0.5 65536 1000000 300000000"
)
_WORDS = (0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**62, 2**40, 0x7FC00000, 0x7F800000, 0x7FF8 << 48)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Change bytes: flip, cut, double, delete, overwrite; make numbers huge, negative, NaN."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            break
        at = rng.randrange(len(out))
        stop = min(len(out), at + 1 + int(rng.expovariate(1 / 8)))
        match rng.randrange(9):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:
                del out[at:]
            case 3:
                del out[at:stop]
            case 4:
                out[at:at] = out[at:stop]
            case 5:
                out[at:stop] = rng.choice((b"\xff", b"\0", b" ", b"\n")) * (stop - at)
            case 6:
                out += out[at:]
            case 7:
                numbers = list(re.finditer(rb"-?\d+(\.\d+)?", bytes(out)))
                if numbers:
                    found = rng.choice(numbers)
                    out[found.start() : found.end()] = rng.choice(_NUMBERS.split())
            case 8:
                size = rng.choice((1, 2, 4, 8))
                at -= at % size
                word = (rng.choice(_WORDS) % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
                out[at : at + size] = word[: len(out) - at]
    return bytes(out)


def damaged_file(data: bytes, rng: random.Random) -> bytes:
    """Damage a file or, half of the time where it is packed, what is in it."""
    if rng.random() < 0.5:
        if data[:2] == b"\x1f\x8b":
            return gzip.compress(damaged(gzip.decompress(data), rng), 1)
        if data[:4] == b"PK\x03\x04":
            return _damaged_member(data, rng)
        if data[8:9] == b"{":
            return _damaged_arrays(data, rng)
    return damaged(data, rng)


def _damaged_member(data: bytes, rng: random.Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        chosen = rng.choice(source.namelist())
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, damaged(content, rng) if name == chosen else content)
    return out.getvalue()


def _damaged_arrays(data: bytes, rng: random.Random) -> bytes:
    """Damage one array of a safetensors file, in a way that the format allows."""
    texts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__")
    arrays = safetensors.numpy.load(data)
    name = rng.choice(list(arrays))
    array = np.atleast_1d(arrays[name]).copy()
    match rng.randrange(5):
        case 0 if array.size:
            words = array.view(np.uint8).reshape(-1)
            at = rng.randrange(array.size) * array.itemsize
            words[at : at + array.itemsize] = list((rng.choice(_WORDS) % 2**64).to_bytes(8, "little")[: array.itemsize])
        case 1 if array.size and array.dtype.kind == "f":
            array.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, -np.inf, -1, 0, 2, 1e30))
        case 2:
            array = array.astype(rng.choice(("u1", "i4", "i8", "f4", "f8", "?")))
        case 3:
            array = rng.choice((array[:-1], array[:0], np.append(array, array), array.reshape(1, -1)))
        case _:
            array = np.zeros_like(array)
    return safetensors.numpy.save({**arrays, name: np.ascontiguousarray(array)}, metadata=texts)


# -------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class Reader:
    """What makes valid files in a folder, and what reads them; so many damaged ones."""

    count: int
    make: Callable[[Path], object]
    read: Callable[[Path], object]


def circuits(name: str) -> Reader:
    def make(folder: Path) -> None:
        pc = Circuit.rat_spn(num_vars=4, depth=2, replicas=2, num_sums=2, num_inputs=2, num_cats=3, heads=2, seed=1)
        if not name.endswith(".safetensors"):  # one unit of each kind
            (folder / "kinds.jpc").write_text(
                "c heads 9 10\njpc 12\nC 0 0 1 -0.6931472 -1.3862944 -1.3862944\nI 1 0 1 2\nL 2 0 -2\nL 3 0 2\n"
                "B 4 0 3 2 -0.6931472\nP 5 0 3 0 2 4\nP 6 0 3 1 3 4\nP 7 0 2 0 3\nP 8 0 2 7 4\n"
                "S 9 0 2 5 -0.2876821 6 -1.3862944\nS 10 0 3 5 -0.6931472 6 -1.3862944 8 -1.3862944\n"
                "S 11 0 2 9 -0.6931472 10 -0.6931472\n"
            )
            pc = Circuit.load(folder / "kinds.jpc")
            (folder / "kinds.jpc").unlink()
        pc.save(folder / name)

    def read(folder: Path) -> None:
        check_circuit(Circuit.load(folder / name))

    return Reader(1000, make, read)


def check_circuit(pc: Circuit) -> None:
    assert 0 < pc.num_vars < 100_000
    scores = pc.log_likelihood(np.zeros((2, pc.num_vars), int), head="all")
    assert (scores < 0.1).all()  # and no NaN
    assert all(np.isfinite(array).all() for array in pc.parameters())


def checkpoint() -> Reader:
    X = np.random.default_rng(0).integers(0, 3, (20, 3))

    def untrained() -> Circuit:
        return Circuit.from_tree([-1, 0, 1], num_latents=2, num_cats=3)

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0.0)
            untrained().fit_em(X, epochs=3, valid=X, checkpoint=folder / "em.safetensors")

    def read(folder: Path) -> None:
        pc = untrained()
        try:
            pc.fit_em(X, epochs=3, valid=X, checkpoint=folder / "em.safetensors")
        finally:
            check_circuit(pc)

    return Reader(60, make, read)


def table() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 4, (30, 5))


def images(n: int = 12) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (n, 8, 6, 3), dtype=np.uint8)


def check_splits(path: Path) -> None:
    splits = load_data(str(path))
    for part in (splits.train, splits.valid, splits.test):
        assert len(part)
        assert part.dtype in (np.uint8, np.int32)
        assert part.ndim == 4 or (part.ndim == 2 and part.min() >= -1)  # -1 is what is missing


def data(count: int, make: Callable[[Path], object]) -> Reader:
    """Read the one file in the folder, or the folder where there are several."""

    def read(folder: Path) -> None:
        files = sorted(folder.iterdir())
        check_splits(files[0] if len(files) == 1 else folder)

    return Reader(count, make, read)


def debd(folder: Path) -> None:
    for part in ("train", "valid", "test"):
        np.savetxt(folder / f"toy.{part}.data", table()[:10] % 2, fmt="%d", delimiter=",")


def pictures(folder: Path) -> None:
    for k, suffix in enumerate(("png", "jpg", "bmp", "webp", "gif", "tif")):
        Image.fromarray(images()[k]).save(folder / f"{k}.{suffix}")


def cifar_python(folder: Path) -> None:
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        batch = {b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2, 3], b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def cifar_binary(folder: Path) -> None:
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        (folder / name).write_bytes(bytes([3, *([7] * 3072)]) * 3)


def shards(folder: Path) -> None:
    for name in ("train_data_batch_1.npz", "train_data_batch_2.npz", "val_data.npz"):
        np.savez(folder / name, data=np.zeros((4, 3 * 4 * 4), np.uint8), labels=np.arange(4))


def masks(name: str) -> Reader:
    hidden = np.zeros((6, 4), bool)
    hidden[2:] = True

    def make(folder: Path) -> None:
        if name.endswith(".npy"):
            np.save(folder / name, hidden)
        else:
            Image.fromarray(hidden.astype(np.uint8) * 255).save(folder / name)

    def read(folder: Path) -> None:
        found = read_mask(str(folder / name), 6, 4)
        assert (found.dtype, found.shape) == (np.bool_, (6, 4))

    return Reader(500, make, read)


def config() -> Reader:
    text = """
        method = "lvd-pg"
        seed = 3
        [data]
        color = "rgb"
        crop = "16x16"
        [circuit]
        latents = 8
        epochs = 2
        step_size = [0.1, 0.01]
        [clusters]
        outer = 10
        inner = 4
    """
    return Reader(
        1000, lambda folder: (folder / "own.toml").write_text(text), lambda folder: resolve(config=folder / "own.toml")
    )


def run_directory() -> Reader:
    def make(folder: Path) -> None:
        settings = resolve(method="hclt").to_dict()
        with RunDirectory.create(folder / "run", settings=settings) as run:
            run.log({"stage": "em", "epoch": 1, "log_likelihood": -3.5})
            run.log({"stage": "em", "epoch": 2, "log_likelihood": -3.25})
            run.finish({"method": "hclt", "bpd": 4.5, "n": 10, "protocol": {"color": "ycocg", "lossless": True}})

    def read(folder: Path) -> None:
        run = RunDirectory.open_existing(folder / "run")
        restored(run.settings, f"{folder}: ")
        assert all(isinstance(record, dict) for record in run.metrics())
        json.dumps(run.result)

    return Reader(1000, make, read)


def whole_model(folder: Path) -> None:
    pc = Circuit.from_tree([-1, 0, 1], num_latents=2, num_cats=256)
    CircuitModel(pc, num_cats=256, image_shape=(1, 1, 3), color="ycocg").save(folder / "model")


def model(count: int, make: Callable[[Path], object]) -> Reader:
    def read(folder: Path) -> None:
        found = load_model(folder / "model")
        assert 0 < found.num_params < 10**6
        assert 0 < found.dims < 10**4

    return Reader(count, make, read)


READERS = {
    "jpc": circuits("pc.jpc"),
    "jpc.gz": circuits("pc.jpc.gz"),
    "safetensors": circuits("pc.safetensors"),
    "checkpoint": checkpoint(),
    "npy table": data(600, lambda folder: np.save(folder / "x.npy", table())),
    "npy images": data(400, lambda folder: np.save(folder / "x.npy", images())),
    "npz": data(700, lambda folder: np.savez(folder / "x.npz", train=table(), valid=table(), test=table())),
    "npz images": data(400, lambda folder: np.savez_compressed(folder / "x.npz", x_train=images(), x_test=images())),
    "csv": data(600, lambda folder: np.savetxt(folder / "x.csv", table(), fmt="%d", delimiter=",", header="a,b,c")),
    "debd": data(500, debd),
    "pictures": data(600, pictures),
    "cifar python": data(300, cifar_python),
    "cifar binary": data(100, cifar_binary),
    "shards": data(300, shards),
    "mask npy": masks("mask.npy"),
    "mask png": masks("mask.png"),
    "config": config(),
    "run": run_directory(),
    "model": model(300, whole_model),
    "offset model": model(
        300,
        lambda folder: offset_model((2, 2, 1), (1, 2), "rgb", (64,), [[0, 1]])[0].save(folder / "model"),
    ),
    "joint model": model(300, lambda folder: tiny_model(cats=4).save(folder / "model")),
}


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process have so much memory more, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    reader, rng = READERS[name], random.Random(f"{name} {TIMES}")
    reader.make(tmp_path)
    reader.read(tmp_path)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    kinds = {path.suffix: path for path in files}
    refused = 0
    with bounded_memory():
        for _ in range(reader.count * TIMES):
            path = rng.choice(list(files if rng.random() < 0.5 else kinds.values()))
            content = damaged_file(files[path], rng)
            path.write_bytes(content)
            try:
                reader.read(tmp_path)
            except InputError as error:
                message = str(error)
                assert str(tmp_path) in message, message
                assert "\n" not in message, message
                assert len(message) < 1000, message
                refused += 1
            path.write_bytes(files[path])  # where anything else is raised, the damaged file stays, and pytest keeps it
    assert refused > reader.count / 10


def test_readers_take_ten_thousand() -> None:
    assert sum(reader.count for reader in READERS.values()) >= 10_000
