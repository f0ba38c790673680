"""Learning models with offsets: labels, trees over the grid, where a model starts, EM on it, and the pipeline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pyjuice_lvd import LVD, Circuit
from pyjuice_lvd.circuit.history import History
from pyjuice_lvd.cli.main import cli
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_arrays
from pyjuice_lvd.learn.field import comb, combs_of, starting_field, starting_prior
from pyjuice_lvd.learn.offsets import Patches, shape_circuits, starting_model
from pyjuice_lvd.models.field import FieldModel
from pyjuice_lvd.models.joint_em import fit_end_to_end
from pyjuice_lvd.models.load import load_model
from pyjuice_lvd.models.offsets import OffsetModel
from pyjuice_lvd.settings import OffsetSettings, Settings, resolve
from pyjuice_lvd.settings.choices import FIELD, TREES

SMALL = [
    "teacher.patch=[2,2]", "teacher.epochs=1", "teacher.channels=8", "teacher.blocks=0", "teacher.codes=8",
    "clusters.outer=2", "circuit.latents=4", "refining.rounds=2", "refining.latents=4", "offsets.states=6",
    "offsets.joins=4", "offsets.epochs=3", "offsets.batch_size=32", "offsets.candidates=1",
]  # fmt: skip


def shades(n: int, channels: int, seed: int = 0) -> np.ndarray:
    """Images (n, 6, 4, C) of one slope each, at any brightness and colour: what offsets are for."""
    rng = np.random.default_rng(seed)
    slope = rng.integers(-4, 5, (n, 2, 1, 1))[:, :, :, :, None]
    ramp = slope[:, 0] * np.arange(6)[:, None, None] + slope[:, 1] * np.arange(4)[:, None]
    images = rng.integers(60, 190, (n, 1, 1, channels)) + ramp + rng.integers(0, 3, (n, 6, 4, channels))
    return images.astype(np.uint8)


def settings(*more: str) -> Settings:
    return resolve(method="lvd", assignments=[*SMALL, "offsets.steps=[8]", *more])


@pytest.fixture(params=["whole", "in blocks"])
def whole_or_not(request: pytest.FixtureRequest) -> None:
    if request.param == "in blocks":
        request.getfixturevalue("in_blocks")


@pytest.mark.usefixtures("whole_or_not")
def test_offsets_are_the_nearest_and_residuals_put_back() -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 12), np.uint8)
    patches = Patches.of(x, (8, 256, 32))
    assert patches.offsets.max(axis=(0, 1)).tolist()[1] == 0
    means = x.reshape(5, 3, 4, 3).mean(axis=2)
    for c, step in enumerate((8, 32)):
        apart = np.abs((means[:, :, 2 * c] - step * patches.offsets[:, :, 2 * c] + 128) % 256 - 128)
        assert apart.max() <= step / 2
    shift = (patches.offsets * np.array([8, 256, 32])).astype(np.uint8)[:, :, None]
    np.testing.assert_array_equal((patches.residuals.reshape(5, 3, 4, 3) + shift).reshape(x.shape), x)


@pytest.mark.usefixtures("whole_or_not")
def test_what_means_say_is_taken_out_of_features() -> None:
    rng = np.random.default_rng(1)
    patches = Patches.of(rng.integers(0, 256, (50, 3, 12), np.uint8), (8, 8, 8))
    means = patches.x.reshape(50, 3, 4, 3).mean(axis=2)
    own = rng.normal(size=(50, 3, 2))
    h = np.concatenate([own, means @ rng.normal(size=(3, 2))], axis=2).astype(np.float32)
    left = patches.less_means(h)
    assert np.abs(left[:, :, 2:]).max() < 1e-3 * np.abs(h[:, :, 2:]).max()
    assert np.corrcoef(left[:, :, 0].ravel(), own[:, :, 0].ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (4, 1), (2, 2), (3, 4), (8, 8)])
@pytest.mark.parametrize("along", ["rows", "columns"])
def test_a_comb_has_an_edge_for_every_tooth_across_any_cut(rows: int, columns: int, along: str) -> None:
    tree = comb(rows, columns, along=along)
    child = np.flatnonzero(tree.parent >= 0)
    assert len(child) == rows * columns - 1
    place = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)
    step = place[child] - place[tree.parent[child]]
    directions = np.array([[0, 1], [0, -1], [1, 0], [-1, 0]])  # right, left, down, up
    np.testing.assert_array_equal(step, directions[tree.direction[child]])
    for position in range(rows * columns):  # all are below the root
        for _ in range(rows * columns):
            position = tree.parent[position] if tree.parent[position] >= 0 else position
        assert tree.parent[position] == -1
    axis, cuts, teeth = (1, columns, rows) if along == "rows" else (0, rows, columns)
    for cut in range(1, cuts):
        crossing = (place[child, axis] >= cut) != (place[tree.parent[child], axis] >= cut)
        assert crossing.sum() == teeth


def test_a_field_starts_at_the_counts_of_neighbours() -> None:
    rng = np.random.default_rng(2)
    labels = np.zeros((2000, 6), np.int32)  # a grid of 2x3: each label follows its left neighbour, rows are alike
    labels[:, 0] = labels[:, 3] = rng.integers(0, 3, 2000)
    for column in (1, 2):
        labels[:, column] = labels[:, column + 3] = (labels[:, column - 1] + (rng.random(2000) < 0.2)) % 3
    one = combs_of(labels, (2, 3), 3, [comb(2, 3, along="rows")])
    both = combs_of(labels, (2, 3), 3, [comb(2, 3, along=along) for along in ("rows", "columns")])
    assert one.prior.num_edges == len(one.ties)
    assert both.prior.num_edges == len(both.ties)
    found = one.prior.posterior_marginals(labels[:300], np.arange(6) == 1)[:, 1]
    first, last = labels[:300, 0], labels[:300, 2]
    steady = found[np.flatnonzero(first == last), first[first == last]]
    assert (steady > 0.9).all()  # 0.64 against 0.04 for any other way
    alone = Circuit.fully_factorized(num_vars=6, num_cats=3)
    for prior in (one.prior, both.prior):
        assert prior.log_likelihood(labels).mean() > alone.log_likelihood(labels).mean() + 2
        assert prior.engine.categories == 3


def test_shapes_know_residuals_of_their_window_only() -> None:
    x = np.random.default_rng(3).integers(-30, 31, (500, 12)).astype(np.uint8)
    circuits, head = shape_circuits(x, (8, 8, 256), (10, 200, 5), latents=3, joins=4, side=2, seed=0)
    assert [pc.num_heads for pc in circuits] == [head.max() + 1] * 3
    rows = np.zeros((256, 4), np.uint8)
    rows[:, 0] = np.arange(256)  # the anchor of a patch of 2x2 is its first pixel
    possible = [np.isfinite(pc.log_likelihood(rows)) for pc in circuits]
    residual = np.arange(256, dtype=np.uint8).view(np.int8).astype(int)
    np.testing.assert_array_equal(possible[0], np.abs(residual) <= 10)
    assert possible[1].all()
    assert possible[2].all()  # a channel without offsets has no window


@pytest.fixture(scope="module")
def started() -> tuple[OffsetModel, np.ndarray]:
    images = shades(60, 3)
    patches = Patches.of(to_patches(images, (2, 2)), (8, 8, 8))
    shapes = np.random.default_rng(4).integers(0, 2, patches.x.shape[:2]).astype(np.int32)
    return starting_model(patches, shapes, settings("data.color=rgb"), (6, 4, 3)), images


def test_a_model_starts_beside_its_labels_and_em_betters_it(
    started: tuple[OffsetModel, np.ndarray], tmp_path: Path
) -> None:
    model, images = started
    model.save(tmp_path / "start")
    model, again = OffsetModel.load(tmp_path / "start"), OffsetModel.load(tmp_path / "start")
    assert model.ties is not None
    before, path = model.score_samples(images).mean(), tmp_path / "em.safetensors"
    assert -np.log(256) * model.dims < before < 0
    fit: dict[str, Any] = {
        "epochs": 4,
        "step_size": (0.5, 0.5),
        "batch_size": 60,
        "pseudocount": 0.0,
        "prior_pseudocount": 0.0,
    }
    history = fit_end_to_end(model, images, images, **fit)
    assert history[0] == pytest.approx(before, rel=1e-6)
    assert np.all(np.diff(history) > 0)
    assert model.score_samples(images).mean() > history[-1]
    for number in np.unique(model.ties[model.ties > 0])[:20]:
        weights = model.prior.parameters()[0][model.ties == number]
        assert len(np.unique(weights)) == 1

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_end_to_end(again, images, images, **fit, checkpoint=path, on_epoch=stop)
    resumed = OffsetModel.load(tmp_path / "start")
    fit_end_to_end(resumed, images, images, **fit, checkpoint=path)
    for mine, other in zip(model.learned(), resumed.learned(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_candidates_bound_what_is_learned(started: tuple[OffsetModel, np.ndarray], tmp_path: Path) -> None:
    model, images = started
    model.save(tmp_path)
    model = OffsetModel.load(tmp_path)
    truth = model.score_samples(images).mean()
    (bound,) = fit_end_to_end(
        model, images, images, epochs=1, step_size=(0.1, 0.1), batch_size=60, candidates=np.zeros((60, 6, 1), int)
    )
    assert bound < truth
    with pytest.raises(InputError, match=r"candidates: found 2\.\.2, wanted 0\.\.1"):
        fit_end_to_end(model, images, images, epochs=1, step_size=(0.1, 0.1), candidates=np.full((60, 6, 1), 2))


@pytest.mark.parametrize("trees", [trees for trees in TREES if trees != FIELD])
def test_every_prior_is_one(trees: str) -> None:
    """Normalised, and its tied parameters are equal; with few labels, too."""
    rng = np.random.default_rng(0)
    labels, seen = rng.integers(0, 2, (30, 6)), rng.random((30, 6, 3)).astype(np.float32)
    settings = resolve(
        assignments=["offsets.steps=[8]", f'offsets.trees="{trees}"', "offsets.kinds=3", "prior.epochs=2"]
    )
    prior, ties = starting_prior(labels, seen, (2, 3), 2, settings)
    every = np.array(list(np.ndindex(*[2] * 6)))
    assert np.exp(prior.log_likelihood(every)).sum() == pytest.approx(1, abs=1e-5)
    assert (ties is None) == (trees == "chow-liu")
    if ties is not None:
        assert ties.shape == (prior.num_edges,)
        weights = prior.parameters()[0]
        for number in range(1, ties.max() + 1):
            assert len(np.unique(weights[ties == number])) <= 1


def test_a_line_s_far_ends_know_of_each_other() -> None:
    """Rows of zeros with the same 1 or 2 at either end: a chain forgets which on the way, a line's kind does not."""
    rng = np.random.default_rng(1)
    labels = np.zeros((400, 3, 5), int)
    labels[:, :, 0] = labels[:, :, 4] = rng.integers(1, 3, (400, 3))
    seen = np.repeat(labels.reshape(400, 15, 1), 2, axis=2).astype(np.float32)
    found = {
        trees: starting_prior(
            labels.reshape(400, 15), seen, (3, 5), 3,
            resolve(assignments=["offsets.steps=[8]", f'offsets.trees="{trees}"', "offsets.kinds=2"]),
        ).prior.log_likelihood(labels.reshape(400, 15)).mean()
        for trees in ("combs", "lines")
    }  # fmt: skip
    assert found["lines"] > found["combs"] + 1.5  # of 3 log 2 = 2.08 that three rows' ends have in common


