"""Lossless coding: every image comes back, in as many bits as the model says, and damage is known."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import pytest
from commands import lvd_juice, python
from models import field_model, offset_model, tiny_model, window_model
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from pyjuice_lvd import HCLT, RATSPN
from pyjuice_lvd.codec.container import SIGNATURE, read_blocks, read_header, read_names
from pyjuice_lvd.codec.streams import Coder
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.julia import find
from pyjuice_lvd.models.base import DensityModel
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.progress import SILENT

DIGITS = load_digits().images.astype(np.uint8)
SHARED = Path(__file__).parents[2] / "shared" / "data"


def adversarial(shape: tuple[int, ...]) -> np.ndarray:
    """Noise, a constant, a checkerboard, all 0 and all 255: uint8 (5, *shape)."""
    board = np.indices(shape[:2]).sum(axis=0) % 2 * 255
    full = np.broadcast_to(board.reshape(*shape[:2], *[1] * (len(shape) - 2)), shape)
    noise = np.random.default_rng(0).integers(0, 256, shape)
    return np.stack([noise, np.full(shape, 7), full, np.zeros(shape), np.full(shape, 255)]).astype(np.uint8)


def stream_bytes(data: bytes) -> int:
    """Bytes of a file's streams: what is not headers."""
    header, start = read_header(data, "data")
    return sum(len(block.stream) for block in read_blocks(data, header, start))


def check_round_trip(model: DensityModel, X: np.ndarray) -> bytes:
    """The arrays are equal, and the streams as long as the model says, where it has a probability for all of X."""
    data = model.compress(X)
    found = model.decompress(data)
    assert found.dtype == X.dtype
    assert np.array_equal(found, X.reshape(found.shape))
    bits = -model.score_samples(X).sum() / np.log(2)
    if np.isfinite(bits):
        blocks = len(list(read_header(data, "data")[0].blocks))
        assert (
            8 * stream_bytes(data) <= 1.005 * bits + 64 * blocks
        )  # a stream ends at a word, behind one of the coder's
        assert 8 * stream_bytes(data) >= 0.999 * bits
    return data


@pytest.fixture(scope="module")
def digits() -> CircuitModel:
    return HCLT(num_latents=4, num_trees=2, epochs=3).fit(DIGITS[:1200]).model_


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    lvd_juice("fit", "digits", "-o", folder, "--method", "hclt", "--set", "hclt.latents=2", "--set", "hclt.epochs=2")
    return folder


def test_the_range_coder_codes_as_it_did() -> None:
    family = constriction.stream.model.Categorical(perfect=False, lazy=True)
    encoder = constriction.stream.queue.RangeEncoder()
    for i in range(64):
        m = (2, 8, 16)[i % 3]
        sums = np.cumsum((np.arange(m) + i) % 7 + 0.25)
        until = np.floor(sums / sums[-1] * (2**24 - m))
        encoder.encode(np.array([i * i % m], np.int32), family, np.diff(until, prepend=0)[None] + 1)
    coded = encoder.get_compressed().astype("<u4").tobytes().hex()
    assert coded == "ba2ba303442399b999def86dce4433cc5ea27728733ac2d7b7ac7903"


def test_digits_and_others_come_back(digits: CircuitModel) -> None:
    check_round_trip(digits, DIGITS[1200:])
    check_round_trip(digits, DIGITS[:1])
    check_round_trip(digits, adversarial((8, 8)))


@pytest.mark.parametrize("estimator", [HCLT(num_latents=3, epochs=2), RATSPN(depth=2, replicas=3, epochs=2)])
def test_tables_come_back_in_their_type(estimator: Any) -> None:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 40, (300, 5)).astype(np.int16)
    X[:, 2] = X[:, 0]
    model = estimator.fit(X).model_
    check_round_trip(model, X)
    assert np.array_equal(estimator.decompress(estimator.compress(X[:9])), X[:9])
    with pytest.raises(InputError, match=r"found 40 in row 0, variable 1"):
        model.compress(np.array([[0, 40, 0, 0, 0]], np.int16))


