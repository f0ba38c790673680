"""The joint model and its parts, on models small enough to enumerate."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from models import tiny_model

from pyjuice_lvd.clustering import kmeans
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.evaluate.merit import factorized_bpd, figures_of_merit
from pyjuice_lvd.learn.growing import one_shot
from pyjuice_lvd.learn.labels import Labels
from pyjuice_lvd.models.joint import JointModel


def test_the_joint_density_sums_to_one_over_all_images() -> None:
    model = tiny_model(cats=4)
    everything = np.array(list(itertools.product(range(4), repeat=4)), np.uint8).reshape(-1, 2, 2)
    assert abs(np.exp(model.score_samples(everything)).sum() - 1) < 1e-6


def test_the_joint_likelihood_is_the_sum_over_the_latents() -> None:
    model = tiny_model(cats=4)
    images = np.random.default_rng(1).integers(0, 4, (20, 2, 2, 1), dtype=np.uint8)
    z = np.array(list(itertools.product(range(3), repeat=2)))
    prior = np.exp(model.prior.log_likelihood(z))
    patches = to_patches(images, (1, 2))
    given = np.exp(
        np.concatenate([c.log_likelihood(patches.reshape(-1, 2), head="all") for c in model.circuits], axis=1)
    ).reshape(20, 2, 3)
    expected = (prior * given[:, 0, z[:, 0]] * given[:, 1, z[:, 1]]).sum(1)
    np.testing.assert_allclose(model.score_samples(images), np.log(expected), rtol=1e-6)


def test_bounded_memory_gives_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(cats=4)
    images = np.random.default_rng(2).integers(0, 4, (30, 2, 2), dtype=np.uint8)
    whole = model.score_samples(images)
    monkeypatch.setattr("pyjuice_lvd.shares.ROOM", 200)
    assert len(list(model.chunks(30))) > 2
    np.testing.assert_allclose(model.score_samples(images), whole, rtol=1e-12)


def test_save_and_load(tmp_path: Path) -> None:
    model = tiny_model(cats=4)
    images = np.random.default_rng(1).integers(0, 4, (20, 2, 2), dtype=np.uint8)
    model.save(tmp_path / "model")
    again = JointModel.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(images), model.score_samples(images))
    assert again.num_params == model.num_params
    assert not list((tmp_path / "model").glob("*.pkl"))
    (tmp_path / "model" / "prior.safetensors").unlink()
    with pytest.raises(InputError, match=r"prior\.safetensors"):
        JointModel.load(tmp_path / "model")


def test_positions_that_are_not_tied(tmp_path: Path) -> None:
    model = tiny_model(cats=4, tied=False)
    assert model.num_latent_values == 3
    everything = np.array(list(itertools.product(range(4), repeat=4)), np.uint8).reshape(-1, 2, 2)
    patches = to_patches(everything[..., None], (1, 2))
    first, second, other = model.circuits
    given = [
        np.concatenate([circuit.log_likelihood(patches[:, 0], head="all") for circuit in (first, second)], axis=1),
        other.log_likelihood(patches[:, 1], head="all"),
    ]
    np.testing.assert_allclose(model.patch_scores(everything), np.stack(given, axis=1), rtol=1e-5)
    assert abs(np.exp(model.score_samples(everything)).sum() - 1) < 1e-6
    model.save(tmp_path)
    np.testing.assert_array_equal(JointModel.load(tmp_path).score_samples(everything), model.score_samples(everything))
    for circuits in ([first, other, second], [first, second], [first, second, other, first], [first]):
        with pytest.raises(InputError, match="other numbers of heads at some of the 2 untied positions"):
            JointModel(
                image_shape=(2, 2, 1), patch=(1, 2), color="rgb", circuits=circuits, prior=model.prior, tied=False
            )


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"images: found images of \(3, 2, 1\), wanted \(2, 2, 1\)"):
        tiny_model(cats=4).score_samples(np.zeros((1, 3, 2), np.uint8))


def test_bpd_and_its_standard_error() -> None:
    scores = -np.log(2) * np.array([8.0, 16.0, 24.0])
    assert figures_of_merit(scores, dims=4) == {
        "bpd": pytest.approx(4.0),
        "nll_nats": pytest.approx(16 * np.log(2)),
        "std_error_bpd": pytest.approx(2 / np.sqrt(3)),
        "n": 3,
        "dims": 4,
    }
    assert figures_of_merit(scores[:1], dims=4)["std_error_bpd"] is None
    certain = figures_of_merit(np.zeros(3), dims=4)
    assert [str(certain[name]) for name in ("bpd", "nll_nats", "std_error_bpd")] == ["0.0", "0.0", "0.0"]


def test_rows_of_probability_0_are_counted_and_the_others_figures_given(recwarn: pytest.WarningsRecorder) -> None:
    scores = -np.log(2) * np.array([8.0, np.inf, 16.0, 24.0, np.inf])
    assert figures_of_merit(scores, dims=4) == {
        "bpd": np.inf,
        "nll_nats": np.inf,
        "std_error_bpd": None,
        "n": 5,
        "dims": 4,
        "impossible": 2,
        "bpd_possible": pytest.approx(4.0),
        "nll_nats_possible": pytest.approx(16 * np.log(2)),
        "std_error_bpd_possible": pytest.approx(2 / np.sqrt(3)),
    }
    nothing = figures_of_merit(scores[1:2], dims=4)
    assert (nothing["impossible"], nothing["bpd_possible"], nothing["std_error_bpd_possible"]) == (1, None, None)
    assert [str(warning.message) for warning in recwarn] == []


def test_the_factorised_floor() -> None:
    rng = np.random.default_rng(0)
    uniform = rng.integers(0, 4, (20_000, 2, 2), dtype=np.uint8) * np.uint8(60)
    assert factorized_bpd(uniform, uniform[:500], uniform[500:1500]) == pytest.approx(2, abs=0.01)
    # By hand: one pixel, 3 times 0 and once 1; an image of 0 is likeliest under the smallest pseudocount.
    train = np.array([0, 0, 0, 1], np.uint8).reshape(4, 1, 1)
    expected = -np.log2((3 + 0.1 / 256) / 4.1)
    assert factorized_bpd(train, train[:1], train[:1]) == pytest.approx(expected)


def test_labels_number_all_heads_without_gaps() -> None:
    outer = np.array([[0, 1], [1, 2]], np.int32)
    head = np.array([[1, 0], [2, 0]], np.int32)
    np.testing.assert_array_equal(Labels(outer, head, np.array([2, 3, 1], np.int32)).values, [[1, 2], [4, 5]])


def test_features_that_coincide_give_fewer_clusters() -> None:
    h = np.zeros((30, 2), np.float32)
    h[10:] = 1
    assert set(kmeans(h, 5, seed=0)) == {0, 1}
    assert one_shot(np.zeros((30, 2), np.uint8), h, num_heads=4, num_cats=2).circuit.num_heads == 2


def test_many_features_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyjuice_lvd.clustering._FEATURES_SEEN", 100)
    h = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    h[:300] += 20
    nearest = kmeans(h, 2, seed=0)
    assert len(set(nearest[:300])) == 1
    assert len(set(nearest[300:])) == 1
