"""Tables whose columns differ: what each is chosen to be, and data frames in and out."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.base import clone

from pyjuice_lvd import HCLT
from pyjuice_lvd.circuit.leaves import in_bins
from pyjuice_lvd.data.columns import columns_of, in_numbers
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.progress import SILENT

pandas = pytest.importorskip("pandas")

CITIES = ("Bern", "Oslo", "Rome")


def frame(n: int = 900) -> Any:
    """Columns of all types, that follow from one hidden kind."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, n)
    return pandas.DataFrame({
        "city": pandas.Categorical(np.array(CITIES)[kind], categories=list(CITIES)),
        "size": np.where(rng.random(n) < 0.9, np.array(["L", "M", "S"])[kind], "M"),
        "owner": kind == 1,
        "rooms": kind + rng.integers(0, 2, n),
        "age": rng.poisson(20 + 15 * kind),
        "height": rng.normal(160 + 10 * kind, 3),
        "visits": rng.poisson(3 * kind + 1),
    })  # fmt: skip


@pytest.fixture(scope="module")
def fitted() -> HCLT:
    return HCLT(num_latents=4, epochs=12, leaves={"visits": "poisson"}).fit(frame())


def test_types_choose(fitted: HCLT) -> None:
    assert fitted.columns_ is not None
    assert [(column.name, column.leaves, column.num_cats, column.values) for column in fitted.columns_] == [
        ("city", "categorical", 3, CITIES),
        ("size", "categorical", 3, ("L", "M", "S")),
        ("owner", "categorical", 2, (False, True)),
        ("rooms", "categorical", 4, None),
        ("age", "logistic", 128, None),
        ("height", "gaussian", 0, None),
        ("visits", "poisson", 0, None),
    ]


def test_what_was_chosen_is_said() -> None:
    said: list[str] = []

    class Listener:
        stage = SILENT.stage

        def log(self, message: str) -> None:
            said.append(message)

    HCLT(num_latents=2, epochs=1, progress=Listener()).fit(frame(60)[["city", "age", "height"]])
    assert said == ["columns: city categorical (3), age logistic (128), height gaussian"]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([3.0, 5.0, None], ("categorical", 6, None)),
        ([3.0, 5.5, None], ("gaussian", 0, None)),
        ([3, -5, 7], ("gaussian", 0, None)),
        ([3, 1023, 7], ("logistic", 1024, None)),
        ([3, 1024, 7], ("gaussian", 0, None)),
        ([True, None, True], ("categorical", 2, (False, True))),
        (["b", None, "a"], ("categorical", 2, ("a", "b"))),
        (pandas.array([40, None, 2], "Int64"), ("logistic", 64, None)),
        (pandas.array([0.5, None, 2], "Float64"), ("gaussian", 0, None)),
        (pandas.array([True, None, False], "boolean"), ("categorical", 2, (False, True))),
        (pandas.array(["x", None, "y"], "string"), ("categorical", 2, ("x", "y"))),
        (pandas.Categorical([7, None, 3]), ("categorical", 2, (3, 7))),
    ],
)
def test_one_column_of_a_type(values: Any, wanted: tuple[str, int, Any]) -> None:
    X = pandas.DataFrame({"v": values, "other": ["p", "q", "p"]})
    columns = columns_of(X, None)
    assert columns is not None
    assert columns[0][1:] == wanted
    numbers = in_numbers(X, columns)
    hidden = np.isnan(numbers) if numbers.dtype == np.float64 else numbers == -1
    assert hidden[:, 0].tolist() == pandas.isna(X["v"]).tolist()
    assert not hidden[:, 1].any()


def test_integers_alone_are_as_ever() -> None:
    X = np.random.default_rng(0).integers(0, 3, (80, 4))
    by_frame, by_array = (HCLT(num_latents=2, epochs=2).fit(x) for x in (pandas.DataFrame(X, columns=list("abcd")), X))
    assert by_frame.columns_ is not None
    assert [column[:3] for column in by_frame.columns_] == [(name, "categorical", 3) for name in "abcd"]
    assert by_array.columns_ is None
    assert list(by_frame.sample(2).columns) == list("abcd")
    assert isinstance(by_array.sample(2), np.ndarray)
    np.testing.assert_array_equal(
        by_frame.score_samples(pandas.DataFrame(X, columns=list("abcd"))), by_array.score_samples(X)
    )


