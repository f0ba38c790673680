"""Arrays that may be larger than memory: blocks, files without names, and the cache of decoded images."""

import errno
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyjuice_lvd import large
from pyjuice_lvd.data import image_files
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_arrays, write_arrays


@pytest.fixture
def cache(in_blocks: Path) -> Path:
    """The cache folder, in which all arrays are."""
    return in_blocks


def is_mapped(array: np.ndarray) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.obj if isinstance(base, memoryview) else base.base
    return type(base).__name__ == "mmap"


def test_a_large_array_has_a_file_without_a_name(cache: Path) -> None:
    array = large.empty((50, 3), np.float32)
    array[:] = 2
    assert is_mapped(array)
    assert array.flags.writeable
    assert array.sum() == 300
    assert list(cache.iterdir()) == []
    assert not is_mapped(np.empty(3))


def test_a_folder_without_room_or_rights_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=f"LVD_CACHE: found {cache} without room for 4 kB"):
        large.empty(1000, np.int32)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LVD_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file: cannot be made .* wanted LVD_CACHE to name a folder"):
        large.empty(1, np.int32)


def test_blocks_give_what_the_whole_does(cache: Path) -> None:
    rng = np.random.default_rng(0)
    table, labels = rng.integers(0, 256, (101, 7), dtype=np.uint8), rng.integers(0, 6, (50, 4)).astype(np.int32) * 2
    sizes = [part.stop - part.start for part in large.blocks(101, 7, unit=10)]
    assert sizes == [80, 21]
    doubled = large.by_blocks(101, lambda rows: table[rows] * np.int16(2), 7)
    np.testing.assert_array_equal(doubled, table * np.int16(2))
    assert is_mapped(doubled)
    assert large.by_blocks(0, lambda rows: table[rows], 7).shape == (0, 7)
    rows = rng.permutation(101)
    np.testing.assert_array_equal(large.take(table, rows), table[rows])
    turned = large.contiguous(table[:, ::-1])
    np.testing.assert_array_equal(turned, table[:, ::-1])
    assert turned.flags.c_contiguous
    assert large.contiguous(table) is table
    np.testing.assert_array_equal(large.joined([table, table[:, ::-1]]), np.concatenate([table, table[:, ::-1]]))
    assert large.digest_of(table[:, ::-1]) == large.digest_of(turned) != large.digest_of(table)
    np.testing.assert_array_equal(large.counts(labels), np.bincount(labels.ravel()))
    assert len(large.counts(labels, 20)) == 20
    np.testing.assert_array_equal(large.places(labels, 4), np.flatnonzero(labels == 4))
    used, numbers = large.renumbered(labels)
    wanted, again = np.unique(labels, return_inverse=True)
    np.testing.assert_array_equal(used, wanted)
    np.testing.assert_array_equal(numbers, again.reshape(labels.shape))


def test_folders_of_killed_processes_go(cache: Path) -> None:
    code = "import os; from pyjuice_lvd.large import OwnFolder; f = OwnFolder(); print(f.path, flush=True); "
    ended, killed = (
        Path(subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True).stdout.strip())
        for end in ("pass", "os._exit(1)")
    )
    assert not ended.exists()
    assert killed.is_dir()
    own = large.OwnFolder()
    beside = large.OwnFolder()
    assert not killed.exists()
    assert own.path.is_dir()
    path = own.path
    del own
    assert not path.exists()
    assert beside.path.is_dir()


def test_arrays_are_written_one_by_one_and_mapped_where_large(tmp_path: Path) -> None:
    import safetensors.numpy

    rng, path = np.random.default_rng(1), tmp_path / "a.safetensors"
    arrays = {f"{n}": rng.random((1000, 500), np.float32) for n in range(8)}
    arrays |= {
        "bits": rng.random(3) < 0.5,
        "turned": arrays["0"].T[:7],
        "one": np.array(2.5),
        "none": np.zeros(0, "i2"),
    }
    arrays["big-endian"] = np.arange(5, dtype=">i4")
    size = sum(array.nbytes for array in arrays.values())
    tracemalloc.start()
    try:
        write_arrays(path, arrays, {"about": "ä\n"})
        written, _ = tracemalloc.get_traced_memory()[1], tracemalloc.reset_peak()
        found, texts = read_arrays(path)
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(written, read) < 0.2 * size
    assert texts == {"about": "ä\n"}
    library = safetensors.numpy.load_file(path)
    for name, array in arrays.items():
        for own in (found[name], library[name]):
            np.testing.assert_array_equal(own, array)
            assert own.shape == array.shape
    assert all(array.flags.aligned and array.flags.writeable for array in found.values())
    found["0"][:] = 0  # the process' own
    np.testing.assert_array_equal(read_arrays(path)[0]["0"], arrays["0"])