def test_a_field_starts_at_what_follows_what() -> None:
    """Offsets that grow by one to the right, and by two downward, in one of two states; distributions all."""
    rng = np.random.default_rng(2)
    offsets = (rng.integers(0, 8, (300, 1, 1)) + np.arange(4) + 2 * np.arange(3)[:, None]).reshape(300, 12, 1)
    states = np.tile([0, 1, 0, 1], (300, 3))
    start = starting_field(states, np.array([0, 1]), offsets.astype(np.int32), (8,), (3, 4))
    start.check((3, 4), [32])
    right, down = start.next_offsets[0]
    for d in range(2, 8):
        assert right[1, 0, d + 1, d] > 0.5  # from a state of group 0 to one of group 1
        assert down[0, 0, d + 2, d] > 0.5
    assert start.next[0][1, 0] > 0.9
    assert start.next[1][0, 0] > 0.9
    assert start.first[0] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("channels", [1, 3])
def test_learning_with_a_field(channels: int, tmp_path: Path) -> None:
    """It gains on its start, and an interrupted run ends as an undisturbed one."""
    train, valid = shades(60, channels), shades(20, channels, 1)
    own = settings("offsets.trees=field", "offsets.states=4", "offsets.groups=2", "data.color=rgb")
    patches = Patches.of(to_patches(train, (2, 2)), (8,) * channels)
    start = starting_model(patches, np.zeros((60, 6), np.int32), own, (6, 4, channels))
    assert isinstance(start, FieldModel)
    assert start.field.group.tolist() == sorted(start.field.group)
    before = start.score_samples(valid).mean()
    start.save(tmp_path / "model")
    schedule: dict[str, Any] = {"epochs": 3, "step_size": (0.4, 0.1), "batch_size": 20, "seed": 1}
    once, again = load_model(tmp_path / "model"), load_model(tmp_path / "model")
    assert isinstance(once, FieldModel)
    assert isinstance(again, FieldModel)
    history = fit_end_to_end(once, train, valid, **schedule)
    assert once.score_samples(valid).mean() > before + 0.3
    assert history.best > 0

    def stop(history: History) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_end_to_end(again, train, valid, checkpoint=tmp_path / "c.safetensors", on_epoch=stop, **schedule)
    again = load_model(tmp_path / "model")
    assert isinstance(again, FieldModel)
    fit_end_to_end(again, train, valid, checkpoint=tmp_path / "c.safetensors", **schedule)
    np.testing.assert_array_equal(again.score_samples(valid), once.score_samples(valid))