def test_arrays_are_told(fitted: HCLT) -> None:
    X = frame()[["rooms", "height", "visits"]].to_numpy()
    model = HCLT(num_latents=2, epochs=2, leaves=["categorical", "gaussian", "poisson"]).fit(X)
    assert model.sample(3).dtype == np.float64
    assert np.isfinite(model.score_samples(X)).all()
    assert [column.leaves for column in HCLT(num_latents=2, epochs=1, leaves="auto").fit(X).columns_ or ()] == [
        "categorical", "gaussian", "categorical"
    ]  # fmt: skip


def test_arrays_and_frames_without_names_hold_texts() -> None:
    rng = np.random.default_rng(0)
    colours = np.array(["red", "blue"])[rng.integers(0, 2, 60)]
    rows = [[colour, 0.5 * len(colour) + rng.normal()] for colour in colours]
    for X in (rows, np.array(rows, object), pandas.DataFrame(rows)):
        model = HCLT(num_latents=2, epochs=2, leaves="auto").fit(X)
        drawn = model.sample(20)
        first = drawn[:, 0] if isinstance(drawn, np.ndarray) else drawn.iloc[:, 0]
        assert set(first) == {"red", "blue"}
        assert isinstance(drawn, pandas.DataFrame) == isinstance(X, pandas.DataFrame)
        hidden = model.inpaint(X, np.array([True, False]), n_samples=2)
        assert hidden.shape == (2, 60, 2)
        assert set(hidden[..., 0].ravel()) == {"red", "blue"}


def test_a_frame_comes_back(fitted: HCLT) -> None:
    X, drawn = frame(), fitted.sample(400)
    assert list(drawn.columns) == list(X.columns)
    assert set(drawn["city"]) == set(CITIES)
    assert drawn["owner"].dtype == bool
    for name in ("rooms", "age", "visits"):
        assert drawn[name].dtype == np.int64
        assert drawn[name].mean() == pytest.approx(X[name].mean(), rel=0.15)
    assert drawn["height"].mean() == pytest.approx(X["height"].mean(), abs=3)
    same = (drawn["city"] == "Oslo") == drawn["owner"]
    assert same.mean() > 0.9


def test_questions_take_frames(fitted: HCLT) -> None:
    X = frame(40).astype({"size": object})
    scores = fitted.score_samples(X)
    assert fitted.score(X) == pytest.approx(scores.mean())
    X.loc[3, "city"], X.loc[4, "height"], X.loc[5, "size"] = None, np.nan, None
    less = fitted.score_samples(X)
    assert (np.delete(less, [3, 4, 5]) == np.delete(scores, [3, 4, 5])).all()
    assert less[3] > scores[3]
    filled = fitted.inpaint(X, n_samples=30)
    assert filled.shape == (30, 40, 7)
    assert filled[0, 0].tolist() == X.iloc[0].tolist()
    assert set(filled[:, 3, 0]) <= set(CITIES)
    shifted = X[["height"]].rename(columns={"height": "weight"}).join(X.drop(columns="height"))
    with pytest.raises(ValueError, match="feature names"):
        fitted.score_samples(shifted)
    with pytest.raises(InputError, match="bpd: found a model with real numbers"):
        fitted.bpd(X)


def test_likelihoods_are_those_of_the_circuit(fitted: HCLT) -> None:
    X = frame(50)
    assert fitted.columns_ is not None
    numbers = in_numbers(X, fitted.columns_)
    assert numbers[0, 0] == CITIES.index(X["city"][0])
    np.testing.assert_array_equal(fitted.score_samples(X), fitted.model_.circuit.log_likelihood(numbers))


def test_it_is_saved_and_pickled_and_cloned(fitted: HCLT, tmp_path: Path) -> None:
    X = frame(30)
    fitted.save(tmp_path / "model")
    for again in (HCLT.load(tmp_path / "model"), pickle.loads(pickle.dumps(fitted))):
        assert again.columns_ == fitted.columns_
        np.testing.assert_array_equal(again.score_samples(X), fitted.score_samples(X))
        assert list(again.sample(2).columns) == list(X.columns)
    assert clone(fitted).leaves == {"visits": "poisson"}
    (tmp_path / "model" / "columns.json").write_text('{"columns": [{"name": "x"}]}')
    with pytest.raises(InputError, match=r"columns\.json: found other columns"):
        HCLT.load(tmp_path / "model")


