"""`lvd-juice sample` and `inpaint`, on runs made without training: arrays, pictures, masks, errors."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import offset_model
from PIL import Image

from pyjuice_lvd import Circuit
from pyjuice_lvd.cli.main import main
from pyjuice_lvd.data.beside import nearest_inside, nearest_known
from pyjuice_lvd.data.color import COLORS
from pyjuice_lvd.data.masks import read_mask
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import write_json
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.models.base import DensityModel
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.offsets import OffsetModel
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.settings import resolve

HEIGHT, WIDTH = 6, 8
HIDDEN = (227, 119, 194)


def make_run(path: Path, method: str, model: DensityModel) -> Path:
    with RunDirectory.create(path, settings=resolve(method=method).to_dict()) as directory:
        model.save(directory / "model")
        write_json(directory / "data.json", {"digest": ""})
        directory.finish({"method": method})
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    shades = np.random.default_rng(0).integers(0, 60, (20, 1, 1, 3)) + np.stack([9 * x, 9 * y, 5 * x + 5 * y], -1) + 60
    return shades.astype(np.uint8)


def white_or_yellow(pixels: int) -> Circuit:
    """Of each pixel Y = 255, Cg = 0 and Co = 0 or -1: white, or B = 256, which wraps around to yellow."""
    circuit = Circuit.fully_factorized(num_vars=3 * pixels, num_cats=256)
    circuit.fit_em(np.tile([[255, 128, 128], [255, 127, 128]], pixels), epochs=1, step_size=1.0, pseudocount=0)
    return circuit


@pytest.fixture(scope="module")
def folder(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `joint`, `offsets`, `hclt`, `grey` and `table`, and data for each."""
    folder = tmp_path_factory.mktemp("work")
    np.savez(folder / "images.npz", train=images, test=images[:10])
    np.savez(folder / "grey.npz", train=images[..., 0] // 16, test=images[:10, ..., 0] // 16)
    np.save(folder / "table.npy", images.reshape(20, -1)[:, :5])
    pixels = np.random.default_rng(1).integers(90, 140, (200, 18))
    circuits = [Circuit.hclt(pixels, num_latents=2, num_cats=256, heads=heads, seed=heads) for heads in (2, 1)]
    prior = Circuit.from_tree([-1, *range(7)], num_latents=2, num_cats=3, perturbation=0.9)
    joint = JointModel(image_shape=(HEIGHT, WIDTH, 3), patch=(3, 2), color="ycocg", circuits=circuits, prior=prior)
    make_run(folder / "joint", "lvd-pg", joint)
    offsets, _ = offset_model((HEIGHT, WIDTH, 3), (3, 2), "ycocg", (16, 64, 256), [list(range(256))] * 3)
    make_run(folder / "offsets", "lvd-pg", offsets)
    for name, shape in (("hclt", (HEIGHT, WIDTH, 3)), ("grey", (HEIGHT, WIDTH, 1))):
        circuit = Circuit.fully_factorized(num_vars=int(np.prod(shape)), num_cats=256)
        if name == "grey":
            circuit.fit_em(images[..., 0].reshape(20, -1) // 16, epochs=1, step_size=1.0)
        make_run(folder / name, "hclt", CircuitModel(circuit, num_cats=256, image_shape=shape, color="ycocg"))
    np.save(folder / "yellow.npy", np.full((20, HEIGHT, WIDTH, 3), [255, 255, 0], np.uint8))
    whole, tile = white_or_yellow(HEIGHT * WIDTH), white_or_yellow(6)
    patched = JointModel(
        image_shape=(HEIGHT, WIDTH, 3), patch=(3, 2), color="ycocg", circuits=[tile] * 3, prior=prior, tied=True
    )
    make_run(folder / "yellow", "hclt", CircuitModel(whole, num_cats=256, image_shape=images.shape[1:], color="ycocg"))
    make_run(folder / "yellow_patches", "lvd-pg", patched)
    make_run(folder / "table", "rat-spn", CircuitModel(Circuit.fully_factorized(num_vars=5, num_cats=4), num_cats=4))
    return folder


@pytest.fixture
def lvd_juice(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)

    def run(*args: str, status: int = 0) -> Any:
        assert main(args) == status
        out, err = capsys.readouterr()
        if status:
            assert out == ""
            return err
        assert err == "" if "--quiet" in args else "done in" in err
        return json.loads(out) if "--json" in args else out

    return run


def cells(path: str, height: int, width: int, scale: int) -> np.ndarray:
    """Cut a picture into its images, (rows, columns, height, width, 3), each of whose pixels is a square."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    high, wide = scale * height + 6, scale * width + 6
    rows, columns = (picture.shape[0] - 22) // high, (picture.shape[1] - 6) // wide
    assert picture.shape == (22 + rows * high, 6 + columns * wide, 3)
    assert (picture[:22] != 255).any()  # a title
    found = picture[22:, 6:].reshape(rows, high, columns, wide, 3)[:, : high - 6, :, : wide - 6]
    squares = found.reshape(rows, height, scale, columns, width, scale, 3)
    assert (squares == squares[:, :, :1, :, :, :1]).all()
    return squares[:, :, 0, :, :, 0].transpose(0, 2, 1, 3, 4)


def test_samples_as_an_array_and_as_a_picture(lvd_juice: Any) -> None:
    began = time.monotonic()
    said = lvd_juice("sample", "joint", "-n", "5", "-o", "s.npy", "--seed", "3", "--json")
    assert 0 < said.pop("seconds") < time.monotonic() - began
    model = JointModel.load("joint/model")
    assert said.pop("share_outside_rgb") == model.share_outside_rgb(
        model.sample(5, seed=3, exact=True), model.sample(5, seed=3)
    )
    assert said == {
        "method": "lvd-pg", "what": "samples", "n": 5, "shape": [5, HEIGHT, WIDTH, 3], "seed": 3, "output": "s.npy",
        "exact": False, "protocol": {"color": "ycocg", "crop": None, "lossless": True},
    }  # fmt: skip
    drawn = np.load("s.npy", allow_pickle=False)
    np.testing.assert_array_equal(drawn, model.sample(5, seed=3))
    assert drawn.dtype == np.uint8
    lvd_juice("sample", "joint", "-n", "5", "-o", "s.PNG", "--seed", "3", "--quiet")
    shown = cells("s.PNG", HEIGHT, WIDTH, 12)
    assert shown.shape[:2] == (3, 2)
    np.testing.assert_array_equal(shown.reshape(-1, HEIGHT, WIDTH, 3)[:5], drawn)
    assert (shown[2, 1] == 255).all()
    biased = lvd_juice("sample", "joint", "-n", "5", "-o", "b.npy", "--biased-modes", "--json")
    assert "biased" in biased["what"]
    assert len(np.unique(np.load("b.npy").reshape(5, 2, 3, 4, 2, 3).swapaxes(2, 3).reshape(-1, 18), axis=0)) <= 3


@pytest.mark.parametrize("name", ["full.npy", "full.png"])
def test_a_full_disk_is_given_as_the_reason_and_leaves_no_file(lvd_juice: Any, name: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # writes past it fail half-way, as on a full disk
    try:
        said = lvd_juice("sample", "joint", "-n", "500", "-o", name, "--quiet", status=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said == f"lvd-juice: error: {name}: File too large\n"
    assert not [path for path in Path().iterdir() if "full" in path.name]


def test_inpainting_as_an_array_and_as_a_picture(lvd_juice: Any, images: np.ndarray) -> None:
    question = ("inpaint", "joint", "images.npz", "--mask", "right", "-n", "3", "--images", "4")
    said = lvd_juice(*question, "-o", "i.npy", "--json")
    assert said["shape"] == [3, 4, HEIGHT, WIDTH, 3]
    assert (said["what"], said["images"], said["n"], said["hidden_fraction"]) == ("conditional samples", 4, 3, 0.5)
    assert said["which"].startswith("0, 3, 6, 9 of test images of images.npz")
    chosen, hidden = images[[0, 3, 6, 9]], read_mask("right", HEIGHT, WIDTH)
    model, drawn = JointModel.load("joint/model"), np.load("i.npy")
    np.testing.assert_array_equal(drawn, model.inpaint(chosen, hidden, n_samples=3))
    lvd_juice(*question, "-o", "i.png")
    shown = cells("i.png", HEIGHT, WIDTH, 12)
    assert shown.shape[:2] == (4, 6)  # original, masked, three samples, mean
    np.testing.assert_array_equal(shown[:, 0], chosen)
    np.testing.assert_array_equal(shown[:, 1], np.where(hidden[..., None], HIDDEN, chosen))
    np.testing.assert_array_equal(shown[:, 2:5].swapaxes(0, 1), drawn)
    np.testing.assert_array_equal(shown[:, 5], np.rint(model.posterior_mean(chosen, hidden)))
    assert "biased" in lvd_juice(*question, "-o", "i.png", "--biased-modes", "--json")["what"]


@pytest.mark.parametrize("name", ["yellow", "yellow_patches"])
def test_colours_outside_the_cube(lvd_juice: Any, name: str) -> None:
    """A white that is too blue by 1 wraps around to yellow, and is shown as white."""
    white, yellow = np.array([255, 255, 255]), np.array([255, 255, 0])
    said = lvd_juice("sample", name, "-n", "40", "-o", "w.npy", "--seed", "3", "--json")
    as_drawn = lvd_juice("sample", name, "-n", "40", "-o", "e.npy", "--seed", "3", "--exact", "--json")
    drawn, exact = np.load("w.npy"), np.load("e.npy")
    outside = (exact == yellow).all(-1)
    np.testing.assert_array_equal(exact, np.where(outside[..., None], yellow, white))
    assert (drawn == white).all()
    assert (said["exact"], as_drawn["exact"]) == (False, True)
    assert said["share_outside_rgb"] == as_drawn["share_outside_rgb"] == outside.mean()
    assert 0.4 < outside.mean() < 0.6
    lvd_juice("sample", name, "-n", "4", "-o", "w.png")
    assert (cells("w.png", HEIGHT, WIDTH, 12) == 255).all()

    question = ("inpaint", name, "yellow.npy", "--mask", "right", "--images", "1")
    said = lvd_juice(*question, "-n", "30", "-o", "w.npy", "--json")
    as_drawn = lvd_juice(*question, "-n", "30", "-o", "e.npy", "--exact", "--json")
    drawn, exact, half = np.load("w.npy"), np.load("e.npy"), WIDTH // 2
    for painted in (drawn, exact):  # what is known stays, although it counts as outside
        assert (painted[..., :half, :] == yellow).all()
    assert (drawn[..., half:, :] == white).all()
    outside = (exact[..., half:, :] == yellow).all(-1)
    assert said["share_outside_rgb"] == as_drawn["share_outside_rgb"] == outside.mean()
    assert 0.4 < outside.mean() < 0.6
    lvd_juice(*question, "-n", "2", "-o", "w.png")
    assert (cells("w.png", HEIGHT, WIDTH, 12)[0, 2:, :, half:] == white).all()  # two samples, and the mean
    lvd_juice(*question, "-n", "2", "-o", "w.png", "--exact")
    shown = cells("w.png", HEIGHT, WIDTH, 12)[0, 2:, :, half:].astype(int)
    np.testing.assert_array_equal(np.unique(shown[:2].reshape(-1, 3), axis=0), [yellow, white])
    assert np.abs(shown[2] - [255, 255, 128]).max() <= 1


def test_what_is_known_close_by_tells_a_dark_colour_from_a_bright_one() -> None:
    """R = -6 is stored as R = 250: beside a dark red it is 0, beside a bright one it is meant."""
    color = COLORS["ycocg"]
    circuit = Circuit.fully_factorized(num_vars=9, num_cats=256)
    meant = color.forward(np.array([[10, 90, 80], [250, 94, 92], [240, 90, 90]], np.uint8))
    rows = np.array([[*meant[known], *meant[1], *meant[1]] for known in (0, 2)])
    circuit.fit_em(rows, epochs=1, step_size=1.0, pseudocount=0)
    model = CircuitModel(circuit, num_cats=256, image_shape=(1, 3, 3), color="ycocg")
    images = np.array([[[[10, 90, 80], [0, 0, 0], [0, 0, 0]]], [[[240, 90, 90], [0, 0, 0], [0, 0, 0]]]], np.uint8)
    hidden = np.array([[False, True, True]])
    wanted = np.array([[0, 94, 92], [250, 94, 92]])[:, None, None].repeat(2, axis=2)
    np.testing.assert_array_equal(model.inpaint(images, hidden, n_samples=1)[0, :, :, 1:], wanted)
    np.testing.assert_allclose(model.posterior_mean(images, hidden)[:, :, 1:], wanted, atol=1e-6)
    nothing_known = np.ones((1, 3), bool)
    assert model.inpaint(images, nothing_known, n_samples=1)[0, 0, 0, 1].tolist() == [250, 94, 92]
    np.testing.assert_allclose(model.posterior_mean(images, nothing_known)[0, 0, 1], [250, 94, 92], atol=1e-6)
    exact = model.inpaint(images, hidden, n_samples=1, exact=True)
    assert exact[0, 0, 0, 1].tolist() == [250, 94, 92]
    assert model.share_outside_rgb(exact, model.inpaint(images, hidden, n_samples=1), hidden) == 0.5


def test_drawn_colours_are_read_beside_those_that_are_inside() -> None:
    """R = -6 is dark beside a dark cyan, and bright where all are beyond, or R is by more, as oranges are."""
    color, cyan, dark = COLORS["ycocg"], [250, 94, 92], [3, 94, 92]
    drawn = np.array([[[cyan, dark, [230, 94, 92]]], [[cyan, cyan, cyan]]], np.uint8)
    like = nearest_inside(drawn)
    assert (like.dtype, like.shape) == (np.int16, drawn.shape)
    assert like[0, 0].tolist() == [[3, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert color.nearest(drawn, like).tolist() == [[[[0, 94, 92], dark, [230, 94, 92]]], [[cyan, cyan, cyan]]]
    circuit = Circuit.fully_factorized(num_vars=6, num_cats=256)
    circuit.fit_em(color.forward(drawn[:1, :, :2]).reshape(1, 6), epochs=1, step_size=1.0, pseudocount=0)
    model = CircuitModel(circuit, num_cats=256, image_shape=(1, 2, 3), color="ycocg")
    assert model.sample(1, exact=True).tolist() == [[[cyan, dark]]]
    assert model.sample(1).tolist() == [[[[0, 94, 92], dark]]]


def test_drawn_colours_are_read_beside_others_as_these_are_shown() -> None:
    """(254, 73, 90) shares its triple with (-2, 73, 90), and is shown as (0, 73, 90): no cyan beside it is red."""
    color, circuit = COLORS["ycocg"], Circuit.fully_factorized(num_vars=6, num_cats=256)
    drawn = np.array([[[[250, 94, 92], [254, 73, 90]]]], np.uint8)
    circuit.fit_em(color.forward(drawn).reshape(1, 6), epochs=1, step_size=1.0, pseudocount=0)
    model = CircuitModel(circuit, num_cats=256, image_shape=(1, 2, 3), color="ycocg")
    assert model.sample(1, exact=True).tolist() == drawn.tolist()
    assert model.sample(1).tolist() == [[[[0, 94, 92], [0, 73, 90]]]]


def test_the_nearest_known_pixel() -> None:
    images = np.arange(2 * 2 * 3 * 1, dtype=np.uint8).reshape(2, 2, 3, 1)
    hidden = np.zeros(images.shape, bool)
    hidden[0, :, 1:] = True
    hidden[1] = True
    found = nearest_known(images, hidden)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found[0, ..., 0], [[0, 0, 0], [3, 3, 3]])
    np.testing.assert_array_equal(found[1], -1)


def test_no_share_where_none_can_be_told(lvd_juice: Any) -> None:
    assert lvd_juice("sample", "table", "-o", "rows.npy", "--json")["share_outside_rgb"] is None
    assert lvd_juice("sample", "grey", "-o", "g.npy", "--json")["share_outside_rgb"] == 0
    lossy = CircuitModel(Circuit.fully_factorized(num_vars=3, num_cats=256), num_cats=256, image_shape=(1, 1, 3),
                         color="ycc709")  # fmt: skip
    assert lossy.share_outside_rgb(lossy.sample(9, exact=True), lossy.sample(9)) is None
    np.testing.assert_array_equal(lossy.sample(9, exact=True), lossy.sample(9))


def test_shapes_under_offsets(lvd_juice: Any, images: np.ndarray) -> None:
    model, hidden = OffsetModel.load("offsets/model"), read_mask("right", HEIGHT, WIDTH)
    lvd_juice("sample", "offsets", "-n", "5", "-o", "o.npy", "--seed", "3")
    np.testing.assert_array_equal(np.load("o.npy"), model.sample(5, seed=3))
    lvd_juice("sample", "offsets", "-n", "5", "-o", "o.png", "--biased-modes")
    question = ("inpaint", "offsets", "images.npz", "--mask", "right", "-n", "3", "--images", "4")
    lvd_juice(*question, "-o", "o.npy")
    chosen = images[[0, 3, 6, 9]]
    np.testing.assert_array_equal(np.load("o.npy"), model.inpaint(chosen, hidden, n_samples=3))
    lvd_juice(*question, "-o", "o.png")
    mean = cells("o.png", HEIGHT, WIDTH, 12)[:, 5]
    np.testing.assert_array_equal(mean, np.rint(model.posterior_mean(chosen, hidden)))


def test_the_baselines(lvd_juice: Any, images: np.ndarray) -> None:
    said = lvd_juice("inpaint", "hclt", "images.npz", "--mask", "top", "-n", "2", "-o", "h.npy", "--json")
    assert (said["method"], said["images"]) == ("hclt", 6)
    hidden = read_mask("top", HEIGHT, WIDTH)
    expected = images[np.linspace(0, 9, 6).round().astype(int)]
    np.testing.assert_array_equal(np.load("h.npy")[:, :, ~hidden], np.tile(expected[:, ~hidden], (2, 1, 1, 1)))
    lvd_juice("sample", "hclt", "-o", "h.png", "-n", "2")
    lvd_juice("sample", "table", "-o", "rows.npy", "-n", "7")
    assert np.load("rows.npy").shape == (7, 5)


def test_grey_images_of_few_levels_are_shown_from_black_to_white(lvd_juice: Any, images: np.ndarray) -> None:
    lvd_juice("inpaint", "grey", "grey.npz", "--mask", "center", "-n", "1", "--images", "99", "-o", "g.png")
    shown = cells("g.png", HEIGHT, WIDTH, 12)
    assert shown.shape[:2] == (10, 4)
    levels = (images[:10, ..., 0] // 16).astype(float)
    np.testing.assert_array_equal(shown[:, 0], np.rint(levels / levels.max() * 255)[..., None].repeat(3, -1))
    lvd_juice("sample", "grey", "-n", "4", "-o", "g.png")
    lvd_juice("sample", "grey", "-n", "4", "-o", "g.npy")
    shown, drawn = cells("g.png", HEIGHT, WIDTH, 12)[..., 0].reshape(-1, HEIGHT, WIDTH)[:4], np.load("g.npy")[..., 0]
    assert shown.max() == 255
    assert (np.diff(shown.ravel()[np.argsort(drawn.ravel(), kind="stable")].astype(int)) >= 0).all()


def test_masks_by_name_and_from_files(tmp_path: Path) -> None:
    for name, hidden in (
        ("left", [[1, 1, 1, 0, 0]] * 4), ("right", [[0, 0, 1, 1, 1]] * 4), ("top", [[1] * 5] * 2 + [[0] * 5] * 2),
        ("bottom", [[0] * 5] * 2 + [[1] * 5] * 2), ("center", [[0] * 5, [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0] * 5]),
    ):  # fmt: skip
        np.testing.assert_array_equal(read_mask(name, 4, 5), np.array(hidden, bool))
    mask = np.random.default_rng(0).random((4, 5)) < 0.5
    np.save(tmp_path / "bool.npy", mask)
    np.save(tmp_path / "byte.npy", mask * np.uint8(255))
    Image.fromarray(mask * np.uint8(255)).save(tmp_path / "grey.png")
    Image.fromarray(mask).save(tmp_path / "bit.png")
    Image.fromarray((mask * np.uint8(255))[..., None].repeat(3, 2)).save(tmp_path / "rgb.bmp")
    for name in ("bool.npy", "byte.npy", "grey.png", "bit.png", "rgb.bmp"):
        found = read_mask(str(tmp_path / name), 4, 5)
        assert found.dtype == np.bool_
        np.testing.assert_array_equal(found, mask)


def test_bad_masks_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.ones((5, 4), bool))
    np.save(tmp_path / "float.npy", np.ones((4, 5)))
    np.save(tmp_path / "seven.npy", np.full((4, 5), 7, np.uint8))
    np.save(tmp_path / "empty.npy", np.zeros((4, 5), bool))
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.indices((4, 5, 3))[2].astype(np.uint8)).save(tmp_path / "colour.png")
    for name, message in (
        ("large.npy", r"found a mask of \(5, 4\), wanted \(4, 5\) as the images"),
        ("float.npy", "found dtype float64, wanted bool, or uint8 of 0 and 255"),
        ("seven.npy", r"found the value 7, wanted 0 \(known\) and 255 \(hidden\) only"),
        ("empty.npy", "found a mask that hides nothing"),
        ("text.png", "cannot be read"),
        ("colour.png", "found colours, wanted black and white"),
    ):
        with pytest.raises(InputError, match=f"{name}: {message}"):
            read_mask(str(tmp_path / name), 4, 5)
    with pytest.raises(InputError, match="mask: found 'lefft', wanted left, right, top, bottom, center or a file"):
        read_mask("lefft", 4, 5)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("sample", "joint", "-o", "x.jpg"), "x.jpg: wanted a file named .png"),
        (("sample", "joint", "-o", "nowhere/x.png"), "nowhere/x.png: cannot be written (No such file or directory)"),
        (("sample", "missing", "-o", "x.png"), "missing: "),
        (("sample", "table", "-o", "x.png"), "x.png: found a model of tables in table, wanted a file named .npy"),
        (
            ("sample", "hclt", "-o", "x.png", "--biased-modes"),
            "--biased-modes: found method hclt, wanted lvd-pg or lvd",
        ),
        (
            ("sample", "joint", "-n", "100000000000", "-o", "x.npy"),
            "-n: found 100000000000: the result would take",
        ),
        (
            ("sample", "table", "-n", "100000000000000", "-o", "x.npy"),
            "-n: found 100000000000000: the result",
        ),
        (("sample", "joint", "-n", "1000000000", "-o", "x.png"), "-n: found 1000000000: the result would take 166 TB"),
        (
            ("inpaint", "hclt", "images.npz", "--mask", "top", "-n", "100000000000", "-o", "x.npy"),
            "-n: found 100000000000: the result would take 86.4 TB of memory",
        ),
        (("inpaint", "joint", "images.npz", "--mask", "up", "-o", "x.png"), "mask: found 'up'"),
        (("inpaint", "joint", "grey.npz", "--mask", "top", "-o", "x.png"), "grey.npz: found images of (6, 8, 1)"),
        (("inpaint", "table", "table.npy", "--mask", "top", "-o", "x.png"), "table: found a model of tables"),
        (("inpaint", "table", "images.npz", "--mask", "top", "-o", "x.png"), "table: found a model of tables"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_no_file(lvd_juice: Any, command: tuple[str, ...], message: str) -> None:
    (line,) = lvd_juice(*command, status=2).splitlines()
    assert line.startswith("lvd-juice: error: ")
    assert message in line
    assert not list(Path().rglob("*x.*"))
