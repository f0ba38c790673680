"""`lvd-juice fit --method hclt|rat-spn` and `eval` end to end, on images and on tables."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import lvd_juice, lvd_juice_apart

from pyjuice_lvd.files.formats import read_arrays

HCLT = ["--method", "hclt", "--set", "hclt.latents=4", "--set", "hclt.epochs=12", "--set", "hclt.batch_size=64"]
RAT_SPN = ["--method", "rat-spn", "--set", "rat_spn.epochs=15", "--set", "rat_spn.batch_size=64"]


def table(n: int, seed: int) -> np.ndarray:
    """Eight columns that follow one of two patterns."""
    rng = np.random.default_rng(seed)
    rows = np.where(rng.random((n, 1)) < 0.5, [[0, 1, 2, 0, 1, 2, 0, 0]], [[2, 2, 0, 1, 0, 0, 1, 2]])
    return np.where(rng.random((n, 8)) < 0.1, rng.integers(0, 3, (n, 8)), rows)


@pytest.fixture(scope="module")
def debd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "toy"
    folder.mkdir()
    for seed, (split, n) in enumerate({"train": 800, "valid": 100, "test": 150}.items()):
        np.savetxt(folder / f"toy.{split}.data", table(n, seed), "%d", ",")
    return folder


@pytest.fixture(scope="module")
def run(debd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "toy"
    (line,) = lvd_juice("fit", debd, "-o", folder, "--json", *HCLT).stdout.splitlines()
    return folder, json.loads(line)


def test_a_table_is_reported_per_variable_and_per_row(run: tuple[Path, dict[str, Any]]) -> None:
    folder, result = run
    assert set(result) >= {
        "method", "bpd", "nll_nats", "std_error_bpd", "n", "dims", "params", "protocol", "seconds", "bpd_factorized",
    }  # fmt: skip
    assert result["protocol"] == {"color": None, "crop": None, "lossless": True}
    assert (result["method"], result["n"], result["dims"]) == ("hclt", 150, 8)
    assert result["bpd"] == pytest.approx(result["nll_nats"] / (np.log(2) * 8))
    assert result["bpd"] < result["bpd_factorized"] - 0.4
    assert json.loads((folder / "data.json").read_text())["categories"] == 3
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names - {".lock"} == {
        "settings.toml", "data.json", "metrics.jsonl", "result.json", "training.png", "model/model.json",
        "model/circuit.safetensors",
    }  # fmt: skip


def test_eval_repeats_the_figures(run: tuple[Path, dict[str, Any]], debd: Path, tmp_path: Path) -> None:
    folder, result = run
    again = json.loads(lvd_juice("eval", folder, debd, "--json").stdout)
    for name in ("method", "bpd", "nll_nats", "std_error_bpd", "n", "dims", "params", "protocol"):
        assert again[name] == result[name]
    spoken = lvd_juice("eval", folder, debd).stdout
    assert "(bits per variable)" in spoken
    np.savetxt(tmp_path / "other.csv", table(40, 9), "%d", ",", header="a,b,c,d,e,f,g,h", comments="")
    other = json.loads(lvd_juice("eval", folder, tmp_path / "other.csv", "--json").stdout)
    assert other["n"] == 40
    assert other["bpd"] == pytest.approx(result["bpd"], abs=0.2)


def test_what_does_not_fit_the_run_is_named(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "large.csv").write_text("0,1,2,0,1,2,0,0\n0,1,2,0,1,7,0,0\n")
    (tmp_path / "narrow.csv").write_text("0,1\n1,0\n")
    for name, part in (
        ("large.csv", "found 7 in row 1, variable 5; wanted the categories that the model was fitted with, 0..2"),
        ("narrow.csv", "found 2 variables, wanted the model's 8"),
    ):
        ran = lvd_juice("eval", run[0], tmp_path / name, check=False)
        assert ran.returncode == 2
        (line,) = ran.stderr.splitlines()
        assert line == f"lvd-juice: error: {tmp_path / name}: {part}"
    ran = lvd_juice("eval", run[0], "digits", check=False)
    assert ran.returncode == 2
    assert "digits: found uint8 (1797, 8, 8, 1), wanted integers (N, V)" in ran.stderr


@pytest.mark.parametrize("options", [HCLT, RAT_SPN])
def test_images(options: list[str], tmp_path: Path) -> None:
    result = json.loads(lvd_juice("fit", "digits", "-o", tmp_path / "run", "--json", "--quiet", *options).stdout)
    assert result["protocol"] == {"color": "ycocg", "crop": None, "lossless": True}
    assert (result["n"], result["dims"]) == (180, 64)
    assert result["bpd"] < result["bpd_factorized"] - 0.1
    again = json.loads(lvd_juice("eval", tmp_path / "run", "digits", "--json", "--quiet").stdout)
    assert again["bpd"] == result["bpd"]


def test_a_killed_run_goes_on_to_the_same_model(tmp_path: Path) -> None:
    """With --resume, bit for bit, and with no epoch recorded twice."""
    np.save(tmp_path / "x.npy", table(10_000, 3))
    long = [*HCLT, "--set", "hclt.epochs=40", "--set", "hclt.batch_size=32", "--set", "hclt.patience=40", "--threads=1"]
    data, folder = tmp_path / "x.npy", tmp_path / "run"
    fit = (
        "from pyjuice_lvd.circuit import checkpoint; checkpoint._INTERVAL = 0; from pyjuice_lvd.cli.main import main; "
    )
    command = [sys.executable, "-c", f"import sys; {fit} sys.exit(main())", "fit", str(data), "-o", str(folder), *long]
    for end in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen([*command, *(["--resume"] if folder.exists() else [])], stderr=subprocess.PIPE)
        begun = len(epochs_of(folder))
        deadline = time.monotonic() + 60
        while len(epochs_of(folder)) < begun + 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(end)
        process.communicate(timeout=60)
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[end]
    assert not (folder / "result.json").exists()
    resumed = json.loads(lvd_juice_apart("fit", data, "-o", folder, "--resume", "--json", *long).stdout)
    undisturbed = json.loads(lvd_juice_apart("fit", data, "-o", tmp_path / "other", "--json", *long).stdout)
    assert resumed["bpd"] == undisturbed["bpd"]
    mine, wanted = (read_arrays(path / "model" / "circuit.safetensors")[0] for path in (folder, tmp_path / "other"))
    for name, array in wanted.items():
        np.testing.assert_array_equal(mine[name], array)
    assert epochs_of(folder) == epochs_of(tmp_path / "other") == list(range(1, 41))
    assert sorted(path.name for path in (folder / "model").iterdir()) == ["circuit.safetensors", "model.json"]


def epochs_of(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    records = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [record["epoch"] for record in records if record["stage"] == "EM"]


def test_tables_are_not_for_every_method(debd: Path, tmp_path: Path) -> None:
    ran = lvd_juice("fit", debd, "-o", tmp_path / "run", "--method", "lvd", check=False)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert "a table, which hclt and rat-spn learn from; wanted images for method lvd" in line
    assert not (tmp_path / "run").exists()
