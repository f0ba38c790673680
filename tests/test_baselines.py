"""HCLT, RAT-SPN and EiNet as estimators, over images and over tables."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils import estimator_checks

from pyjuice_lvd import EINET, HCLT, LVD, RATSPN
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.learn.baselines import learn_circuit
from pyjuice_lvd.learn.sizes import check_fit
from pyjuice_lvd.machine import in_words, machine_memory
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.settings import HCLTSettings, Settings, preset_names, resolve

SMALL = {
    HCLT: HCLT(num_latents=4, epochs=10, batch_size=32),
    RATSPN: RATSPN(depth=2, replicas=2, num_sums=4, num_inputs=4, epochs=10, batch_size=32),
    EINET: EINET(depth=2, replicas=2, num_sums=4, steps=(2,), epochs=10, batch_size=32),
}


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """Six columns that follow one of two patterns."""
    rng = np.random.default_rng(0)
    rows = np.where(rng.random((600, 1)) < 0.5, [[0, 1, 2, 0, 1, 2]], [[2, 2, 0, 1, 0, 0]])
    return np.where(rng.random((600, 6)) < 0.1, rng.integers(0, 3, (600, 6)), rows)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Colour images of 3x4 whose pixels are all alike, up to noise in red."""
    rng = np.random.default_rng(1)
    values = rng.choice([40, 90, 200], (400, 1, 1, 1)) + np.array([0, 7, 30])
    values = np.broadcast_to(values, (400, 3, 4, 3)).copy()
    values[..., 0] += rng.integers(0, 3, (400, 3, 4))
    return values.astype(np.uint8)


@pytest.mark.parametrize("kind", [HCLT, RATSPN, EINET])
def test_a_table(kind: type, table: np.ndarray, tmp_path: Path) -> None:
    model = clone(SMALL[kind]).fit(table[:500])
    scores = model.score_samples(table[500:])
    assert scores.dtype == np.float64
    assert scores.shape == (100,)
    assert model.score(table[500:]) == pytest.approx(scores.mean())
    assert model.bpd(table[500:]) == pytest.approx(-scores.mean() / (np.log(2) * 6))
    independent = -6 * (0.525 * np.log(0.525) + 0.025 * np.log(0.025) + 0.45 * np.log(0.45))
    assert scores.mean() > -independent + 0.8  # the patterns are worth log 2 for each column but the first
    drawn = model.sample(300, random_state=1)
    assert drawn.shape == (300, 6)
    assert (drawn[:, 0] != 1).mean() > 0.9
    np.testing.assert_array_equal(drawn, model.sample(300, random_state=1))
    model.save(tmp_path / "model")
    again = kind.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(table[500:]), scores)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "circuit.safetensors", "model.json", "settings.toml",
    }  # fmt: skip
    refitted = clone(SMALL[kind]).fit(table[:500])
    np.testing.assert_array_equal(refitted.score_samples(table[500:]), scores)


def test_hidden_columns_are_drawn_given_the_others(table: np.ndarray) -> None:
    model = clone(SMALL[HCLT]).fit(table)
    rows, hidden = np.array([[0, 1, 2, 0, 1, 2], [2, 2, 0, 1, 0, 0]]), np.arange(6) >= 3
    drawn = model.inpaint(rows, hidden, n_samples=200)
    assert drawn.shape == (200, 2, 6)
    assert (drawn[:, :, :3] == rows[:, :3]).all()
    assert (drawn[:, :, 3:] == rows[:, 3:]).mean() > 0.85


@pytest.mark.parametrize("config", [{}, {"data": {"color": "rgb"}}, {"data": {"color": "ycc709"}}])
def test_colour_images(images: np.ndarray, config: dict, tmp_path: Path) -> None:
    model = clone(SMALL[HCLT]).set_params(config=config, epochs=20).fit(images[:300])
    assert model.bpd(images[300:]) < 2
    drawn = model.sample(5)
    assert (drawn.shape, drawn.dtype) == ((5, 3, 4, 3), np.uint8)
    hidden = np.zeros((3, 4), bool)
    hidden[:, 2:] = True
    painted = model.inpaint(images[300:310], hidden, n_samples=4)
    assert painted.shape == (4, 10, 3, 4, 3)
    np.testing.assert_array_equal(painted[:, :, :, :2], np.broadcast_to(images[300:310, :, :2], (4, 10, 3, 2, 3)))
    errors = np.abs(painted.astype(int) - images[300:310])
    assert np.median(errors[:, :, :, 2:]) <= 3  # the colour of the half that is seen
    each = model.inpaint(images[300:310], np.broadcast_to(hidden, (10, 3, 4)), n_samples=4)
    np.testing.assert_array_equal(each, painted)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(HCLT.load(tmp_path / "model").inpaint(images[300:310], hidden, n_samples=4), painted)


