"""Models of windows: p(x) pixel by pixel, exactly as it is defined; learning, questions and refusals."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import lvd_juice
from models import window_model
from scipy.special import logsumexp
from sklearn.base import clone

from pyjuice_lvd import HCLT, Circuit, Windows
from pyjuice_lvd.circuit.hclt import rerooted
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import write_arrays
from pyjuice_lvd.learn.windows import learn_windows, reference_weights
from pyjuice_lvd.models.load import load_model
from pyjuice_lvd.models.windows import WEIGHT_UNIT, Rows, WindowModel
from pyjuice_lvd.models.windows import Windows as WindowsOf
from pyjuice_lvd.settings import resolve

PHOTOS = load_data("photos", size=16)
SMALL: dict[str, Any] = {"trees": 2, "latents": 4, "epochs": 4, "batch_size": 1000, "pixels": 20_000, "reach": 1}
BOTTOM = np.arange(16)[:, None] >= np.full(16, 5)


def signed(levels: Any) -> Any:
    return (levels + 128) % 256 - 128


def windows_by_definition(windows: WindowsOf, image: np.ndarray) -> list[tuple[list[int], list[bool]]]:
    """The values of the windows of all pixels of a modelled image, and which are outside, as docs/windows.md has it."""
    height, width, channels = windows.image_shape
    reach, found = windows.reach, []
    before = [place for place in product(range(-reach, 1), range(-reach, reach + 1)) if place < (0, 0)]
    for y, x in product(range(height), range(width)):
        inside = [y + dy >= 0 and 0 <= x + dx < width for dy, dx in before]
        values = [
            image[y + dy, x + dx].astype(int) if there else np.zeros(channels, int)
            for (dy, dx), there in zip(before, inside, strict=True)
        ]
        left, above, corner = (values[before.index(place)] for place in ((0, -1), (-1, 0), (-1, -1)))
        if x > 0 and y > 0:
            moves = np.sort([np.zeros(channels, int), signed(above - left), signed(above - corner)], axis=0)[1]
            expected = (left + moves) % 256
        else:
            expected = above if y > 0 else left  # of the first pixel, 0
        far = [signed(value - expected) if there else 0 * expected for value, there in zip(values, inside, strict=True)]
        moved = np.floor(windows.weights @ np.concatenate(far) / WEIGHT_UNIT + 0.5).astype(int)
        expected = (expected + moved) % 256
        near = [max(abs(dy), abs(dx)) == 1 for dy, dx in before]
        seen = np.array([[n, *[n] * (channels - 1)] for n in near])
        seen[[(dy, dx) in ((0, -2), (-2, 0)) for dy, dx in before], 0] = True
        values = [(value - expected + 128) % 256 for value in values]
        own = (image[y, x].astype(int) - expected + 128) % 256
        outside = np.concatenate(
            [np.repeat(~np.array(inside), channels)[seen.ravel()], np.zeros(2 * channels + 2, bool)]
        )
        row = np.where(outside, 0, np.concatenate([np.array(values)[seen], expected, [y, x], own]))
        found.append((row.tolist(), outside.tolist()))
    return found


@pytest.mark.parametrize(
    ("shape", "reach", "color"), [((3, 4, 3), 2, "ycocg"), ((4, 2, 1), 1, "ycocg"), ((2, 2, 3), 3, "rgb")]
)
def test_scores_are_the_circuits_conditionals(shape: tuple[int, int, int], reach: int, color: str) -> None:
    model = window_model(shape, reach=reach, color=color)
    X = np.random.default_rng(1).integers(0, 256, (3, *shape), dtype=np.uint8)
    expected = np.zeros((3, *shape[:2]))
    for image, scores in zip(model.modelled(X), expected.reshape(3, -1), strict=True):
        rows, outside = (np.array(part) for part in zip(*windows_by_definition(model.windows, image), strict=True))
        both = model.circuit.log_likelihood(rows, mask=outside)
        outside[:, -shape[2] :] = True
        scores[:] = both - model.circuit.log_likelihood(rows, mask=outside)
    np.testing.assert_allclose(model.pixel_scores(X), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.score_samples(X), expected.sum(axis=(1, 2)), rtol=1e-5)
    assert model.bpd(X) == pytest.approx(-expected.sum() / X.size / np.log(2), rel=1e-5)
    # Of known first pixels, and of none.
    known = np.array([0, 3, shape[0] * shape[1]])
    hidden = (np.arange(shape[0] * shape[1]) >= known[:, None]).reshape(3, *shape[:2])
    first = [scores[:n].sum() for scores, n in zip(expected.reshape(3, -1), known, strict=True)]
    np.testing.assert_allclose(model.score_samples(X, mask=hidden), first, rtol=1e-5, atol=1e-5)


def test_all_images_sum_to_1() -> None:
    model = window_model((1, 2, 1))
    every = np.array(list(product(range(256), repeat=2)), np.uint8).reshape(-1, 1, 2, 1)
    scores = model.score_samples(every)
    assert logsumexp(scores) == pytest.approx(0, abs=1e-5)
    # What is known of the first pixel alone is the sum over the second.
    first = model.score_samples(every[::256], mask=[[False, True]])
    np.testing.assert_allclose(first, logsumexp(scores.reshape(256, 256), axis=1), atol=1e-5)


def test_draws_have_the_models_shares() -> None:
    model = window_model((2, 2, 1), seed=3)
    drawn = model.sample(6000, seed=1)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (6000, 2, 2, 1)
    np.testing.assert_array_equal(drawn, model.sample(6000, seed=1))
    np.testing.assert_array_equal(drawn[:64], model.sample(64, seed=1))
    assert (drawn != model.sample(6000, seed=2)).any()
    assert window_model((2, 2, 3)).sample(0).shape == (0, 2, 2, 3)
    mean, deviation = (f(model.score_samples(drawn)) for f in (np.mean, np.std))
    other = model.score_samples(model.sample(6000, seed=5))
    assert mean == pytest.approx(other.mean(), abs=6 * deviation / np.sqrt(6000))
    # Of the last pixel given the others: shares of its values are their probabilities.
    X = drawn[:1].repeat(4000, axis=0)
    last = np.array([[False, False], [False, True]])
    (found,) = model.inpaint(X, last, n_samples=1, seed=4)
    np.testing.assert_array_equal(found[:, ~last], X[:, ~last])
    every = drawn[:1].repeat(256, axis=0)
    every[:, 1, 1, 0] = np.arange(256)
    p = np.exp(model.pixel_scores(every)[:, 1, 1])
    shares = np.bincount(found[:, 1, 1, 0], minlength=256)
    assert p.sum() == pytest.approx(1, abs=1e-5)
    assert (np.abs(shares - 4000 * p) <= 5 * np.sqrt(4000 * p * (1 - p)) + 5).all()


@pytest.mark.parametrize("color", ["ycocg", "ycc709"])
def test_what_goes_on_from_known_pixels_keeps_them(color: str) -> None:
    model = window_model((4, 4, 3), color=color)
    X = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    hidden = (np.arange(16) >= np.array([[4], [9], [16]])).reshape(3, 4, 4)
    drawn = model.inpaint(X, hidden, n_samples=5)
    assert drawn.shape == (5, *X.shape)
    np.testing.assert_array_equal(drawn[:, ~hidden], np.broadcast_to(X, drawn.shape)[:, ~hidden])
    assert (drawn[:, hidden] != np.broadcast_to(X, drawn.shape)[:, hidden]).any()


def test_what_comes_in_another_order_is_refused() -> None:
    model = window_model((4, 4, 3), color="rgb")
    X = np.zeros((2, 4, 4, 3), np.uint8)
    right = np.zeros((4, 4), bool)
    right[:, 2:] = True
    for ask in (lambda: model.score_samples(X, mask=right), lambda: model.inpaint(X, right)):
        with pytest.raises(InputError, match="mask: found known pixels after hidden ones, row after row"):
            ask()
    one = np.zeros((2, 4, 4, 3), bool)
    one[:, -1, -1, 1:] = True
    with pytest.raises(InputError, match="mask: found channels of one pixel hidden apart"):
        model.score_samples(X, mask=one)
    for name in ("marginals", "moments", "posterior_mean"):
        with pytest.raises(InputError, match=f"{name}: found a model of windows"):
            getattr(model, name)(X, BOTTOM[:4, :4])
    with pytest.raises(InputError, match="biased_modes"):
        model.sample(1, biased_modes=True)
    with pytest.raises(InputError, match="whose p\\(x\\) is no circuit"):
        model.written_out()
    with pytest.raises(InputError, match=r"X: found images of \(3, 4, 3\)"):
        model.score_samples(X[:, :3])


def without(model: WindowModel, variable: int, values: slice) -> WindowModel:
    """Take some values of a window's variable, from 0, from the circuit."""
    arrays, (_, table) = model.circuit.engine.arrays(), model.circuit.parameters()
    own = arrays["variable"] == variable + 1
    assert own.any()
    for start, stride in zip(arrays["param_start"][own], arrays["param_stride"][own], strict=True):
        table[start - 1 : start - 1 + 256 * stride : stride][values] = 0
    return model


