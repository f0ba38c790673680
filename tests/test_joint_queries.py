"""Queries on models with latents, against enumeration of all images of tiny ones."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from enumerated import Enumerated, EnumeratedOffsets, frequencies_fit, questions
from models import offset_model

from pyjuice_lvd import LVDPG, Circuit
from pyjuice_lvd.data.beside import nearest_known
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.joint_queries import anomaly
from pyjuice_lvd.settings import resolve


def learned(circuit: Circuit, levels: list[list[int]], seed: int) -> Circuit:
    """Give the circuit random parameters, and every variable those levels only."""
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.choice(choice, 400) for choice in levels], axis=1)
    rows[:, 1] = np.where(rng.random(400) < 0.6, np.array(levels[1])[rows[:, 0] % len(levels[1])], rows[:, 1])
    heads = rng.integers(0, circuit.num_heads, 400)
    rows[heads > 0, 0] = levels[0][0]
    rows[:8, 0] = levels[0][1]
    circuit.fit_em(rows, heads=heads, epochs=2, batch_size=400, step_size=1.0, pseudocount=0)
    return circuit


def joint_model(
    image_shape: tuple[int, int, int], patch: tuple[int, int], color: str, levels: list[list[int]], *, factorized: bool,
    tied: bool = True,
) -> JointModel:  # fmt: skip
    """Two positions, two patch circuits, three values of z; untied, the second position has other circuits."""
    circuits = []
    for number, heads in enumerate((2, 1) if tied else (2, 1, 1, 2)):
        variables, cats = len(levels), max(map(max, levels)) + 1
        parent = np.arange(-1, variables - 1)
        blank = (
            Circuit.fully_factorized(num_vars=variables, num_cats=cats, heads=heads)
            if factorized
            else Circuit.from_tree(parent, num_latents=2, num_cats=cats, heads=heads, perturbation=0.9, seed=heads)
        )
        circuits.append(learned(blank, levels, seed=heads + 10 * number))
    prior = Circuit.from_tree([-1, 0], num_latents=3, num_cats=3, perturbation=0.9, seed=5)
    return JointModel(image_shape=image_shape, patch=patch, color=color, circuits=circuits, prior=prior, tied=tied)


def enumerated(model: JointModel, levels: list[list[int]]) -> Enumerated:
    """All images of a model whose variables have those levels."""
    tiles = np.array(list(itertools.product(*levels)), np.uint8)
    half = 0 if model.tied else len(model.circuits) // 2  # where the second position's circuits begin
    given = [
        np.exp(np.concatenate([c.log_likelihood(tiles, head="all") for c in own], axis=1))
        for own in (model.circuits[: half or None], model.circuits[half:])
    ]
    return Enumerated(model, tiles, given)


SHAPE, PATCH, LEVELS = (2, 4, 1), (1, 4), [[0, 1, 3], [0, 1], [1, 3], [0, 1]]
COLOURS = [[20, 100, 250], [10, 120, 240], [60, 130]]  # of Y, Co and Cg: some combinations wrap around


@pytest.fixture(scope="module")
def grey() -> Enumerated:
    """Images of 2x4, patches of 1x4."""
    return enumerated(joint_model(SHAPE, PATCH, "ycocg", LEVELS, factorized=False), LEVELS)


@pytest.fixture(scope="module")
def colour() -> Enumerated:
    """Images of 2x1, a pixel each patch, whose channels are independent given z."""
    return enumerated(joint_model((2, 1, 3), (1, 1), "ycocg", COLOURS, factorized=True), COLOURS)


@pytest.fixture(scope="module")
def untied() -> Enumerated:
    """As grey, but each position has circuits of its own."""
    return enumerated(joint_model(SHAPE, PATCH, "ycocg", LEVELS, factorized=False, tied=False), LEVELS)


@pytest.fixture(scope="module")
def offsets() -> Enumerated:
    """As grey, but of shapes under offsets; some values are possible under several."""
    return EnumeratedOffsets(*offset_model((2, 2, 1), (1, 2), "ycocg", (64,), [[0, 1, 64]]))


@pytest.fixture(scope="module")
def offset_colours() -> Enumerated:
    """As colour, but of shapes under offsets of two of the channels."""
    return EnumeratedOffsets(
        *offset_model((2, 1, 3), (1, 1), "ycocg", (64, 128, 256), [[0, 1, 64], [5, 133], [10, 20]])
    )


JOINT = ["grey", "colour", "untied"]


@pytest.fixture(params=[*JOINT, "offsets", "offset_colours"])
def known(request: pytest.FixtureRequest) -> Enumerated:
    return request.getfixturevalue(request.param)


def test_the_enumeration_is_whole(known: Enumerated) -> None:
    assert known.p.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(np.exp(known.model.score_samples(known.images)), known.p, rtol=1e-4, atol=1e-12)


def test_hidden_pixels_are_summed_out(known: Enumerated) -> None:
    images, masks = questions(known, 40, 1)
    expected = [known.p[known.agree(x, m[..., None])].sum() for x, m in zip(images, masks, strict=True)]
    scores = known.model.score_samples(images, mask=masks)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(np.exp(scores), expected, rtol=1e-4)
    assert scores[1] == pytest.approx(0, abs=1e-6)
    channels = np.repeat(masks[..., None], images.shape[3], axis=3)
    garbage = np.where(channels, np.random.default_rng(0).integers(0, 256, images.shape), images).astype(np.uint8)
    np.testing.assert_array_equal(known.model.score_samples(garbage, mask=channels), scores)
    np.testing.assert_allclose(
        known.model.score_samples(images, mask=masks[5]),
        known.model.score_samples(images, mask=np.tile(masks[5], (40, 1, 1))),
        rtol=1e-12,
    )


def test_channels_apart_where_nothing_mixes_them() -> None:
    model = joint_model((2, 1, 3), (1, 1), "rgb", [[0, 1, 2]] * 3, factorized=False)
    known = enumerated(model, [[0, 1, 2]] * 3)
    masks = np.random.default_rng(0).random((30, 2, 1, 3)) < 0.5
    images = known.images[np.random.default_rng(1).choice(len(known.p), 30, p=known.p / known.p.sum())]
    expected = [known.p[known.agree(x, m)].sum() for x, m in zip(images, masks, strict=True)]
    np.testing.assert_allclose(np.exp(model.score_samples(images, mask=masks)), expected, rtol=1e-4)
    means = [known.conditional(x, m) @ known.images.reshape(-1, 6) for x, m in zip(images, masks, strict=True)]
    np.testing.assert_allclose(model.posterior_mean(images, masks).reshape(30, 6), means, atol=1e-4)
    painted = model.inpaint(images, masks, n_samples=3)
    np.testing.assert_array_equal(painted[:, ~masks], np.tile(images[~masks], (3, 1)))


def test_samples_have_the_right_frequencies(known: Enumerated) -> None:
    drawn = known.model.sample(20_000, seed=3, exact=True)
    assert (drawn.shape, drawn.dtype) == ((20_000, *known.model.image_shape), np.uint8)
    frequencies_fit(drawn, known, known.p)
    np.testing.assert_array_equal(known.model.sample(5, seed=4), known.model.sample(5, seed=4))
    assert (known.model.sample(50, seed=4) != known.model.sample(50, seed=5)).any()
    assert known.model.sample(0).shape == (0, *known.model.image_shape)
    assert known.model.share_outside_rgb(known.model.sample(0, exact=True), known.model.sample(0)) == 0


def test_conditional_samples_have_the_right_frequencies(known: Enumerated) -> None:
    n, (images, masks) = 8000, questions(known, 5, 6)
    drawn = known.model.inpaint(images, masks, n_samples=n, seed=7, exact=True)
    assert (drawn.shape, drawn.dtype) == ((n, 5, *known.model.image_shape), np.uint8)
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        np.testing.assert_array_equal(drawn[:, row][:, ~mask], np.tile(image[~mask], (n, 1, 1)))
        frequencies_fit(drawn[:, row], known, known.conditional(image, mask[..., None]))


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("biased_modes", [False, True])
def test_hidden_colours_outside_the_cube_go_to_the_nearest_inside(offsets: bool, biased_modes: bool) -> None:
    if offsets:
        residuals = [[0, 1, 64], [5, 133], [125, 131]]
        known: Enumerated = EnumeratedOffsets(*offset_model((2, 1, 3), (1, 1), "ycocg", (64, 128, 256), residuals))
    else:
        levels = [[2, 200, 254], [100, 170], [110, 150]]
        known = enumerated(joint_model((2, 1, 3), (1, 1), "ycocg", levels, factorized=False), levels)
    model, color = known.model, known.model.color
    exact = model.sample(300, seed=3, exact=True, biased_modes=biased_modes)
    outside = color.outside(exact)
    drawn = model.sample(300, seed=3, biased_modes=biased_modes)
    np.testing.assert_array_equal(drawn, color.nearest(exact))
    assert model.share_outside_rgb(exact, drawn) == outside.mean() > 0
    assert model.share_outside_rgb(drawn, drawn) == 0
    # Known pixels stay as they are, although some are what a colour outside has wrapped around to.
    wild = color.outside(known.images)
    images = known.images[wild[:, 0, 0]][:4]
    below = np.array([[False], [True]])
    asked = {"n_samples": 200, "seed": 5, "biased_modes": biased_modes}
    exact, drawn = model.inpaint(images, below, **asked, exact=True), model.inpaint(images, below, **asked)
    for painted in (exact, drawn):
        np.testing.assert_array_equal(painted[:, :, 0], np.broadcast_to(images[:, 0], (200, 4, 1, 3)))
    np.testing.assert_array_equal(drawn[:, :, 1], color.nearest(exact)[:, :, 1])
    share = color.outside(exact)[:, :, 1].mean()
    for mask in (below, np.stack([below] * 4)):
        assert model.share_outside_rgb(exact, drawn, mask) == share
    assert model.share_outside_rgb(exact, drawn) == pytest.approx(share / 2)
    assert model.share_outside_rgb(exact, drawn, np.zeros((2, 1), bool)) == 0


def test_draws_of_other_images_are_named(colour: Enumerated) -> None:
    for drawn in (np.zeros((5, 1, 2, 3), np.uint8), np.zeros((5, 2, 1, 3)), np.zeros((2, 1, 3), np.uint8)):
        with pytest.raises(InputError, match=r"drawn: found (uint8|float64) \(.*, wanted both uint8 \(N, H, W, C\) or"):
            colour.model.share_outside_rgb(drawn, drawn)


@pytest.mark.parametrize("known", JOINT, indirect=True)
def test_the_posterior_of_z(known: Enumerated) -> None:
    images, masks = questions(known, 30, 8)
    found = known.model.posterior(images, mask=masks)
    assert (found.shape, found.dtype) == ((30, 2, 3), np.float64)
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        joint = known.joint[known.agree(image, mask[..., None])].sum(0)
        np.testing.assert_allclose(found[row, 0], joint.sum(1) / joint.sum(), atol=1e-5)
        np.testing.assert_allclose(found[row, 1], joint.sum(0) / joint.sum(), atol=1e-5)
    np.testing.assert_allclose(known.model.posterior(images)[0], found[0], atol=1e-7)


def test_marginals_of_pixels(known: Enumerated) -> None:
    images, masks = questions(known, 30, 9)
    found = known.model.marginals(images, masks)
    assert (found.shape, found.dtype) == ((30, *known.model.image_shape, 256), np.float64)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        p = known.conditional(image, mask[..., None])
        for place in np.ndindex(*known.model.image_shape):
            expected = np.bincount(known.stored[:, *place], weights=p, minlength=256)
            np.testing.assert_allclose(found[row, *place], expected, atol=1e-5)


@pytest.mark.parametrize("known", [*JOINT, "offsets"], indirect=True)
@pytest.mark.parametrize("exact", [False, True])
def test_the_posterior_mean(known: Enumerated, exact: bool) -> None:
    """Right for grey images, and where a pixel's channels are independent given z, as here, wrapped around or not.

    It is the mean of what `inpaint` shows, which reads colours beside what is known.
    """
    images, masks = questions(known, 30, 10)
    found = known.model.posterior_mean(images, masks, exact=exact)
    assert (found.shape, found.dtype) == (images.shape, np.float64)
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        hidden = np.broadcast_to(mask[..., None], image.shape)
        like = np.broadcast_to(nearest_known(image[None], hidden[None]), known.images.shape)
        shown = known.images if exact else known.model.color.nearest(known.images, like)
        expected = np.tensordot(known.conditional(image, mask[..., None]), shown.astype(float), 1)
        np.testing.assert_allclose(found[row][mask], expected[mask], atol=2e-3)
        np.testing.assert_array_equal(found[row][~mask], image[~mask])


def test_colours_that_depend_on_each_other_within_a_patch() -> None:
    """The mean is then near that of the samples, where nothing wraps around exactly so."""
    levels = [[90, 100, 110], [120, 128, 140], [125, 131]]
    known = enumerated(joint_model((2, 1, 3), (1, 1), "ycocg", levels, factorized=False), levels)
    found = known.model.posterior_mean(known.images[:1], np.ones((2, 1), bool))
    np.testing.assert_allclose(found[0].ravel(), known.p @ known.images.reshape(len(known.p), -1), atol=1e-3)
    wrapped = enumerated(joint_model((2, 1, 3), (1, 1), "ycocg", COLOURS, factorized=False), COLOURS)
    found = wrapped.model.posterior_mean(wrapped.images[:1], np.ones((2, 1), bool), exact=True)
    assert np.abs(found[0].ravel() - wrapped.p @ wrapped.images.reshape(len(wrapped.p), -1)).max() < 40


def test_anomaly_is_the_surprise_of_a_patch_given_the_others(known: Enumerated) -> None:
    images, _ = questions(known, 20, 11)
    found = known.model.patch_anomaly(images)
    assert (found.shape, found.dtype) == ((20, 2), np.float64)
    patches = to_patches(known.model.color.forward(images), known.model.patch)
    for row in range(20):
        same = (known.patches == patches[row]).all(2)
        whole = known.p[same.all(1)].sum()
        np.testing.assert_allclose(
            found[row], [-np.log(whole / known.p[same[:, 1 - i]].sum()) for i in (0, 1)], atol=1e-4
        )


def test_anomaly_where_responsibilities_underflow() -> None:
    """What the others say outweighs the patch's own likelihood by more than a float32 can hold."""
    z = np.array([[0, 0], [1, 1]] * 50)
    prior = Circuit.hclt(z, num_latents=2, num_cats=2, perturbation=0.9)
    prior.fit_em(z, epochs=60, batch_size=100, step_size=1.0, pseudocount=1e-6)
    scores = np.array([[[0, -400], [-400, 0]]], np.float32)
    pz = np.exp(prior.log_likelihood([[0, 0], [0, 1], [1, 0], [1, 1]]))
    expected = -np.log(pz[1] / (pz[0] + pz[1]))
    assert anomaly(prior, scores.copy())[0, 1] == pytest.approx(expected, rel=1e-4)
    assert expected > 5


