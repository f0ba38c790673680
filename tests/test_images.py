import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pyjuice_lvd.checks import parse_crop
from pyjuice_lvd.data.images import as_images
from pyjuice_lvd.data.load import load_data, load_test_data
from pyjuice_lvd.errors import InputError

SPLITS = ("train", "valid", "test")


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def rows(images):
    """Images as a set of byte strings, to compare splits whatever their order."""
    return {image.tobytes() for image in images}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# --- bundled data -----------------------------------------------------------------------------------------------------


def test_digits_keep_their_seventeen_levels():
    splits = load_data("digits")
    assert splits.train.shape == (1437, 8, 8, 1)
    assert splits.valid.shape == splits.test.shape == (180, 8, 8, 1)
    assert splits.train.dtype == np.uint8
    assert splits.train.max() == 16
    assert splits.source == "digits"
    assert splits.how == "180 test and 180 valid of 1797 images by seed 0, the rest train"


@pytest.mark.parametrize(("size", "counts"), [(32, (3800, 52, 104)), (16, (5200, 208, 416))])
def test_photos_have_no_pixel_in_two_splits(monkeypatch, size, counts):
    """Stand-in photographs, each of whose pixels has a colour of its own, show which pixels every image covers."""
    names = np.arange(2 * 427 * 640, dtype=np.uint32)
    pixels = np.stack([names >> 16, names >> 8 & 255, names & 255], -1).astype(np.uint8).reshape(2, 427, 640, 3)
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: SimpleNamespace(images=list(pixels)))
    splits = load_data("photos", size=size)
    covered = {}
    for name, count in zip(SPLITS, counts, strict=True):
        images = getattr(splits, name)
        assert images.shape == (count, size, size, 3)
        c = images.astype(np.uint32)
        ids = c[..., 0] << 16 | c[..., 1] << 8 | c[..., 2]
        # Every image is one square of one photograph ...
        assert (np.diff(ids.astype(int), axis=2) == 1).all()
        assert (np.diff(ids.astype(int), axis=1) == 640).all()
        assert len(rows(images)) == count
        covered[name] = np.unique(ids)
        if name != "train":  # ... and, held out, no pixel counts twice
            assert covered[name].size == ids.size
        assert set(np.unique(covered[name] // (427 * 640))) == {0, 1}
    for a, b in (("test", "train"), ("test", "valid"), ("valid", "train")):
        assert np.intersect1d(covered[a], covered[b]).size == 0


def test_photos_are_the_photographs():
    from sklearn.datasets import load_sample_images

    splits = load_data("photos", size=16, seed=3)
    photo = load_sample_images().images[0]
    np.testing.assert_array_equal(splits.test[0], photo[:16, 64:80])
    assert "disjoint vertical bands" in splits.how
    assert splits.digest == ""
    np.testing.assert_array_equal(load_data("photos", size=16, seed=4).train, splits.train)


def test_photos_size():
    with pytest.raises(InputError) as error:
        load_data("photos", size=24)
    assert one_line(error) == "size: found 24, wanted 16 or 32 for photos"


# --- splits -----------------------------------------------------------------------------------------------------------


def test_a_source_without_split_is_split_by_seed():
    images = random_images(50, 4, 4)
    splits = load_data(images, valid_fraction=0.2, test_fraction=0.1, seed=1)
    assert [len(getattr(splits, name)) for name in SPLITS] == [35, 10, 5]
    assert rows(splits.train) | rows(splits.valid) | rows(splits.test) == rows(images[..., None])
    again, other = (load_data(images, valid_fraction=0.2, test_fraction=0.1, seed=seed) for seed in (1, 2))
    for name in SPLITS:
        np.testing.assert_array_equal(getattr(splits, name), getattr(again, name))
        assert getattr(splits, name).flags.c_contiguous
    assert rows(splits.test) != rows(other.test)
    assert splits.digest == other.digest != ""


def test_npz_with_train_and_test_takes_valid_from_train(tmp_path):
    train, test = random_images(40, 4, 4, 3), random_images(9, 4, 4, 3, seed=1)
    np.savez(tmp_path / "x.npz", x_train=train, y_train=np.arange(40), x_test=test, y_test=np.arange(9))
    splits = load_data(tmp_path / "x.npz", valid_fraction=0.25)
    np.testing.assert_array_equal(splits.test, test)
    assert len(splits.valid) == 10
    assert rows(splits.train) | rows(splits.valid) == rows(train)
    assert splits.how == "train, test by its keys x_train, x_test; 10 valid of 40 images by seed 0, the rest train"
    assert splits.digest == ""


def test_npz_with_all_splits_is_taken_as_it_is(tmp_path):
    parts = {name: random_images(5 + i, 4, 4, seed=i) for i, name in enumerate(SPLITS)}
    np.savez_compressed(tmp_path / "x.npz", **parts, train_labels=np.arange(5))
    splits = load_data(str(tmp_path / "x.npz"))
    for name in SPLITS:
        np.testing.assert_array_equal(getattr(splits, name), parts[name][..., None])
    assert splits.how == "train, valid, test by its keys train, valid, test"


def test_npy_and_npz_of_one_array_are_the_array(tmp_path):
    images = random_images(30, 4, 4, 3)
    np.save(tmp_path / "x.npy", images)
    np.savez(tmp_path / "x.npz", anything=images)
    wanted = load_data(images)
    for path in (tmp_path / "x.npy", tmp_path / "x.npz"):
        splits = load_data(path)
        for name in SPLITS:
            np.testing.assert_array_equal(getattr(splits, name), getattr(wanted, name))
        assert splits.source == str(path)


def test_crop_is_top_left():
    images = random_images(20, 6, 8, 3)
    whole, cropped = load_data(images), load_data(images, crop="4x6")
    np.testing.assert_array_equal(cropped.train, whole.train[:, :4, :6])
    np.testing.assert_array_equal(load_data(images, crop=(4, 6)).test, cropped.test)
    assert cropped.train.flags.c_contiguous
    assert parse_crop("16x8") == (16, 8)
    assert parse_crop(None) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "9x6"}, "crop: found 9x6, wanted at most the 6x8 of array"),
        ({"crop": "6"}, "crop: found '6', wanted HxW"),
        ({"crop": (0, 3)}, "crop: found (0, 3), wanted HxW"),
        ({"test_fraction": 1.0}, "test_fraction: found 1.0, wanted a number between 0 and 1"),
        ({"valid_fraction": 0.0}, "valid_fraction: found 0.0"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "array: found 20 images, too few to set apart 10 test and 10"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        load_data(random_images(20, 6, 8), **arguments)
    assert message in one_line(error)


def test_splits_must_agree_in_shape(tmp_path):
    np.savez(tmp_path / "x.npz", train=random_images(9, 4, 4), test=random_images(9, 4, 5))
    with pytest.raises(InputError) as error:
        load_data(tmp_path / "x.npz")
    assert (
        one_line(error)
        == f"{tmp_path / 'x.npz'} (test): found images of shape (4, 5, 1), wanted (4, 4, 1) as in the others"
    )


# --- the images that a run may be tested on ---------------------------------------------------------------------------


def test_the_fitted_source_gives_the_same_test_split_again():
    images = random_images(40, 6, 6, 3)
    arguments = {"crop": "4x4", "seed": 5, "valid_fraction": 0.2, "test_fraction": 0.3}
    splits = load_data(images, **arguments)
    test = load_test_data(images, digest=splits.digest, **arguments)
    np.testing.assert_array_equal(test.data, splits.test)
    assert test.how == splits.how


def test_another_source_without_split_is_tested_on_whole(tmp_path):
    fitted, other = random_images(40, 4, 4), random_images(7, 4, 4, seed=1)
    test = load_test_data(other, digest=load_data(fitted).digest)
    np.testing.assert_array_equal(test.data, other[..., None])
    assert test.how == "all 7 images of array"
    test = load_test_data(other[:1], digest="").data
    assert len(test) == 1


def test_a_source_with_a_test_set_is_tested_on_that(tmp_path):
    test = random_images(5, 4, 4)
    np.savez(tmp_path / "x.npz", test=test)
    found = load_test_data(tmp_path / "x.npz", digest="")
    np.testing.assert_array_equal(found.data, test[..., None])
    assert found.how == f"test images of {tmp_path / 'x.npz'} by its keys test"
    with pytest.raises(InputError) as error:
        load_data(tmp_path / "x.npz")
    assert one_line(error) == f"{tmp_path / 'x.npz'}: found test images only, wanted training images"


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_as_images_adds_the_channel_axis_without_a_copy():
    grey, color = random_images(3, 4, 5), random_images(3, 4, 5, 3)
    assert as_images(grey).shape == (3, 4, 5, 1)
    assert np.shares_memory(as_images(grey), grey)
    assert as_images(color) is color


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 4), np.float32), "X: found dtype float32, wanted uint8"),
        (np.full((2, 4, 4), np.nan), "X: found dtype float64 with NaN values, wanted uint8"),
        (np.zeros((2, 4, 4), np.int64), "X: found dtype int64, wanted uint8"),
        (np.zeros((2, 4, 4), bool), "X: found dtype bool, wanted uint8"),
        (np.zeros((2, 16), np.uint8), "X: found shape (2, 16), wanted (N, H, W), (N, H, W, 1) or (N, H, W, 3)"),
        (np.zeros((2, 4, 4, 4), np.uint8), "X: found shape (2, 4, 4, 4), wanted"),
        (np.zeros((2, 3, 4, 4), np.uint8), "(N, H, W, 3) (channels last)"),
        (np.zeros((0, 4, 4), np.uint8), "X: found shape (0, 4, 4), wanted at least one image"),
    ],
)
def test_as_images_names_what_is_wrong(array, message):
    with pytest.raises(InputError) as error:
        as_images(array, "X")
    assert message in one_line(error)