def test_windows_that_are_impossible_leave_all_values_alike() -> None:
    model = window_model((2, 2, 1))
    model = without(model, model.windows.given - 1, slice(1, 2))  # those of the second column
    every = np.array(list(product(range(256), repeat=2)), np.uint8)
    X = np.zeros((len(every), 2, 2, 1), np.uint8)
    X[:, 1, :, 0] = every
    np.testing.assert_allclose(model.pixel_scores(X)[:, :, 1], -np.log(256))
    given = model.score_samples(X[:1], mask=[[False, False], [True, True]])
    assert logsumexp(model.score_samples(X)) == pytest.approx(given[0], abs=1e-5)
    (drawn,) = model.inpaint(X[:1].repeat(4000, axis=0), np.array([[False, False], [False, True]]), n_samples=1)
    shares = np.bincount(drawn[:, 1, 1, 0], minlength=256)
    assert (np.abs(shares - 4000 / 256) <= 6 * np.sqrt(4000 / 256)).all()
    assert np.isfinite(model.score_samples(model.sample(100))).all()
    assert np.array_equal(model.decompress(model.compress(X[::999])), X[::999])


def test_an_impossible_image_has_probability_0() -> None:
    model = window_model((2, 2, 1))
    model = without(model, model.windows.given, slice(128))  # the lower half of a pixel's residuals
    X = model.sample(3)
    assert np.isfinite(model.score_samples(X)).all()
    unlikely = np.where(np.arange(4).reshape(2, 2, 1) == 0, X + 128, X).astype(np.uint8)
    assert (model.score_samples(unlikely) == -np.inf).all()
    assert np.array_equal(model.decompress(model.compress(unlikely)), unlikely)
    with pytest.raises(InputError, match="X: image 1: what is known of it has probability 0 under the model"):
        model.inpaint(np.stack([X[0], unlikely[1]]), np.array([[False, True], [True, True]]))


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    model = window_model((4, 3, 3))
    X = model.sample(5)
    model.save(tmp_path)
    again = load_model(tmp_path, "windows")
    assert isinstance(again, WindowModel)
    np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
    assert np.array_equal(again.decompress(model.compress(X)), X)
    with pytest.raises(InputError, match="wanted a model that hclt learns"):
        load_model(tmp_path, "hclt")
    # Other weights are another model.
    weights = model.windows.weights.copy()
    weights[0, 0] += 1
    write_arrays(tmp_path / "reference.safetensors", {"weights": weights})
    with pytest.raises(InputError, match="was written with another model"):
        load_model(tmp_path).decompress(model.compress(X))
    write_arrays(tmp_path / "reference.safetensors", {"weights": weights[:, 1:]})
    with pytest.raises(InputError, match=r"weights: found int32 \(3, 11\), wanted int32 \(3, 12\)"):
        load_model(tmp_path)
    # So is one of another circuit.
    write_arrays(tmp_path / "reference.safetensors", {"weights": model.windows.weights})
    rows = np.random.default_rng(0).integers(0, 16, (50, model.windows.values))
    for number, more, said in (
        (300, {}, "found 300 categories, wanted 256"),
        (16, {}, "found 16 categories, wanted 256"),
        (256, {"heads": 2}, "found 2 heads, wanted 1"),
    ):
        Circuit.hclt(rows, num_latents=2, num_cats=number, **more).save(tmp_path / "circuit.safetensors")
        with pytest.raises(InputError, match=said):
            load_model(tmp_path)
    Circuit.hclt(rows * 0.5, num_latents=2, leaves="gaussian").save(tmp_path / "circuit.safetensors")
    with pytest.raises(InputError, match="categories, wanted 256"):
        load_model(tmp_path)
    (tmp_path / "reference.safetensors").unlink()
    with pytest.raises(InputError, match=r"reference\.safetensors"):
        load_model(tmp_path)


