"""Teacher's ELBO, LVD objective and log-likelihood, against enumeration on models small enough for it."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import offset_parts

from pyjuice_lvd import Circuit
from pyjuice_lvd.clustering import kmeans
from pyjuice_lvd.data.color import COLORS, color_transform
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.errors import InputError, LVDJuiceError
from pyjuice_lvd.evaluate.gap import Bounds, Gap, assign, measure_gap
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.offsets import OffsetModel
from pyjuice_lvd.progress import PlainProgress, Stage
from pyjuice_lvd.teacher import Teacher, TeacherSettings, mixture

SETTINGS = TeacherSettings(patch=(2, 2), channels=8, blocks=1, code_dim=4, codes=4, mixtures=2, epochs=6, batch_size=16)
HEADS = (2, 1)


def made_images(n: int, seed: int, channels: int = 1) -> np.ndarray:
    """Images (n, 4, 4, channels) whose four patches are dark or bright, neighbours mostly alike."""
    rng = np.random.default_rng(seed)
    bright = (rng.random((n, 1, 1)) < 0.5) ^ (rng.random((n, 2, 2)) < 0.15)
    levels = np.where(np.kron(bright, np.ones((2, 2), bool)), 200, 50)[..., None]
    return np.clip(levels + rng.normal(0, 10, (n, 4, 4, channels)), 0, 255).astype(np.uint8)


def taught(channels: int = 1, color: str = "rgb") -> Teacher:
    return Teacher(SETTINGS, color=color).fit(made_images(200, 0, channels), device="cpu")


def joint_model(channels: int = 1, color: str = "ycocg") -> JointModel:
    rng = np.random.default_rng(0)
    seen = color_transform(color, channels).forward(made_images(100, 1, channels))
    patches = to_patches(seen, (2, 2)).reshape(-1, 4 * channels)
    circuits = [
        Circuit.hclt(patches, num_latents=2, num_cats=256, heads=heads, seed=heads, perturbation=0.9) for heads in HEADS
    ]
    for circuit, heads in zip(circuits, HEADS, strict=True):
        circuit.fit_em(patches, heads=rng.integers(0, heads, len(patches)), epochs=3)
    prior = Circuit.hclt(rng.integers(0, sum(HEADS), (50, 4)), num_latents=2, num_cats=sum(HEADS), perturbation=0.9)
    return JointModel(image_shape=(4, 4, channels), patch=(2, 2), color=color, circuits=circuits, prior=prior)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.set_num_threads(1)
    return taught()


@pytest.fixture(scope="module")
def outer(teacher: Teacher) -> np.ndarray:
    """Two clusters of the features of 200 images' patches."""
    return kmeans(teacher.features(made_images(200, 0)).reshape(-1, 4), 2, seed=0).reshape(200, 4)


@pytest.fixture(scope="module")
def bounds(teacher: Teacher, outer: np.ndarray) -> Bounds:
    return Bounds.learn(teacher, outer, made_images(200, 0), made_images(50, 2))


def test_the_elbo_is_its_two_terms_and_below_the_sum_over_all_codes(teacher: Teacher, bounds: Bounds) -> None:
    images = made_images(12, 3)
    measured = measure_gap(joint_model(), teacher, bounds, images)
    every = np.array(list(itertools.product(range(4), repeat=4)), np.int32)
    prior = bounds.code_prior.log_likelihood(every)
    assert np.exp(prior).sum() == pytest.approx(1, abs=1e-5)
    # log p(x | c) of each image under each of the 256 code vectors, by the decoder.
    network, pixels = teacher.network, torch.from_numpy(images).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        parameters = network.decode_codes(torch.from_numpy(every).long(), rows=2)
        each = (network.to_pixels(one[None]).expand(256, -1, -1, -1) for one in pixels)
        given = np.stack([mixture.log_likelihood(parameters, own).double().sum((1, 2)) for own in each])
    own = (teacher.codes(images) @ [64, 16, 4, 1]).astype(int)
    np.testing.assert_array_equal(every[own], teacher.codes(images))
    elbo = measured.quantities()["teacher_elbo"]
    np.testing.assert_allclose(elbo, given[np.arange(12), own] + prior[own], rtol=1e-5)
    marginal = np.log(np.exp(given + prior).sum(axis=1))
    assert (elbo <= marginal + 1e-6 * np.abs(marginal)).all()