def test_what_is_hidden_is_summed_out_and_has_marginals(table: np.ndarray, images: np.ndarray) -> None:
    model, hidden = clone(SMALL[HCLT]).fit(table), np.arange(6) >= 4
    rows = table[:5]
    everything = np.array([[*row[:4], a, b] for row in rows for a in range(3) for b in range(3)])
    p = np.exp(model.score_samples(everything)).reshape(5, 3, 3)
    np.testing.assert_allclose(np.exp(model.score_samples(rows, mask=hidden)), p.sum((1, 2)), rtol=1e-5)
    marginals = model.marginals(rows, hidden)
    assert marginals.shape == (5, 6, 3)
    np.testing.assert_allclose(marginals[:, 4], p.sum(2) / p.sum((1, 2))[:, None], rtol=1e-5)
    np.testing.assert_array_equal(marginals[:, :4].argmax(2), rows[:, :4])
    with pytest.raises(InputError, match="posterior_mean: found a model of tables, wanted one of images"):
        model.posterior_mean(rows, hidden)


@pytest.mark.parametrize("color", ["ycocg", "rgb", "ycc709"])
def test_the_mean_of_hidden_pixels_is_that_of_their_samples(images: np.ndarray, color: str) -> None:
    model = clone(SMALL[HCLT]).set_params(config={"data": {"color": color, "crop": "2x4"}}, epochs=20).fit(images[:300])
    hidden = np.zeros((3, 4), bool)
    hidden[:, 2:] = True
    cropped, known = images[300:304, :2], ~hidden[:2]
    means, drawn = model.posterior_mean(images[300:304], hidden), model.inpaint(images[300:304], hidden, n_samples=4000)
    assert (means.shape, means.dtype) == ((4, 2, 4, 3), np.float64)
    np.testing.assert_array_equal(means[:, known], cropped[:, known])
    error = drawn.std(0) / np.sqrt(4000)
    assert (np.abs(means - drawn.mean(0)) < 5 * error + 1).all()
    marginals = model.marginals(images[300:304], hidden)
    assert marginals.shape == (4, 2, 4, 3, 256)
    exact = model.inpaint(images[300:304], hidden, n_samples=4000, exact=True)
    stored = model.model_.color.forward(exact[:, 0])
    for place in np.ndindex(2, 4, 3):
        if color != "ycc709":  # whose samples have been through its inverse
            shares = np.bincount(stored[:, *place], minlength=256) / 4000
            assert np.abs(shares - marginals[0, *place]).max() < 0.04
    assert (model.score_samples(images[300:304], mask=hidden) > model.score_samples(images[300:304])).all()


def test_channels_can_be_hidden_apart_only_where_they_are_variables(images: np.ndarray) -> None:
    blue = np.zeros((2, 3, 4, 3), bool)
    blue[..., 2] = True
    rgb = clone(SMALL[HCLT]).set_params(config={"data": {"color": "rgb"}}, epochs=20).fit(images)
    painted = rgb.inpaint(images[:2], blue, n_samples=9)
    np.testing.assert_array_equal(painted[..., :2], np.broadcast_to(images[:2, ..., :2], (9, 2, 3, 4, 2)))
    assert (painted[..., 2] == images[:2, ..., 2]).mean() > 0.8  # red tells blue
    mixed = clone(SMALL[HCLT]).set_params(epochs=1).fit(images)
    with pytest.raises(InputError, match="mask: found channels of one pixel hidden apart, wanted whole pixels: ycocg"):
        mixed.inpaint(images[:2], blue)
    with pytest.raises(InputError, match=r"mask: found int64 \(3, 4\), wanted bool \(3, 4\), \(2, 3, 4\) or"):
        mixed.inpaint(images[:2], np.zeros((3, 4), int))
    with pytest.raises(InputError, match=r"mask: found bool \(4, 3\)"):
        mixed.inpaint(images[:2], np.zeros((4, 3), bool))


