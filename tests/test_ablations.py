"""Every setting that ablations switch, on images of every kind, from the command line and from Python."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyjuice_lvd import HCLT, LVD, LVDPG, RATSPN, Circuit
from pyjuice_lvd.cli.main import main
from pyjuice_lvd.learn.pipeline import distill
from pyjuice_lvd.settings import resolve

TINY: dict[str, dict[str, Any]] = {
    "teacher": {"epochs": 1, "codes": 8, "channels": 8, "blocks": 1, "code_dim": 4, "mixtures": 2},
    "clusters": {"outer": 2, "inner": 2},
    "circuit": {"latents": 2, "epochs": 4},
    "growing": {"epochs": 4},
    "prior": {"latents": 2, "epochs": 2, "soft_epochs": 1},
    "finetuning": {"epochs": 1},
    "hclt": {"latents": 2, "epochs": 10, "pseudocount": 5.0},  # 50 images tell little of 256 values
    "rat_spn": {"depth": 2, "replicas": 1, "sums": 2, "inputs": 2, "epochs": 10, "pseudocount": 5.0},
}

SHAPES = [
    pytest.param((8, 12, 3), [4, 2], id="colour, patches higher than wide"),
    pytest.param((6, 4, 1), [2, 4], id="grey, patches as wide as the image"),
    pytest.param((4, 6, 3), [4, 6], id="one patch"),
    pytest.param((3, 5, 3), [1, 1], id="patches of one pixel"),
    pytest.param((1, 12, 1), [1, 3], id="one row"),
]


def gradients(*shape: int, n: int = 60) -> np.ndarray:
    """Colour gradients on one of three levels: uint8 (n, *shape)."""
    rng = np.random.default_rng(0)
    height, width, *channels = shape
    y, x = (np.expand_dims(axis, -1) if channels else axis for axis in np.mgrid[:height, :width])
    level = rng.choice([60, 120, 180], n).reshape(n, *[1] * len(shape))
    slopes = rng.uniform(-3, 3, (2, n, 1, 1, *channels))
    return np.clip(level + slopes[0] * x + slopes[1] * y + rng.normal(0, 2, (n, *shape)), 0, 255).astype(np.uint8)


def tiny(**sections: dict[str, Any]) -> dict[str, Any]:
    return {name: {**table, **sections.get(name, {})} for name, table in {"data": {}, **TINY}.items()}


@pytest.mark.parametrize(("estimator", "decoder"), [(LVDPG, "convolutional"), (LVD, "independent")])
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_shapes(shape: tuple[int, ...], patch: list[int], estimator: Any, decoder: str) -> None:
    images = gradients(*shape)
    config = tiny(teacher={"patch": patch, "decoder": decoder})
    model = estimator(config=config).fit(images[:50])
    scores = model.score_samples(images[50:])
    assert scores.shape == (10,)
    assert model.bpd(images[50:]) < 8
    assert model.model_.dims == np.prod(shape)
    assert model.teacher_.settings.decoder == decoder


@pytest.mark.parametrize(
    ("estimator", "color"),
    [(LVDPG, "ycocg"), (LVDPG, "ycc709"), (LVD, "rgb"), (HCLT, "ycc709"), (HCLT, "rgb"), (RATSPN, "ycocg")],
)
def test_colours_and_crops(estimator: Any, color: str) -> None:
    images = gradients(9, 10, 3)
    config = tiny(data={"color": color, "crop": "6x8"}, teacher={"patch": [3, 4]})
    model = estimator(config=config).fit(images[:50])
    scores = model.score_samples(images[50:])
    assert (model.model_.dims, model.model_.color.name) == (6 * 8 * 3, color)
    assert model.bpd(images[:50]) < 8
    elsewhere = images[50:].copy()
    elsewhere[:, 6:] = elsewhere[:, :, 8:] = 0  # beyond the crop
    np.testing.assert_array_equal(model.score_samples(elsewhere), scores)


@pytest.mark.parametrize("estimator", [LVDPG, LVD])
def test_positions_that_are_not_tied(estimator: Any, tmp_path: Path) -> None:
    images = gradients(4, 6, 3)
    images[:, :, :4] = 7  # the patches of the first column, and all that the teacher sees of their surroundings
    config = tiny(clusters={"outer": 2, "inner": 2, "tied": False}, teacher={"patch": [2, 2]}, finetuning={"epochs": 1})
    model = estimator(config=config).fit(images[:50])
    joint = model.model_
    assert not joint.tied
    groups = [circuits for _, circuits in joint.groups()]
    assert len(groups) == 6
    assert all(sum(circuit.num_heads for circuit, _ in own) == joint.num_latent_values for own in groups)
    assert [len(own) for own in groups] == [1, 2, 2, 1, 2, 2]  # one cluster, of one head, which stands for all values
    rows = joint.color.forward(images[50:]).reshape(10, -1)
    np.testing.assert_allclose(joint.written_out().log_likelihood(rows), model.score_samples(images[50:]), rtol=1e-5)
    model.save(tmp_path / "model")
    again = estimator.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(images[50:]), model.score_samples(images[50:]))


def test_positions_that_are_not_tied_are_taken_up_where_an_interrupted_run_left_them(tmp_path: Path) -> None:
    images = gradients(4, 6, 3)
    images[:, :, :4] = 7
    sections: dict[str, Any] = {"clusters": {"outer": 2, "tied": False}, "teacher": {"patch": [2, 2]}}
    settings = resolve(None, tiny(**sections, finetuning={"epochs": 0}))
    whole = distill(images[:50], images[50:], settings, folder=tmp_path).model
    (tmp_path / "model.json").unlink()
    again = distill(images[:50], images[50:], settings, folder=tmp_path).model
    np.testing.assert_array_equal(again.score_samples(images), whole.score_samples(images))
    for name in ("model.json", "prior.safetensors"):
        (tmp_path / name).unlink()
    again = distill(images[:50], images[50:], settings, folder=tmp_path).model
    np.testing.assert_array_equal(again.score_samples(images), whole.score_samples(images))


@pytest.mark.parametrize(
    ("method", "shape", "options", "protocol"),
    [
        ("lvd-pg", (6, 8, 3), ["--color", "ycc709", "--set", "teacher.decoder=convolutional"], ("ycc709", None, False)),
        ("lvd", (8, 9, 1), ["--crop", "6x8", "--color", "rgb"], ("rgb", "6x8", True)),
        ("lvd-pg", (6, 8), ["--set", "clusters.tied=false"], ("ycocg", None, True)),
        ("hclt", (4, 6), [], ("ycocg", None, True)),
        ("rat-spn", (5, 6, 3), ["--crop", "4x6", "--color", "ycc709"], ("ycc709", "4x6", False)),
    ],
)
def test_from_the_command_line(
    method: str,
    shape: tuple[int, ...],
    options: list[str],
    protocol: tuple[str, str | None, bool],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, run = str(tmp_path / "images.npy"), str(tmp_path / "run")
    np.save(data, gradients(*shape))
    settings = [f"--set={name}.{key}={value}" for name, table in TINY.items() for key, value in table.items()]
    fit = ["fit", data, "-o", run, "--method", method, "--set=teacher.patch=[3,4]", *settings, *options]
    assert main([*fit, "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["protocol"] == dict(zip(("color", "crop", "lossless"), protocol, strict=True))
    assert main(["eval", run, data, "--json", "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["bpd"], again["dims"]) == (result["bpd"], result["dims"])
    assert main(["export", run, "-o", str(tmp_path / "model.safetensors"), "--quiet"]) == 0
    assert Circuit.load(tmp_path / "model.safetensors").num_vars == result["dims"]
    for questions in (["sample", run], ["inpaint", run, data, "--mask", "left", "--images", "2"]):
        for name in ("drawn.png", "drawn.npy"):
            assert main([*questions, "-n", "2", "-o", str(tmp_path / name), "--quiet"]) == 0
        assert np.prod(np.load(tmp_path / "drawn.npy").shape[-3:]) == result["dims"]
    if method in ("lvd-pg", "lvd"):
        assert main(["gap", run, data, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["eval", run, data, "--quiet"]) == 0
    assert ("LOSSY" in capsys.readouterr().out) is not protocol[2]