def test_texts_are_compressed() -> None:
    X = frame(64)[["city", "size", "rooms", "age"]]
    model = HCLT(num_latents=2, epochs=3).fit(X)
    assert model.bpd(X) < 4
    back = model.decompress(model.compress(X))
    assert back.astype(str).equals(X.astype(str))


def test_levels_beside_other_kinds_go_into_bins() -> None:
    rng = np.random.default_rng(0)
    table = np.stack([rng.integers(0, 900, 500), rng.integers(0, 4, 500)], 1)
    binned, bins = in_bins(["logistic", "categorical"], table, np.array([1024, 4]))
    assert bins == 8
    assert np.bincount(binned[:, 0]).tolist() == pytest.approx([62.5] * 8, abs=8)
    assert (binned[:, 1] == table[:, 1]).all()
    assert in_bins(["logistic"], table, 1024)[1] == 1024  # as images have them


@pytest.mark.parametrize(
    ("columns", "given", "said"),
    [
        (
            {"when": pandas.date_range("2020-01-01", periods=4)},
            {},
            r"found datetime64\S+ in column 1 \(when\), wanted cat",
        ),
        ({"v": [[1], [2], [1], [2]]}, {}, r"found list in column 1 \(v\)"),
        ({"v": ["a", 1, "b", 2]}, {}, r"found int and str in column 1 \(v\)"),
        ({"v": [np.inf, 0.5, 1, 2]}, {}, r"found inf in row 0, column 1 \(v\), wanted finite numbers"),
        ({"v": [None] * 4, "w": list("abab")}, {}, r"missing values only in column 1 \(v\)"),
        ({"v": list("abab")}, {"leaves": {"u": "gaussian"}}, "leaves: found 'u', wanted columns of X: v"),
        ({"v": list("abab")}, {"leaves": {"v": "gaussian"}}, r"leaves: found 'gaussian' for column 1 \(v\): a, b"),
        ({"v": [0.5, 1, 2, 3]}, {"leaves": {"v": "poisson"}}, r"found 0\.5 in row 0, column 1 \(v\), wanted counts"),
        ({"v": [0, 1, 2, 3]}, {"leaves": ["gaussian"] * 2}, "leaves: found 2 kinds, wanted one for each of 1 columns"),
        ({"v": [0, 1, 2, 3]}, {"leaves": ["normal"]}, "leaves: found 'normal', wanted one of auto, categorical"),
        ({"v": [0, 9, 2, 3]}, {"leaves": ["logistic"], "num_cats": 5}, r"found 9 in column 1 \(v\), wanted 0\.\.4"),
        ({"v": [0, 1, 2, 10**9]}, {"leaves": ["categorical"]}, r"found 1e\+09 in column 1 \(v\), in 4 rows"),
        ({"v": [0, 1, 2, -1]}, {}, r"found -1 in column 1 \(v\), wanted categories from 0 \(missing=-1"),
        (
            {"v": [0, 1e13, 2, -1]},
            {},
            r"found 1e\+13 in row 1, column 1 \(v\), wanted finite numbers of at most 1e\+12",
        ),
        ({"v": [0.1 + 10**7, 10**7, 10**7 + 1, 10**7]}, {}, r"X: column 1 \(v\): found a mean of 1e\+07"),
    ],
)
def test_columns_that_are_none_are_refused_by_name(columns: Any, given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        HCLT(num_latents=2, **given).fit(pandas.DataFrame(columns))


def test_what_is_no_setting_is_saved_too(tmp_path: Path) -> None:
    X = np.random.default_rng(0).integers(0, 3, (90, 3))
    X[:, 1] = X[:, 0]
    for data, given in (
        (X, {"missing": 0}),
        (pandas.DataFrame(X, columns=list("abc")), {"missing": 0, "leaves": {"b": "gaussian"}}),
        (np.where(X == 0, -1, X), {"missing": -1}),
        (X + 0.5, {"leaves": ["gaussian"] * 3}),
        (X * 0.5, {"leaves": "gaussian"}),
    ):
        model = HCLT(num_latents=2, epochs=2, **given).fit(data)
        model.save(tmp_path / "model")
        again = HCLT.load(tmp_path / "model")
        np.testing.assert_array_equal(again.score_samples(data), model.score_samples(data))
        assert {name: again.get_params()[name] for name in given} == given
        assert again.columns_ == model.columns_


@pytest.mark.parametrize("kind", ["Int64", "boolean", "string", "category"])
def test_an_integer_for_missing_values_beside_those_of_pandas(kind: str) -> None:
    values = {"Int64": [0, 1, 7], "boolean": [True, False], "string": ["x", "y"], "category": [0, 1, 7]}[kind]
    column = pandas.Series([values[i % len(values)] for i in range(60)], dtype="object")
    seven = np.array([value == 7 for value in column])
    column[::5] = None
    X = pandas.DataFrame({"v": column.astype(kind), "h": np.arange(60) / 7})
    columns = columns_of(X, None, missing=7)
    assert columns is not None
    assert columns[0].num_cats == 2
    hidden = np.isnan(in_numbers(X, columns, missing=7)[:, 0])
    np.testing.assert_array_equal(hidden, seven | column.isna())


def test_rows_that_cannot_be_compressed_are_refused_first() -> None:
    X = frame(60)
    for names, said in (
        (["city", "visits"], "compress: found a model of counts without end"),
        (["city", "height"], "compress: found a model of real numbers"),
    ):
        with pytest.raises(InputError, match=said):
            HCLT(num_latents=2, epochs=1, leaves={"visits": "poisson"} if "visits" in names else None).fit(
                X[names]
            ).compress(X[names])
    holes = X[["city", "rooms"]].astype({"city": object})
    holes.loc[3, "city"] = None
    with pytest.raises(InputError, match="X: found a missing value in row 3, column 1, wanted complete rows"):
        HCLT(num_latents=2, epochs=1).fit(holes).compress(holes)


def test_frames_that_do_not_fit_are_refused_by_name(fitted: HCLT) -> None:
    X = frame(5)
    mask = pandas.DataFrame(False, index=X.index, columns=X.columns[::-1])
    with pytest.raises(InputError, match=r"mask: found columns visits, height, .* wanted those of X, city, size"):
        fitted.score_samples(X, mask=mask)
    with pytest.raises(InputError, match="X: found two columns named 'a'"):
        HCLT().fit(pandas.DataFrame([[0, 1], [1, 0]], columns=["a", "a"]))
    with pytest.raises(InputError, match="X: found a sparse csr_matrix, wanted a dense array"):
        HCLT().fit(csr_matrix(np.eye(4)))
    with pytest.raises(InputError, match="X: found no rows"):
        HCLT().fit(X[:0])
    with pytest.raises(InputError, match=r"X: found '161.5' in row 0, column 6 \(height\), wanted numbers"):
        fitted.score_samples(X.assign(height="161.5"))


def test_too_many_texts_are_no_categories() -> None:
    X = pandas.DataFrame({"name": [f"n{number}" for number in range(300)], "v": np.arange(300) / 7})
    with pytest.raises(InputError, match=r"found 300 different texts in 300 rows in column 1 \(name\)"):
        HCLT(num_latents=2).fit(X)


def test_values_that_are_new_are_refused_by_name(fitted: HCLT) -> None:
    for name, value, said in (
        ("city", "Bonn", r"found 'Bonn' in row 1, column 1 \(city\), wanted one of Bern, Oslo, Rome"),
        ("rooms", 9, r"found 9 in row 1, column 4 \(rooms\), wanted categories, 0\.\.3"),
        ("visits", -1, r"found -1 in row 1, column 7 \(visits\), wanted counts from 0"),
        ("age", 200, r"found 200 in row 1, column 5 \(age\), wanted levels, 0\.\.127"),
    ):
        X = frame(4).astype({"city": object})
        X.loc[1, name] = value
        with pytest.raises(InputError, match=said):
            fitted.score_samples(X)