def test_grey_images_and_crops(images: np.ndarray) -> None:
    grey = images[..., 0]
    model = clone(SMALL[HCLT]).set_params(config={"data": {"crop": "2x3"}}).fit(grey)
    assert model.n_features_in_ == 6
    assert model.sample(2).shape == (2, 2, 3, 1)
    hidden = np.zeros((3, 4), bool)
    hidden[0, 0] = True
    painted = model.inpaint(grey[:5], hidden, n_samples=2)
    assert painted.shape == (2, 5, 2, 3, 1)
    known = ~hidden[:2, :3]
    np.testing.assert_array_equal(painted[:, :, known, 0], np.broadcast_to(grey[:5, :2, :3][:, known], (2, 5, 5)))
    assert model.bpd(grey) == pytest.approx(model.bpd(grey[:, :2, :3]))


def test_the_model_of_an_image_is_a_density(images: np.ndarray) -> None:
    model = clone(SMALL[HCLT]).fit(images[:, :1, :1, :1])
    everything = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
    assert np.exp(model.score_samples(everything)).sum() == pytest.approx(1, abs=1e-5)


def test_a_mixture_of_trees_holds_what_one_tree_cannot(table: np.ndarray) -> None:
    one, three = (clone(SMALL[HCLT]).set_params(num_latents=1, num_trees=trees).fit(table) for trees in (1, 3))
    assert three.score(table) > one.score(table) + 2  # one latent state: a tree is a product of columns
    assert three.model_.circuit.num_params == 3 * (6 * 3 + 6) + 3


def test_what_does_not_fit_is_named(table: np.ndarray, images: np.ndarray, tmp_path: Path) -> None:
    model = clone(SMALL[HCLT]).fit(table)
    with pytest.raises(InputError, match=r"X: found 9 in row 1, variable 2; wanted the categories .*, 0\.\.2"):
        model.score_samples(np.array([[0, 0, 0, 0, 0, 0], [0, 0, 9, 0, 0, 0]]))
    with pytest.raises(InputError, match="X: found 5 variables, wanted the model's 6"):
        model.score_samples(table[:, :5])
    with pytest.raises(InputError, match=r"X: found float64 \(600, 6\), wanted integers"):
        model.score_samples(table / 2)
    with pytest.raises(InputError, match=r"X: found 2 in column 1, wanted 0\.\.1 for num_cats = 2"):
        clone(model).set_params(num_cats=2).fit(table)
    with pytest.raises(InputError, match=r"hclt\.latents: found 0, wanted at least 1"):
        HCLT(num_latents=0).fit(table)
    with pytest.raises(InputError, match="found n_samples = 1, wanted at least 2"):
        clone(model).fit(table[:1])
    with pytest.raises(InputError, match=r"X: found shape \(600, 6, 3, 4, 3\), wanted images"):
        clone(model).fit(np.broadcast_to(images[:1], (600, 6, 3, 4, 3)))
    model.save(tmp_path / "model")
    with pytest.raises(InputError, match="found a model of method hclt, wanted rat-spn"):
        RATSPN.load(tmp_path / "model")
    with pytest.raises(NotFittedError):
        HCLT().sample(1)
    wider = clone(model).set_params(num_cats=10).fit(table)
    (unseen, usual) = wider.score_samples(np.array([[9] * 6, [0, 1, 2, 0, 1, 2]]))
    assert -np.inf < unseen < usual - 6 * np.log(20)  # each is left the pseudocount's share


@pytest.mark.parametrize("estimator", [HCLT(search=False), RATSPN(), EINET(), LVD()])
def test_scikit_learns_checks_that_need_no_real_valued_data(estimator: object) -> None:
    name = type(estimator).__name__
    estimator_checks.check_parameters_default_constructible(name, estimator)
    estimator_checks.check_no_attributes_set_in_init(name, estimator)
    estimator_checks.check_get_params_invariance(name, estimator)
    estimator_checks.check_set_params(name, estimator)
    estimator_checks.check_estimator_cloneable(name, estimator)
    estimator_checks.check_estimator_repr(name, estimator)
    estimator_checks.check_valid_tag_types(name, estimator)