@pytest.mark.parametrize("tied", [True, False])
def test_joint_models(tied: bool) -> None:
    model = tiny_model(tied=tied)
    check_round_trip(model, np.random.default_rng(1).integers(0, 256, (150, 2, 2, 1), dtype=np.uint8))
    check_round_trip(model, adversarial((2, 2)))


@pytest.mark.parametrize(("color", "channels"), [("ycocg", 3), ("ycocg", 1)])
def test_offsets(color: str, channels: int) -> None:
    residuals = [[0, 1, 2, 254], [0, 1, 5], list(range(256))][:channels]
    model, _ = offset_model((4, 4, channels), (2, 2), color, (8, 8, 256)[:channels], residuals)
    check_round_trip(model, model.sample(60, exact=True))
    check_round_trip(model, adversarial((4, 4, channels)))  # which the model thinks impossible


@pytest.mark.parametrize(
    ("color", "channels", "sides"), [("ycocg", 3, (6, 6)), ("rgb", 3, (2, 8)), ("ycocg", 1, (8, 4))]
)
def test_fields_of_offsets(color: str, channels: int, sides: tuple[int, int]) -> None:
    residuals = [[0, 1, 2, 254], [0, 1, 5], list(range(256))][:channels]
    model, _ = field_model((*sides, channels), (2, 2), color, (8, 8, 256)[:channels], residuals)
    check_round_trip(model, model.sample(40, exact=True))
    check_round_trip(model, adversarial((*sides, channels)))  # which the model thinks impossible


@pytest.mark.parametrize(("color", "channels"), [("ycocg", 3), ("rgb", 3), ("ycocg", 1)])
def test_windows(color: str, channels: int) -> None:
    model = window_model((5, 3, channels), color=color, reach=2)
    check_round_trip(model, np.concatenate([model.sample(70, exact=True), adversarial((5, 3, channels))]))


def test_photographs() -> None:
    photograph = load_sample_images().images[0]
    tiles = np.ascontiguousarray(photograph[:160, :160].reshape(20, 8, 20, 8, 3).swapaxes(1, 2).reshape(-1, 8, 8, 3))
    model = HCLT(num_latents=3, epochs=2).fit(tiles[:300]).model_
    check_round_trip(model, tiles[300:])


@pytest.mark.skipif(not SHARED.exists(), reason="needs the data sets beside the checkout")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_data_sets(name: str) -> None:
    with np.load(SHARED / f"{name}.npz") as arrays:
        key = next(key for key in arrays.files if "train" in key and arrays[key].ndim == 3)
        images = arrays[key][:400, 6:22, 6:22]
    model = HCLT(num_latents=2, epochs=2).fit(images[:300]).model_
    check_round_trip(model, np.concatenate([images[300:], adversarial((16, 16))]))


def test_blocks_decode_alone(digits: CircuitModel) -> None:
    X = DIGITS[:150]  # three blocks
    data = digits.compress(X)
    for start, stop in ((0, 1), (63, 65), (149, 150), (20, 20), (64, 128)):
        assert np.array_equal(digits.decompress(data, start=start, stop=stop)[..., 0], X[start:stop])
    with pytest.raises(InputError, match=r"start, stop: found 3, 151"):
        digits.decompress(data, start=3, stop=151)


