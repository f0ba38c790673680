"""Features of any encoder in the place of a teacher's: the estimators, the command line, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from commands import lvd_juice
from sklearn.base import clone
from test_refining import Killed

from pyjuice_lvd import LVD, LVDPG
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.learn import pipeline
from pyjuice_lvd.learn.features import as_features, of_images
from pyjuice_lvd.learn.labels import Featured
from pyjuice_lvd.settings import resolve

TINY: dict[str, Any] = {
    "clusters": {"outer": 2, "inner": 2},
    "circuit": {"latents": 2, "epochs": 2},
    "growing": {"epochs": 2},
    "prior": {"latents": 2, "epochs": 2, "soft_epochs": 1},
    "finetuning": {"epochs": 1},
}
WORDS = [f"{section}.{key}={value}" for section, table in TINY.items() for key, value in table.items()]
SET = [word for each in WORDS for word in ("--set", each)]


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8]
    slope, level = rng.uniform(-3, 3, (2, 60, 1, 1, 1)), rng.uniform(60, 180, (60, 1, 1, 3))
    values = level + slope[0] * (x[..., None] - 4) + slope[1] * (y[..., None] - 4) + rng.normal(0, 4, (60, 8, 8, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher is never trained here."""
    monkeypatch.setattr(pipeline, "_teach", lambda *_: pytest.fail("a teacher was trained"))