def test_cross_validation(table: np.ndarray) -> None:
    scores = cross_val_score(SMALL[HCLT], table[:200], cv=2)
    halves = table[:100], table[100:200]
    for score, held_out, train in zip(scores, halves, halves[::-1], strict=True):
        assert score == pytest.approx(clone(SMALL[HCLT]).fit(train).score(held_out))


def test_numpys_numbers_are_as_good_as_pythons(table: np.ndarray, tmp_path: Path) -> None:
    names = {"num_latents": 2, "num_trees": 1, "epochs": 2, "batch_size": 32, "patience": 2, "num_cats": 3}
    given = {name: np.int64(value) for name, value in names.items()}
    numbers = {"pseudocount": 0.25, "step_size": (0.5, 0.25)}
    model = HCLT(**given, pseudocount=np.float32(0.25), step_size=np.array([0.5, 0.25]), random_state=np.int64(3))
    model.fit(table).save(tmp_path / "model")
    expected = HCLT(**names, **numbers, random_state=3).fit(table)
    np.testing.assert_array_equal(model.score_samples(table), expected.score_samples(table))
    np.testing.assert_array_equal(HCLT.load(tmp_path / "model").sample(9), expected.sample(np.int64(9)))
    search = GridSearchCV(HCLT(epochs=20), {"num_latents": np.array([1, 2])}, cv=2, error_score="raise")
    assert search.fit(table[:200]).best_params_ == {"num_latents": 2}  # two patterns


def test_random_state_is_as_scikit_learn_has_it(table: np.ndarray) -> None:
    model, hidden = clone(SMALL[HCLT]).set_params(epochs=1).fit(table), np.arange(6) >= 3
    draw = [
        lambda random_state: model.sample(20, random_state=random_state),
        lambda random_state: model.inpaint(table[:5], hidden, random_state=random_state),
    ]
    for drawn in draw:
        np.testing.assert_array_equal(drawn(np.int64(5)), drawn(5))
        state = np.random.RandomState(5)
        first, second = drawn(state), drawn(state)
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(first, drawn(np.random.RandomState(5)))
        assert not np.array_equal(drawn(None), drawn(None))
        with pytest.raises(InputError, match=r"random_state: found 'a' \(a string\), wanted an integer"):
            drawn("a")
    with pytest.raises(InputError, match=r"n: found 2\.5 \(a number\), wanted an integer"):
        model.sample(2.5)
    with pytest.raises(InputError, match="n_samples: found -1, wanted at least 0"):
        model.inpaint(table[:5], hidden, n_samples=-1)
    with pytest.raises(InputError, match="num_cats: found 'a'"):
        clone(model).set_params(num_cats="a").fit(table)
    with pytest.raises(InputError, match="config: found 5, wanted the path of a TOML file"):
        LVD(config=5).fit(np.zeros((4, 4, 4), np.uint8))