def test_the_lvd_objective_is_one_term_of_the_sum_over_the_latents(teacher: Teacher, bounds: Bounds) -> None:
    model, images = joint_model(), made_images(12, 3)
    measured = measure_gap(model, teacher, bounds, images)
    h, patches = teacher.features(images), to_patches(images, (2, 2))
    for number in range(12):
        z, total = [], 0.0
        for position in range(4):
            cluster = int(((bounds.centres - h[number, position]) ** 2).sum(axis=1).argmin())
            scores = model.circuits[cluster].log_likelihood(patches[number, position][None], head="all")[0]
            z.append(sum(HEADS[:cluster]) + int(scores.argmax()))
            total += scores.max()
        expected = total + model.prior.log_likelihood(np.array([z]))[0]
        assert measured.lvd_objective[number] == pytest.approx(expected, rel=1e-6)
        np.testing.assert_array_equal(assign(model, teacher, bounds.centres, images)[0][number], z)
    every = np.array(list(itertools.product(range(3), repeat=4)))
    joint = model.patch_scores(images)[:, np.arange(4), every].sum(axis=2) + model.prior.log_likelihood(every)
    np.testing.assert_allclose(measured.log_likelihood, np.log(np.exp(joint).sum(axis=1)), rtol=1e-6)
    assert (measured.lvd_objective < measured.log_likelihood).all()
    np.testing.assert_array_equal(measured.log_likelihood, model.score_samples(images))


def test_centres_are_the_clusters_means_and_label_their_own_images_again(
    teacher: Teacher, outer: np.ndarray, bounds: Bounds
) -> None:
    images = made_images(200, 0)
    h = teacher.features(images)
    for cluster in (0, 1):
        np.testing.assert_allclose(bounds.centres[cluster], h[outer == cluster].mean(axis=0), rtol=1e-4, atol=1e-5)
    z = assign(joint_model(), teacher, bounds.centres, images).z
    np.testing.assert_array_equal(z == 2, outer == 1)
    # Images without a patch of some cluster are labelled all the same.
    one_sided = images[(outer == 1).all(axis=1)]
    assert len(one_sided)
    assert (assign(joint_model(), teacher, bounds.centres, one_sided)[0] == 2).all()


def test_positions_that_are_not_tied_have_clusters_of_their_own(teacher: Teacher) -> None:
    tied, images = joint_model(), made_images(30, 3)
    model = JointModel(
        image_shape=(4, 4, 1), patch=(2, 2), color="ycocg", circuits=tied.circuits * 4, prior=tied.prior, tied=False
    )
    h, centres = teacher.features(images), np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    z, given, _ = assign(model, teacher, centres, images)
    scores = model.patch_scores(images)
    for position in range(4):
        distances = ((h[:, position, None] - centres[2 * position : 2 * position + 2]) ** 2).sum(axis=2)
        best = np.where(distances.argmin(axis=1) == 0, scores[:, position, :2].argmax(axis=1), 2)
        np.testing.assert_array_equal(z[:, position], best)
        np.testing.assert_allclose(given[:, position], scores[np.arange(30), position, best], rtol=1e-6)


def test_refined_clusters_are_the_circuits_choice(teacher: Teacher, tmp_path: Path) -> None:
    Bounds.learn(teacher, None, made_images(200, 0), made_images(50, 2), folder=tmp_path)
    bounds, model, images = Bounds.kept(tmp_path), joint_model(), made_images(12, 3)
    assert bounds is not None
    assert bounds.centres is None
    scores = model.patch_scores(images)
    z, given, _ = assign(model, teacher, None, images)
    np.testing.assert_array_equal(z, scores.argmax(axis=2))
    np.testing.assert_array_equal(given, scores.max(axis=2))
    measured = measure_gap(model, teacher, bounds, images)
    expected = scores.max(axis=2).sum(axis=1) + model.prior.log_likelihood(scores.argmax(axis=2))
    np.testing.assert_allclose(measured.lvd_objective, expected, rtol=1e-6)
    assert (measured.lvd_objective < measured.log_likelihood).all()


