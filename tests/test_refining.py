"""Outer clusters refined by small circuits, alone and within the pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.learn.pipeline import distill
from pyjuice_lvd.learn.refining import refine
from pyjuice_lvd.progress import SILENT
from pyjuice_lvd.settings import RefiningSettings, resolve

ROUNDS = RefiningSettings(rounds=6, latents=2, batch_size=32)
CATS = 8


def kinds(n: int = 600) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Patches of three kinds, each noise about its own values."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, n)
    x = np.clip(rng.integers(0, CATS, (3, 6))[kind] + rng.integers(-1, 2, (n, 6)), 0, CATS - 1)
    return x.astype(np.uint8), kind


def agreement(found: npt.NDArray[Any], kind: npt.NDArray[Any]) -> float:
    table = np.array(
        [[np.sum((found == cluster) & (kind == k)) for k in np.unique(kind)] for cluster in np.unique(found)]
    )
    return float(table.max(axis=1).sum() / len(kind))


def half_right(kind: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    rng = np.random.default_rng(1)
    return np.where(rng.random(len(kind)) < 0.5, kind, rng.integers(0, 3, len(kind))).astype(np.int32)


def test_rounds_find_the_kinds_where_half_of_the_labels_are_right() -> None:
    x, kind = kinds()
    labels, records = half_right(kind), []
    assert agreement(labels, kind) < 0.75
    ranked = refine(x, labels, ROUNDS, candidates=2, num_cats=CATS, record=records.append).patches
    assert ranked.shape == (600, 2)
    assert ranked.dtype == np.int32
    assert (ranked[:, 0] != ranked[:, 1]).all()
    assert agreement(ranked[:, 0], kind) > 0.9
    assert [record["round"] for record in records] == list(range(6))
    assert records[-1]["log_likelihood"] > records[0]["log_likelihood"] + 0.2
    assert records[-1]["moved"] < records[0]["moved"]
    assert records[0]["patches"] == 600
    np.testing.assert_array_equal(refine(x, labels, ROUNDS, candidates=2, num_cats=CATS).patches, ranked)


def test_patches_that_take_no_part_in_the_rounds_are_ranked_too() -> None:
    x, kind = kinds(2000)
    records: list[Any] = []
    settings = RefiningSettings(rounds=6, latents=2, batch_size=32, patches=200)
    ranked = refine(x, half_right(kind), settings, num_cats=CATS, record=records.append).patches
    assert records[0]["patches"] == 600
    assert ranked.shape == (2000, 1)
    assert agreement(ranked[:, 0], kind) > 0.9


def test_a_cluster_that_no_patch_prefers_is_dropped_and_never_named() -> None:
    x, _ = kinds()
    labels = np.zeros(600, np.int32)
    labels[0] = 1  # alone, with a pseudocount that makes its circuit flat
    said: list[str] = []

    class Log:
        def stage(self, *args: Any, **kwargs: Any) -> Any:
            return SILENT.stage(*args, **kwargs)

        def log(self, message: str) -> None:
            said.append(message)

    settings = RefiningSettings(rounds=2, latents=2, pseudocount=50.0)
    ranked = refine(x, labels, settings, candidates=2, num_cats=CATS, name="them", progress=Log()).patches
    np.testing.assert_array_equal(ranked, np.zeros((600, 1)))
    assert said == ["them: 1 of 2 clusters had no patch left, and were dropped"]


def test_identical_patches_end_in_one_cluster() -> None:
    x, labels = np.full((40, 4), 5, np.uint8), np.arange(40, dtype=np.int32) % 2
    np.testing.assert_array_equal(refine(x, labels, ROUNDS, candidates=3, num_cats=CATS).patches, np.zeros((40, 1)))


TINY: dict[str, Any] = {
    "method": "lvd",
    "data": {"flip": True},
    "teacher": {"patch": [2, 2], "epochs": 1, "codes": 8, "channels": 8, "blocks": 1, "code_dim": 4, "mixtures": 2},
    "clusters": {"outer": 3, "inner": 2},
    "refining": {"rounds": 2, "latents": 2},
    "circuit": {"latents": 2, "epochs": 2},
    "prior": {"latents": 2, "epochs": 2, "soft_epochs": 1},
    "finetuning": {"epochs": 2, "candidates": 2},
}


def gradients(n: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    level, slope = rng.choice([60, 120, 180], (n, 1, 1)), rng.uniform(-6, 6, (n, 1, 1))
    return np.clip(level + slope * np.arange(6) + rng.normal(0, 2, (n, 4, 6)), 0, 255).astype(np.uint8)[..., None]


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be tidied up after it that the test looks at."""


@pytest.mark.parametrize("tied", [True, False])
def test_a_run_that_dies_at_each_stage_ends_in_the_same_model(tmp_path: Path, tied: bool) -> None:
    images = gradients(60)
    settings = resolve(None, {**TINY, "clusters": {"outer": 3, "inner": 2, "tied": tied}})
    records: list[Any] = []
    whole = distill(images[:50], images[50:], settings, record=records.append).model
    rounds = [record for record in records if record["stage"] == "outer clusters"]
    assert len(rounds) == (2 if tied else 2 * 6)
    assert len({(record["round"], record.get("position")) for record in rounds}) == len(rounds)
    assert rounds[0]["patches"] == (2 * 50 * 6 if tied else 2 * 50)  # with those of the mirror images

    for stage in ("outer clusters", "patch circuit", "prior", "end to end"):

        def dying(record: dict[str, Any], stage: str = stage) -> None:
            if record["stage"] == stage:
                raise Killed

        with pytest.raises(Killed):
            distill(images[:50], images[50:], settings, folder=tmp_path, record=dying)
    again = distill(images[:50], images[50:], settings, folder=tmp_path).model
    np.testing.assert_array_equal(again.score_samples(images), whole.score_samples(images))


def test_candidates_without_refining_are_refused() -> None:
    with pytest.raises(InputError, match=r"finetuning\.candidates: found 2 with refining\.rounds = 0"):
        resolve(None, {"finetuning": {"candidates": 2}})