def test_learning_goes_on_where_it_stopped(table: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0)
    settings = Settings(method="hclt", hclt=HCLTSettings(latents=4, trees=2, epochs=8, batch_size=64, patience=8))

    def learn(folder: Path, stop_at: int | None = None) -> tuple[CircuitModel, list[dict]]:
        records: list[dict] = []

        def record(entry: dict) -> None:
            records.append(entry)
            if entry.get("epoch") == stop_at:
                raise KeyboardInterrupt

        return learn_circuit(table[:500], table[500:], settings, num_cats=3, folder=folder, record=record), records

    undisturbed, records = learn(tmp_path / "a", stop_at=-1)
    assert [record["epoch"] for record in records if record["stage"] == "EM"] == list(range(1, 9))
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "b", stop_at=4)
    assert not (tmp_path / "b" / "model.json").exists()
    resumed, records = learn(tmp_path / "b", stop_at=-1)
    assert [record["epoch"] for record in records] == [4, 5, 6, 7, 8]
    for mine, wanted in zip(resumed.circuit.parameters(), undisturbed.circuit.parameters(), strict=True):
        np.testing.assert_array_equal(mine, wanted)
    kept = ["circuit.safetensors", "model.json", "pieces.json"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == kept
    np.testing.assert_array_equal(learn(tmp_path / "b")[0].score_samples(table), resumed.score_samples(table))


# --- what the estimators share with the command line and with scikit-learn --------------------------------------------


def test_columns_in_another_order_are_refused_as_scikit_learn_does(table: np.ndarray, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table, columns=list("fedcba"))
    model = clone(SMALL[HCLT]).set_params(epochs=1).fit(frame)
    assert model.feature_names_in_.tolist() == list("fedcba")
    scores = model.score_samples(frame)
    turned = frame[sorted(frame.columns)]
    model.save(tmp_path / "model")
    for fitted in (model, HCLT.load(tmp_path / "model")):
        np.testing.assert_array_equal(fitted.score_samples(frame), scores)
        for ask, more in ((fitted.score_samples, ()), (fitted.bpd, ()), (fitted.inpaint, (np.arange(6) > 2,))):
            with pytest.raises(ValueError, match="Feature names must be in the same order as they were in fit"):
                ask(turned, *more)
        with pytest.raises(ValueError, match="Feature names unseen at fit time:\n- z\n"):
            fitted.score_samples(frame.rename(columns={"a": "z"}))
        with pytest.warns(UserWarning, match="X does not have valid feature names, but HCLT was fitted with"):
            np.testing.assert_array_equal(fitted.score_samples(table), scores)
    model.fit(table)
    assert not hasattr(model, "feature_names_in_")
    with pytest.warns(UserWarning, match="X has feature names, but HCLT was fitted without"):
        model.score_samples(frame)
    model.save(tmp_path / "model")  # over the one with names
    assert not hasattr(HCLT.load(tmp_path / "model"), "feature_names_in_")


def test_masked_arrays_are_refused_but_for_the_tables_of_estimators(table: np.ndarray, images: np.ndarray) -> None:
    model = clone(SMALL[HCLT]).set_params(epochs=1).fit(table)
    masked = np.ma.masked_array(table, mask=table == 1)
    hidden = np.ma.masked_array(np.arange(6) > 2, mask=np.arange(6) == 5)
    for ask, name in (
        (lambda: model.inpaint(table, hidden), "mask"),
        (lambda: model.model_.circuit.log_likelihood(masked), "X"),
        (lambda: model.model_.circuit.fit_em(table, weights=np.ma.masked_less(np.arange(600.0), 3)), "weights"),
        (lambda: clone(model).fit(np.ma.masked_equal(images, 40)), "X"),
    ):
        with pytest.raises(
            InputError, match=f"^{name}: found a masked array with .* hidden values, wanted a plain array"
        ):
            ask()
    np.testing.assert_array_equal(model.score_samples(masked), model.score_samples(table, mask=table == 1))
    plain = np.ma.masked_array(table, mask=False)
    np.testing.assert_array_equal(model.score_samples(plain), model.score_samples(table))


def test_a_bad_random_state_is_called_by_its_name(table: np.ndarray) -> None:
    for value, found in (("a", "'a' (a string), wanted an integer"), (-1, "-1, wanted 0 to 4294967295")):
        with pytest.raises(InputError, match=re.escape(f"random_state: found {found}")):
            HCLT(random_state=value).fit(table)
    first, second = (HCLT(random_state=None, epochs=1).fit(table[:50]).settings_.seed for _ in range(2))
    assert first != second  # as scikit-learn has it
    seeds = {HCLT(random_state=np.random.RandomState(3), epochs=1).fit(table[:50]).settings_.seed for _ in range(2)}
    assert len(seeds) == 1


@pytest.mark.parametrize(
    ("estimator", "part"),
    [
        (HCLT(config={"seed": 5}), "config: found seed = 5 beside the parameter random_state = 0, wanted one of them"),
        (LVD(config={"device": "cpu"}), "config: found device = 'cpu' beside the parameter device = 'auto'"),
        (HCLT(config={"threads": 99}), "threads: found 99, but Julia runs with"),
        (LVD(config={"growing": {"variant": "both"}}), "growing.variant: found 'both', wanted one of paper, reference"),
    ],
)
def test_no_setting_is_ignored_in_silence(estimator: HCLT, part: str, table: np.ndarray, images: np.ndarray) -> None:
    clone(SMALL[HCLT]).set_params(epochs=1).fit(table[:50])  # Julia runs
    with pytest.raises(InputError) as error:
        estimator.fit(images[:20] if isinstance(estimator, LVD) else table)
    assert part in str(error.value)


def test_a_loaded_model_can_be_fitted_anew(table: np.ndarray, tmp_path: Path) -> None:
    clone(SMALL[HCLT]).set_params(random_state=4, epochs=2).fit(table[:100]).save(tmp_path / "model")
    again = clone(HCLT.load(tmp_path / "model")).set_params(random_state=5).fit(table[:100])
    assert (again.settings_.seed, again.settings_.hclt.epochs, again.settings_.hclt.latents) == (5, 2, 4)


def test_an_einet_has_the_region_graph_that_was_asked_for(images: np.ndarray, table: np.ndarray) -> None:
    small = {"num_sums": 3, "epochs": 1, "batch_size": 100}
    pairs, leaves = 3**2, 36 * 3 * 256  # of a partition, for each sum; 36 variables
    # 3 x 4 pixels at steps of 2: cells in two rows and two columns; a row, a column and the whole are cut.
    grid = EINET(steps=[2], **small).fit(images).model_.circuit
    assert grid.num_params == leaves + (4 * 3 + 2) * pairs + 2
    # No step within: one region, whose distributions the head mixes.
    assert EINET(steps=[9], **small).fit(images).model_.circuit.num_params == leaves + 3
    # Random halves, one deep: a partition.
    random = EINET(regions="random", depth=1, replicas=1, leaves="binomial", **small).fit(images).model_.circuit
    assert random.num_params == 36 * 3 + pairs
    assert EINET(depth=1, replicas=1, **small).fit(table).model_.circuit.num_params == 6 * 3 * 3 + pairs


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "part"),
    [
        (HCLT(num_latents=10**6), "hclt.latents: found 1000000: the model would take 120 TB of memory, wanted at most"),
        (HCLT(num_trees=10**9), "hclt.trees: found 1000000000 for 600 rows, wanted at most as many trees"),
        (RATSPN(num_sums=10**6), "rat_spn.sums: found 1000000: the model would take"),
        (EINET(num_sums=10**6), "einet.sums: found 1000000: the model would take"),
        (EINET(regions="grid"), "einet.regions: found 'grid' for a table, wanted 'random' or 'auto'"),
        (EINET(leaves="gaussian"), "einet.leaves: found 'gaussian', wanted one of categorical, binomial"),
        (HCLT(num_cats=10**12), "num_cats: found 1000000000000, which makes 1,000,000,000,000 categories: the model"),
    ],
)
def test_a_model_too_large_for_the_machine_is_refused_before_it_is_made(
    estimator: HCLT, part: str, table: np.ndarray
) -> None:
    with pytest.raises(InputError) as error:
        estimator.fit(table)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_that_are_no_categories_are_refused_with_their_column(table: np.ndarray) -> None:
    pandas = pytest.importorskip("pandas")
    dated = table[:300].copy()
    dated[7, 2] = 20240115
    with pytest.raises(InputError) as error:
        HCLT().fit(dated)
    assert str(error.value) == (
        "X: found 20240115 in column 3, which makes 20,240,116 categories for 300 rows; "
        "wanted categories, numbered from 0 without large gaps"
    )
    with pytest.raises(InputError, match=r"X: found 20240115 in column 3 \(day\), which makes 20,240,116 categories"):
        RATSPN().fit(pandas.DataFrame(dated, columns=["a", "b", "day", "c", "d", "e"]))
    with pytest.raises(InputError, match=r"X: found -7 in column 3, wanted categories from 0"):
        HCLT().fit(np.where(dated > 9, -7, dated))


