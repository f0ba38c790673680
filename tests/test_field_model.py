"""The field model against its enumeration: the same p(x) as a model whose states are all states and offsets."""

from pathlib import Path

import numpy as np
import pytest
from enumerated import EnumeratedOffsets, asked, frequencies_fit
from models import field_model, random_field

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.models.field import FieldModel
from pyjuice_lvd.models.joint_em import fit_end_to_end
from pyjuice_lvd.models.load import load_model
from pyjuice_lvd.models.offset_queries import OffsetLabels


class Known(EnumeratedOffsets):
    """The enumeration of a model's `as_states`, and the model."""

    def __init__(self, model: FieldModel, values: list[list[int]]) -> None:
        super().__init__(model.as_states(), values)
        self.field_model = model


@pytest.fixture(scope="module")
def grey() -> Known:
    return Known(*field_model((2, 2, 1), (1, 2), "ycocg", (64,), [[0, 1, 64]]))


@pytest.fixture(scope="module")
def rgb() -> Known:
    return Known(*field_model((2, 2, 3), (1, 2), "rgb", (128, 256, 128), [[0, 128], [3, 4], [7]]))


@pytest.fixture(params=["grey", "rgb"])
def known(request: pytest.FixtureRequest) -> Known:
    return request.getfixturevalue(request.param)


def test_likelihoods_are_those_of_the_enumeration(known: Known) -> None:
    assert known.p.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(np.exp(known.field_model.score_samples(known.images)), known.p, rtol=1e-4, atol=1e-12)
    images, hidden = asked(known, 12, 1)
    expected = [known.p[known.agree(x, m)].sum() for x, m in zip(images, hidden, strict=True)]
    np.testing.assert_allclose(np.exp(known.field_model.score_samples(images, mask=hidden)), expected, rtol=1e-4)


def test_marginals_and_means(known: Known) -> None:
    images, hidden = asked(known, 12, 1)
    model = known.field_model
    marginals, means = model.marginals(images, hidden), model.posterior_mean(images, hidden, exact=True)
    np.testing.assert_allclose(marginals.sum(-1), 1, rtol=1e-6)
    for row, (image, mask) in enumerate(zip(images, hidden, strict=True)):
        p = known.conditional(image, mask)
        for place in np.ndindex(*image.shape):
            values = np.bincount(known.stored[:, *place], weights=p, minlength=256)
            np.testing.assert_allclose(marginals[row, *place], values, atol=1e-5)
        np.testing.assert_allclose(means[row].ravel(), p @ known.images.reshape(len(p), -1), atol=2e-3)
        np.testing.assert_array_equal(means[row][~mask], image[~mask])


def test_what_is_hidden_is_drawn_given_the_rest(known: Known) -> None:
    n, (images, hidden) = 2000, asked(known, 6, 2)
    drawn = known.field_model.inpaint(images, hidden, n_samples=n, seed=3, exact=True)
    for row, (image, mask) in enumerate(zip(images, hidden, strict=True)):
        np.testing.assert_array_equal(drawn[:, row][:, ~mask], np.tile(image[~mask], (n, 1)))
        frequencies_fit(drawn[:, row], known, known.conditional(image, mask))
    frequencies_fit(known.field_model.sample(n, seed=4, exact=True), known, known.p)


def test_the_posterior_of_shapes_and_of_offsets(known: Known) -> None:
    images, hidden = asked(known, 20, 4)
    model = known.field_model
    shapes, offsets = model.posterior(images, mask=hidden), model.offset_posterior(images, mask=hidden)
    wanted = known.model.posterior(images, mask=hidden), known.model.offset_posterior(images, mask=hidden)
    np.testing.assert_allclose(shapes, wanted[0], atol=1e-5)
    for found, own in zip(offsets, wanted[1], strict=True):
        np.testing.assert_allclose(found, own, atol=1e-5)
    np.testing.assert_allclose(model.posterior(images)[0], shapes[0], atol=1e-7)


def test_anomalies(known: Known) -> None:
    images, _ = asked(known, 10, 5)
    np.testing.assert_allclose(
        known.field_model.patch_anomaly(images), known.model.patch_anomaly(images), rtol=1e-4, atol=1e-4
    )


def test_labels_are_one_term_of_the_sum(known: Known) -> None:
    model, (images, _) = known.field_model, asked(known, 30, 7)
    labels = model.labels(images)
    sizes = [len(model.field.first), *map(len, model.field.first_offsets)]
    h = np.ravel_multi_index((labels.h, *np.moveaxis(labels.offset, 2, 0)), sizes)
    wanted = known.model.log_joint(images, OffsetLabels(h, labels.join, labels.offset))
    found = model.log_joint(images, labels)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert (found <= model.score_samples(images) + 1e-6).all()
    best = known.model.log_joint(images, known.model.labels(images))
    assert (found > best - 3).mean() > 0.9


def test_em_raises_the_likelihood() -> None:
    model, _ = field_model((2, 4, 1), (1, 2), "ycocg", (64,), [[0, 1, 64]])
    images = model.sample(60, seed=1, exact=True)
    other, _ = field_model((2, 4, 1), (1, 2), "ycocg", (64,), [[0, 1, 64]])
    before = FieldModel(
        image_shape=(2, 4, 1), patch=(1, 2), color="ycocg", steps=(64,), shapes=other.shapes, join=other.join,
        field=random_field((2, 2), [0, 0, 1], [4], seed=9),
    )  # fmt: skip
    start = before.score_samples(images).mean()
    history = fit_end_to_end(
        before, images, images, epochs=5, step_size=(1.0, 1.0), batch_size=60, pseudocount=0.0, prior_pseudocount=0.0,
    )  # fmt: skip
    assert (np.diff(history) > -1e-3).all()
    assert before.score_samples(images).mean() > start + 0.05


def test_saved_and_read_it_is_the_same(known: Known, tmp_path: Path) -> None:
    known.field_model.save(tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, FieldModel)
    images, _ = asked(known, 5, 8)
    np.testing.assert_array_equal(again.score_samples(images), known.field_model.score_samples(images))
    assert again.num_params == known.field_model.num_params


def test_what_does_not_fit_is_refused() -> None:
    model, _ = field_model((2, 2, 1), (1, 2), "ycocg", (64,), [[0, 1]])
    with pytest.raises(InputError, match=r"field: found a grid of \(1, 2\), wanted \(2, 1\)"):
        FieldModel(
            image_shape=(2, 2, 1), patch=(1, 2), color="ycocg", steps=(64,), shapes=model.shapes, join=model.join,
            field=random_field((1, 2), [0, 0, 1], [4]),
        )  # fmt: skip
    with pytest.raises(InputError, match="group"):
        FieldModel(
            image_shape=(2, 2, 1), patch=(1, 2), color="ycocg", steps=(64,), shapes=model.shapes, join=model.join,
            field=random_field((2, 1), [1, 0, 1], [4]),
        )  # fmt: skip
