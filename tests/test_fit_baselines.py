"""`lvd-juice fit --method hclt|rat-spn|einet` and `eval` end to end, on images and on tables."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import lvd_juice, lvd_juice_apart

import pyjuice_lvd
from pyjuice_lvd import LVD, RATSPN, Circuit
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_arrays
from pyjuice_lvd.learn.pieces import Pieces
from pyjuice_lvd.learn.searching import choose
from pyjuice_lvd.progress import SILENT
from pyjuice_lvd.settings import HCLTSettings, resolve

HCLT = ["--method", "hclt", "--set", "hclt.latents=4", "--set", "hclt.epochs=12", "--set", "hclt.batch_size=64"]
RAT_SPN = ["--method", "rat-spn", "--set", "rat_spn.epochs=15", "--set", "rat_spn.batch_size=64"]
EINET = ["--method", "einet", "--set", "einet.epochs=15", "--set", "einet.batch_size=64", "--set", "einet.sums=6"]


KEPT = Path(__file__).parent / "kept"
"""A run of version 0.1.0 that was interrupted in epoch 21 of 60, and its data."""


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


def test_a_run_goes_on_with_all_of_its_data_only(debd: Path, run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Also a finished one, whose figures are of its own test rows."""
    folder, result = run
    for part, said in (("train", "learns from other rows"), ("valid", "has other valid rows"), ("test", "other test")):
        data = tmp_path / part / "toy"
        shutil.copytree(debd, data)
        rows = np.loadtxt(data / f"toy.{part}.data", int, delimiter=",")
        np.savetxt(data / f"toy.{part}.data", rows[::-1], "%d", ",")
        ran = lvd_juice("fit", data, "-o", folder, "--resume", check=False)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert said in ran.stderr
        assert str(debd) in ran.stderr
    about = json.loads((folder / "data.json").read_text())
    older = {name: value for name, value in about.items() if name not in ("valid_digest", "test_digest")}
    try:
        (folder / "data.json").write_text(json.dumps(older))  # as older versions wrote it
        assert json.loads(lvd_juice("fit", debd, "-o", folder, "--resume", "--json", "--quiet").stdout) == result
    finally:
        (folder / "data.json").write_text(json.dumps(about))


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
        "settings.toml", "data.json", "metrics.jsonl", "result.json", "training.png",
        "model/model.json", "model/pieces.json",
        "model/circuit.safetensors",
    }  # fmt: skip


def test_sizes_of_a_tables_hclt_are_chosen_by_its_validation_rows(debd: Path, tmp_path: Path) -> None:
    few = ["--method", "hclt", "--set", "hclt.epochs=6", "--set", "hclt.batch_size=200", "--quiet", "--json"]
    result = json.loads(lvd_juice("fit", debd, "-o", tmp_path / "run", *few).stdout)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tried = [record for record in records if record["stage"] == "search"]
    assert [(r["trees"], r["latents"]) for r in tried[:3]] == [(1, 16), (4, 16), (1, 64)]
    assert [r["pseudocount"] for r in tried] == [0.003, 0.003, 0.003, 0.0003, 0.03, 0.3]
    size = max(tried[:3], key=lambda r: r["valid"])
    assert {(r["trees"], r["latents"]) for r in tried[3:]} == {(size["trees"], size["latents"])}
    assert {r["epochs"] for r in tried} == {2}
    assert epochs_of(tmp_path / "run") == list(range(1, 7))
    trees, latents = size["trees"], size["latents"]
    mixed = trees if trees > 1 else 0
    assert result["params"] == trees * (8 * latents * 3 + 7 * latents**2 + latents) + mixed
    assert not (tmp_path / "run" / "model" / "search.json").exists()
    # One that is set is not chosen, and neither are the others then.
    lvd_juice("fit", debd, "-o", tmp_path / "set", *few, "--set", "hclt.latents=4")
    assert '"search"' not in (tmp_path / "set" / "metrics.jsonl").read_text()


