"""Tables of integers: CSV files, numpy files and DEBD folders, their splits and their errors."""

from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd.data.load import load_data, load_test_data, num_categories
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.settings import Settings

HCLT = Settings(method="hclt")


def load(path: Path, settings: Settings = HCLT):
    return load_data(str(path), settings)


def message(path: Path, settings: Settings = HCLT) -> str:
    with pytest.raises(InputError) as error:
        load(path, settings)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


def write_debd(folder: Path, name: str = "toy") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    folder.mkdir()
    parts = {split: rng.integers(0, 2, (n, 5)) for split, n in (("train", 30), ("valid", 7), ("test", 9))}
    for split, part in parts.items():
        np.savetxt(folder / f"{name}.{split}.data", part, "%d", ",")
    return parts


@pytest.mark.parametrize("header", ["", "age,sex,income\n", "\ufeffage,sex,x1\n"])
def test_csv_with_and_without_a_header(tmp_path: Path, header: str) -> None:
    rows = np.arange(60).reshape(20, 3) % 7
    (tmp_path / "x.csv").write_text(header + "\n".join(",".join(map(str, row)) for row in rows))
    splits = load(tmp_path / "x.csv")
    assert splits.train.dtype == np.uint8
    assert (splits.train.shape, splits.valid.shape, splits.test.shape) == ((16, 3), (2, 3), (2, 3))
    together = np.concatenate([splits.train, splits.valid, splits.test])
    assert sorted(map(tuple, together)) == sorted(map(tuple, rows))
    assert splits.how == "2 test and 2 valid of 20 rows by seed 0, the rest train"
    assert num_categories(splits) == 7


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1,2\n3,x\n", "could not convert string 'x' to int64 at row 1, column 2"),
        ("1,2\n3,4.5\n", "found no table of integers"),
        ("1,2\n3\n", "the number of columns changed from 2 to 1 at row 2"),
        ("1,2\n3,99999999999999999999\n", "found no table of integers"),
        ("1,2\n3,-4\n5,6\n", "found values -4..6, wanted categories from 0 to 2147483646"),
        ("1,2\n3,2147483647\n", "found values 1..2147483647, wanted categories from 0 to 2147483646"),
        ("a,b\n", "found no table of integers"),
        ("", "found no table of integers"),
    ],
)
def test_bad_csv_files_are_named(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    assert part in message(tmp_path / "x.csv")


def test_numpy_tables(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 300, (40, 4)), rng.integers(0, 300, (10, 4))
    np.save(tmp_path / "x.npy", train)
    np.savez(tmp_path / "x.npz", x_train=train, x_test=test)
    assert load(tmp_path / "x.npy").train.shape == (32, 4)
    splits = load(tmp_path / "x.npz")
    assert splits.train.dtype == np.int32
    np.testing.assert_array_equal(splits.test, test)
    np.save(tmp_path / "bool.npy", rng.random((40, 4)) < 0.5)
    assert load(tmp_path / "bool.npy").train.dtype == np.uint8


def test_categories_count_the_values_of_all_parts(tmp_path: Path) -> None:
    train, test = np.zeros((20, 2), int), np.full((5, 2), 3)
    np.savez(tmp_path / "x.npz", train=train, test=test)
    assert num_categories(load(tmp_path / "x.npz")) == 4


def test_debd_folders(tmp_path: Path) -> None:
    parts = write_debd(tmp_path / "toy")
    splits = load(tmp_path / "toy")
    for split, part in parts.items():
        np.testing.assert_array_equal(getattr(splits, split), part)
    assert splits.how == "train, valid, test by its files toy.train.data, toy.valid.data, toy.test.data"
    (tmp_path / "toy" / "toy.valid.data").unlink()
    assert len(load(tmp_path / "toy").valid) == 3
    (tmp_path / "toy" / "toy.train.data").unlink()
    assert message(tmp_path / "toy") == f"{tmp_path / 'toy'}: found test rows only, wanted training rows"
    test, which = load_test_data(str(tmp_path / "toy"), HCLT, digest="")
    np.testing.assert_array_equal(test, parts["test"])
    assert which == f"test rows of {tmp_path / 'toy'} by its files toy.test.data"
    (tmp_path / "toy" / "more.train.data").write_text("1\n")
    assert "found the tables more, toy, wanted one" in message(tmp_path / "toy")


@pytest.mark.parametrize(
    ("parts", "part"),
    [
        ({"train": np.zeros((9, 2)), "test": np.zeros((9, 2), int)}, "(train): found float64 (9, 2), wanted integers"),
        ({"train": np.zeros((9, 2), int), "test": np.zeros((9, 3), int)}, "(test): found int64 (9, 3)"),
        ({"train": np.zeros((0, 2), int), "test": np.zeros((9, 2), int)}, "(train): found int64 (0, 2)"),
        ({"train": np.zeros((9, 2), int), "test": np.zeros((9, 2, 2), np.uint8)}, "(test): found uint8 (9, 2, 2)"),
        ({"train": np.full((9, 2), 2**40), "test": np.zeros((9, 2), int)}, "wanted categories from 0"),
    ],
)
def test_bad_numpy_tables_are_named(tmp_path: Path, parts: dict[str, np.ndarray], part: str) -> None:
    np.savez(tmp_path / "x.npz", **parts)
    assert part in message(tmp_path / "x.npz")


def test_only_the_baselines_learn_from_tables(tmp_path: Path) -> None:
    write_debd(tmp_path / "toy")
    said = message(tmp_path / "toy", Settings(method="lvd"))
    assert "found shape (30, 5), a table, which hclt and rat-spn learn from; wanted images for method lvd" in said
    assert load_data("digits", HCLT).train.shape == (1437, 8, 8, 1)
    assert num_categories(load_data("digits", HCLT)) == 256


def test_a_run_is_tested_on_rows_that_it_did_not_learn_from(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).integers(0, 4, (50, 3))
    np.save(tmp_path / "x.npy", rows)
    np.save(tmp_path / "y.npy", rows[::-1])
    splits = load(tmp_path / "x.npy")
    test, which = load_test_data(str(tmp_path / "x.npy"), HCLT, digest=splits.digest)
    np.testing.assert_array_equal(test, splits.test)
    assert which == splits.how
    test, which = load_test_data(str(tmp_path / "y.npy"), HCLT, digest=splits.digest)
    assert len(test) == 50
    assert which == f"all 50 rows of {tmp_path / 'y.npy'}"