def test_sizes_are_estimated_for_every_method() -> None:
    images, machine = (100, 32, 32, 3), machine_memory()
    for changes, name in (
        ({"circuit": {"latents": 10**6}}, "circuit.latents"),
        ({"clusters": {"inner": 10**9}}, "clusters.inner"),
        ({"prior": {"latents": 10**6}}, "prior.latents"),
        ({"refining": {"rounds": 1, "latents": 10**6}}, "refining.latents"),
        ({"teacher": {"channels": 10**6}}, "teacher.channels"),
        ({"teacher": {"codes": 10**9}}, "teacher.codes"),
        ({"teacher": {"mixtures": 10**9}}, "teacher.mixtures"),
        ({"method": "hclt", "hclt": {"latents": 10**5}}, "hclt.latents"),
        ({"method": "rat-spn", "rat_spn": {"replicas": 10**9}}, "rat_spn.replicas"),
        ({"method": "rat-spn", "rat_spn": {"inputs": 10**7, "depth": 10**12}}, "rat_spn.inputs"),
        ({"method": "einet", "einet": {"sums": 10**5}}, "einet.sums"),
        ({"method": "einet", "einet": {"replicas": 10**9, "regions": "random"}}, "einet.replicas"),
    ):
        with pytest.raises(InputError, match=rf"^{name}: found 10+: the model would take .* of memory") as error:
            check_fit(images, resolve(None, changes))
        assert f"wanted at most the {in_words(machine)} of this machine" in str(error.value)
    # A table of few rows and many columns has a small model, but not a small matrix of pairs.
    with pytest.raises(InputError, match=r"^x\.npy: found 10,000,000 variables: .* of all pairs would take") as error:
        check_fit((3, 10**7), resolve(method="hclt"), 2, source="x.npy")
    assert f"800 TB of memory, wanted at most the {in_words(machine)} of this machine" in str(error.value)
    check_fit((3, 10**5), resolve(method="rat-spn"), 2)
    with pytest.raises(InputError, match=r"^teacher\.patch: found \(40000, 40000\): the model would take"):
        check_fit((40, 40000, 40000, 1), resolve(None, {"teacher": {"patch": [40000, 40000]}}))
    for preset in preset_names():
        check_fit((50_000, 32, 32, 3), resolve(preset))  # what has been done on less