def test_a_search_that_was_interrupted_goes_on_with_what_was_tried(tmp_path: Path) -> None:
    scored: list[HCLTSettings] = []

    def score(own: HCLTSettings) -> float:
        if len(scored) == stop_at:
            raise KeyboardInterrupt
        scored.append(own)
        return -abs(own.latents - 60) - abs(own.pseudocount - 0.02)

    def chosen() -> HCLTSettings:
        pieces = Pieces(tmp_path / "model", resolve(method="hclt"))
        return choose(HCLTSettings(epochs=7), lambda own: own.trees < 4, score, pieces, records.append, SILENT)

    records: list[dict[str, Any]] = []
    stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        chosen()
    stop_at = 99
    own = chosen()
    assert (own.trees, own.latents, own.pseudocount, own.epochs) == (1, 64, 0.03, 7)
    assert [(s.latents, s.pseudocount, s.epochs) for s in scored] == [
        (16, 0.003, 3), (64, 0.003, 3), (64, 0.0003, 3), (64, 0.03, 3), (64, 0.3, 3),
    ]  # fmt: skip
    assert [record["tried"] for record in records] == [1, 2, 3, 1, 2, 3, 4, 5]  # a run drops what it has already


def test_an_estimator_opens_the_run(run: tuple[Path, dict[str, Any]], debd: Path, tmp_path: Path) -> None:
    folder, result = run
    model = pyjuice_lvd.HCLT.load(folder)
    rows = np.loadtxt(debd / "toy.test.data", int, delimiter=",")
    assert model.bpd(rows) == pytest.approx(result["bpd"])
    assert (model.n_features_in_, model.settings_.hclt.latents) == (8, 4)
    assert not hasattr(model, "feature_names_in_")
    model.save(tmp_path / "saved")
    np.testing.assert_array_equal(
        pyjuice_lvd.HCLT.load(tmp_path / "saved").score_samples(rows), model.score_samples(rows)
    )
    with pytest.raises(InputError, match=r"found a model of method hclt, wanted rat-spn \(HCLT.load opens it\)$"):
        RATSPN.load(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for own in (folder, folder / "model"):
        with pytest.raises(InputError, match=r"is of a run of `lvd-juice fit`, wanted another folder$"):
            model.save(own)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.copytree(folder, tmp_path / "run")
    settings = tmp_path / "run" / "settings.toml"
    settings.write_text(settings.read_text().replace('"hclt"', '"lvd"', 1))
    with pytest.raises(InputError, match=r"model\.json: found format .* wanted a model that lvd learns"):
        LVD.load(tmp_path / "run")
    ran = lvd_juice("sample", tmp_path / "run", "-o", tmp_path / "x.npy", check=False)
    assert (ran.returncode, "wanted a model that lvd learns" in ran.stderr) == (2, True)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(InputError, match="this run is unfinished"):
        LVD.load(tmp_path / "run")


def test_an_estimator_opens_a_run_on_named_columns(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table(60, 0), columns=list("abcdefgh"))
    frame.to_csv(tmp_path / "x.csv", index=False)
    lvd_juice("fit", tmp_path / "x.csv", "-o", tmp_path / "run", "--quiet", *RAT_SPN, "--set", "rat_spn.epochs=2")
    model = RATSPN.load(tmp_path / "run")
    assert list(model.feature_names_in_) == list("abcdefgh")
    assert np.isfinite(model.score_samples(frame)).all()
    with pytest.raises(ValueError, match="feature names"):
        model.score_samples(frame[list("bacdefgh")])


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
        ("large.csv", "found 7 in column 6; wanted the categories that the model was fitted with, 0..2"),
        ("narrow.csv", "found 2 variables, wanted the model's 8"),
    ):
        ran = lvd_juice("eval", run[0], tmp_path / name, check=False)
        assert ran.returncode == 2
        (line,) = ran.stderr.splitlines()
        assert line == f"lvd-juice: error: {tmp_path / name}: {part}"
    ran = lvd_juice("eval", run[0], "digits", check=False)
    assert ran.returncode == 2
    assert "digits: found uint8 (1797, 8, 8, 1), wanted integers (N, V)" in ran.stderr


@pytest.mark.parametrize("options", [HCLT, RAT_SPN, EINET])
def test_images(options: list[str], tmp_path: Path) -> None:
    result = json.loads(lvd_juice("fit", "digits", "-o", tmp_path / "run", "--json", "--quiet", *options).stdout)
    assert result["protocol"] == {"color": "ycocg", "crop": None, "lossless": True}
    assert (result["n"], result["dims"]) == (180, 64)
    assert result["bpd"] < result["bpd_factorized"] - 0.1
    again = json.loads(lvd_juice("eval", tmp_path / "run", "digits", "--json", "--quiet").stdout)
    assert again["bpd"] == result["bpd"]