def encode(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Mean and slopes of each 4x4 patch: float64 (N, P, 3)."""
    x = to_patches(images, (4, 4)).reshape(len(images), -1, 4, 4, images.shape[3]).mean(axis=4)
    slopes = [np.diff(x, axis=axis).mean(axis=(2, 3)) for axis in (2, 3)]
    return np.stack([x.mean(axis=(2, 3)), *slopes], axis=2)


def test_features_stand_in_for_a_teacher(images: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    h = encode(images)
    model = clone(LVDPG(config=TINY)).fit(images, features=h)
    assert model.teacher_ is None
    assert model.features_ is not None
    assert model.features_["shape"] == (54, *h.shape[1:])
    assert model.sample(2).shape == (2, *images.shape[1:])
    scores = model.score_samples(images)
    model.save(tmp_path / "model")
    again = LVDPG.load(tmp_path / "model")
    assert again.teacher_ is None
    assert again.features_ == {**model.features_, "shape": [54, *h.shape[1:]]}
    np.testing.assert_array_equal(again.score_samples(images), scores)
    again.save(tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(
        path.name for path in (tmp_path / "model").iterdir()
    )
    # Other features are another model.
    other = LVDPG(config=TINY).fit(images, features=np.random.default_rng(0).normal(size=h.shape))
    assert (other.score_samples(images) != scores).any()


def test_features_go_with_their_images(images: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    """What K-means sees of each patch is what the encoder makes of that very patch, mirror images included."""
    seen: dict[str, npt.NDArray[Any]] = {}

    def look(patches: Featured, *_: object, **__: object) -> None:
        seen.update(x=patches.x, h=patches.h)
        raise Killed

    monkeypatch.setattr(pipeline, "outer_clusters", look)
    config = {**TINY, "data": {"flip": True, "color": "rgb"}}
    h = np.concatenate([encode(images), encode(images[:, :, ::-1])])
    for features, count in ((h[: len(images)], 54), (h, 2 * 54)):
        with pytest.raises(Killed):
            LVDPG(config=config).fit(images, features=features)
        assert len(seen["x"]) == count
    x = seen["x"].reshape(*seen["x"].shape[:2], -1, images.shape[3])
    np.testing.assert_allclose(seen["h"][..., 0], x.mean(axis=(2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(seen["h"].shape[:2], seen["x"].shape[:2])


def test_a_preset_with_offsets_learns_from_features(images: npt.NDArray[np.uint8]) -> None:
    config = {**TINY, "refining": {"rounds": 1}, "offsets": {"states": 4, "joins": 2, "epochs": 1}}
    h = np.concatenate([encode(images), encode(images[:, :, ::-1])])
    model = LVD(preset="tiny", config=config).fit(images, features=h)
    assert model.teacher_ is None
    assert np.isfinite(model.score_samples(images)).all()


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (
            lambda h: h[:-1],
            {},
            r"features: found float64 \(59, 4, 3\), wanted floats \(60, 4, D\), of 60 images of 2x2",
        ),
        (
            lambda h: h[:-1],
            {"data": {"flip": True}},
            r"images of 2x2 patches, or \(120, 4, D\), of their mirror images too",
        ),
        (lambda h: h[:, :3], {}, r"found float64 \(60, 3, 3\)"),
        (lambda h: h[..., 0], {}, r"found float64 \(60, 4\)"),
        (lambda h: h[..., :0], {}, r"found float64 \(60, 4, 0\)"),
        (lambda h: h.astype(int), {}, r"found int64"),
        (lambda h: np.where(h == h[7, 2], np.nan, h), {}, "features: image 7, position 2: wanted finite numbers"),
        (lambda h: h * 1e300, {}, "image 0, position 0: wanted finite numbers, in single precision"),
        (lambda h: h, {"growing": {"variant": "reference"}}, "growing.quantized: found true with features"),
    ],
)
def test_features_that_do_not_fit_are_named_first(
    images: npt.NDArray[np.uint8], change: Any, config: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyjuice_lvd.estimators.lvd.distill", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(InputError, match=message):
        LVDPG(config={**TINY, **config}).fit(images, features=change(encode(images)))


def test_mirror_images_follow_all_images() -> None:
    h = np.arange(12, dtype=np.float32).reshape(12, 1, 1)
    assert of_images(h, np.array([4, 1]), 6).ravel().tolist() == [4, 1, 10, 7]
    assert of_images(h, np.array([4, 1]), 12).ravel().tolist() == [4, 1]
    settings = resolve(None, TINY)
    assert as_features(h[:6].astype(np.float16), (6, 4, 4, 1), settings).dtype == np.float32


@pytest.mark.parametrize("split", ["all", "train and test"])
def test_fit_reads_features(images: npt.NDArray[np.uint8], tmp_path: Path, split: str) -> None:
    h = encode(images)
    data, file, run = tmp_path / "data.npz", tmp_path / "features.npz", tmp_path / "run"
    parts = {"all": slice(0, 60)} if split == "all" else {"train": slice(0, 50), "test": slice(50, 60)}
    np.savez(data, **{key: images[part] for key, part in parts.items()})
    np.savez(file, **{key: h[part] for key, part in parts.items()})
    words = ["fit", data, "-o", run, "--method", "lvd", "--json", *SET]
    result = json.loads(lvd_juice(*words, "--features", file).stdout)
    assert "teacher" not in result
    count = {"all": 48, "train and test": 45}[split]
    assert result["data"]["features"]["shape"] == [count, *h.shape[1:]]
    assert result["data"]["train"] == count
    model = LVD.load(run)
    assert model.teacher_ is None
    assert model.features_ == {key: result["data"]["features"][key] for key in ("shape", "digest")}
    if split == "all":
        return
    # A resumed run must be given the same features, and says so.
    np.save(tmp_path / "other.npy", h[:50] + 1)
    for more, message in (
        ([], f"this run learns from the features in {file}; found no --features"),
        (["--features", tmp_path / "other.npy"], f"this run learns from the features in {file}; found those in"),
    ):
        refused = lvd_juice(*words, "--resume", *more, check=False)
        assert refused.returncode == 2
        assert message in refused.stderr
    assert json.loads(lvd_juice(*words, "--resume", "--features", file).stdout) == result
    # What needs no teacher works; the gap says what is missing.
    lvd_juice("eval", run, data, "--json")
    lvd_juice("report", run)
    refused = lvd_juice("gap", run, data, check=False)
    assert refused.returncode == 2
    assert "so it has no teacher" in refused.stderr


def test_files_of_features_that_do_not_fit(images: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", images)
    np.save(tmp_path / "short.npy", encode(images)[:9])
    np.savez(tmp_path / "test.npz", test=encode(images))
    for name, method, message in (
        ("short.npy", "lvd", "short.npy: found float64 (9, 4, 3), wanted floats (60, 4, D)"),
        ("test.npz", "lvd", "test.npz: found keys test, wanted the training images' features"),
        ("no.npy", "lvd", "no.npy: no such file"),
        ("data.txt", "lvd", "data.txt: wanted features in a .npy or .npz file"),
        ("short.npy", "hclt", "--features: found method hclt, wanted lvd-pg or lvd"),
    ):
        refused = lvd_juice(
            "fit", tmp_path / "data.npy", "-o", tmp_path / "run", "--method", method, "--features", tmp_path / name,
            check=False,
        )  # fmt: skip
        assert refused.returncode == 2
        assert message in refused.stderr
        assert not (tmp_path / "run").exists()
