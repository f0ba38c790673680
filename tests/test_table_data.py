"""Tables of integers: CSV files, numpy files and DEBD folders, their splits and their errors."""

from pathlib import Path

import numpy as np
import pytest

from pyjuice_lvd.data.load import largest_value, load_data, load_test_data, num_categories
from pyjuice_lvd.data.table_files import read_csv, read_table, tables_of
from pyjuice_lvd.errors import InputError


def load(path: Path, method: str = "hclt"):
    return load_data(str(path), method=method)


def message(path: Path, method: str = "hclt") -> str:
    with pytest.raises(InputError) as error:
        load(path, method)
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
        ("1,2\n3,x\n", "x.csv: line 2, column 2: found 'x', wanted an integer"),
        ("1,2\n3,4.5\n", "line 2, column 2: found '4.5', wanted an integer"),
        ("1,2\n3\n", "line 2: found 1 value, wanted 2 as in the lines before"),
        ("1,2\n3,99999999999999999999\n", "line 2, column 2: found '99999999999999999999', wanted an integer"),
        ("1,2\n3,-4\n5,6\n", "found -4 in column 2, wanted categories from 0 to 2147483646"),
        ("1,2\n3,2147483647\n", "found 2147483647 in column 2, wanted categories from 0 to 2147483646"),
        ("a,b\n", "found no rows, wanted integers"),
        ("", "found no rows, wanted integers"),
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
    test = load_test_data(str(tmp_path / "toy"), method="hclt", digest="")
    np.testing.assert_array_equal(test.data, parts["test"])
    assert test.how == f"test rows of {tmp_path / 'toy'} by its files toy.test.data"
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
    said = message(tmp_path / "toy", "lvd")
    assert "found shape (30, 5), a table, which hclt, sparse-hclt, rat-spn and einet learn from; wanted images" in said
    assert load_data("digits", method="hclt").train.shape == (1437, 8, 8, 1)
    assert num_categories(load_data("digits", method="hclt")) == 256


def test_a_run_is_tested_on_rows_that_it_did_not_learn_from(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).integers(0, 4, (50, 3))
    np.save(tmp_path / "x.npy", rows)
    np.save(tmp_path / "y.npy", rows[::-1])
    splits = load(tmp_path / "x.npy")
    test = load_test_data(str(tmp_path / "x.npy"), digest=splits.digest)
    np.testing.assert_array_equal(test.data, splits.test)
    assert test.how == splits.how
    test = load_test_data(str(tmp_path / "y.npy"), digest=splits.digest)
    assert len(test.data) == 50
    assert test.how == f"all 50 rows of {tmp_path / 'y.npy'}"


# --- CSV as other programs write it -----------------------------------------------------------------------------------

ROWS = [[0, 1, 2], [3, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    "text",
    [
        "0,1,2\n3,0,1\n1,1,0\n",
        "0,1,2\n3,0,1\n1,1,0",
        "0,1,2\r\n3,0,1\r\n1,1,0\r\n",
        "0,1,2\r3,0,1\r1,1,0\r",
        "0;1;2\n3;0;1\n1;1;0\n",
        "0\t1\t2\n3\t0\t1\n1\t1\t0\n",
        '"0","1","2"\n"3","0","1"\n"1","1","0"\n',
        " 0, 1, 2\n 3, 0, 1\n 1, 1, 0\n",
        "\ufeff0,1,2\n3,0,1\n1,1,0\n",
        "0,1,2\n3,0,1\n1,1,0\n\n\n",
        "a,b,c\n0,1,2\n3,0,1\n1,1,0\n",
        '"a, or b";b;c\n0;1;2\n3;0;1\n1;1;0\n',
        "+0,01,2\n3,0,1\n1,1,0\n",
    ],
)
def test_csv_of_any_dialect_is_the_same_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode())
    table = read_table(tmp_path / "x.csv")
    assert table.values.tolist() == ROWS
    assert [note for note in table.notes if "first line" not in note] == []


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("# from a survey\na,b,c\n0,1,2\n\n3,0,1\n# half of it\n\n1,1,0\n\n")
    table = read_table(tmp_path / "x.csv")
    assert table.values.tolist() == ROWS
    assert table.columns == ("a", "b", "c")
    assert table.notes == ("2 empty lines passed over", "2 comments passed over")


