"""The offsets model: what is its own, by enumeration of tiny models. Queries that all models with latents share are
tested in test_joint_queries.py."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enumerated import EnumeratedOffsets, asked, frequencies_fit
from models import limited_parts, offset_model, offset_parts

from pyjuice_lvd import Circuit
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_arrays, write_arrays
from pyjuice_lvd.models.load import load_model
from pyjuice_lvd.models.offset_queries import OffsetLabels
from pyjuice_lvd.models.offsets import OffsetModel


@pytest.fixture(scope="module")
def grey() -> EnumeratedOffsets:
    return EnumeratedOffsets(*offset_model((2, 2, 1), (1, 2), "ycocg", (64,), [[0, 1, 64]]))


@pytest.fixture(scope="module")
def rgb() -> EnumeratedOffsets:
    """Channels that can be hidden apart; of two pixels a patch, one channel without offsets."""
    return EnumeratedOffsets(*offset_model((2, 2, 3), (1, 2), "rgb", (128, 256, 128), [[0, 128], [3, 4], [7]]))


@pytest.fixture(params=["grey", "rgb"])
def known(request: pytest.FixtureRequest) -> EnumeratedOffsets:
    return request.getfixturevalue(request.param)


def test_the_enumeration_is_whole(known: EnumeratedOffsets) -> None:
    assert known.p.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(np.exp(known.model.score_samples(known.images)), known.p, rtol=1e-4, atol=1e-12)


def test_channels_are_hidden_apart(rgb: EnumeratedOffsets) -> None:
    images, hidden = asked(rgb, 12, 1)
    expected = [rgb.p[rgb.agree(x, m)].sum() for x, m in zip(images, hidden, strict=True)]
    np.testing.assert_allclose(np.exp(rgb.model.score_samples(images, mask=hidden)), expected, rtol=1e-4)
    marginals, means = rgb.model.marginals(images, hidden), rgb.model.posterior_mean(images, hidden, exact=True)
    np.testing.assert_allclose(marginals.sum(-1), 1, rtol=1e-6)
    for row, (image, mask) in enumerate(zip(images, hidden, strict=True)):
        p = rgb.conditional(image, mask)
        for place in np.ndindex(*image.shape):
            values = np.bincount(rgb.stored[:, *place], weights=p, minlength=256)
            np.testing.assert_allclose(marginals[row, *place], values, atol=1e-5)
        np.testing.assert_allclose(means[row].ravel(), p @ rgb.images.reshape(len(p), -1), atol=2e-3)
        np.testing.assert_array_equal(means[row][~mask], image[~mask])


def test_channels_are_drawn_given_others(rgb: EnumeratedOffsets) -> None:
    n, (images, hidden) = 3000, asked(rgb, 6, 2)
    drawn = rgb.model.inpaint(images, hidden, n_samples=n, seed=3, exact=True)
    for row, (image, mask) in enumerate(zip(images, hidden, strict=True)):
        np.testing.assert_array_equal(drawn[:, row][:, ~mask], np.tile(image[~mask], (n, 1)))
        frequencies_fit(drawn[:, row], rgb, rgb.conditional(image, mask))


def test_the_posterior_of_shapes_and_of_offsets(known: EnumeratedOffsets) -> None:
    images, hidden = asked(known, 20, 4)
    model = known.model
    shapes, offsets = model.posterior(images, mask=hidden), model.offset_posterior(images, mask=hidden)
    assert (shapes.shape, shapes.dtype) == ((20, 2, 2), np.float64)
    assert [(found.shape, found.dtype) for found in offsets] == [
        ((20, 2, 256 // step), np.float64) for step in model.steps
    ]
    for row, position in np.ndindex(20, 2):
        joint = known.posterior(images[row], hidden[row], position)
        axes = set(range(joint.ndim))
        joins = joint.sum(tuple(axes - {0}))
        np.testing.assert_allclose(shapes[row, position], [joins[:2].sum(), joins[2]], atol=1e-5)
        for c, found in enumerate(offsets):
            np.testing.assert_allclose(found[row, position], joint.sum(tuple(axes - {c + 1})), atol=1e-5)
    np.testing.assert_allclose(model.posterior(images)[0], shapes[0], atol=1e-7)
    np.testing.assert_allclose(model.offset_posterior(images)[0][0], offsets[0][0], atol=1e-7)


def test_offsets_are_worth_asking_for(grey: EnumeratedOffsets) -> None:
    """Some patches leave open what their offset is: what these tests look at is no matter of course."""
    found = grey.model.offset_posterior(grey.images[grey.p > 0])[0]
    assert ((found > 0.1).sum(axis=2) > 1).mean() > 0.1
    assert (found.max(axis=2) > 1 - 1e-6).any()


def test_what_wraps_around_a_state_s_offsets_is_read_as_the_end() -> None:
    """Bright and dark states, each with a residual that takes it beyond its end; and one whose offsets are anywhere."""
    channel = Circuit.fully_factorized(num_vars=1, num_cats=256)
    channel.parameters()[1][:] = np.where(np.isin(np.arange(256), [20, 236]), 0.25, 0) + 0.5 * (np.arange(256) == 0)
    shift = np.zeros((32, 3), np.float32)
    shift[31, 0] = shift[0, 1] = 1
    shift[:, 2] = 1 / 32
    prior = Circuit.fully_factorized(num_vars=2, num_cats=3)
    model = OffsetModel(
        image_shape=(1, 2, 1), patch=(1, 1), color="ycocg", steps=[8], shapes=[[channel]], join=np.ones((1, 3)),
        shifts=[shift], prior=prior,
    )  # fmt: skip

    def of(state: int) -> tuple[np.ndarray, ...]:
        chosen = np.eye(3, dtype=np.float32)[state]
        prior.parameters()[1].reshape(2, 3)[:] = chosen
        drawn = [model.sample(500, seed=1, exact=exact)[:, 0, :, 0] for exact in (True, False)]
        hidden = [model.posterior_mean(np.zeros((1, 1, 2, 1), np.uint8), np.ones((1, 2), bool), exact=e)
                  for e in (True, False)]  # fmt: skip
        for images, mean in zip(drawn, hidden, strict=True):
            np.testing.assert_allclose(images.mean(), mean.mean(), atol=8)
        return drawn[0], drawn[1], hidden[0], hidden[1]

    for state, offset, beyond, end in ((0, 248, 12, 255), (1, 0, 236, 0)):
        exact, read, wrapped, mean = of(state)
        assert set(np.unique(exact)) == {offset, beyond, (2 * offset - beyond) % 256}
        np.testing.assert_array_equal(read, np.where(exact == beyond, end, exact))
        np.testing.assert_allclose(mean - wrapped, 0.25 * (end - beyond), atol=1e-4)
    exact, read, wrapped, mean = of(2)
    np.testing.assert_array_equal(read, exact)
    np.testing.assert_allclose(mean, wrapped)
    assert model.wraps_around


def test_means_of_patches_of_which_something_is_known_are_those_of_draws() -> None:
    """A known value may be of a dark state or, beyond the end, of a bright one: hidden ones then stand for others."""
    shape, patch = (2, 4, 1), (2, 2)
    parts, _ = limited_parts(shape, patch, (8,), [[*range(24), *range(232, 256)]])
    away = (np.arange(32)[:, None] - np.array([1, 30, 16]) + 16) % 32 - 16
    shift = np.exp(-0.5 * (away / 1.5) ** 2)
    model = OffsetModel(
        image_shape=shape, patch=patch, color="ycocg", steps=(8,), shapes=parts.shapes, join=parts.join,
        shifts=[(shift / shift.sum(axis=0)).astype(np.float32)], prior=parts.prior,
    )  # fmt: skip
    images, hidden = model.sample(12, seed=0), np.array([[True, False, False, True]] * 2)
    draws = model.inpaint(images, hidden, n_samples=4000, seed=1)
    off = np.abs(model.posterior_mean(images, hidden) - draws.mean(axis=0))
    assert (off <= 5 * draws.std(axis=0) / np.sqrt(len(draws)) + 1e-3).all()
    exact = model.posterior_mean(images, hidden, exact=True) - model.posterior_mean(images, hidden)
    assert np.abs(exact).max() > 20


def test_one_labelled_image_is_one_term_of_the_enumeration(known: EnumeratedOffsets) -> None:
    """Of random labels, and of those that the model names: join and offsets are the best given their state."""
    model, (images, _) = known.model, asked(known, 40, 7)
    order = {stored.tobytes(): index for index, stored in enumerate(known.stored)}
    tiles = known.tiles[[order[stored.tobytes()] for stored in model.color.forward(images)]]  # (40, 2)
    rng = np.random.default_rng(8)

    def joint(h: np.ndarray, join: np.ndarray, offset: np.ndarray) -> np.ndarray:
        given = known.emitted[tiles, h, join, *np.moveaxis(offset, 2, 0)]
        return known.pz[h[:, 0], h[:, 1]] * given.prod(axis=1)

    named = model.labels(images)
    counts = [len(shift) for shift in model.shifts]
    drawn = OffsetLabels(*(rng.integers(0, n, (40, 2)) for n in (3, 3)), rng.integers(0, counts, (40, 2, len(counts))))
    for labels in (named, drawn):
        with np.errstate(divide="ignore"):
            expected = np.log(joint(*labels))
        np.testing.assert_allclose(model.log_joint(images, labels), expected, rtol=1e-5)
    assert (joint(*drawn) == 0).any()
    each = known.emitted.reshape(*known.emitted.shape[:2], -1)[tiles, named.h]
    own = known.emitted[tiles, named.h, named.join, *np.moveaxis(named.offset, 2, 0)]
    np.testing.assert_allclose(own, each.max(axis=2), rtol=1e-5)
    # The states are close to the most probable ones: max-product approximates where the prior has latents of its own.
    probable = known.joint[[order[stored.tobytes()] for stored in model.color.forward(images)]]  # (40, S, S)
    chosen = probable[np.arange(40), named.h[:, 0], named.h[:, 1]]
    assert (chosen >= 0.999 * probable.max((1, 2))).mean() > 0.8
    assert named.h.dtype == named.join.dtype == named.offset.dtype == np.int64


def test_terms_of_all_labels_add_up(grey: EnumeratedOffsets) -> None:
    images, _ = asked(grey, 3, 9)
    every = np.indices((3, 3, 4)).reshape(3, -1).T  # h, j, d of a patch
    pairs = np.stack([every[n] for n in np.indices((36, 36)).reshape(2, -1)], axis=1)  # (1296, 2, 3)
    labels = OffsetLabels(pairs[..., 0], pairs[..., 1], pairs[..., 2:])
    for image, expected in zip(images, grey.model.score_samples(images), strict=True):
        terms = grey.model.log_joint(np.repeat(image[None], len(pairs), axis=0), labels)
        assert np.log(np.exp(terms).sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_labelled_image_is_never_more_probable_than_the_image(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = offset_parts((32, 128, 256), cats=256, variables=4, states=5, positions=6, seed=seed)
    model = OffsetModel(
        image_shape=(4, 6, 3), patch=(2, 2), color="ycocg", steps=parts.steps, shapes=parts.shapes, join=parts.join,
        shifts=parts.shifts, prior=parts.prior,
    )  # fmt: skip
    images = np.concatenate(
        [model.sample(20, seed=seed), np.random.default_rng(seed).integers(0, 256, (20, 4, 6, 3), np.uint8)]
    )
    labels, scores = model.labels(images), model.score_samples(images)
    objective = model.log_joint(images, labels)
    assert (objective < scores).all()
    # It is no matter of course: the labels are worth more than others.
    turned = OffsetLabels(*(np.roll(part, 1, axis=0) for part in labels))
    assert (objective - model.log_joint(images, turned)).mean() > 1
    monkeypatch.setattr("pyjuice_lvd.shares.ROOM", 30_000)
    for found, expected in zip(model.labels(images), labels, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(model.log_joint(images, labels), objective, rtol=1e-9)


def test_certain_labels_are_all_of_the_probability(rgb: EnumeratedOffsets, grey: EnumeratedOffsets) -> None:
    for known in (rgb, grey):
        images = known.images[known.p > 0]
        scores = known.model.score_samples(images)
        objective = known.model.log_joint(images, known.model.labels(images))
        assert (objective <= scores + 1e-6 * np.abs(scores)).all()
        assert np.isfinite(objective).all()


def test_images_of_probability_0_have_labels_of_probability_0(
    grey: EnumeratedOffsets, recwarn: pytest.WarningsRecorder
) -> None:
    images = np.concatenate([grey.images[grey.p > 0][:2], np.full((2, 2, 2, 1), 3, np.uint8)])
    images[3, 0] = images[0, 0]  # one patch of two is possible
    for some in (images, images[2:]):
        labels, scores = grey.model.labels(some), grey.model.score_samples(some)
        objective = grey.model.log_joint(some, labels)
        np.testing.assert_array_equal(np.isfinite(objective), np.isfinite(scores))
        assert not any(part[~np.isfinite(scores)].any() for part in labels)
    assert [str(warning.message) for warning in recwarn] == []


def test_labels_that_do_not_fit_are_refused(rgb: EnumeratedOffsets) -> None:
    images = rgb.images[:4]
    labels = rgb.model.labels(images)
    for change, message in (
        ({"h": labels.h[:3]}, r"labels: h: found int64 \(3, 2\), wanted integers \(4, 2\)"),
        ({"h": labels.h + 3}, r"labels: h: found 3\.\.\d, wanted 0\.\.2"),
        ({"join": labels.join / 2}, r"labels: join: found float64 \(4, 2\), wanted integers"),
        ({"join": labels.join - 3}, r"labels: join: found -3\.\.-\d, wanted 0\.\.2"),
        ({"offset": labels.offset[..., 0]}, r"labels: offset: found \(4, 2\), wanted \(4, 2, 3\)"),
        ({"offset": labels.offset + np.array([0, 1, 0])}, r"labels: offset of channel 1: found 1\.\.1, wanted 0\.\.0"),
    ):
        with pytest.raises(InputError, match=message):
            rgb.model.log_joint(images, labels._replace(**change))


def test_bounded_memory_does_not_show(rgb: EnumeratedOffsets, monkeypatch: pytest.MonkeyPatch) -> None:
    images, hidden = asked(rgb, 12, 5)

    def answers() -> list[np.ndarray]:
        model = rgb.model
        posteriors = [model.posterior(images, mask=hidden), *model.offset_posterior(images, mask=hidden)]
        return [*posteriors, model.marginals(images, hidden), model.posterior_mean(images, hidden, exact=True)]

    whole = answers()
    monkeypatch.setattr("pyjuice_lvd.shares.ROOM", 4000)
    monkeypatch.setattr("pyjuice_lvd.models.offset_queries._MARGINALS_BYTES", 60_000)
    for found, expected in zip(answers(), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    many = np.repeat(images[5:6], 20, axis=0), np.repeat(hidden[5:6], 20, axis=0)
    drawn = rgb.model.inpaint(*many, n_samples=50, exact=True)
    frequencies_fit(drawn.reshape(-1, *images.shape[1:]), rgb, rgb.conditional(images[5], hidden[5]))


def test_modes_are_the_most_probable_residuals_of_joins(known: EnumeratedOffsets) -> None:
    model, channels = known.model, len(known.model.steps)

    def modes(tile: np.ndarray, hidden: np.ndarray) -> list[set[bytes]]:
        """Of each channel, its completions under all joins and offsets."""
        found: list[set[bytes]] = [set() for _ in range(channels)]
        for circuits in model.shapes:
            for c, circuit in enumerate(circuits):
                own, mask = tile[c::channels], hidden[c::channels]
                for offset in range(0, 256, model.steps[c]):
                    shift = np.uint8(offset)
                    possible = np.isfinite(circuit.log_likelihood((own - shift)[None], mask=mask, head="all")[0])
                    for head in np.flatnonzero(possible):
                        found[c].add((circuit.mpe((own - shift)[None], mask, head=head)[0] + shift).tobytes())
        return found

    def split(tile: np.ndarray) -> list[bytes]:
        return [tile[c::channels].tobytes() for c in range(channels)]

    nothing = np.zeros(known.patches.shape[2], np.uint8)
    for drawn in (
        model.sample(300, biased_modes=True),
        model.inpaint(known.images[:1], np.ones((1, *model.image_shape), bool), n_samples=300, biased_modes=True)[:, 0],
    ):
        tiles = to_patches(model.color.forward(drawn), model.patch).reshape(-1, len(nothing))
        for own, wanted in zip(zip(*map(split, tiles), strict=True), modes(nothing, nothing == 0), strict=True):
            assert set(own) == wanted
    images, hidden = asked(known, 8, 6)
    painted = model.inpaint(images, hidden, n_samples=20, biased_modes=True)
    np.testing.assert_array_equal(painted[:, ~hidden], np.tile(images[~hidden], (20, 1)))
    masks, tiles = to_patches(hidden, model.patch), to_patches(model.color.forward(images), model.patch)
    for image, position in np.ndindex(masks.shape[:2]):
        wanted = modes(tiles[image, position], masks[image, position])
        for tile in to_patches(model.color.forward(painted[:, image]), model.patch)[:, position]:
            assert all(own in of for own, of in zip(split(tile), wanted, strict=True))


@pytest.mark.parametrize("steps", [(64, 128, 256), (256, 256, 256)])
def test_the_circuit_written_out_scores_as_the_model(tmp_path: Path, steps: tuple[int, int, int]) -> None:
    model, _ = offset_model((2, 4, 3), (2, 2), "ycocg", steps, [list(range(256))] * 3)
    images = np.random.default_rng(1).integers(0, 256, (30, 2, 4, 3), dtype=np.uint8)
    rows = model.color.forward(images).reshape(30, -1)
    pc = model.written_out()
    assert pc.num_params == model.num_params_written_out
    hidden = np.zeros((2, 4), bool)
    hidden[:, 1:3] = True
    (part,) = model.exported("joint")
    part.circuit.save(tmp_path / "model.jpc", about=part.about)
    for circuit in (pc, Circuit.load(tmp_path / "model.jpc")):
        np.testing.assert_allclose(circuit.log_likelihood(rows), model.score_samples(images), rtol=1e-5)
        masked = circuit.log_likelihood(rows, mask=np.repeat(hidden[..., None], 3, axis=2).ravel())
        np.testing.assert_allclose(masked, model.score_samples(images, mask=hidden), rtol=1e-5)


def test_written_out_and_counted_without_what_has_probability_0() -> None:
    model, _ = offset_model((2, 2, 3), (1, 2), "rgb", (128, 256, 64), [list(range(256))] * 3)
    model.join[:2, 0] = 0
    model.join[2, 0] = 1
    model.shifts[0][:, 1] = (0, 1)
    model.shifts[2][1:3] = 0
    model.shifts[2][:] /= model.shifts[2].sum(axis=0)
    pc = model.written_out()
    assert pc.num_params == model.num_params_written_out
    images = np.random.default_rng(1).integers(0, 256, (30, 2, 2, 3), dtype=np.uint8)
    np.testing.assert_allclose(pc.log_likelihood(images.reshape(30, -1)), model.score_samples(images), rtol=1e-5)


def test_parameters_and_exported_parts(rgb: EnumeratedOffsets) -> None:
    model = rgb.model
    circuits = [circuit for channels in model.shapes for circuit in channels]
    tables = 3 * 3 + 2 * 3 + 2 * 3  # join, and the two channels with offsets
    assert model.num_params == model.prior.num_params + sum(circuit.num_params for circuit in circuits) + tables
    assert model.dims == 12
    parts = model.exported("patches")
    assert [part.circuit for part in parts] == circuits
    assert parts[5].about == (
        "p(x | join) of channel 2 of patches under shape 1, offset 0, a head for each of the joins 2..2\n"
        "1x2 (height, width), channel 2 of 3 of colours rgb\n"
        "variable 1 + row * 2 + column, values 0..255: the channel's less 128 times the offset, modulo 256"
    )
    (prior,) = model.exported("prior")
    assert prior.circuit is model.prior
    assert prior.about.endswith("values 0..2: the states of a position")


def test_save_and_load_bit_for_bit(tmp_path: Path, known: EnumeratedOffsets) -> None:
    known.model.save(tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, OffsetModel)
    for model in (again, pickle.loads(pickle.dumps(known.model))):
        np.testing.assert_array_equal(model.join, known.model.join)
        for found, expected in zip(model.shifts, known.model.shifts, strict=True):
            np.testing.assert_array_equal(found, expected)
        assert (model.steps, model.image_shape, model.patch) == (
            known.model.steps, known.model.image_shape, known.model.patch,
        )  # fmt: skip
        images = known.images[::7]
        np.testing.assert_array_equal(model.score_samples(images), known.model.score_samples(images))
        np.testing.assert_array_equal(model.sample(20, seed=3), known.model.sample(20, seed=3))
        assert model.num_params == known.model.num_params
    again.save(tmp_path / "again")
    for path in tmp_path.glob("*.*"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_tables_are_the_models_own_memory() -> None:
    parts = offset_parts((64,), cats=256)
    model = OffsetModel(
        image_shape=(2, 2, 1), patch=(1, 2), color="rgb", steps=parts.steps, shapes=parts.shapes, join=parts.join,
        shifts=parts.shifts, prior=parts.prior,
    )  # fmt: skip
    images = np.random.default_rng(1).integers(0, 256, (30, 2, 2), dtype=np.uint8)
    before = model.score_samples(images)
    parts.join[:] = np.roll(parts.join, 1, axis=1)
    assert (model.score_samples(images) != before).all()
    np.testing.assert_allclose(model.written_out().log_likelihood(images.reshape(30, -1)), model.score_samples(images))


def test_parts_that_do_not_fit_are_refused() -> None:
    parts, other = offset_parts((64, 128, 256), cats=256), offset_parts((8, 8, 8), variables=3, states=4)
    few = offset_parts((8, 8, 8))
    made: dict[str, Any] = {
        "image_shape": (2, 2, 3), "patch": (1, 2), "color": "rgb", "steps": parts.steps, "shapes": parts.shapes,
        "join": parts.join, "shifts": parts.shifts, "prior": parts.prior,
    }  # fmt: skip
    OffsetModel(**made)
    one, two = parts.shapes
    uneven = parts.shifts[0].copy()
    uneven[0, 1] += 0.01
    for change, message in (
        ({"patch": (2, 2)}, "prior: found 2 positions, wanted 1"),
        ({"steps": (64, 128)}, "steps: found 2, wanted 3: one for each channel"),
        ({"steps": (64, 24, 256)}, "steps: found 24 for channel 1, wanted a divisor of 256"),
        ({"steps": (64, 128, 0)}, "steps: found 0 for channel 2, wanted a divisor of 256"),
        ({"steps": (64, 128, 512)}, "steps: found 512 for channel 2, wanted a divisor of 256"),
        ({"shapes": []}, "shapes: found none, wanted at least one"),
        ({"shapes": [one, two[:2]]}, "shapes: found 2 circuits in shape 1, wanted one for each channel"),
        ({"shapes": [one, [*two[:2], one[2]]]}, "shapes: found 2 heads in shape 1, channel 2, wanted 1"),
        ({"shapes": [one, other.shapes[1]]}, "shapes: found 3 variables in shape 1, channel 0, wanted 2"),
        ({"shapes": [few.shapes[0], two]}, "shapes: found 8 categories in shape 0, channel 0, wanted 256"),
        ({"join": parts.join[:2]}, r"join: found float32 \(2, 3\), wanted float32 \(3, 3\)"),
        ({"join": np.ones((3, 3), int)}, r"join: found int64 \(3, 3\), wanted float32 \(3, 3\)"),
        ({"join": -parts.join}, "join: found a column that is no distribution"),
        ({"join": parts.join * np.nan}, "join: found a column that is no distribution"),
        ({"shifts": parts.shifts[:2]}, "shifts: found 2, wanted 3: one for each channel"),
        ({"shifts": [*parts.shifts[:2], parts.shifts[1]]}, r"shifts of channel 2: found float32 \(2, 3\), wanted"),
        ({"shifts": [uneven, *parts.shifts[1:]]}, "shifts of channel 0: found a column that is no distribution"),
        ({"prior": other.prior}, r"join: found float32 \(3, 3\), wanted float32 \(3, 4\)"),
    ):
        wrong: dict[str, Any] = {**made, **change}
        with pytest.raises(InputError, match=message):
            OffsetModel(**wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [64, 32]}, "steps: found 2, wanted 1"),
        ({"steps": 64}, "steps: found 64, wanted a list"),
        ({"steps": ["a"]}, "steps: found 'a'"),
        ({"shapes": 0}, "shapes: found none"),
        ({"shapes": 1}, r"join: found float32 \(3, 3\), wanted float32 \(2, 3\)"),
    ],
)
def test_a_damaged_description_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    offset_model((2, 2, 1), (1, 2), "ycocg", (64,), [[0, 1]])[0].save(tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path))


def test_damaged_emissions_are_named(tmp_path: Path) -> None:
    offset_model((2, 2, 1), (1, 2), "ycocg", (64,), [[0, 1]])[0].save(tmp_path)
    path = tmp_path / "emissions.safetensors"
    arrays, _ = read_arrays(path)
    write_arrays(path, {"join": arrays["join"]})
    with pytest.raises(InputError, match=r"emissions\.safetensors: found join, wanted join, shifts/0"):
        load_model(tmp_path)
    write_arrays(path, arrays | {"join": arrays["join"] * 2})
    with pytest.raises(InputError, match="join: found a column that is no distribution"):
        load_model(tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=r"emissions\.safetensors: damaged"):
        load_model(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"emissions\.safetensors: no such file"):
        load_model(tmp_path)
