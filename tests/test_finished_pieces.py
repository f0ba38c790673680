"""Files of finished pieces of work: they are taken up where they are of the same work, and checked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_refining import TINY, Killed, gradients

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import write_arrays
from pyjuice_lvd.learn.baselines import learn_circuit
from pyjuice_lvd.learn.labels import Labels
from pyjuice_lvd.learn.pipeline import distill
from pyjuice_lvd.settings import resolve


def test_pieces_of_other_work_are_refused(tmp_path: Path) -> None:
    images, settings = gradients(60), resolve(None, TINY)
    train, valid = images[:50], images[50:]

    def stop(record: dict[str, Any]) -> None:
        if record["stage"] == "prior":
            raise Killed

    with pytest.raises(Killed):
        distill(train, valid, settings, folder=tmp_path, record=stop)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for others, changed, message in (
        ((train[::-1], valid), {}, "has pieces of work on other training images; wanted the same, or another folder"),
        ((train, valid[:5]), {}, "on other validation images"),
        ((train, valid), {"circuit": {"latents": 3, "epochs": 2}}, "circuit.latents = 2, wanted 3, or another folder"),
        ((train, valid), {"seed": 1}, "seed = 0, wanted 1"),
    ):
        with pytest.raises(InputError, match=message) as error:
            distill(*others, resolve(None, {**TINY, **changed}), folder=tmp_path)
        assert str(error.value).startswith(f"{tmp_path}: ")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    # Threads and the teacher's device do not change what the work is; older versions have no pieces.json.
    (tmp_path / "pieces.json").unlink()
    model = distill(train, valid, resolve(None, {**TINY, "threads": 1, "device": "cpu"}), folder=tmp_path).model
    again = distill(train, valid, settings, folder=tmp_path).model
    np.testing.assert_array_equal(again.score_samples(images), model.score_samples(images))
    with pytest.raises(InputError, match="on other training images"):  # a finished model, too
        distill(train[::-1], valid, settings, folder=tmp_path)


def test_damaged_labels_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.safetensors"
    outer = np.array([[0, 1], [1, 0]], np.int32)
    labels = Labels(outer, np.array([[1, 0], [0, 0]], np.int32), np.array([2, 1], np.int32), outer[..., None])
    labels.save(path)
    again = Labels.load(path)
    np.testing.assert_array_equal(again.values, [[1, 2], [2, 0]])
    np.testing.assert_array_equal(again.candidates, outer[..., None])
    for change in (
        {"outer": outer + 1}, {"outer": outer - 1}, {"outer": outer[:1]}, {"outer": outer.ravel()},
        {"head": labels.head + 1}, {"head": labels.head - 1}, {"heads": labels.heads[:1]}, {"heads": outer},
        {"outer": outer.astype(float)},
    ):  # fmt: skip
        replace(labels, **change).save(path)
        with pytest.raises(InputError, match=r"labels\.safetensors: damaged"):
            Labels.load(path)
    write_arrays(path, {"outer": outer})
    with pytest.raises(InputError, match=r"labels\.safetensors: damaged, found no integers named 'head'"):
        Labels.load(path)


@pytest.mark.parametrize("finished", [True, False])
def test_a_circuit_of_other_rows_is_refused(tmp_path: Path, finished: bool) -> None:
    rows = np.random.default_rng(0).integers(0, 3, (60, 4))
    settings = resolve(None, {"method": "hclt", "hclt": {"latents": 2, "epochs": 2}})

    def stop(record: dict[str, Any]) -> None:
        if record["stage"] == "EM" and not finished:
            raise Killed

    def learn(train: np.ndarray, valid: np.ndarray, cats: int = 3, **more: Any) -> None:
        learn_circuit(train, valid, settings, num_cats=cats, folder=tmp_path, **more)

    if finished:
        learn(rows[:50], rows[50:])
    else:
        with pytest.raises(Killed):
            learn(rows[:50], rows[50:], record=stop)
    for train, valid, cats, message in (
        (rows[10:], rows[50:], 3, "on other training table"),
        (rows[:50], rows[:10], 3, "on other validation table"),
        (rows[:50], rows[50:], 4, "on other categories"),
    ):
        with pytest.raises(InputError, match=message):
            learn(train, valid, cats)
    learn(rows[:50], rows[50:])


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    rows = np.zeros((20, 2), np.uint8)
    with pytest.raises(InputError, match="file: cannot be written"):
        learn_circuit(rows, rows, resolve(method="hclt"), num_cats=2, folder=tmp_path / "file")