@pytest.mark.parametrize(
    "text", ["a,b,c\n0,1,2\n,4,5\n6,,\n", 'a;b;c\n\n0;1;2\n"";4;5\n# no\n6; ;\n', "a,b,c\n0,1.0,2\n,4.0,5.\n6,,\n"]
)
def test_empty_cells_are_missing_values(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    table = read_table(tmp_path / "x.csv")
    assert table.columns == ("a", "b", "c")
    assert len(table.notes) == (2 if "# no" in text else 0)
    source = tables_of(read_csv(tmp_path / "x.csv"))
    assert source.parts["all"].tolist() == [[0, 1, 2], [-1, 4, 5], [6, -1, -1]]
    assert source.notes[-1] == "3 of 9 values are missing"


def test_an_empty_line_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('1\n\n2\n""\n')
    assert tables_of(read_csv(tmp_path / "x.csv")).parts["all"].tolist() == [[1], [2], [-1]]


def test_nan_is_a_missing_value_in_numpy_tables(tmp_path: Path) -> None:
    train = np.random.default_rng(0).integers(0, 3, (40, 4)).astype(float)
    test = train[:9].copy()
    train[3, 1] = train[:2, 0] = np.nan
    np.savez(tmp_path / "x.npz", train=train, test=test)
    splits = load(tmp_path / "x.npz")
    assert splits.train.dtype == np.int32
    assert sum(int((part == -1).sum()) for part in (splits.train, splits.valid)) == 3
    np.testing.assert_array_equal(splits.test, test)
    train[5, 2] = 0.5
    np.savez(tmp_path / "x.npz", train=train, test=test)
    wanted = "(train): found float64 (40, 4), wanted integers (N, V), or NaN where a value is missing: 0.5 in row 5"
    assert f"{wanted}, column 3" in message(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a,b\n1,2\n3,x\n", "x.csv: line 3, column 2: found 'x', wanted an integer"),
        ("a,b\n1,2\n3\n", "x.csv: line 3: found 1 value, wanted 2 as in the lines before"),
        ("a,b\r\n# no\r\n\r\n1,2\r\n3,x\r\n", "x.csv: line 5, column 2: found 'x'"),
        ("1,2,\n3,4,\n", "x.csv: found no value in column 3, wanted at least one"),
        ("1,2\n3,\n5,x\n", "line 3, column 2: found 'x', wanted an integer"),
        ("1,2\n3,\n5,1.5\n", "line 3, column 2: found '1.5', wanted an integer"),
        ("a,b\n1,2\n3,\n-5,1\n", "found -5 in column 1 (a), wanted categories from 0"),
        ("1,2\n,\n5\n", "line 3: found 1 value, wanted 2"),
        ("1,2\n,\n99999999999,1.0\n", "line 3, column 1: found '99999999999', wanted an integer"),
        ("1,2\n3,4,5\n", "line 2: found 3 values, wanted 2"),
        ("a,b,c\n1,2\n3,4\n", "found 2 columns, wanted 3 as named (a, b, c)"),
        ("1 2\n3 4\n", "line 2, column 1: found '3 4', wanted an integer"),
        ("1,2\n3,nan\n", "line 2, column 2: found 'nan'"),
        ("1,2\n3,1_0\n", "line 2, column 2: found '1_0'"),
        ("1;2,5\n3;4\n", "wanted an integer"),
        ("a,b\n1,2\n3,-4\n", "found -4 in column 2 (b), wanted categories from 0"),
        ("# only a comment\n", "found no rows"),
        ("\n\n", "found no rows"),
        ("\ufeff", "found no rows"),
    ],
)
def test_the_line_of_a_bad_csv_file_is_counted_as_editors_do(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode())
    assert part in message(tmp_path / "x.csv")