def test_a_killed_run_goes_on_to_the_same_model(tmp_path: Path) -> None:
    """With --resume, bit for bit, and with no epoch recorded twice."""
    np.save(tmp_path / "x.npy", table(4_000, 3))
    long = [*HCLT, "--set", "hclt.epochs=30", "--set", "hclt.batch_size=32", "--set", "hclt.patience=30"]
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
    resumed = json.loads(lvd_juice("fit", data, "-o", folder, "--resume", "--json", *long).stdout)
    undisturbed = json.loads(lvd_juice("fit", data, "-o", tmp_path / "other", "--json", *long).stdout)
    assert resumed["bpd"] == undisturbed["bpd"]
    mine, wanted = (read_arrays(path / "model" / "circuit.safetensors")[0] for path in (folder, tmp_path / "other"))
    for name, array in wanted.items():
        np.testing.assert_array_equal(mine[name], array)
    assert epochs_of(folder) == epochs_of(tmp_path / "other") == list(range(1, 31))
    kept = ["circuit.safetensors", "model.json", "pieces.json"]
    assert sorted(path.name for path in (folder / "model").iterdir()) == kept


def epochs_of(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    records = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [record["epoch"] for record in records if record["stage"] == "EM"]


def test_tables_are_not_for_every_method(debd: Path, tmp_path: Path) -> None:
    ran = lvd_juice("fit", debd, "-o", tmp_path / "run", "--method", "lvd", check=False)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert "a table, which hclt, sparse-hclt, rat-spn and einet learn from; wanted images for method lvd" in line
    assert not (tmp_path / "run").exists()


# --- runs of other versions -------------------------------------------------------------------------------------------


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(KEPT / "run-0.1.0", tmp_path / "run"))


def said(*args: str | Path, status: int = 0) -> Any:
    """What a command says: its JSON, or its error."""
    ran = lvd_juice(*args, check=False)
    assert ran.returncode == status, ran.stderr
    return json.loads(ran.stdout) if status == 0 else ran.stderr


@pytest.mark.parametrize("younger", [[], ["refining", "finetuning", "growing"]])
def test_a_run_of_the_version_before_this_one_is_finished_and_measured(old_run: Path, younger: list[str]) -> None:
    """Also one that was made before some settings were added: they are what was done without them."""
    text = (old_run / "settings.toml").read_text()
    for section in younger:
        text = re.sub(rf"\[{section}\]\n(?:(?!\[[a-z]).*\n)*", "", text)
    assert all(f"[{section}]" not in text for section in younger)
    (old_run / "settings.toml").write_text(text)
    result = said("fit", KEPT / "table.csv", "-o", old_run, "--resume", "--json", "--quiet")
    assert result["bpd"] == pytest.approx(0.7624462927442636, abs=1e-6)  # as 0.1.0 found it, undisturbed
    assert (old_run / "settings.toml").read_text() == text
    assert epochs_of(old_run) == list(range(1, 61))
    again = said("eval", old_run, KEPT / "table.csv", "--json", "--quiet")
    assert again["bpd"] == result["bpd"]
    assert said("fit", KEPT / "table.csv", "-o", old_run, "--resume", "--json") == result
    line = said("fit", KEPT / "table.csv", "-o", old_run, "--resume", "--set", "hclt.latents=3", status=2)
    assert "the run's hclt.latents is 2, found 3" in line


def test_a_run_says_which_version_wrote_it(run: tuple[Path, dict[str, Any]]) -> None:
    settings = tomllib.loads((run[0] / "settings.toml").read_text())
    assert settings["version"] == version("lvd-juice") == run[1]["versions"]["lvd-juice"]


def test_a_run_of_a_later_version_is_refused_with_its_number(old_run: Path) -> None:
    text = (old_run / "settings.toml").read_text()
    (old_run / "settings.toml").write_text('version = "99.0"\n' + text + "\n[offsets]\nstep = 8\n")
    line = said("fit", KEPT / "table.csv", "-o", old_run, "--resume", status=2)
    assert "unknown setting offsets" in line
    assert "written by version 99.0 of lvd-juice" in line