def test_a_model_with_offsets_names_its_own_labels(teacher: Teacher, tmp_path: Path) -> None:
    parts = offset_parts((32,), cats=256, variables=4, positions=4)
    model = OffsetModel(
        image_shape=(4, 4, 1), patch=(2, 2), color="ycocg", steps=parts.steps, shapes=parts.shapes, join=parts.join,
        shifts=parts.shifts, prior=parts.prior,
    )  # fmt: skip
    bounds, images = Bounds.learn(teacher, None, made_images(200, 0), made_images(50, 2)), made_images(12, 3)
    measured = measure_gap(model, teacher, bounds, images)
    h, join, offset = model.labels(images)
    patches, shape_of = to_patches(images, (2, 2)), np.array([0, 0, 1])
    expected = parts.prior.log_likelihood(h)
    for n, i in np.ndindex(12, 4):
        (circuit,), head = parts.shapes[shape_of[join[n, i]]], [0, 1, 0][join[n, i]]
        residual = (patches[n, i].astype(int) - 32 * offset[n, i]) % 256
        p = parts.join[join[n, i], h[n, i]].astype(float) * parts.shifts[0][offset[n, i, 0], h[n, i]]
        expected[n] += np.log(p) + circuit.log_likelihood(residual[None], head=head)[0]
    np.testing.assert_allclose(measured.lvd_objective, expected, rtol=1e-6)
    np.testing.assert_array_equal(measured.log_likelihood, model.score_samples(images))
    assert (measured.lvd_objective < measured.log_likelihood).all()
    np.testing.assert_array_equal(measured.reconstruction, teacher.reconstruction_nats(images))


def test_the_prior_over_codes_learns_their_dependencies(teacher: Teacher, bounds: Bounds) -> None:
    codes, held_out = (teacher.codes(made_images(n, seed)) for n, seed in ((200, 0), (100, 5)))
    counts = np.stack([np.bincount(column, minlength=4) + 0.1 for column in codes.T])
    independent = np.log(counts / counts.sum(axis=1, keepdims=True))[np.arange(4), held_out].sum(axis=1).mean()
    assert bounds.code_prior.log_likelihood(held_out).mean() > independent + 0.5
    valid = teacher.codes(made_images(50, 2))
    assert bounds.about["valid_log_likelihood"] == pytest.approx(bounds.code_prior.log_likelihood(valid).mean())