# --- files that cannot be read ----------------------------------------------------------------------------------------


def test_missing_paths_name_the_bundled_data():
    for data in ("photo", Path("nowhere/x.npy")):
        with pytest.raises(InputError) as error:
            load_data(data)
        assert one_line(error) == (
            f"{data}: no such file or folder; the data sets known by name are 'digits' and 'photos'"
        )


def damaged(path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_damaged_numpy_files(tmp_path, name):
    path = tmp_path / name
    (np.save if path.suffix == ".npy" else np.savez)(path, random_images(9, 8, 8))
    damaged(path)
    with pytest.raises(InputError, match=name) as error:
        load_data(path)
    assert "cannot be read" in one_line(error)


class Trap:
    """Leaves a file behind if anyone unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_objects_are_refused(tmp_path):
    trap = Trap(tmp_path / "sprung")
    np.save(tmp_path / "object.npy", np.array([trap], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "object.npz", train=np.array([trap], dtype=object))
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(trap))
    for name in ("object.npy", "object.npz", "plain.npy"):
        with pytest.raises(InputError) as error:
            load_data(tmp_path / name)
        assert one_line(error) == (
            f"{tmp_path / name}: cannot be read (damaged, or pickled objects, which are never loaded)"
        )
    assert not (tmp_path / "sprung").exists()


def test_unknown_suffix_and_keys(tmp_path):
    (tmp_path / "x.txt").write_text("no images")
    np.savez(tmp_path / "x.npz", a=random_images(3, 4, 4), b=random_images(3, 4, 4))
    with pytest.raises(InputError, match=r"x.txt: found a .txt file, wanted .npy, .npz, .csv or a folder"):
        load_data(tmp_path / "x.txt")
    with pytest.raises(
        InputError, match=r"x.npz: found keys a, b; wanted train/valid/test, x_train/x_test, or one array"
    ):
        load_data(tmp_path / "x.npz")


@pytest.mark.parametrize("keys", [("train", "x_test"), ("x_train", "x_test", "valid")])
def test_keys_of_both_styles_are_refused(tmp_path, keys):
    np.savez(tmp_path / "x.npz", **{key: random_images(9, 4, 4) for key in keys})
    found = ", ".join(sorted(keys, key=lambda key: "_" in key))
    with pytest.raises(InputError) as error:
        load_data(tmp_path / "x.npz")
    assert one_line(error) == (
        f"{tmp_path / 'x.npz'}: found keys {found}; wanted train/valid/test or x_train/x_test, not both"
    )


# --- folders of image files -------------------------------------------------------------------------------------------


def write_images(folder, images, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}{suffix}")
    return images


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("shape", [(12, 6, 5), (12, 6, 5, 3)])
def test_a_folder_of_lossless_image_files_is_the_array(tmp_path, suffix, shape):
    images = write_images(tmp_path / "deep" / "er", random_images(*shape), suffix)
    (tmp_path / "README.txt").write_text("ignored")
    (tmp_path / ".hidden.png").write_text("ignored too")
    splits, wanted = load_data(tmp_path), load_data(images)
    assert splits.how == wanted.how == "1 test and 1 valid of 12 images by seed 0, the rest train"
    for name in SPLITS:
        np.testing.assert_array_equal(getattr(splits, name), getattr(wanted, name))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".gif"])
def test_lossy_formats_are_read_as_pillow_decodes_them(tmp_path, suffix):
    write_images(tmp_path, random_images(5, 8, 8, 3), suffix)
    images = load_test_data(tmp_path, digest="").data
    assert images.shape == (5, 8, 8, 3)
    with Image.open(tmp_path / f"003{suffix}") as image:
        np.testing.assert_array_equal(images[3], np.asarray(image.convert("RGB")))


def test_split_folders(tmp_path):
    train = write_images(tmp_path / "train" / "cats", random_images(8, 4, 4, 3))
    test = write_images(tmp_path / "test", random_images(3, 4, 4, 3, seed=1))
    splits = load_data(tmp_path)
    np.testing.assert_array_equal(splits.test, test)
    assert rows(splits.train) | rows(splits.valid) == rows(train)
    assert splits.how == "train, test by its folders train, test; 1 valid of 8 images by seed 0, the rest train"
    write_images(tmp_path / "val", train[:1])
    with pytest.raises(InputError) as error:
        load_data(tmp_path)
    assert one_line(error).startswith(f"{tmp_path / 'val' / '000.png'}: an image beside the folders train, valid, test")


def test_image_modes(tmp_path):
    rgb, alpha, grey = random_images(4, 4, 3), random_images(4, 4, 1, seed=1), random_images(4, 4, seed=2)
    Image.fromarray(np.concatenate([rgb, alpha], -1)).save(tmp_path / "a.png")  # alpha is dropped
    Image.fromarray(grey).save(tmp_path / "b.png")  # grey among colour
    palette = Image.fromarray(rgb).quantize(8)
    palette.save(tmp_path / "c.png", transparency=0)
    images = load_test_data(tmp_path, digest="").data
    np.testing.assert_array_equal(images[0], rgb)
    np.testing.assert_array_equal(images[1], np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(images[2], np.asarray(palette.convert("RGB")))
    bilevel = tmp_path / "bilevel"
    bilevel.mkdir()
    Image.fromarray(grey > 127).save(bilevel / "a.png")
    Image.fromarray(np.stack([grey, grey], -1)).save(bilevel / "b.png")
    images = load_test_data(bilevel, digest="").data
    np.testing.assert_array_equal(images, np.stack([255 * (grey > 127), grey]).astype(np.uint8)[..., None])


def png_of_16_bit_rgb(path):
    """A PNG that Pillow cannot write: 2x2, colour type 2, bit depth 16."""
    write_png(path, 2, 2, 16, b"".join(b"\0" + bytes(range(12)) for _ in range(2)))


def write_png(path, width, height, depth, content):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header, pixels = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0), zlib.compress(content)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def test_pixels_of_more_than_8_bits_are_refused(tmp_path):
    grey16, float_, rgb16 = tmp_path / "grey16", tmp_path / "float", tmp_path / "rgb16"
    for folder in (grey16, float_, rgb16):
        folder.mkdir()
    Image.fromarray(np.full((2, 2), 1000, np.uint16)).save(grey16 / "a.png")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(float_ / "a.tif")
    png_of_16_bit_rgb(rgb16 / "a.png")
    for path in (grey16 / "a.png", float_ / "a.tif", rgb16 / "a.png"):
        with pytest.raises(InputError) as error:
            load_data(path.parent)
        assert one_line(error).startswith(f"{path}: found pixels of more than 8 bits")


def test_folder_errors_name_the_file(tmp_path):
    with pytest.raises(InputError, match=r"found no image files, wanted some of .bmp"):
        load_data(tmp_path)
    write_images(tmp_path, random_images(12, 6, 8))
    Image.fromarray(random_images(9, 9)).save(tmp_path / "005.png")
    with pytest.raises(InputError, match=r"005.png: found 9x9, wanted 6x8 as in 000.png"):
        load_data(tmp_path)
    assert load_data(tmp_path, crop="6x8").train.shape == (10, 6, 8, 1)
    with pytest.raises(InputError, match=r"000.png: found 6x8, wanted at least the crop's 7x8"):
        load_data(tmp_path, crop="7x8")
    (tmp_path / "003.png").write_bytes((tmp_path / "003.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"003.png: cannot be read") as error:
        load_data(tmp_path, crop="6x8")
    one_line(error)


# --- CIFAR-10 folders -------------------------------------------------------------------------------------------------


def channel_first(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def binary_batch(images):
    return np.concatenate([np.full((len(images), 1), 7, np.uint8), channel_first(images)], 1).tobytes()


def official_python_batch(images):
    """A batch as Python 2 pickled the official ones (protocol 2, byte strings), opcode by opcode."""

    def text(s):
        return b"U" + bytes([len(s)]) + s

    flat = channel_first(images)
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    shape = struct.pack("<BiBHB", ord("J"), len(flat), ord("M"), flat.shape[1], 0x86)
    array = reconstruct + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", flat.size) + flat.tobytes() + b"tb"
    labels = b"](" + len(flat) * b"K\x07" + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + labels + b"u."


def python_batch(protocol):
    def dump(images):
        batch = {b"data": channel_first(images), b"labels": [np.int64(7)] * len(images), b"batch_label": b"\xff"}
        return pickle.dumps(batch, protocol=protocol)

    return dump


@pytest.mark.parametrize(
    ("encode", "suffix"),
    [
        (binary_batch, ".bin"),
        (official_python_batch, ""),
        (python_batch(2), ""),
        (python_batch(4), ""),
        (python_batch(5), ""),
    ],
)
def test_cifar10_folder(tmp_path, encode, suffix):
    images = random_images(12, 32, 32, 3)
    for name, part in (("data_batch_1", images[:4]), ("data_batch_2", images[4:9]), ("test_batch", images[9:])):
        (tmp_path / (name + suffix)).write_bytes(encode(part))
    (tmp_path / "batches.meta").write_bytes(b"not read")
    splits = load_data(tmp_path)
    np.testing.assert_array_equal(splits.test, images[9:])
    assert rows(splits.train) | rows(splits.valid) == rows(images[:9])
    assert splits.how == "train, test by CIFAR-10's own batches; 1 valid of 9 images by seed 0, the rest train"


def test_a_python_batch_runs_no_code(tmp_path):
    batch = tmp_path / "data_batch_1"
    for payload in (Trap(tmp_path / "sprung"), {"data": Trap(tmp_path / "sprung")}):
        batch.write_bytes(pickle.dumps(payload))
        with pytest.raises(InputError) as error:
            load_data(tmp_path)
        assert one_line(error).startswith(f"{batch}: its pickle asks for pathlib.Path")
    batch.write_bytes(b"cbuiltins\neval\n(S'1'\ntR.")
    with pytest.raises(InputError, match=r"its pickle asks for builtins.eval, wanted a CIFAR-10 batch"):
        load_data(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_1.bin", b"\0" * 3072, "found 3072 bytes, wanted CIFAR-10 records of 3073 bytes each"),
        ("data_batch_1.bin", b"", "found 0 bytes"),
        ("data_batch_1", b"garbage", "damaged pickle"),
        ("data_batch_1", official_python_batch(random_images(2, 32, 32, 3))[:500], "damaged pickle"),
        ("data_batch_1", pickle.dumps({"labels": [1]}), "holds no array `data` of uint8"),
        ("data_batch_1", pickle.dumps([1, 2]), "holds no array `data` of uint8"),
        ("data_batch_1", pickle.dumps({"data": np.zeros((2, 3072), np.float32)}), "holds no array `data` of uint8"),
        ("data_batch_1", pickle.dumps({"data": np.zeros((2, 3000), np.uint8)}), "holds no array `data` of uint8"),
    ],
)
def test_damaged_cifar10_batches(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load_data(tmp_path)
    assert one_line(error).startswith(f"{tmp_path / name}: ")
    assert message in one_line(error)


# --- ImageNet folders -------------------------------------------------------------------------------------------------


def test_imagenet_shards(tmp_path):
    images = random_images(24, 8, 8, 3)
    for n, start in ((1, 0), (2, 4), (10, 8)):
        np.savez(
            tmp_path / f"train_data_batch_{n}.npz",
            data=channel_first(images[start : start + 4]),
            labels=np.arange(4),
            mean=np.zeros(192),
        )
    np.savez(tmp_path / "val_data.npz", data=channel_first(images[12:]), labels=np.arange(12))
    splits = load_data(tmp_path, valid_fraction=0.01)
    np.testing.assert_array_equal(splits.test, images[12:])
    order = np.random.default_rng(0).permutation(12)  # of the shards in the order 1, 2, 10
    np.testing.assert_array_equal(splits.train, images[order[1:]])
    assert splits.how == (
        "train, test by ImageNet's own shards (its validation set is the test set); "
        "1 valid of 12 images by seed 0, the rest train"
    )
    (tmp_path / "val_data.npz").unlink()
    without = load_data(tmp_path).how
    assert without == "train by ImageNet's own shards; 1 test and 1 valid of 12 images by seed 0, the rest train"


def test_imagenet_errors_name_the_shard(tmp_path):
    np.savez(tmp_path / "other.npz", data=np.zeros((4, 192), np.uint8))
    with pytest.raises(InputError, match=r"but none named train_data_batch_N.npz or val_data.npz"):
        load_data(tmp_path)
    np.savez(tmp_path / "train_data_batch_1.npz", data=np.zeros((4, 192), np.uint8))
    np.savez(tmp_path / "train_data_batch_2.npz", data=np.zeros((4, 48), np.uint8))
    with pytest.raises(
        InputError, match=r"train_data_batch_2.npz: found images of 4x4, wanted 8x8 as in train_data_batch_1"
    ):
        load_data(tmp_path)
    for content, message in (
        ({"data": np.zeros((4, 190), np.uint8)}, r"found `data` of uint8 \(4, 190\)"),
        ({"data": np.zeros((4, 192))}, "found `data` of float64"),
        ({"x": np.zeros(3)}, "found keys x, wanted `data`"),
    ):
        np.savez(tmp_path / "train_data_batch_2.npz", **content)
        with pytest.raises(InputError, match=f"train_data_batch_2.npz: {message}"):
            load_data(tmp_path)


# --- memory in proportion to the file ---------------------------------------------------------------------------------


def refused_in_little_memory(path):
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            load_data(path)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert one_line(error).startswith(f"{path}")
    return one_line(error)


def test_a_small_npz_of_a_large_array_is_refused(tmp_path):
    np.savez_compressed(
        tmp_path / "x.npz", train=np.zeros((40_000, 64, 64), np.uint8), test=np.zeros((9, 64, 64), np.uint8)
    )
    assert "bytes would unpack to 163,8" in refused_in_little_memory(tmp_path / "x.npz")
    data = tmp_path / "imagenet"
    data.mkdir()
    np.savez_compressed(data / "train_data_batch_1.npz", data=np.zeros((40_000, 3 * 32 * 32), np.uint8))
    with pytest.raises(InputError, match=r"train_data_batch_1\.npz: .* bytes would unpack to"):
        load_data(data)


def test_data_that_compress_well_are_read(tmp_path):
    rows = (np.random.default_rng(0).random((5000, 200)) < 0.01).astype(int)  # unpacks to 200 times its size
    np.savez_compressed(tmp_path / "x.npz", rows)
    assert load_data(tmp_path / "x.npz").train.shape == (4000, 200)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_that_claims_more_than_its_file_has_is_refused(tmp_path, suffix):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**12}, 8, 8), }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(640)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train.npy", content)
    assert "(damaged: 640 bytes of values" in refused_in_little_memory(path)


def test_a_compression_without_measure_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", bytes(10**7))
    assert "found the compression 12 of x, wanted deflate or none" in refused_in_little_memory(tmp_path / "x.npz")


def test_an_archive_whose_checksum_is_wrong_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", random_images(9, 8, 8))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[300] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npz: cannot be read \(Bad CRC-32"):
        load_data(tmp_path / "x.npz")


def test_a_small_picture_of_many_pixels_is_refused(tmp_path):
    write_png(tmp_path / "x.png", 6000, 6000, 8, bytes(6000 * 18_001))
    assert "bytes would unpack to 108,000,000" in refused_in_little_memory(tmp_path)
    (tmp_path / "x.png").unlink()
    write_png(tmp_path / "x.png", 30_000, 30_000, 8, b"")
    assert "900000000 pixels" in refused_in_little_memory(tmp_path)  # Pillow's own words


def test_many_small_pictures_of_many_pixels_are_refused(tmp_path):
    write_png(tmp_path / "0.png", 2000, 2000, 8, bytes(2000 * 6001))
    for number in range(1, 8):
        (tmp_path / f"{number}.png").symlink_to(tmp_path / "0.png")
    with pytest.raises(InputError, match="bytes would unpack to") as error:
        load_data(tmp_path)
    assert one_line(error).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr" + struct.pack("<I", 2**24) + b".",  # a memo of so many entries
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",  # a terabyte of bytes
        # the same text encoded again and again
        b"\x80\x02X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x00]" + 100 * (
            b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86Ra") + b".",
    ],
)  # fmt: skip
def test_a_pickle_takes_no_memory_for_what_it_claims(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    assert "wanted a CIFAR-10 batch" in refused_in_little_memory(tmp_path)


# --- nothing is passed over without a word ----------------------------------------------------------------------------


def test_links_in_an_image_folder_are_followed(tmp_path):
    train = write_images(tmp_path / "set" / "train", random_images(8, 4, 4, 3))
    test = write_images(tmp_path / "elsewhere" / "test", random_images(3, 4, 4, 3, seed=1))
    (tmp_path / "set" / "test").symlink_to("../elsewhere/test")
    (tmp_path / "set" / "train" / "one.png").symlink_to("../../elsewhere/test/000.png")
    splits = load_data(tmp_path / "set")
    np.testing.assert_array_equal(splits.test, test)
    assert rows(splits.train) | rows(splits.valid) == rows(train) | rows(test[:1])
    assert splits.notes == ()


def test_a_link_that_leads_back_ends_nothing(tmp_path):
    images = write_images(tmp_path, random_images(8, 4, 4, 3))
    (tmp_path / "again").symlink_to(".")
    splits = load_data(tmp_path)
    assert sum(map(len, (splits.train, splits.valid, splits.test))) == len(images)
    assert splits.notes == ("1 link back to a folder above not read: again",)


def test_a_link_to_nothing_is_refused(tmp_path):
    write_images(tmp_path / "train", random_images(8, 4, 4, 3))
    (tmp_path / "test").symlink_to("../nowhere/test")
    with pytest.raises(InputError) as error:
        load_data(tmp_path)
    assert one_line(error) == f"{tmp_path / 'test'}: is no file, or a link to nothing; wanted image files and folders"


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(InputError, match=r"x\.npy: found a special file"):
        load_data(tmp_path / "x.npy")
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.(npy|png): is no file"):
        load_data(tmp_path)


def test_files_that_are_not_read_are_named(tmp_path):
    write_images(tmp_path, random_images(8, 4, 4))
    for name in ("README.txt", "labels.csv", "more.heic", "raw.npy", ".DS_Store"):
        (tmp_path / name).write_text("x")
    splits = load_data(tmp_path)
    assert splits.notes == ("4 files not read: README.txt, labels.csv, more.heic, ...",)
    assert load_test_data(tmp_path, digest="").notes == splits.notes


@pytest.mark.parametrize(
    ("name", "wanted"), [("Test", "test"), ("val", "valid"), ("TRAIN", "train"), ("testing", "test")]
)
def test_a_folder_that_seems_to_be_a_split_is_not_mixed_with_the_rest(tmp_path, name, wanted):
    write_images(tmp_path / "Images", random_images(8, 4, 4))
    write_images(tmp_path / name, random_images(8, 4, 4))
    with pytest.raises(InputError) as error:
        load_data(tmp_path)
    assert one_line(error) == f"{tmp_path / name}: found a folder of that name, wanted {wanted} as the split's"


@pytest.mark.parametrize(
    ("key", "wanted"), [("val", "valid"), ("X_test", "test"), ("Valid", "valid"), ("training", "train")]
)
def test_a_key_that_seems_to_be_a_split_is_not_ignored(tmp_path, key, wanted):
    np.savez(tmp_path / "x.npz", train=random_images(9, 4, 4), **{key: random_images(9, 4, 4)})
    with pytest.raises(InputError) as error:
        load_data(tmp_path / "x.npz")
    assert one_line(error) == f"{tmp_path / 'x.npz'}: found the key {key} beside train, wanted {wanted}"


def test_keys_and_files_beside_the_data_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=random_images(9, 4, 4), x_test=random_images(9, 4, 4), y_train=np.arange(9))
    assert load_data(tmp_path / "x.npz").notes == ("1 key not read: y_train",)
    shards = tmp_path / "imagenet"
    shards.mkdir()
    np.savez(shards / "train_data_batch_1.npz", data=channel_first(random_images(9, 4, 4, 3)))
    np.savez(shards / "Imagenet32_val.npz", data=channel_first(random_images(9, 4, 4, 3)))
    assert load_data(shards).notes == ("1 file not read: Imagenet32_val.npz",)
    batches = tmp_path / "cifar"
    batches.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (batches / name).write_bytes(binary_batch(random_images(9, 32, 32, 3)))
    (batches / "data_batch_2").write_bytes(b"")
    (batches / "batches.meta").write_bytes(b"")
    assert load_data(batches).notes == ("1 file not read: data_batch_2",)


# --- masked arrays ----------------------------------------------------------------------------------------------------


def test_masked_images_are_refused():
    images = np.ma.masked_array(random_images(9, 4, 4), mask=False)
    assert as_images(images, "X").shape == (9, 4, 4, 1)  # nothing is masked
    images[3, 0, 0] = np.ma.masked
    for load in (lambda: as_images(images, "X"), lambda: as_images(list(images), "X")):
        with pytest.raises(
            InputError, match="X: found a masked array with 1 hidden values, wanted a plain array"
        ) as error:
            load()
        one_line(error)
    with pytest.raises(InputError, match="array: found a masked array"):
        load_data(images)


def test_empty_files_are_named(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("x.npy", "x.npz", "x.csv", "pictures/x.png"):
        (tmp_path / name).touch()
        with pytest.raises(InputError) as error:
            load_data((tmp_path / name).parent if name.endswith("png") else tmp_path / name)
        assert one_line(error).startswith(f"{tmp_path / name}: ")
    np.save(tmp_path / "none.npy", random_images(0, 8, 8))
    with pytest.raises(InputError, match=r"none\.npy: found shape \(0, 8, 8\), wanted at least one image"):
        load_data(tmp_path / "none.npy")
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    with pytest.raises(InputError, match=r"text\.npy: found values of dtype <U1, wanted numbers"):
        load_data(tmp_path / "text.npy")
