"""The main job end to end: `lvd-juice fit` and `eval`, and the estimator."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import lvd_juice, lvd_juice_apart

from pyjuice_lvd import LVD, LVDPG
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_arrays
from pyjuice_lvd.learn.sizes import with_clusters
from pyjuice_lvd.settings import resolve

# Everything small, so that a whole run takes seconds.
SMALL = [
    "--set", "teacher.epochs=2", "--set", "teacher.codes=16", "--set", "teacher.channels=16",
    "--set", "clusters.outer=3", "--set", "clusters.inner=2",
    "--set", "circuit.latents=4", "--set", "circuit.epochs=20", "--set", "circuit.batch_size=32",
    "--set", "growing.epochs=20",
    "--set", "prior.latents=4", "--set", "prior.epochs=4", "--set", "prior.soft_epochs=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour gradients of random direction and phase: structure that a factorised model cannot hold."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8]
    slope, phase = rng.uniform(-2, 2, (2, 300, 1, 1, 3)), rng.choice([60, 120, 180], (300, 1, 1, 1))
    values = phase + slope[0] * x[..., None] + slope[1] * y[..., None] + rng.normal(0, 2, (300, 8, 8, 3))
    path = tmp_path_factory.mktemp("data") / "gradients.npz"
    np.savez(
        path, train=np.clip(values, 0, 255).astype(np.uint8)[:240], test=np.clip(values, 0, 255).astype(np.uint8)[240:]
    )
    return path


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "gradients"
    ran = lvd_juice_apart("fit", images, "-o", folder, "--json", *SMALL)
    (line,) = ran.stdout.splitlines()
    return folder, json.loads(line)


def test_fit_reports_what_the_contract_names(run: tuple[Path, dict[str, Any]]) -> None:
    folder, result = run
    assert set(result) >= {
        "method", "bpd", "nll_nats", "std_error_bpd", "n", "dims", "params", "protocol", "seconds", "bpd_factorized",
    }  # fmt: skip
    assert result["protocol"] == {"color": "ycocg", "crop": None, "lossless": True}
    assert (result["method"], result["n"], result["dims"]) == ("lvd-pg", 60, 192)
    assert result["bpd"] == pytest.approx(result["nll_nats"] / (np.log(2) * 192))
    assert result["bpd"] < result["bpd_factorized"] - 0.5  # three levels of grey: the factorised model sees all three
    assert json.loads((folder / "result.json").read_text()) == result


def test_a_run_holds_plain_files_and_its_pictures(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files >= {
        "settings.toml", "data.json", "metrics.jsonl", "result.json",
        "reconstructions.png", "training.png", "growth.png",
        "model/model.json", "model/teacher.safetensors", "model/labels.safetensors", "model/prior.safetensors",
        "model/circuit-0000.safetensors",
    }  # fmt: skip
    assert {Path(name).suffix for name in files - {".lock"}} == {".toml", ".json", ".jsonl", ".png", ".safetensors"}
    stages = [json.loads(line)["stage"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"teacher", "patch circuit", "prior", "p(x)"} <= set(stages)
    assert (folder / "reconstructions.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_opened_by_its_own_name(run: tuple[Path, dict[str, Any]]) -> None:
    assert LVDPG.load(run[0]).n_features_in_ == run[1]["dims"]
    with pytest.raises(InputError, match="is the model of a run, wanted the run: ") as error:
        LVDPG.load(run[0] / "model")
    assert str(error.value).endswith(str(run[0]))


def test_eval_repeats_the_bpd(run: tuple[Path, dict[str, Any]], images: Path) -> None:
    folder, result = run
    again = json.loads(lvd_juice("eval", folder, images, "--json").stdout)
    assert again["bpd"] == pytest.approx(result["bpd"], abs=1e-6)
    assert again["std_error_bpd"] == pytest.approx(result["std_error_bpd"], abs=1e-6)
    assert {name: again[name] for name in ("n", "dims", "params", "protocol")} == {
        name: result[name] for name in ("n", "dims", "params", "protocol")
    }


def test_a_source_without_a_split_is_tested_on_the_same_images(tmp_path: Path, images: Path) -> None:
    data = tmp_path / "all.npy"
    np.save(data, np.load(images)["train"])
    result = json.loads(lvd_juice("fit", data, "-o", tmp_path / "run", "--json", "--seed", "3", *SMALL).stdout)
    again = json.loads(lvd_juice("eval", tmp_path / "run", data, "--json").stdout)
    assert again["n"] == result["n"] == 24
    assert again["bpd"] == pytest.approx(result["bpd"], abs=1e-6)


def test_grey_digits(tmp_path: Path) -> None:
    small = [*SMALL, "--set", "teacher.patch=[4,4]", "--method", "lvd"]
    result = json.loads(lvd_juice("fit", "digits", "-o", tmp_path / "run", "--json", "--quiet", *small).stdout)
    assert (result["method"], result["dims"]) == ("lvd", 64)
    assert result["bpd"] < result["bpd_factorized"]


def test_json_is_all_of_stdout_and_progress_is_on_stderr(run: tuple[Path, dict[str, Any]], images: Path) -> None:
    folder, _ = run
    ran = lvd_juice("eval", folder, images, "--json")
    assert len(ran.stdout.splitlines()) == 1
    assert "log-likelihood: done" in ran.stderr
    assert lvd_juice("eval", folder, images, "--json", "--quiet").stderr == ""
    spoken = lvd_juice("eval", folder, images)
    assert "bpd " in spoken.stdout
    assert "(ycocg, whole images, lossless)" in spoken.stdout


def test_an_interrupted_run_is_continued_with_the_same_outcome(
    run: tuple[Path, dict[str, Any]], images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "pyjuice_lvd.cli", "fit", str(images), "-o", str(folder), *SMALL]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "model" / "circuit-0000.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    assert process.stderr is not None
    said = next(line for line in process.stderr if line.startswith("lvd-juice: interrupted"))
    assert time.monotonic() - sent < 2
    assert "--resume" in said
    process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert not (folder / "result.json").exists()
    result = json.loads(lvd_juice("fit", images, "-o", folder, "--resume", "--json").stdout)
    assert result["bpd"] == run[1]["bpd"]


def test_a_run_killed_again_and_again_ends_in_the_same_model(
    run: tuple[Path, dict[str, Any]], images: Path, tmp_path: Path
) -> None:
    folder, kills = tmp_path / "run", int(os.environ.get("LVD_TEST_KILLS", "2"))
    moments = np.random.default_rng(0)
    for attempt in range(kills):
        again = ["--resume"] if (folder / "settings.toml").exists() else []
        process = subprocess.Popen(
            [sys.executable, "-m", "pyjuice_lvd.cli", "fit", str(images), "-o", str(folder), *SMALL, *again, "--quiet"]
        )
        deadline = time.monotonic() + 60
        while not (folder / "model").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)  # the run has begun: what is left is a matter of seconds
        time.sleep(moments.uniform(0, 4 * (attempt + 1) / kills))
        process.kill()
        process.wait()
    result = json.loads(lvd_juice("fit", images, "-o", folder, "--resume", "--json").stdout)
    assert result["bpd"] == run[1]["bpd"]
    models = [
        {path.name: read_arrays(path)[0] for path in (place / "model").iterdir() if path.suffix == ".safetensors"}
        for place in (folder, run[0])
    ]
    assert models[0].keys() == models[1].keys()
    for name, arrays in models[0].items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, models[1][name][key], err_msg=f"{name}: {key}")
    # Work that was done twice is recorded once.
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    about = [tuple(record.get(key) for key in ("stage", "cluster", "round", "epoch")) for record in records]
    assert len(about) == len(set(about))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("missing.npy", [], "missing.npy"),
        ("floats.npy", [], "found dtype float64 with NaN values, wanted uint8"),
        ("flat.npy", [], "found shape (40, 64)"),
        ("good.npy", ["--set", "teacher.patch=[3,4]"], "patch: found 3x4 for images of 8x8"),
        ("good.npy", ["--set", "clusters.outer=100"], "found 32 training images for clusters.outer = 100"),
        ("good.npy", ["--preset", "huge"], "preset: found 'huge', wanted one of"),
        ("good.npy", ["--set", "circuit.latnets=4"], "did you mean circuit.latents?"),
        ("good.npy", ["--crop", "9x9"], "crop: found 9x9"),
        ("good.npy", ["-o", "a-file"], "a-file: is a file"),
        ("good.npy", ["-o", "used"], "used: is not empty"),
        ("good.npy", ["-o", "nothing", "--resume"], "nothing: "),
        ("good.npy", ["-o", "a-file/run"], "a-file/run: cannot be written"),
        ("good.npy", ["--set", "prior.latents=1000000"], "prior.latents: found 1000000: the model would take"),
        ("good.npy", ["--config", "good.npy"], "good.npy: "),
    ],
)
def test_bad_input_gets_one_line_and_status_2_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: str,
    options: list[str],
    message: str,
) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "good.npy", rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    np.save(tmp_path / "floats.npy", np.full((40, 8, 8), np.nan))
    np.save(tmp_path / "flat.npy", np.zeros((40, 64), np.uint8))
    (tmp_path / "a-file").touch()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("keep me")
    output = [] if "-o" in options else ["-o", "run"]
    monkeypatch.chdir(tmp_path)
    assert message in refused(monkeypatch, "fit", data, *output, *options)
    assert not (tmp_path / "run").exists()
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["letter.txt"]


def refused(monkeypatch: pytest.MonkeyPatch, *args: str | Path) -> str:
    """Run a command that must fail, in one line, while neither Julia nor PyTorch can start."""

    def start(**_: object) -> None:
        raise AssertionError("Julia was started")

    with monkeypatch.context() as without:
        without.setattr("pyjuice_lvd.julia.start", start)
        without.setitem(sys.modules, "torch", None)
        ran = lvd_juice(*args, check=False)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith("lvd-juice: error: ")
    return line


def test_a_folder_that_cannot_be_written_is_refused_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # permissions do not count for root
        try:
            line = refused(monkeypatch, "fit", "digits", "-o", f"{folder}/deeper/run")
        finally:
            if root:
                os.seteuid(0)
    assert "deeper/run: cannot be written, wanted a writable folder" in line


def test_the_other_commands_check_first_too(
    run: tuple[Path, dict[str, Any]],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide, table, mask = tmp_path / "wide.npy", tmp_path / "table.npy", tmp_path / "mask.npy"
    np.save(wide, np.zeros((9, 8, 12, 3), np.uint8))
    np.save(table, np.zeros((9, 192), np.uint8))
    np.save(mask, np.zeros((4, 4), bool))
    folder, picture = run[0], tmp_path / "x.png"
    for args, part in (
        (("eval", folder, tmp_path / "none.npy"), "none.npy: no such file or folder"),
        (("eval", folder, wide), "wide.npy: found images of (8, 12, 3), wanted (8, 8, 3) (height, width, channels)"),
        (("eval", folder, table), "table.npy: found shape (9, 192), a table"),
        (("gap", folder, wide), "wide.npy: found images of (8, 12, 3), wanted (8, 8, 3)"),
        (("gap", folder, images, "-o", tmp_path / "no" / "x.png"), "x.png: cannot be written"),
        (("inpaint", folder, wide, "--mask", "left", "-o", picture), "wide.npy: found images of (8, 12, 3)"),
        (("inpaint", folder, images, "--mask", mask, "-o", picture), "mask.npy: found a mask of (4, 4), wanted (8, 8)"),
        (("sample", folder, "-o", tmp_path / "x.txt"), "x.txt: wanted a file named .png"),
        (("sample", tmp_path, "-o", picture), "is no run directory"),
        (("export", folder, "-o", tmp_path / "x.txt"), "x.txt"),
        (("fit", "digits", "-o", folder, "--resume"), "this run learns from other images"),
        (("fit", images, "-o", folder, "--resume", "--seed", "7"), "the run's seed is 0, found 7"),
    ):
        assert part in refused(monkeypatch, *args)
    assert not picture.exists()


def test_a_finished_run_needs_no_julia_to_report_its_result(
    run: tuple[Path, dict[str, Any]], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyjuice_lvd.julia.start", None)
    assert json.loads(lvd_juice("fit", images, "-o", run[0], "--resume", "--json").stdout) == run[1]


def test_what_of_the_data_is_not_read_is_said(run: tuple[Path, dict[str, Any]], images: Path, tmp_path: Path) -> None:
    with np.load(images) as archive:
        np.savez(tmp_path / "labelled.npz", **archive, labels=np.arange(240))
    ran = lvd_juice("eval", run[0], tmp_path / "labelled.npz", "--json")
    assert f"{tmp_path / 'labelled.npz'}: 1 key not read: labels" in ran.stderr
    assert json.loads(ran.stdout)["bpd"] == run[1]["bpd"]


def test_an_existing_run_needs_resume(run: tuple[Path, dict[str, Any]], images: Path) -> None:
    ran = lvd_juice("fit", images, "-o", run[0], *SMALL, check=False)
    assert ran.returncode == 2
    assert "continue it with --resume" in ran.stderr


@pytest.mark.parametrize(
    ("shape", "changes", "clusters"),
    [
        ((1437, 8, 8, 1), [], 2),
        ((1500, 32, 32, 3), [], 9),
        ((1500, 32, 32, 3), ["teacher.patch=[8,8]"], 2),
        ((1500, 32, 32, 3), ["clusters.tied=false"], 2),
        ((60_000, 28, 28, 1), [], 32),
        ((60_000, 28, 28, 1), ["clusters.outer=7"], 7),
        ((1, 8, 8, 1), [], 1),
        ((60_000, 28, 28, 1), ["method=hclt"], 0),
    ],
)
def test_as_many_clusters_as_patches_are_for(shape: tuple[int, ...], changes: list[str], clusters: int) -> None:
    assert with_clusters(shape, resolve(None, None, changes)).clusters.outer == clusters


def test_the_number_of_clusters_may_be_left_to_the_data(images: Path, tmp_path: Path) -> None:
    left = [*SMALL, "--set", "clusters.outer=0"]
    result = json.loads(lvd_juice("fit", images, "-o", tmp_path / "run", *left, "--json").stdout)
    assert len(list((tmp_path / "run" / "model").glob("circuit-*.safetensors"))) == 2
    assert json.loads(lvd_juice("eval", tmp_path / "run", images, "--json").stdout)["bpd"] == result["bpd"]


def test_a_model_below_the_floor_says_so(tmp_path: Path) -> None:
    """Noise has nothing that a model could learn, but by heart."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", train=noise[:10], valid=noise[10:20], test=noise[20:])
    ran = lvd_juice("fit", tmp_path / "noise.npz", "-o", tmp_path / "run", *SMALL, "--json")
    result = json.loads(ran.stdout)
    assert result["bpd"] > result["bpd_factorized"]
    assert "likelier with every dimension on its own" in ran.stderr


