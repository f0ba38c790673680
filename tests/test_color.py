from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyjuice_lvd.data.color import COLORS, chosen, color_transform, means_by_reading
from pyjuice_lvd.errors import InputError


def code(colors):
    """One integer per colour (..., 3)."""
    c = colors.astype(np.uint32)
    return c[..., 0] << 16 | c[..., 1] << 8 | c[..., 2]


def grid(values):
    return np.stack(np.meshgrid(values, values, values, indexing="ij"), -1).reshape(-1, 3)


@pytest.mark.parametrize("name", ["ycocg", "rgb"])
def test_lossless_on_a_64_cubed_grid(name):
    colors = grid(np.arange(0, 256, 4, dtype=np.uint8))
    transform = color_transform(name, 3)
    stored = transform.forward(colors)
    assert transform.lossless
    assert stored.dtype == np.uint8
    assert len(np.unique(code(stored))) == 64**3
    np.testing.assert_array_equal(transform.inverse(stored), colors)


def test_ycocg_is_a_bijection_of_all_colors():
    colors = grid(np.arange(256, dtype=np.uint8))
    stored = COLORS["ycocg"].forward(colors)
    seen = np.zeros(1 << 24, dtype=bool)
    seen[code(stored)] = True
    assert seen.all()
    np.testing.assert_array_equal(COLORS["ycocg"].inverse(stored), colors)


@pytest.mark.parametrize("shape", [(7, 5, 4, 3), (2000, 3), (3,)])
@pytest.mark.filterwarnings("error")  # numpy warns when a lone scalar wraps around
def test_ycocg_on_random_colors_of_any_shape(shape):
    colors = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    stored = COLORS["ycocg"].forward(colors)
    assert stored.shape == shape
    np.testing.assert_array_equal(COLORS["ycocg"].inverse(stored), colors)


@pytest.mark.parametrize(
    ("rgb", "stored"),
    [
        ((0, 0, 0), (0, 128, 128)),  # greys: Y is the grey value, no chroma
        ((77, 77, 77), (77, 128, 128)),
        ((255, 255, 255), (255, 128, 128)),
        ((110, 100, 90), (100, 148, 128)),  # Co = 20, t = 100, Cg = 0
        ((90, 100, 110), (100, 108, 128)),  # Co = -20
        ((91, 120, 100), (107, 119, 153)),  # Co = -9, t = 100 + floor(-4.5) = 95, Cg = 25, Y = 95 + 12
        ((200, 0, 50), (254, 22, 131)),  # Co = 150 = -106 mod 256, t = 50 - 53 = 253, Cg = 3, Y = 253 + 1 = 254
    ],
)
def test_ycocg_by_hand(rgb, stored):
    assert tuple(COLORS["ycocg"].forward(np.array(rgb, np.uint8)).tolist()) == stored


def test_ycocg_chroma_of_a_photograph_has_its_mode_in_the_middle():
    from sklearn.datasets import load_sample_images

    stored = COLORS["ycocg"].forward(load_sample_images().images[0])
    for channel in (1, 2):
        assert abs(int(np.bincount(stored[..., channel].ravel()).argmax()) - 128) < 16