def test_a_csv_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("1,2\n3,4\n".encode("utf-16"))
    assert "cannot be read ('utf-8' codec can't decode" in message(tmp_path / "x.csv")


def test_pandas_header_of_unnamed_columns_is_no_row(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = np.random.default_rng(0).integers(0, 2, (100, 40))
    pandas.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    splits = load(tmp_path / "x.csv")
    assert num_categories(splits) == 2
    assert sum(map(len, (splits.train, splits.valid, splits.test))) == 100
    assert splits.columns == tuple(map(str, range(40)))


def test_a_first_line_that_may_be_a_header_or_not_is_said_to_be_data(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("0,1\n" + 20 * "1,0\n")
    splits = load(tmp_path / "x.csv")
    assert sum(map(len, (splits.train, splits.valid, splits.test))) == 21
    assert splits.notes == ("the first line, 0,1, is read as data; if it is a header, give it names",)


@pytest.mark.parametrize("named", [True, False])
def test_pandas_index_is_no_variable(tmp_path: Path, named: bool) -> None:
    pandas = pytest.importorskip("pandas")
    rows = np.random.default_rng(0).integers(0, 2, (30, 3))
    pandas.DataFrame(rows, columns=list("abc") if named else None).to_csv(tmp_path / "x.csv")
    assert "found a column without a name that counts the rows" in message(tmp_path / "x.csv")


@pytest.mark.parametrize("first", [0, 1437])
def test_an_index_in_a_file_without_names_is_no_variable(tmp_path: Path, first: int) -> None:
    pandas = pytest.importorskip("pandas")
    rows = np.random.default_rng(0).integers(0, 2, (30, 3))
    pandas.DataFrame(rows, index=first + np.arange(30)).to_csv(tmp_path / "x.csv", header=False)
    assert "found a column without a name that counts the rows" in message(tmp_path / "x.csv")


def test_a_first_column_that_may_be_a_variable_is_one(tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("0,1\n1,0\n2,1\n3,0\n")
    assert num_categories(load(tmp_path / "few.csv")) == 4
    (tmp_path / "one.csv").write_text("".join(f"{n}\n" for n in range(20)))
    assert num_categories(load(tmp_path / "one.csv")) == 20
    (tmp_path / "named.csv").write_text("month,x\n" + "".join(f"{n},{n % 2}\n" for n in range(12)))
    splits = load(tmp_path / "named.csv")
    assert splits.columns == ("month", "x")
    assert splits.notes == ("column 1 (month) counts the rows, and is read as a variable",)


def test_debd_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "toy.train.data").write_text("a,b\n" + 9 * "0,1\n")
    (tmp_path / "toy.test.data").write_text("b,a\n" + 9 * "0,1\n")
    assert "toy.test.data: found the columns b, a, wanted a, b as in toy.train.data" in str(message(tmp_path))


def test_files_beside_a_table_are_said_not_to_be_read(tmp_path: Path) -> None:
    write_debd(tmp_path / "toy")
    (tmp_path / "toy" / "toy.ts.data").write_text("1\n")
    (tmp_path / "toy" / ".hidden").write_text("1\n")
    assert load(tmp_path / "toy").notes == ("1 file not read: toy.ts.data",)


def test_the_largest_value_is_found_with_its_column(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("age,date,sex\n" + 19 * "1,0,1\n" + "1,20240115,0\n")
    assert largest_value(load(tmp_path / "x.csv")) == f"{tmp_path / 'x.csv'}: found 20240115 in column 2 (date)"
    np.save(tmp_path / "x.npy", np.arange(40).reshape(20, 2))
    assert largest_value(load(tmp_path / "x.npy")) == f"{tmp_path / 'x.npy'}: found 39 in column 2"