# --- names and columns ------------------------------------------------------------------------------------------------


def test_columns_in_another_order_are_refused(tmp_path: Path) -> None:
    rows = table(120, 4)
    fit, turned, other, bare = (tmp_path / f"{name}.csv" for name in ("fit", "turned", "other", "bare"))
    for path, order, header in ((fit, range(8), "abcdefgh"), (turned, [1, 0, *range(2, 8)], "bacdefgh"),
                                (other, range(8), "abcdefgx"), (bare, range(8), "")):  # fmt: skip
        np.savetxt(path, rows[:, list(order)], "%d", ",", header=",".join(header), comments="")
    small = ["--method", "hclt", "--set", "hclt.epochs=2", "--set", "hclt.latents=2", "--quiet", "--json"]
    run = tmp_path / "run"
    said("fit", fit, "-o", run, *small)
    assert json.loads((run / "data.json").read_text())["columns"] == list("abcdefgh")
    line = said("eval", run, turned, "--json", status=2)
    assert line == f"lvd-juice: error: {turned}: found column 1 (b), wanted a, in the order of training\n"
    assert "other.csv: found column 8 (x), wanted h as in training" in said("eval", run, other, status=2)
    assert said("eval", run, bare, "--json", "--quiet")["n"] == 12  # the same data


def test_a_run_whose_name_is_no_text_is_finished(tmp_path: Path) -> None:
    run, data = Path(os.fsdecode(bytes(tmp_path) + b"/r\xffn")), Path(os.fsdecode(bytes(tmp_path) + b"/d\xe9.csv"))
    data.write_bytes((KEPT / "table.csv").read_bytes())
    small = ["--method", "hclt", "--set", "hclt.epochs=2", "--set", "hclt.latents=2"]
    result = json.loads(lvd_juice_apart("fit", data, "-o", run, *small, "--json").stdout)
    assert os.fsencode(result["run"]) == bytes(run)
    assert os.fsencode(result["data"]["source"]) == bytes(data)
    assert said("eval", run, data, "--json", "--quiet")["bpd"] == result["bpd"]
    for args in (
        ["fit", data, "-o", run, "--resume", "--quiet"],
        ["report", run],
        ["sample", run, "-o", run / "x.npy", "--quiet"],
        ["export", run, "-o", run / "x.jpc", "--quiet"],
    ):
        lvd_juice(*args).stdout.encode()  # is text
    assert Circuit.load(run / "x.jpc").num_vars == 5


def test_a_date_is_no_category(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("age,date\n" + 150 * "1,20240115\n0,20240116\n")
    line = said("fit", tmp_path / "x.csv", "-o", tmp_path / "run", "--method", "hclt", status=2)
    assert line == (
        f"lvd-juice: error: {tmp_path / 'x.csv'}: found 20240116 in column 2 (date), which makes 20,240,117 categories "
        "for 300 rows; wanted categories, numbered from 0 without large gaps\n"
    )
    assert not (tmp_path / "run").exists()
    (tmp_path / "x.csv").write_text("a,b\n" + 150 * "1,0\n0,1\n")
    large = ["--method", "hclt", "--set", "hclt.latents=1000000"]
    line = said("fit", tmp_path / "x.csv", "-o", tmp_path / "run", *large, status=2)
    assert "hclt.latents: found 1000000: the model would take 24 TB of memory, wanted at most the " in line


def test_options_without_use_are_named(tmp_path: Path) -> None:
    small = ["--method", "hclt", "--set", "hclt.epochs=2", "--set", "circuit.latents=64", "--crop", "4x4"]
    ran = lvd_juice("fit", KEPT / "table.csv", "-o", tmp_path / "run", *small)
    assert "--set circuit.latents=64: method hclt has no use for it" in ran.stderr
    assert f"--crop: {KEPT / 'table.csv'} is a table, which has no use for it" in ran.stderr
    assert "hclt.epochs" not in ran.stderr


def test_a_run_that_is_being_written_is_left_alone(old_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyjuice_lvd.julia.start", None)  # it is found before Julia starts
    with (old_run / ".lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = said("fit", KEPT / "table.csv", "-o", old_run, "--resume", status=2)
    assert line == f"lvd-juice: error: {old_run}: another fit (process 4711) is writing this run\n"