def test_reference_levels_are_learned_by_absolute_errors() -> None:
    rng = np.random.default_rng(0)
    near = rng.integers(-20, 21, (4000, 4))
    outside = rng.random((4000, 4)) < 0.1
    true = np.array([0.5, -0.25, 0.0, 0.125])
    own = np.rint(np.where(outside, 0, near) @ true).astype(int)
    own[::10] += 60  # which squares would follow
    values = np.concatenate([near + 128, rng.integers(0, 256, (4000, 3)), (own + 128)[:, None]], axis=1).astype(
        np.uint8
    )
    rows = Rows(values, np.concatenate([outside, np.zeros((4000, 4), bool)], axis=1))
    found = reference_weights(rows, 1)
    assert found.dtype == np.int32
    assert found.shape == (1, 4)
    np.testing.assert_allclose(found[0] / WEIGHT_UNIT, true, atol=0.01)


def learned(folder: Path | None = None, record: Any = lambda _: None, **own: Any) -> WindowModel:
    settings = resolve(None, {"windows": {**SMALL, **own}}, method="windows")
    return learn_windows(PHOTOS.train[:300], PHOTOS.valid[:50], settings, folder=folder, record=record)


def test_learning_and_its_records() -> None:
    records: list[dict[str, Any]] = []
    model = learned(record=records.append)
    assert [entry["stage"] for entry in records] == ["structure", *["EM"] * 4]
    assert records[-1]["valid"] > records[1]["valid"]
    assert (model.image_shape, model.windows.reach, model.dims) == ((16, 16, 3), 1, 768)
    assert model.num_params == model.circuit.num_params == records[0]["params"]
    assert model.bpd(PHOTOS.test) < HCLT(num_latents=8, epochs=10).fit(PHOTOS.train[:300]).bpd(PHOTOS.test)
    np.testing.assert_array_equal(learned().score_samples(PHOTOS.test[:9]), model.score_samples(PHOTOS.test[:9]))