@pytest.mark.parametrize("known", ["grey", "colour", "offset_colours"], indirect=True)
def test_bounded_memory_does_not_show(known: Enumerated, monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = questions(known, 16, 12)
    model = known.model
    queries: list[Callable[[], np.ndarray]] = [
        lambda: model.score_samples(images, mask=masks),
        lambda: model.posterior(images, mask=masks),
        lambda: model.marginals(images, masks),
        lambda: model.posterior_mean(images, masks),
        lambda: model.patch_anomaly(images),
    ]
    whole = [query() for query in queries]
    monkeypatch.setattr("pyjuice_lvd.shares.ROOM", 300)
    for module in ("joint_queries", "offset_queries"):
        monkeypatch.setattr(f"pyjuice_lvd.models.{module}._MARGINALS_BYTES", 30_000)
    for query, expected in zip(queries, whole, strict=True):
        np.testing.assert_allclose(query(), expected, rtol=1e-6, atol=1e-9)
    same, all_hidden = np.repeat(images[:1], 10, axis=0), np.ones(masks[0].shape, bool)
    drawn = model.inpaint(same, all_hidden, n_samples=200, exact=True)
    frequencies_fit(drawn.reshape(-1, *images.shape[1:]), known, known.p)
    frequencies_fit(model.sample(2000, exact=True), known, known.p)


@pytest.mark.parametrize("known", JOINT, indirect=True)
def test_modes_are_the_most_probable_patches_of_the_drawn_heads(known: Enumerated) -> None:
    model, whole = known.model, np.ones(known.model.image_shape[:2], bool)

    def modes(tile: np.ndarray, hidden: np.ndarray) -> set[bytes]:
        found = set()
        for circuit in model.circuits:
            possible = np.isfinite(circuit.log_likelihood(tile[None], mask=hidden, head="all")[0])
            found |= {circuit.mpe(tile[None], hidden, head=head)[0].tobytes() for head in np.flatnonzero(possible)}
        return found

    nothing = np.zeros(known.patches.shape[2], np.uint8)
    for drawn in (
        model.sample(300, exact=True, biased_modes=True),
        model.inpaint(known.images[:1], whole, n_samples=300, exact=True, biased_modes=True)[:, 0],
    ):
        tiles = to_patches(model.color.forward(drawn), model.patch).reshape(-1, len(nothing))
        assert {tile.tobytes() for tile in tiles} == modes(nothing, nothing == 0)
    images, masks = questions(known, 12, 13)
    painted = model.inpaint(images, masks, n_samples=20, exact=True, biased_modes=True)
    np.testing.assert_array_equal(painted[:, ~masks], np.tile(images[~masks], (20, 1, 1)))
    hidden = to_patches(np.broadcast_to(masks[..., None], images.shape), model.patch)
    tiles = to_patches(model.color.forward(images), model.patch)
    for image, position in np.ndindex(hidden.shape[:2]):
        drawn = to_patches(model.color.forward(painted[:, image]), model.patch)[:, position]
        assert {tile.tobytes() for tile in drawn} <= modes(tiles[image, position], hidden[image, position])


def test_known_pixels_come_back_from_a_lossy_transform() -> None:
    near = np.indices((8, 8, 8), np.uint8).reshape(3, -1).T + np.array([100, 120, 90], np.uint8)
    transform = color_transform("ycc709", 3)
    stored = transform.forward(near)
    pixel = near[(transform.inverse(stored) != near).any(1)][0]
    levels = [[int(level), int(level) + 9] for level in transform.forward(pixel)]
    model = joint_model((2, 1, 3), (1, 1), "ycc709", levels, factorized=True)
    image, mask = np.array([[pixel], [pixel + 9]])[None], np.array([[False], [True]])
    painted = model.inpaint(image, mask, n_samples=4)
    np.testing.assert_array_equal(painted[:, 0, 0], np.tile(pixel, (4, 1, 1)))
    assert (model.sample(20) != pixel).any(-1).all()
    mean = model.posterior_mean(image, mask)[0]
    np.testing.assert_array_equal(mean[0, 0], pixel)
    np.testing.assert_allclose(mean[1, 0], model.inpaint(image, mask, n_samples=3000)[:, 0, 1, 0].mean(0), atol=0.7)


def test_the_estimator_asks_the_model_and_crops_what_it_is_given(grey: Enumerated) -> None:
    estimator = LVDPG()
    estimator.model_, estimator.settings_ = grey.model, resolve(config={"data": {"crop": "2x4"}})
    images, masks = questions(grey, 6, 14)
    large = np.pad(images, ((0, 0), (0, 3), (0, 1), (0, 0)))
    mask = np.pad(masks, ((0, 0), (0, 3), (0, 1)), constant_values=True)
    model = grey.model
    for answer, expected in (
        (estimator.score_samples(large), model.score_samples(images)),
        (estimator.score_samples(large, mask=mask), model.score_samples(images, mask=masks)),
        (estimator.inpaint(large, mask, random_state=3), model.inpaint(images, masks, seed=3)),
        (estimator.inpaint(large, mask[1], biased_modes=True), model.inpaint(images, masks[1], biased_modes=True)),
        (estimator.sample(5, random_state=2), model.sample(5, seed=2)),
        (estimator.sample(5, random_state=np.int64(2)), model.sample(5, seed=2)),
        *[[estimator.sample(5, random_state=np.random.RandomState(2)) for _ in range(2)]],
        (estimator.sample(5, biased_modes=True), model.sample(5, biased_modes=True)),
        (estimator.marginals(large, mask), model.marginals(images, masks)),
        (estimator.posterior_mean(large, mask), model.posterior_mean(images, masks)),
        (estimator.posterior(large), model.posterior(images)),
        (estimator.posterior(large, mask), model.posterior(images, mask=masks)),
        (estimator.patch_anomaly(large), model.patch_anomaly(images)),
    ):
        np.testing.assert_array_equal(answer, expected)
    assert not np.array_equal(*(estimator.sample(50, random_state=None) for _ in range(2)))
    with pytest.raises(InputError, match=r"random_state: found 'a' \(a string\), wanted an integer"):
        estimator.inpaint(large, mask, random_state="a")


def test_bad_questions_are_named(known: Enumerated) -> None:
    model, images = known.model, known.images[:2]
    shape = model.image_shape
    for ask in (
        lambda m: model.score_samples(images, mask=m),
        lambda m: model.inpaint(images, m),
        lambda m: model.posterior(images, mask=m),
        lambda m: model.marginals(images, m),
        lambda m: model.posterior_mean(images, m),
    ):
        with pytest.raises(InputError, match=r"mask: found int64 \(2, .\), wanted bool \(2, .\), \(2, 2, .\) or"):
            ask(np.zeros(shape[:2], int))
        with pytest.raises(InputError, match=r"mask: found bool \(3, 2, .\)"):
            ask(np.zeros((3, *shape[:2]), bool))
    with pytest.raises(InputError, match="n: found -1"):
        model.sample(-1)
    with pytest.raises(InputError, match=r"n: found 2\.5 \(a number\), wanted an integer"):
        model.sample(2.5)
    for seed, found in ((None, "None"), (-1, "-1"), ("a", "'a'")):
        with pytest.raises(InputError, match=f"seed: found {found}"):
            model.sample(1, seed=seed)
        with pytest.raises(InputError, match=f"seed: found {found}"):
            model.inpaint(images, np.ones(shape[:2], bool), seed=seed)
    with pytest.raises(InputError, match="n_samples: found -1"):
        model.inpaint(images, np.ones(shape[:2], bool), n_samples=-1)
    if shape[2] == 3:
        blue = np.zeros((2, *shape), bool)
        blue[..., 2] = True
        with pytest.raises(InputError, match="wanted whole pixels: ycocg mixes channels"):
            model.inpaint(images, blue)
    impossible = np.concatenate([images, np.full_like(images[:1], 2), images[:1]])
    impossible[3, 0] = 2
    hidden = np.zeros(shape[:2], bool)
    hidden[0] = True
    with pytest.raises(InputError, match="images: image 2: what is known of it has probability 0"):
        model.inpaint(impossible, hidden)
    assert model.score_samples(impossible, mask=hidden)[2] == -np.inf
    surprise = model.patch_anomaly(impossible)
    assert np.isfinite(surprise[:2]).all()
    assert np.isnan(surprise[2]).all()
    assert surprise[3, 0] == np.inf