def test_a_damaged_block_loses_itself(digits: CircuitModel) -> None:
    X = DIGITS[:150]
    data = bytearray(digits.compress(X))
    header, start = read_header(bytes(data), "data")
    second = next(block for block in read_blocks(bytes(data), header, start) if block.images.start == 64)
    at = bytes(data).find(second.stream)
    for place in (at + 5, at - 20):  # in its stream, in its head
        damaged = data.copy()
        damaged[place] ^= 4
        with pytest.raises(InputError, match=r"^FILE: damaged: lost are images 64\.\.127 \("):
            digits.decompress(bytes(damaged), name="FILE")
        lost: list[range] = []
        found = digits.decompress(bytes(damaged), lost=lost)
        assert lost == [range(64, 128)]
        assert np.array_equal(found[..., 0], np.concatenate([X[:64], X[128:]]))
        assert np.array_equal(digits.decompress(bytes(damaged), stop=64)[..., 0], X[:64])
    with pytest.raises(InputError, match=r"lost are images 128\.\.149 \(it is cut off\)"):
        digits.decompress(bytes(data[:-1]))
    with pytest.raises(InputError, match=r"lost are images 64\.\.149"):
        digits.decompress(bytes(data[: at - 28]))
    with pytest.raises(InputError, match=r"lost are images 0\.\.149 \(.*: nothing can be decoded$"):
        digits.decompress(bytes(data[:start]))
    for file, wanted in ((data + b"junk", 4), (data + data, len(data))):
        with pytest.raises(InputError, match=f"^data: damaged: found {wanted} bytes behind its last block, wanted 0$"):
            digits.decompress(bytes(file))
        assert np.array_equal(digits.decompress(bytes(file), lost=lost)[..., 0], X)
    # A stream that was changed together with its checksum: the images' own checksum knows.
    forged = data.copy()
    forged[at + 5] ^= 4
    forged[at - 12 : at - 8] = struct.pack("<I", zlib.crc32(forged[at : at + len(second.stream)]))
    forged[at - 4 : at] = struct.pack("<I", zlib.crc32(forged[at - 28 : at - 4]))
    with pytest.raises(InputError, match=r"lost are images 64\.\.127 \("):
        digits.decompress(bytes(forged))


def test_a_header_that_promises_more_than_a_file_can_hold(digits: CircuitModel) -> None:
    data = digits.compress(DIGITS[:130])
    header, start = read_header(data, "data")
    forged = replace(header, n=10**12).packed() + data[start:]
    with pytest.raises(InputError, match=r"lost are images 128\.\.999999999999 \(cut off, or their heads"):
        digits.decompress(forged)
    assert np.array_equal(digits.decompress(forged, stop=128)[..., 0], DIGITS[:128])
    with pytest.raises(InputError, match="sizes or a type that no images have"):
        digits.decompress(replace(header, n=10**30).packed() + data[start:])


def test_mutated_files_end_in_an_error_or_in_the_images(digits: CircuitModel) -> None:
    """Some hundreds; benchmarks/codec.py has the same for as many as it is told."""
    X = DIGITS[:3]
    data, rng, errors = digits.compress(X), np.random.default_rng(0), []
    codec = digits._codec()  # once: it is the same for all
    for _ in range(400):
        mutated = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at = rng.integers(len(mutated))
            match rng.integers(3):
                case 0:
                    mutated[at] ^= 1 << rng.integers(8)
                case 1:
                    del mutated[at : at + rng.integers(1, 50)]
                case _:
                    mutated[at:at] = rng.bytes(rng.integers(1, 50))
        try:
            found = codec.decompress(bytes(mutated), "data", 0, None, None, SILENT)
        except InputError as error:
            errors.append(str(error))
        else:
            assert np.array_equal(found[..., 0], X)
    assert len(errors) > 300
    assert not any("\n" in error for error in errors)


def test_files_of_an_earlier_version_are_refused(digits: CircuitModel) -> None:
    old = replace(read_header(digits.compress(DIGITS[:2]), "data")[0], version=1).packed()
    with pytest.raises(InputError, match=r"^FILE: found version 1 of the format, wanted 2$"):
        digits.decompress(old, name="FILE")