def test_the_estimator(images: Path, tmp_path: Path) -> None:
    from sklearn.base import clone

    data = np.load(images)["train"]
    config = {
        "teacher": {"epochs": 2, "codes": 16, "channels": 16},
        "clusters": {"outer": 3, "inner": 2},
        "circuit": {"latents": 4, "epochs": 4},
        "growing": {"epochs": 4},
        "prior": {"latents": 4, "epochs": 4, "soft_epochs": 2},
    }
    model = clone(LVDPG(config=config, random_state=1)).fit(data)
    scores = model.score_samples(data[:50])
    assert scores.shape == (50,)
    assert scores.dtype == np.float64
    assert model.bpd(data[:50]) == pytest.approx(-scores.mean() / (np.log(2) * 192))
    assert model.score(data[:50]) == pytest.approx(scores.mean())
    model.save(tmp_path / "model")
    loaded = LVDPG.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.score_samples(data[:50]), scores)
    assert loaded.n_features_in_ == model.n_features_in_ == 192
    with pytest.raises(InputError, match="found a model of method lvd-pg, wanted lvd") as error:
        LVD.load(tmp_path / "model")
    assert str(error.value).startswith(f"{tmp_path / 'model'}: ")
    hidden = np.arange(8) >= 4 + np.zeros((8, 1))
    painted = model.inpaint(data[:3], hidden, n_samples=2, random_state=5)
    assert (painted.shape, painted.dtype) == ((2, 3, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(painted[:, :, :, :4], np.broadcast_to(data[:3, :, :4], (2, 3, 8, 4, 3)))
    np.testing.assert_array_equal(
        LVDPG.load(tmp_path / "model").inpaint(data[:3], hidden, n_samples=2, random_state=5), painted
    )
    assert model.sample(4, random_state=1).shape == model.sample(4, biased_modes=True).shape == (4, 8, 8, 3)
    again = LVDPG(config=config, random_state=1).fit(data)
    np.testing.assert_array_equal(again.score_samples(data[:50]), scores)
    one_shot = LVD(config=config, random_state=1).fit(data)
    assert one_shot.settings_.method == "lvd"
    one_shot.save(tmp_path / "lvd")
    with pytest.raises(InputError, match="found a model of method lvd, wanted lvd-pg"):
        LVDPG.load(tmp_path / "lvd")
    with pytest.raises(InputError, match="X: found dtype float64"):
        model.score_samples(data / 255)