def test_an_interrupted_prior_goes_on_to_the_same_end_and_is_kept(
    teacher: Teacher, outer: np.ndarray, bounds: Bounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0)

    class Stops(PlainProgress):
        def stage(self, name: str, total: float, unit: str = "") -> Any:
            return Interrupted() if name == "EM" else super().stage(name, total, unit)

    class Interrupted:
        def __enter__(self) -> Stage:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def advance(self, n: float = 1, **info: Any) -> None:
            pass

        def update(self, *, completed: float, **info: Any) -> None:
            if completed >= 2 * 200 and "valid" not in info:
                raise KeyboardInterrupt

    def learn(**more: Any) -> Bounds:
        return Bounds.learn(teacher, outer, made_images(200, 0), made_images(50, 2), folder=tmp_path, **more)

    with pytest.raises(KeyboardInterrupt):
        learn(progress=Stops())
    assert [path.name for path in tmp_path.iterdir()] == ["code-prior-in-training.safetensors"]
    assert Bounds.kept(tmp_path) is None
    learn()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code-prior.safetensors", "outer-centres.safetensors"]
    loaded = Bounds.kept(tmp_path)
    assert loaded is not None
    assert loaded.about == bounds.about
    np.testing.assert_array_equal(loaded.centres, bounds.centres)
    for found, wanted in zip(loaded.code_prior.parameters(), bounds.code_prior.parameters(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    other = Bounds.learn(teacher, outer, made_images(200, 0), made_images(50, 2), seed=1)
    assert (other.code_prior.parameters()[0] != bounds.code_prior.parameters()[0]).any()


def test_figures_by_hand() -> None:
    gap = Gap(
        reconstruction=np.array([-10.0, -14.0]),
        codes=np.array([-2.0, -2.0]),
        lvd_objective=np.array([-11.0, -13.0]),
        log_likelihood=np.array([-9.0, -12.0]),
        dims=4,
    )
    bits = 1 / (4 * np.log(2))
    figures = gap.figures()
    assert [figures[name] for name in ("teacher_elbo", "lvd_objective", "pc_log_likelihood")] == [-14, -12, -10.5]
    assert figures["teacher_elbo_bpd"] == pytest.approx(14 * bits)
    assert figures["pc_log_likelihood_bpd"] == pytest.approx(10.5 * bits)
    assert figures["std_errors"] == pytest.approx({"teacher_elbo": 2, "lvd_objective": 1, "pc_log_likelihood": 1.5})
    # Differences of 1 and 3, of 2 and 1, of 3 and 4: the errors are those of the pairs.
    assert figures["gaps"] == {
        "teacher_elbo_to_lvd_objective": {"nats": 2, "std_error": pytest.approx(1), "bpd": pytest.approx(2 * bits)},
        "lvd_objective_to_pc_log_likelihood": {
            "nats": 1.5,
            "std_error": pytest.approx(0.5),
            "bpd": pytest.approx(1.5 * bits),
        },
        "teacher_elbo_to_pc_log_likelihood": {
            "nats": 3.5,
            "std_error": pytest.approx(0.5),
            "bpd": pytest.approx(3.5 * bits),
        },
    }
    assert figures["teacher_elbo_parts"] == {"reconstruction": -12, "codes": -2}
    assert (figures["n"], figures["dims"]) == (2, 4)


def test_with_a_lossy_transform_teacher_and_circuits_model_the_same_pixels(outer: np.ndarray) -> None:
    train, images = made_images(200, 0, channels=3), made_images(10, 3, channels=3)
    model, teacher = joint_model(3, "ycc709"), taught(3, "ycc709")
    bounds = Bounds.learn(teacher, outer, train, made_images(50, 2, channels=3))
    measured = measure_gap(model, teacher, bounds, images)
    # Images that differ only in what the transform loses are the same to all of them.
    again = COLORS["ycc709"].inverse(COLORS["ycc709"].forward(images))
    same = (COLORS["ycc709"].forward(again) == COLORS["ycc709"].forward(images)).all(axis=(1, 2, 3))
    assert same.any()
    assert (images != again).any()
    repeated = measure_gap(model, teacher, bounds, again)
    for name, values in measured.quantities().items():
        np.testing.assert_allclose(repeated.quantities()[name][same], values[same], rtol=1e-6)
    with pytest.raises(InputError, match="found one of rgb pixels for circuits of ycc709, which is lossy"):
        measure_gap(model, taught(3), bounds, images)


def test_images_of_probability_0_are_counted_and_left_out(
    teacher: Teacher, bounds: Bounds, recwarn: pytest.WarningsRecorder
) -> None:
    model, images = joint_model(), made_images(12, 3)
    z = assign(model, teacher, bounds.centres, images).z
    varied = z[:, (z != z[0]).any(axis=0).argmax()]
    model.prior.fit_em(z[varied == varied[0]], epochs=1, step_size=1, pseudocount=0)
    possible = np.isfinite(model.prior.log_likelihood(z))
    assert np.isfinite(model.score_samples(images)).all()
    assert 0 < possible.sum() < 12
    found = measure_gap(model, teacher, bounds, images)
    alone = measure_gap(model, teacher, bounds, images[possible])
    assert found.impossible == {"lvd_objective": 12 - possible.sum()}
    for name, values in found.quantities().items():
        np.testing.assert_allclose(values, alone.quantities()[name], rtol=1e-6)
    assert found.figures()["n"] == possible.sum()
    assert found.figures()["impossible"] == {"lvd_objective": 12 - possible.sum()}
    assert "impossible" not in alone.figures()
    with pytest.raises(LVDJuiceError, match=rf"lvd_objective for {12 - possible.sum()} of all"):
        measure_gap(model, teacher, bounds, images[~possible])
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("refined", [False, True])
def test_mirror_images_count_for_the_centres(teacher: Teacher, tmp_path: Path, refined: bool) -> None:
    """Also those of a cluster that has mirrored patches only: labels of mirror images come last."""
    train = made_images(60, 4)
    h = np.concatenate([teacher.features(train), teacher.features(train[:, :, ::-1])])
    outer = np.repeat([0, 1], 60)[:, None] * np.ones(4, np.int32)
    outer[:60, 0] = outer[60:, 1] = 2
    learned = Bounds.learn(teacher, None if refined else outer, train, made_images(20, 2), folder=tmp_path)
    if refined:
        assert learned.centres is None
    else:
        assert learned.centres is not None
        wanted = [h[outer == cluster].mean(axis=0) for cluster in range(3)]
        np.testing.assert_allclose(learned.centres, wanted, rtol=1e-4, atol=1e-5)
        assert (outer[:60] != 1).all()
    kept = Bounds.kept(tmp_path)
    assert kept is not None
    assert kept.mirror_images == learned.mirror_images == (not refined)


def test_labels_of_other_images_are_refused(teacher: Teacher) -> None:
    with pytest.raises(InputError, match=r"outer: found labels \(3, 4\), wanted \(10, 4\)"):
        Bounds.learn(teacher, np.zeros((3, 4), np.int32), made_images(10, 0), made_images(5, 1))