def test_what_is_refused(digits: CircuitModel) -> None:
    data = digits.compress(DIGITS[:2])
    with pytest.raises(InputError, match=r"X: found images of \(8, 9, 1\), wanted \(8, 8, 1\)"):
        digits.compress(np.zeros((1, 8, 9), np.uint8))
    with pytest.raises(InputError, match=r"wanted \(8, 8, 1\)"):
        digits.compress(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"no \.lvdz signature"):
        digits.decompress(b"PNG")
    for wrong, kind in (("file.lvdz", "str"), (None, "NoneType"), (3, "int")):
        with pytest.raises(InputError, match=f"^data: found {kind}, wanted the bytes of an .lvdz file$"):
            digits.decompress(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="header is damaged or cut off"):
        digits.decompress(SIGNATURE)
    other = HCLT(num_latents=2, epochs=1).fit(DIGITS[:100]).model_
    with pytest.raises(InputError, match="written with another model, of digest"):
        other.decompress(data)
    small = HCLT(num_latents=2, epochs=1).fit(DIGITS[:100, :4]).model_
    with pytest.raises(InputError, match=r"holds images \(8, 8, 1\), wanted the model's \(4, 8, 1\)"):
        small.decompress(data)
    rng = np.random.default_rng(0)
    lossy = HCLT(num_latents=2, epochs=1, config={"data": {"color": "ycc709"}})
    lossy.fit(rng.integers(0, 256, (50, 2, 2, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="found colours ycc709, which lose information; wanted ycocg or rgb"):
        lossy.compress(np.zeros((1, 2, 2, 3), np.uint8))


def test_a_saved_model_decodes(digits: CircuitModel, tmp_path: Path) -> None:
    digits.save(tmp_path)
    assert np.array_equal(CircuitModel.load(tmp_path).decompress(digits.compress(DIGITS[:5]))[..., 0], DIGITS[:5])


APART = """
    import sys, numpy as np
    from pathlib import Path
    from pyjuice_lvd import julia
    from pyjuice_lvd.julia import libjulia
    folder, target, threads, models = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    libjulia.CPU_TARGET = target
    info = julia.start(threads=threads, bridge="libjulia")
    from pyjuice_lvd.models.load import load_model
    for name in models:
        model, X = load_model(folder / name), np.load(folder / f"{name}.npy")
        data = model.compress(X)
        assert np.array_equal(model.decompress((folder / f"{name}.lvdz").read_bytes()), X)
        assert data == (folder / f"{name}.lvdz").read_bytes(), (name, info.cpu_target, threads)
    print(info.cpu_target, info.threads)
"""


@pytest.mark.parametrize(("target", "threads"), [("generic", 2), ("haswell", 1)])
def test_streams_are_the_same_on_other_processors(
    digits: CircuitModel, tmp_path: Path, target: str, threads: int
) -> None:
    """And with other numbers of threads, and compiled as users have it; this process codes for its own processor."""
    executable = str(find.choose().julia.executable)
    if subprocess.run([executable, f"--cpu-target={target}", "-e", "1"], capture_output=True, check=False).returncode:
        pytest.skip(f"this Julia's own image has no code for {target}")
    parts = ((4, 4, 3), (2, 2), "rgb", (8, 8, 256), [[0, 1, 2, 254], [0, 1, 5], list(range(256))])
    (offsets, _), (field, _) = offset_model(*parts), field_model(*parts)
    windows = window_model((4, 4, 3))
    for name, model, X in (
        ("digits", digits, DIGITS[1200:1230, :, :, None]),
        ("offsets", offsets, np.concatenate([offsets.sample(20, exact=True), adversarial((4, 4, 3))])),
        ("field", field, np.concatenate([field.sample(20, exact=True), adversarial((4, 4, 3))])),
        ("windows", windows, np.concatenate([windows.sample(20, exact=True), adversarial((4, 4, 3))])),
    ):
        model.save(tmp_path / name)
        np.save(tmp_path / f"{name}.npy", X)
        (tmp_path / f"{name}.lvdz").write_bytes(model.compress(X))
    models = "digits", "offsets", "field", "windows"
    ran = python(APART, str(tmp_path), target, str(threads), *models, timeout=600, LVD_JULIA_OPTIMIZE="3")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [target, str(threads)]


# ------------------------------------------------------------------------------------------------------ command line


def test_a_run_codes_its_data(run: Path, tmp_path: Path) -> None:
    coded, back = tmp_path / "digits.lvdz", tmp_path / "digits.npz"
    said = json.loads(lvd_juice("compress", run, "digits", "-o", coded, "--json", "--quiet").stdout)
    assert said["n"] == len(DIGITS)
    assert said["bytes"] == coded.stat().st_size
    assert said["bpd"] == pytest.approx(8 * said["bytes"] / DIGITS.size)
    assert said["protocol"] == {"color": "ycocg", "crop": None, "lossless": True}
    told = json.loads(lvd_juice("decompress", run, coded, "-o", back, "--json", "--quiet").stdout)
    assert told["n"] == len(DIGITS)
    with np.load(back) as arrays:
        assert np.array_equal(arrays["images"][..., 0], DIGITS)
    lvd_juice("compress", run, "digits", "-o", coded, "--test", "--quiet")
    lvd_juice("decompress", run, coded, "-o", tmp_path / "some.npy", "--images", "3:5", "--quiet")
    assert np.load(tmp_path / "some.npy").shape == (2, 8, 8, 1)


def write_images(folder: Path, names: Sequence[str]) -> None:
    """Write the first digits as files of these names."""
    for name, image in zip(names, DIGITS, strict=False):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def check_folder(folder: Path, names: Sequence[str], numbers: Sequence[int]) -> None:
    """A folder has PNG files of these names, which are these digits, and no others."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    for name, number in zip(names, numbers, strict=True):
        with Image.open(folder / name) as read:
            assert read.format == "PNG"
            assert np.array_equal(np.asarray(read), DIGITS[number])


def test_folders_come_back_as_the_same_pixels_and_names(run: Path, tmp_path: Path) -> None:
    # In the order in which folders are read.
    names = ["Ä 1.PNG", "a.bmp", "b.png", "c.tiff"]
    order = sorted(names)
    write_images(tmp_path / "in", order)
    coded = tmp_path / "a.lvdz"
    lvd_juice("compress", run, tmp_path / "in", "-o", coded, "--quiet")
    lvd_juice("decompress", run, coded, "-o", tmp_path / "out", "--quiet")
    kept = [name if name.lower().endswith(".png") else f"{name}.png" for name in order]
    check_folder(tmp_path / "out", kept, range(4))
    lvd_juice("decompress", run, coded, "-o", tmp_path / "some", "--images", "1:3", "--quiet")
    check_folder(tmp_path / "some", kept[1:3], [1, 2])
    assert np.array_equal(np.load(decompressed(run, coded, tmp_path / "b.npy"))[..., 0], DIGITS[:4])


def decompressed(run: Path, coded: Path, output: Path) -> Path:
    """Decode a file into another, by the command line."""
    lvd_juice("decompress", run, coded, "-o", output, "--quiet")
    return output


@pytest.mark.parametrize("names", [["train/a.png", "test/a.png"], ["a.bmp", "a.bmp.png"], ["tab\t.png", "b.png"]])
def test_names_that_no_folder_may_have_are_numbers(run: Path, tmp_path: Path, names: list[str]) -> None:
    write_images(tmp_path / "in", sorted(names, reverse="/" in names[0]))
    ran = lvd_juice("compress", run, tmp_path / "in", "-o", tmp_path / "a.lvdz")
    assert ("no names are kept" in ran.stderr) == ("/" not in names[0])
    lvd_juice("decompress", run, tmp_path / "a.lvdz", "-o", tmp_path / "out", "--quiet")
    check_folder(tmp_path / "out", ["000000.png", "000001.png"], [0, 1])


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        (["a.png", "../b.png"], "found a path"),
        (["a.png", "/b.png"], "found a path"),
        (["a.png", "x\\b.png"], "found a path"),
        (["a.png", "C:b.png"], "found a path"),
        (["a.png", ".."], "found a hidden name"),
        (["a.png", ".b.png"], "found a hidden name"),
        (["a.png", ""], "found another kind of file"),
        (["a.png", "b\n.png"], "found control characters"),
        (["a.png", "b.exe"], "found another kind of file"),
        (["a.png", "ü" * 130 + ".png"], "found more than 255 bytes"),
        (["a.png", "a.png"], "found the name of another image"),
        (["a.png"], "found names of 1 images, wanted 2"),
        (["a.png"] * 3, "found names of 3 images, wanted 2"),
    ],
)
def test_names_that_are_untrusted(
    digits: CircuitModel, run: Path, tmp_path: Path, named: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError):
        digits.compress_to(io.BytesIO(), DIGITS[:2], names=named)
    model = CircuitModel.load(run / "model")
    monkeypatch.setattr("pyjuice_lvd.models.base.check_names", lambda *_: None)
    file = io.BytesIO()
    model._codec().compress(model.checked(DIGITS[:2]), file, SILENT, named)
    (tmp_path / "a.lvdz").write_bytes(file.getvalue())
    before = sorted(tmp_path.rglob("*"))
    ran = lvd_juice("decompress", run, tmp_path / "a.lvdz", "-o", tmp_path / "out", "--quiet", check=False)
    assert ran.returncode == 2
    assert wanted in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert np.array_equal(np.load(decompressed(run, tmp_path / "a.lvdz", tmp_path / "b.npy"))[..., 0], DIGITS[:2])


def test_damaged_names_lose_no_image(digits: CircuitModel) -> None:
    file = io.BytesIO()
    digits.compress_to(file, DIGITS[:2], names=["a.png", "b.png"])
    data = bytearray(file.getvalue())
    header, start = read_header(bytes(data), "FILE")
    assert read_names(bytes(data), header, "FILE") == ("a.png", "b.png")
    assert np.array_equal(digits.decompress(bytes(data))[..., 0], DIGITS[:2])
    data[start - header.names + 3] ^= 1
    with pytest.raises(InputError, match=r"^FILE: the names of its images are damaged"):
        read_names(bytes(data), header, "FILE")
    assert np.array_equal(digits.decompress(bytes(data))[..., 0], DIGITS[:2])


def test_nothing_is_written_in_vain(run: Path, tmp_path: Path) -> None:
    coded = tmp_path / "a.lvdz"
    lvd_juice("compress", run, "digits", "-o", coded, "--quiet")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    damaged = bytearray(coded.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.lvdz").write_bytes(damaged)
    before = sorted(tmp_path.rglob("*"))
    for words, wanted in (
        (("compress", run, "digits", "-o", tmp_path / "b.zip"), "wanted a file named .lvdz"),
        (("compress", run, "photos", "-o", tmp_path / "b.lvdz"), "wanted (8, 8, 1)"),
        (("decompress", run, tmp_path / "none", "-o", tmp_path / "b.npz"), "cannot be read"),
        (("decompress", run, run / "settings.toml", "-o", tmp_path / "b.npz"), "no .lvdz signature"),
        (("decompress", run, coded, "-o", tmp_path / "b.txt"), "wanted a file named .npz or .npy, or a folder"),
        (("decompress", run, coded, "-o", tmp_path / "full"), "is there already, wanted a new folder"),
        (("decompress", run, coded, "-o", "/proc/folder"), "/proc/folder: cannot be made ("),
        (("decompress", run, coded, "-o", tmp_path / "b.npz", "--images", "5:5"), "wanted A:B"),
        (("decompress", run, tmp_path / "damaged.lvdz", "-o", tmp_path / "b.npz"), "lost are images 1792..1796"),
    ):
        ran = lvd_juice(*words, check=False)
        assert ran.returncode == 2, words
        assert wanted in ran.stderr, ran.stderr
        assert len(ran.stderr.strip().splitlines()) == 1 or "compress" in ran.stderr
    assert sorted(tmp_path.rglob("*")) == before
    said = lvd_juice("decompress", run, tmp_path / "damaged.lvdz", "-o", tmp_path / "b.npz", "--salvage", "--json")
    assert json.loads(said.stdout)["lost"] == [[1792, 1796]]
    header, start = read_header(coded.read_bytes(), "coded")
    (tmp_path / "nothing.lvdz").write_bytes(coded.read_bytes()[:start])
    said = lvd_juice(
        "decompress", run, tmp_path / "nothing.lvdz", "-o", tmp_path / "c.npz", "--salvage", "--quiet", check=False
    )
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert said.stderr.endswith(f"damaged: nothing of images 0..{header.n - 1} can be decoded\n")
    assert not (tmp_path / "c.npz").exists()


def test_ctrl_c_leaves_no_half_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def interrupted(self: Coder, *_: object) -> bytes:
        asked.append(self)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return b""

    monkeypatch.setattr(Coder, "encode", interrupted)
    ran = lvd_juice("compress", run, "digits", "-o", tmp_path / "a.lvdz", check=False)
    assert ran.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_lossy_runs_are_refused_before_work(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    description = json.loads((copy / "model" / "model.json").read_text())
    (copy / "model" / "model.json").write_text(json.dumps({**description, "color": "ycc709"}))
    ran = lvd_juice("compress", copy, "digits", "-o", tmp_path / "a.lvdz", check=False)
    assert ran.returncode == 2
    assert "which lose information" in ran.stderr