def test_ycc709_against_the_standard():
    """BT.709: Y' = .2126 R + .7152 G + .0722 B, Cb = (B - Y') / 1.8556, Cr = (R - Y') / 1.5748."""
    colors = np.random.default_rng(1).integers(0, 256, (3000, 3), dtype=np.uint8)
    r, g, b = colors.T.astype(np.float64)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    exact = np.stack([y, (b - y) / 1.8556 + 128, (r - y) / 1.5748 + 128], -1)
    stored = COLORS["ycc709"].forward(colors)
    assert stored.dtype == np.uint8
    assert np.abs(stored - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-9


def test_ycc709_is_marked_lossy_and_inverts_approximately():
    transform = COLORS["ycc709"]
    assert not transform.lossless
    neighbours = grid(np.arange(100, 120, dtype=np.uint8))
    assert len(np.unique(code(transform.forward(neighbours)))) < len(neighbours) / 2
    images = grid(np.arange(0, 256, 5, dtype=np.uint8)).reshape(-1, 4, 4, 3)
    assert np.abs(transform.inverse(transform.forward(images)).astype(int) - images).max() <= 2


@pytest.mark.parametrize("name", list(COLORS))
def test_the_mean_colour_of_independent_channels(name):
    """Against all combinations of them: what wraps around, or is clamped, included where that is promised."""
    transform, rng = COLORS[name], np.random.default_rng(3)
    spread = 256 if name != "ycc709" else 30  # whose clamp at 0 and 255 is applied to the mean
    levels = [rng.choice(spread, 7, replace=False) + (256 - spread) // 2 for _ in range(3)]
    p = rng.dirichlet(np.ones(7), 3)
    distributions = np.zeros((2, 3, 256))
    for channel in range(3):
        distributions[0, channel, levels[channel]] = p[channel]
    distributions[1] = np.eye(256)[[230, 20, 140]]
    colors = np.stack(np.meshgrid(*levels, indexing="ij"), -1).astype(np.uint8)
    exact = transform.inverse(colors)
    expected = np.einsum("a,b,c,abcd->d", *p, exact.astype(float))
    found = transform.exact_mean(distributions)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found[0], expected, atol=1e-9 if transform.lossless else 0.5)
    one = transform.inverse(np.array([230, 20, 140], np.uint8))
    np.testing.assert_allclose(found[1], one, atol=0.5)
    for known in ([-1, -1, -1], [0, 127, 128], [255, 200, 3]) if transform.wraps_around else ():
        like = np.array(known, np.int16)
        shown = transform.nearest(exact, np.broadcast_to(like, exact.shape))
        found = chosen(means_by_reading(distributions), np.broadcast_to(like, (2, 3)))
        np.testing.assert_allclose(found[0], np.einsum("a,b,c,abcd->d", *p, shown.astype(float)), atol=1e-9)
        np.testing.assert_allclose(found[1], transform.nearest(one, like), atol=1e-9)


@pytest.mark.parametrize(
    ("stored", "exact", "nearest"),
    [
        ((250, 128, 148), (240, 4, 240), (240, 255, 240)),  # t = 240, G = 260
        ((3, 128, 118), (8, 254, 8), (8, 0, 8)),  # Cg = -10: t = 8, G = -2
        ((255, 127, 129), (255, 0, 0), (255, 255, 255)),  # pure red: as good as a white that is too bright by 1
        ((0, 126, 128), (255, 0, 1), (0, 0, 1)),  # Co = -2: B = 1, R = -1
        ((10, 168, 128), (30, 10, 246), (30, 10, 0)),  # Co = 40: B = 10 - 20
        ((254, 22, 131), (200, 0, 50), (200, 255, 255)),  # t = 253, G = 256, B = 253 + 53 = 306, R = 200
        ((78, 42, 251), (230, 140, 60), (230, 140, 60)),  # an orange, Co = 170: Cg is 123, so it is meant
        ((100, 148, 128), (110, 100, 90), (110, 100, 90)),  # inside
    ],
)
def test_the_nearest_colour_by_hand(stored, exact, nearest):
    transform = COLORS["ycocg"]
    color = transform.inverse(np.array(stored, np.uint8))
    assert tuple(color.tolist()) == exact
    assert tuple(transform.nearest(color).tolist()) == nearest
    assert transform.outside(color) == (exact != nearest)


@pytest.mark.parametrize(
    ("color", "known", "nearest"),
    [
        # R = -6 without wrap-around, Cg = 52: a bright red or a dark cyan?
        ((250, 94, 92), (-1, -1, -1), (250, 94, 92)),
        ((250, 94, 92), (5, 90, 200), (0, 94, 92)),
        ((250, 94, 92), (240, 90, 90), (250, 94, 92)),
        # R = 259: a cyan or a white?
        ((3, 130, 160), (-1, -1, -1), (3, 130, 160)),
        ((3, 130, 160), (9, 9, 9), (3, 130, 160)),
        ((3, 130, 160), (200, 9, 9), (255, 130, 160)),
        ((60, 120, 40), (255, 3, 3), (60, 120, 40)),  # inside: what is known is no matter
    ],
)
def test_the_nearest_colour_beside_a_known_one(color, known, nearest):
    found = COLORS["ycocg"].nearest(np.array(color, np.uint8), np.array(known, np.int16))
    assert tuple(found.tolist()) == nearest


def test_known_colours_change_nothing_inside_the_cube():
    """A channel goes to the end that is close by, and only from beyond it, wherever Cg leaves that open."""
    colors, transform = grid(np.r_[:256:3, 255].astype(np.uint8)), COLORS["ycocg"]
    y, co, cg = (transform.forward(colors).astype(int) - [0, 128, 128]).T
    t = y - cg // 2
    b = t - co // 2
    plain = np.stack([b + co, t + cg, b], axis=1)
    far = (cg < -32) | (cg >= 32)
    alone = transform.nearest(colors)
    for level, end in ((0, 0), (127, 0), (128, 255), (255, 255)):
        found = transform.nearest(colors, np.full(colors.shape, level, np.int16))
        beyond = ((plain < 0) if end == 0 else (plain > 255)) & far[:, None]
        assert (found[beyond] == end).all()
        np.testing.assert_array_equal(found[~beyond], alone[~beyond])


def test_the_nearest_colour_of_all():
    """By definition: without wrap-around, then clamped, where Cg is in -32..31; all other colours as they are."""
    colors = grid(np.arange(256, dtype=np.uint8))
    transform = COLORS["ycocg"]
    nearest = transform.nearest(colors)
    assert (nearest.dtype, nearest.shape) == (np.uint8, colors.shape)
    y, co, cg = (transform.forward(colors).astype(int) - [0, 128, 128]).T
    t = y - cg // 2
    b = t - co // 2
    plain = np.stack([b + co, t + cg, b], axis=1)
    near = (cg >= -32) & (cg < 32)
    np.testing.assert_array_equal(nearest[near], plain[near].clip(0, 255))
    np.testing.assert_array_equal(nearest[~near], colors[~near])
    outside = transform.outside(colors)
    np.testing.assert_array_equal(outside, near & (plain != plain.clip(0, 255)).any(axis=1))
    np.testing.assert_array_equal(transform.nearest(nearest), nearest)
    assert outside.mean() == pytest.approx(0.0651, abs=1e-4)
    # Only saturated colours are taken to be of outside: green at least 80 levels from the mean of red and blue.
    r, g, b = colors[outside].astype(int).T
    assert np.abs(g - (r + b) / 2).min() >= 80


def test_colours_of_real_images_hardly_change():
    sheets = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
    if not sheets.exists():
        pytest.skip(f"{sheets}: no such folder")
    images = np.concatenate(
        [np.asarray(Image.open(path).convert("RGB")) for path in sorted(sheets.glob("test_*.webp"))]
    )
    assert COLORS["ycocg"].outside(images).mean() < 0.0006


def test_colours_of_photographs_hardly_change():
    from sklearn.datasets import load_sample_images

    china, flower = (COLORS["ycocg"].outside(image).mean() for image in load_sample_images().images)
    assert china == 0
    assert flower < 0.0004  # an orange dahlia: without the rule for Cg, 12 % of it would change


@pytest.mark.parametrize("name", list(COLORS))
def test_grey_is_never_transformed(name):
    grey = np.random.default_rng(2).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    transform = color_transform(name, 1)
    assert transform.name == name
    assert transform.lossless
    np.testing.assert_array_equal(transform.forward(grey), grey)
    np.testing.assert_array_equal(transform.inverse(grey), grey)


def test_bad_names_and_channels():
    with pytest.raises(InputError, match=r"color: found 'hsv', wanted one of ycocg, rgb, ycc709"):
        color_transform("hsv", 3)
    with pytest.raises(InputError, match="hsv"):
        color_transform("hsv", 1)
    with pytest.raises(InputError, match="found images of 4 channels"):
        color_transform("rgb", 4)