def test_a_large_npy_file_is_mapped(cache: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(2).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    before = load_data(images)
    np.save(tmp_path / "c.npy", images)
    np.save(tmp_path / "f.npy", np.asfortranarray(images))
    for name in ("c.npy", "f.npy"):
        splits = load_data(tmp_path / name)
        assert is_mapped(splits.train)
        for part in ("train", "valid", "test"):
            np.testing.assert_array_equal(getattr(splits, part), getattr(before, part))
    content = (tmp_path / "c.npy").read_bytes()
    (tmp_path / "c.npy").write_bytes(content[:-1])
    with pytest.raises(InputError, match="damaged: 1,919 bytes of values"):
        load_data(tmp_path / "c.npy")


def pictures(folder: Path) -> np.ndarray:
    """Six grey and colour images, of which the colour images make all three channels."""
    images = np.random.default_rng(3).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    folder.mkdir()
    for number, image in enumerate(images):
        if number % 2:
            image[:] = image[..., :1]
            Image.fromarray(image[..., 0]).save(folder / f"{number}.png")
        else:
            Image.fromarray(image).save(folder / f"{number}.png")
    return images


def shards(folder: Path) -> np.ndarray:
    """Six images in three files."""
    images = np.random.default_rng(4).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    folder.mkdir()
    for number, part in enumerate(np.split(images, 3)):
        flat = part.transpose(0, 3, 1, 2).reshape(2, -1)
        np.savez_compressed(folder / f"train_data_batch_{number + 1}.npz", data=flat)
    return images


@pytest.mark.parametrize("make", [pictures, shards])
def test_images_are_decoded_once(make: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyjuice_lvd.data import sources

    monkeypatch.setattr(image_files, "BLOCK", 100)  # two images
    images, read = make(tmp_path / "data"), []
    function = "_read_block" if make is pictures else "_read_imagenet_shard"
    module = image_files if make is pictures else sources
    reader = getattr(module, function)

    def counting(*given: Any) -> Any:
        read.append(given)
        if len(read) == 2:
            raise KeyboardInterrupt
        return reader(*given)

    monkeypatch.setattr(module, function, counting)

    def loaded() -> np.ndarray:
        splits = load_data(tmp_path / "data", valid_fraction=0.2, test_fraction=0.2)
        parts = np.concatenate([splits.train, splits.valid, splits.test])
        return parts[np.lexsort(parts.reshape(6, -1).T)]

    wanted = images[np.lexsort(images.reshape(6, -1).T)]
    with pytest.raises(KeyboardInterrupt):
        loaded()
    np.testing.assert_array_equal(loaded(), wanted)
    assert len(read) == 4  # of three blocks the first was done, and is not decoded again
    np.testing.assert_array_equal(loaded(), wanted)
    assert len(read) == 4
    (entry,) = (cache / "images").iterdir()
    assert json.loads((entry / "source.json").read_text())["source"] == str(tmp_path / "data")
    (kept,) = entry.glob("*.npy")
    np.testing.assert_array_equal(np.load(kept), images)
    with kept.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([int(images.flat[-1]) ^ 1]))
    np.testing.assert_array_equal(loaded(), wanted)  # what was changed is made anew
    assert len(read) == 7
    changed = next(path for path in sorted((tmp_path / "data").iterdir()))
    os.utime(changed, (0, 0))
    np.testing.assert_array_equal(loaded(), wanted)
    assert len(read) == 10
    assert len(list((cache / "images").iterdir())) == 2


def test_a_damaged_image_leaves_nothing_in_the_cache(cache: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "data")
    file = tmp_path / "data" / "5.png"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"5\.png: cannot be read"):
        load_data(tmp_path / "data")
    assert list((cache / "images").iterdir()) == []