@pytest.mark.parametrize("at", [("structure", None), ("EM", 2)])
def test_an_interrupted_run_goes_on_to_the_same_model(
    at: tuple[str, int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0)
    whole, stopped = learned(), False

    def interrupt(entry: dict[str, Any]) -> None:
        nonlocal stopped
        if (entry["stage"], entry.get("epoch")) == at and not stopped:
            stopped = True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path, interrupt)
    again = learned(tmp_path, interrupt)
    np.testing.assert_array_equal(again.score_samples(PHOTOS.test), whole.score_samples(PHOTOS.test))
    left = ["circuit.safetensors", "model.json", "pieces.json", "reference.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    with pytest.raises(InputError, match=r"has pieces of work with windows\.reach = 1, wanted 2"):
        learned(tmp_path, reach=2)


def test_the_estimator(tmp_path: Path) -> None:
    model = Windows(reach=1, pixels=2000, num_trees=2, num_latents=3, epochs=2, config={"data": {"color": "rgb"}})
    assert clone(model).get_params() == model.get_params()
    model.fit(PHOTOS.train[:60])
    own = model.settings_.windows
    assert (own.reach, own.pixels, own.trees, own.latents, own.epochs) == (1, 2000, 2, 3, 2)
    X = PHOTOS.test[:20]
    assert model.pixel_scores(X).sum(axis=(1, 2)) == pytest.approx(model.score_samples(X))
    assert model.inpaint(X, BOTTOM, n_samples=2).shape == (2, 20, 16, 16, 3)
    assert np.array_equal(model.decompress(model.compress(X)), X)
    model.save(tmp_path / "model")
    again = Windows.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
    with pytest.raises(InputError, match=r"Windows\.load opens it"):
        HCLT.load(tmp_path / "model")
    with pytest.raises(InputError, match=r"windows\.trees: found 100000 for 13824 pixels"):
        Windows(num_trees=100_000).fit(PHOTOS.train[:60])
    with pytest.raises(InputError, match=r"windows\.trees: found 20 for 10 pixels"):
        Windows(num_trees=20, pixels=10).fit(PHOTOS.train[:60])
    with pytest.raises(InputError, match=r"windows\.latents: found 1000000: the model would take"):
        Windows(num_latents=1_000_000).fit(PHOTOS.train[:60])
    with pytest.raises(InputError, match=r"windows\.reach: found 9, wanted 1 to 8"):
        Windows(reach=9).fit(PHOTOS.train[:60])


def test_a_tree_has_the_root_that_is_asked_for() -> None:
    parent = np.array([-1, 0, 1, 1, 0])
    assert rerooted(parent, 3).tolist() == [1, 3, 1, -1, 0]
    assert rerooted(parent, 0).tolist() == parent.tolist()
    X = np.random.default_rng(0).integers(0, 3, (500, 5))
    for root in range(5):
        assert Circuit.hclt(X, num_latents=2, root=root).num_params == Circuit.hclt(X, num_latents=2).num_params
    with pytest.raises(InputError, match=r"root: found 5, wanted a variable, 0\.\.4"):
        Circuit.hclt(X, root=5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "photos"
    given = [part for name, value in SMALL.items() for part in ("--set", f"windows.{name}={value}")]
    said = json.loads(
        lvd_juice(
            "fit", "photos", "-o", folder, "--method", "windows", "--set", "data.size=16", *given, "--json", "--quiet"
        ).stdout
    )
    assert (said["method"], said["dims"]) == ("windows", 768)
    assert said["bpd"] < said["bpd_factorized"]
    return folder


def test_commands(run: Path, tmp_path: Path) -> None:
    scored = json.loads(lvd_juice("eval", run, "photos", "--json", "--quiet").stdout)
    assert scored["bpd"] == json.loads((run / "result.json").read_text())["bpd"]
    coded, back = tmp_path / "photos.lvdz", tmp_path / "photos.npz"
    lvd_juice("compress", run, "photos", "-o", coded, "--test", "--quiet")
    lvd_juice("decompress", run, coded, "-o", back, "--quiet")
    with np.load(back) as arrays:
        assert np.array_equal(arrays["images"], PHOTOS.test)
    for output in ("drawn.png", "drawn.npy"):
        lvd_juice("sample", run, "-n", "3", "-o", tmp_path / output, "--quiet")
        lvd_juice("inpaint", run, "photos", "--mask", "bottom", "-n", "2", "-o", tmp_path / output, "--quiet")
    assert np.load(tmp_path / "drawn.npy").shape == (2, 6, 16, 16, 3)
    lvd_juice("export", run, "-o", tmp_path / "window.jpc", "--part", "window", "--quiet")
    assert Circuit.load(tmp_path / "window.jpc").num_vars == WindowModel.load(run / "model").windows.values
    assert Windows.load(run).settings_.windows.trees == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("inpaint", "RUN", "photos", "--mask", "right", "-o", "x.png"), "mask: found known pixels after hidden ones"),
        (("export", "RUN", "-o", "x.jpc"), "--part: found 'joint' for a run of windows, wanted 'window'"),
        (("gap", "RUN", "photos"), "windows"),
        (("sample", "RUN", "--biased-modes", "-o", "x.png"), "--biased-modes: found method windows"),
        (
            ("fit", "table.csv", "-o", "no", "--method", "windows"),
            "a table, which hclt, sparse-hclt, rat-spn and einet",
        ),
        (
            ("fit", "photos", "-o", "no", "--method", "windows", "--features", "f.npy"),
            "--features: found method windows",
        ),
    ],
)
def test_commands_that_are_refused(
    command: tuple[str, ...], said: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("a,b\n0,1\n1,0\n1,1\n")
    found = lvd_juice(*(run if part == "RUN" else part for part in command), check=False)
    assert found.returncode == 2
    assert said in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv"]