@pytest.mark.parametrize(("channels", "trees"), [(1, "lines"), (3, "lines"), (3, FIELD)])
def test_the_command_line(channels: int, trees: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(
        tmp_path / "x.npz", train=shades(80, channels), valid=shades(20, channels, 1), test=shades(30, channels, 2)
    )
    args = [f"--set={item}" for item in SMALL]

    def ran(*words: object) -> dict[str, Any]:
        result = CliRunner().invoke(cli, [*map(str, words), "--json", "--quiet"], catch_exceptions=False)
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    data, run = tmp_path / "x.npz", tmp_path / "run"
    plain = ran("fit", data, "-o", tmp_path / "plain", "--method=lvd", *args)
    fitted = ran(
        "fit", data, "-o", run, "--method=lvd", *args, "--set=offsets.steps=[8,8,8]", f"--set=offsets.trees={trees}"
    )
    assert fitted["bpd"] < plain["bpd"]
    assert fitted["protocol"]["lossless"]
    assert sorted(path.name for path in (run / "model").iterdir() if not path.name.startswith("circuit-")) == [
        "emissions.safetensors", "model.json", "pieces.json", *(["prior.safetensors"] if trees != FIELD else []),
        "teacher.safetensors",
    ]  # fmt: skip
    assert ran("eval", run, data)["bpd"] == pytest.approx(fitted["bpd"], abs=1e-9)
    assert not (run / "growth.png").exists()
    gap = ran("gap", run, data)
    assert gap["lvd_objective"] < gap["pc_log_likelihood"]
    assert gap["pc_log_likelihood_bpd"] == pytest.approx(fitted["bpd"], rel=1e-9)
    assert gap["gaps"]["lvd_objective_to_pc_log_likelihood"]["std_error"] > 0
    assert gap["teacher_elbo"] == pytest.approx(sum(gap["teacher_elbo_parts"].values()))
    assert read_arrays(run / "model" / "outer-centres.safetensors")[0] == {}
    assert (run / "gap.png").exists()
    assert {**ran("gap", run, data), "seconds": 0} == {**gap, "seconds": 0}  # by what the first one kept
    assert "gap.png" in ran("report", run)["pictures"]
    model = load_model(run / "model")
    assert model.num_params == fitted["params"]
    images = shades(5, channels, 3)
    mask = np.arange(4) >= 2
    drawn = model.inpaint(images, np.broadcast_to(mask, (6, 4)), n_samples=3)
    mean = model.posterior_mean(images, np.broadcast_to(mask, (6, 4)))
    error = np.abs(mean - images.reshape(mean.shape)).mean()
    assert error < np.abs(images.mean(axis=(0, 1, 2)) - images).mean()  # what is known says much of what is hidden
    assert drawn.shape == (3, *mean.shape)
    assert ran("fit", data, "-o", run, "--resume", "--method=lvd", *args, "--set=offsets.steps=[8,8,8]") == fitted


def test_an_estimator_and_wrong_settings() -> None:
    model = LVD(config=settings().to_dict() | {"seed": 0, "method": "lvd", "threads": 0, "device": "auto"})
    model.fit(shades(60, 3))
    assert isinstance(model.model_, OffsetModel)
    assert model.posterior(shades(2, 3)).shape == (2, 6, 2)
    for assignment, message in (
        ("offsets.steps=[3]", "offsets.steps: found (3,), wanted divisors of 256"),
        ("offsets.windows=[]", "offsets.windows: found (), wanted some of 0 to 128"),
        ("clusters.tied=false", "clusters.tied: found false with offsets.steps"),
    ):
        with pytest.raises(InputError, match=message.replace("(", r"\(").replace(")", r"\)")):
            settings(assignment)
    own = OffsetSettings(steps=(8, 4), windows=(48,))
    with pytest.raises(InputError, match=r"offsets\.steps: found 2 for 3 channels, wanted one or 3"):
        own.of_channels(3)
    assert own.of_channels(1) == ((8,), (48,))
    assert OffsetSettings(steps=(8,)).of_channels(3) == ((8, 8, 8), (48, 24, 24))