@pytest.mark.parametrize(("variables", "latents", "categories"), [(3, 16, 10**6), (30, 500, 2)])
def test_the_estimate_is_near_what_learning_takes(variables: int, latents: int, categories: int) -> None:
    """Of tables of whose memory parameters take most, in inputs or in sums: in a process of its own."""
    script = f"""
import re
from pathlib import Path
import numpy as np
from pyjuice_lvd import HCLT
from pyjuice_lvd.learn import sizes
def memory(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
table = np.random.default_rng(0).integers(0, 2, (400, {variables}))
HCLT(epochs=2, num_latents=2).fit(table)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
table[0] = {categories - 1}
model = HCLT(epochs=2, num_latents={latents}).fit(table)
print((memory("VmHWM") - before) / sizes._size(table.shape, model.settings_, {categories}))
"""
    environment = {**os.environ, "LVD_THREADS": "2"}  # each has statistics of its own
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert 0.5 < float(ran.stdout) < 1.5


def test_empty_and_ragged_data_are_refused_in_one_line(table: np.ndarray) -> None:
    model = clone(SMALL[HCLT]).set_params(epochs=1).fit(table)
    assert model.score_samples(table[:0]).shape == (0,)
    for ask, part in (
        (lambda: model.score(table[:0]), "X: found no rows, wanted at least 1"),
        (lambda: model.bpd(table[:0]), "X: found no rows, wanted at least 1"),
        (lambda: model.model_.bpd(table[:0]), "X: found no rows, wanted at least 1"),
        (lambda: HCLT().fit([[0, 1], [1]]), "X: found [[0, 1], [1]], wanted an array: rows of one length"),
        (lambda: model.score_samples([[0, 1], [1]]), "X: found [[0, 1], [1]], wanted an array"),
        (lambda: model.inpaint(table, [[True], [True, False]]), "mask: found [[True], [True, False]], wanted an array"),
        (lambda: HCLT().fit([]), "X: found shape (0,), wanted images (N, H, W[, C]), or a table (N, V)"),
        (lambda: model.score_samples(table[0]), "X: found shape (6,), wanted images"),
        (lambda: HCLT().fit(table[:, :0]), "X: found shape (600, 0), wanted at least one row and one variable"),
        (lambda: HCLT().fit(None), "X: found shape (), wanted images"),
    ):
        with pytest.raises(InputError) as error:
            ask()
        assert str(error.value).startswith(part)
        assert "\n" not in str(error.value)
