"""`sparse-hclt`: pruning and growing by turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import lvd_juice
from sklearn.base import clone
from sklearn.datasets import load_digits

from pyjuice_lvd import HCLT, SparseHCLT
from pyjuice_lvd.learn.baselines import learn_circuit
from pyjuice_lvd.settings import HCLTSettings, resolve

TREE: dict[str, Any] = {"latents": 4, "epochs": 8, "batch_size": 64, "pseudocount": 0.05, "search": False}
DIGITS = load_digits().data.astype(np.int32)


def learned(folder: Path | None = None, record: Any = lambda _: None, **own: Any) -> Any:
    settings = resolve(None, {"hclt": TREE, "sparse_hclt": {"epochs": 8, "keep": 0.5, **own}}, method="sparse-hclt")
    return learn_circuit(DIGITS[:1400], DIGITS[1400:], settings, num_cats=17, folder=folder, record=record)


def test_rounds_make_latents_where_they_tell_something_apart() -> None:
    records: list[dict[str, Any]] = []
    model = learned(record=records.append, rounds=2)
    rounds = [entry for entry in records if entry["stage"] == "prune and grow"]
    before = [entry for entry in records if entry["stage"] == "EM" and "round" not in entry]
    assert [entry["round"] for entry in rounds] == [1, 2]
    assert rounds[-1]["valid"] > rounds[0]["valid"] > max(entry["valid"] for entry in before)
    assert model.score_samples(DIGITS[1400:]).mean() == pytest.approx(rounds[-1]["valid"], rel=1e-5)
    assert model.circuit.num_edges == rounds[-1]["edges"]
    plain = HCLT(num_latents=4, epochs=1).fit(DIGITS[:1400]).model_.circuit
    units = [np.bincount(circuit.engine.arrays()["kind"])[-1] for circuit in (plain, model.circuit)]
    assert units[1] > 2 * units[0]  # each sum has its copy, and that one too, but for the few that pruning cut off
    assert model.circuit.num_edges < 4 * plain.num_edges  # 16 times as many without pruning


def test_rounds_take_steps_of_their_own() -> None:
    def curve(**own: Any) -> list[list[float]]:
        records: list[dict[str, Any]] = []
        learned(record=records.append, rounds=1, **own)
        em = [entry for entry in records if entry["stage"] == "EM"]
        return [[entry["valid"] for entry in em if ("round" in entry) == later] for later in (False, True)]

    default, small = curve(), curve(step_size=(1e-6, 1e-6))
    assert default[0] == small[0]
    assert np.ptp(default[1]) > 0.1 > 0.01 > np.ptp(small[1])


@pytest.mark.parametrize("at", [("EM", 1, 2), ("prune and grow", 1, None), ("EM", 2, 3)])
def test_an_interrupted_round_goes_on_to_the_same_model(
    at: tuple[str, int, int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0)
    whole = learned(rounds=2)
    stopped = False

    def interrupt(entry: dict[str, Any]) -> None:
        nonlocal stopped
        if (entry["stage"], entry.get("round"), entry.get("epoch")) == at and not stopped:
            stopped = True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path, interrupt, rounds=2)
    again = learned(tmp_path, interrupt, rounds=2)
    np.testing.assert_array_equal(again.score_samples(DIGITS), whole.score_samples(DIGITS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circuit.safetensors", "model.json", "pieces.json"]
    np.testing.assert_array_equal(learned(tmp_path, rounds=2).score_samples(DIGITS), whole.score_samples(DIGITS))


def test_a_round_that_makes_it_worse_is_the_last_and_is_not_taken() -> None:
    records: list[dict[str, Any]] = []
    model = learned(record=records.append, rounds=3, keep=0.01, noise=1e6, epochs=1)
    assert [entry["round"] for entry in records if entry["stage"] == "prune and grow"] == [1]
    plain = resolve(None, {"hclt": TREE}, method="hclt")
    tree = learn_circuit(DIGITS[:1400], DIGITS[1400:], plain, num_cats=17)
    np.testing.assert_array_equal(model.score_samples(DIGITS), tree.score_samples(DIGITS))


def test_the_estimator_learns_tables_with_missing_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = np.where(rng.random((400, 1)) < 0.5, [[0, 1, 2, 0, 1, 2]], [[2, 2, 0, 1, 0, 0]]).astype(float)
    table[rng.random(table.shape) < 0.2] = np.nan
    model = SparseHCLT(num_latents=2, epochs=5, rounds=1, round_epochs=5, round_step_size=(0.5, 0.1), keep=0.5)
    assert clone(model).get_params() == model.get_params()
    model.fit(table)
    assert model.settings_.method == "sparse-hclt"
    rounds, tree = model.settings_.sparse_hclt, model.settings_.hclt
    assert (rounds.rounds, rounds.epochs, rounds.step_size) == (1, 5, (0.5, 0.1))
    assert (tree.epochs, tree.step_size) == (5, HCLTSettings.step_size)
    model.save(tmp_path / "model")
    again = SparseHCLT.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(table), model.score_samples(table))


def test_from_the_command_line(tmp_path: Path) -> None:
    options = ["--set", "hclt.latents=2", "--set", "hclt.epochs=3", "--set", "sparse_hclt.rounds=1"]
    run = tmp_path / "run"
    fitted = lvd_juice("fit", "digits", "-o", run, "--method", "sparse-hclt", *options, "--json", "--quiet")
    result = json.loads(fitted.stdout)
    assert (result["method"], result["dims"]) == ("sparse-hclt", 64)
    assert result["bpd"] < result["bpd_factorized"] - 0.1
    assert json.loads(lvd_juice("eval", run, "digits", "--json", "--quiet").stdout)["bpd"] == result["bpd"]
    assert SparseHCLT.load(run).model_.circuit.num_params == result["params"]
    refused = lvd_juice(
        "fit", "digits", "-o", tmp_path / "no", "--method", "sparse-hclt", "--set", "sparse_hclt.keep=1", check=False
    )
    assert refused.returncode == 2
    assert "sparse_hclt.keep: found 1.0, wanted a number above 0 and below 1" in refused.stderr
