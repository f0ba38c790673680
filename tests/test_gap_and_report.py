"""`lvd-juice gap` and `report` on runs."""

import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import lvd_juice
from PIL import Image

from pyjuice_lvd.files.formats import read_arrays, write_arrays, write_json, write_toml
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.settings import kept, resolve

SMALL = [
    "--set", "teacher.epochs=2", "--set", "teacher.codes=16", "--set", "teacher.channels=16",
    "--set", "clusters.outer=3", "--set", "clusters.inner=2",
    "--set", "circuit.latents=4", "--set", "circuit.epochs=5", "--set", "growing.epochs=5",
    "--set", "prior.latents=4", "--set", "prior.epochs=4", "--set", "prior.soft_epochs=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour gradients, without a split of their own."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8]
    slope, phase = rng.uniform(-2, 2, (2, 300, 1, 1, 3)), rng.choice([60, 120, 180], (300, 1, 1, 1))
    values = phase + slope[0] * x[..., None] + slope[1] * y[..., None] + rng.normal(0, 2, (300, 8, 8, 3))
    path = tmp_path_factory.mktemp("data") / "gradients <1>.npy"
    np.save(path, np.clip(values, 0, 255).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the paper's protocol: lossy colours, cropped."""
    folder = tmp_path_factory.mktemp("runs") / "gradients"
    lvd_juice("fit", images, "-o", folder, "--quiet", "--color", "ycc709", "--crop", "8x4", *SMALL)
    return folder


@pytest.fixture(scope="module")
def gap(run: Path, images: Path) -> dict[str, Any]:
    ran = lvd_juice("gap", run, images, "--json")
    assert "EM: done" in ran.stderr
    (line,) = ran.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_gap_reports_the_three_in_the_protocol_of_eval(run: Path, images: Path, gap: dict[str, Any]) -> None:
    evaluated = json.loads(lvd_juice("eval", run, images, "--json", "--quiet").stdout)
    assert {name: gap[name] for name in ("method", "n", "dims", "protocol", "images")} == {
        name: evaluated[name] for name in ("method", "n", "dims", "protocol", "images")
    }
    assert (gap["n"], gap["dims"], gap["protocol"]["lossless"]) == (30, 96, False)
    assert gap["pc_log_likelihood"] == pytest.approx(-evaluated["nll_nats"])
    assert gap["pc_log_likelihood_bpd"] == pytest.approx(evaluated["bpd"])
    assert gap["lvd_objective"] < gap["pc_log_likelihood"]
    parts = gap["teacher_elbo_parts"]
    assert gap["teacher_elbo"] == pytest.approx(parts["reconstruction"] + parts["codes"])
    assert parts["codes"] < 0
    # The teacher models the same 96 channels: its reconstruction term is that of fit.
    fitted = json.loads((run / "result.json").read_text())["teacher"]["reconstruction_bits_per_dim"]
    assert -parts["reconstruction"] / (96 * np.log(2)) == pytest.approx(fitted)
    assert json.loads((run / "gap.json").read_text()) == gap
    assert (run / "gap.png").read_bytes().startswith(b"\x89PNG")


def test_the_prior_over_codes_is_kept(run: Path, images: Path, gap: dict[str, Any], tmp_path: Path) -> None:
    before = (run / "model" / "code-prior.safetensors").read_bytes()
    ran = lvd_juice("gap", run, images, "-o", tmp_path / "other.png", "--json")
    assert "EM" not in ran.stderr
    again = json.loads(ran.stdout)
    assert {name: again[name] for name in gap if name not in ("seconds", "picture")} == {
        name: gap[name] for name in gap if name not in ("seconds", "picture")
    }
    assert (tmp_path / "other.png").exists()
    assert (run / "model" / "code-prior.safetensors").read_bytes() == before
    # Other images than the run's own will do now.
    np.save(tmp_path / "new.npy", np.load(images)[:20] + np.uint8(1))
    spoken = lvd_juice("gap", run, tmp_path / "new.npy", "-o", tmp_path / "new.png", "--quiet")
    assert "20 images, ycc709, top-left 8x4, LOSSY" in spoken.stdout
    assert re.search(r"^LVD objective +-[\d,.]+ ± [\d,.]+ +[\d.]+ +[+-][\d,.]+ ± [\d,.]+$", spoken.stdout, re.MULTILINE)
    lvd_juice("gap", run, images, "--quiet")  # gap.json is of the run's own images again, for the report


class Page(HTMLParser):
    """What is on a page: texts, sources and links; end tags must fit."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        assert tag not in ("script", "link", "iframe")
        self.attributes += attrs
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


@pytest.mark.parametrize("more", [[], ["refining.rounds=1", "refining.latents=2", "finetuning.candidates=2"]])
def test_gap_of_runs_that_saw_mirror_images(images: Path, tmp_path: Path, more: list[str]) -> None:
    options = [option for text in ["data.flip=true", "finetuning.epochs=1", *more] for option in ("--set", text)]
    lvd_juice("fit", images, "-o", tmp_path / "run", "--method", "lvd", "--quiet", *SMALL, *options)
    result = json.loads(lvd_juice("gap", tmp_path / "run", images, "--json", "--quiet").stdout)
    assert result["lvd_objective"] < result["pc_log_likelihood"] < 0
    arrays, facts = read_arrays(tmp_path / "run" / "model" / "outer-centres.safetensors")
    assert set(arrays) == (set() if more else {"centres"})
    if more:
        return
    # What an older version kept, without the mirror images, is learned anew; that takes the run's own data.
    wanted = arrays["centres"].copy()
    del facts["mirror_images"]
    write_arrays(tmp_path / "run" / "model" / "outer-centres.safetensors", {"centres": wanted * np.nan}, facts)
    np.save(tmp_path / "other.npy", np.load(images)[:20] + np.uint8(1))
    refused = lvd_juice("gap", tmp_path / "run", tmp_path / "other.npy", "--quiet", check=False)
    assert (refused.returncode, "wanted the run's own" in refused.stderr) == (2, True)
    again = json.loads(lvd_juice("gap", tmp_path / "run", images, "--json", "--quiet").stdout)
    assert again["lvd_objective"] == result["lvd_objective"]
    arrays, _ = read_arrays(tmp_path / "run" / "model" / "outer-centres.safetensors")
    np.testing.assert_array_equal(arrays["centres"], wanted)


def test_the_report_is_one_page_with_all_in_it(run: Path, gap: dict[str, Any]) -> None:
    Image.new("RGB", (4, 4)).save(run / "samples.png")
    (line,) = lvd_juice("report", run, "--json").stdout.splitlines()
    said = json.loads(line)
    assert said["pictures"] == ["gap.png", "reconstructions.png", "training.png", "growth.png", "samples.png"]
    page = Page(run / "report.html")
    assert said["report"] == str(run / "report.html")
    assert len(page.loads) == 5
    assert all(load.startswith("data:image/png;base64,iVBOR") for load in page.loads)
    assert "url(" not in (run / "report.html").read_text()
    result = json.loads((run / "result.json").read_text())
    for text in (
        f"{result['bpd']:.4f} ± {result['std_error_bpd']:.4f}",
        "ycc709, top-left 8x4, LOSSY: compares with no lossless bpd",
        f"{gap['teacher_elbo']:,.1f} ±",
        "gradients <1>.npy",
        "30 test and 30 valid of 300 images by seed 0",
        "patch circuit",
        "[growing]",
        result["versions"]["torch"],
    ):
        assert text in page.text, text


def test_a_report_without_pictures_or_gap(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "table.npy", rng.integers(0, 3, (60, 4)))
    run = tmp_path / "table"
    lvd_juice("fit", tmp_path / "table.npy", "-o", run, "--quiet", "--method", "hclt", "--set", "hclt.epochs=2")
    (run / "training.png").unlink()
    lvd_juice("report", run, "-o", tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.loads == []
    assert "test bits per variable" in page.text
    assert "Plots" not in page.text
    assert "Teacher and student" not in page.text
    assert not list(tmp_path.glob(".tmp-*"))
    assert not (run / "report.html").exists()


def finished(folder: Path, result: dict[str, Any], data: dict[str, Any]) -> Path:
    """A run directory with these files, as another version or a test set with impossible images may leave it."""
    folder.mkdir()
    write_toml(folder / "settings.toml", kept(resolve(method="lvd")))
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_a_report_says_which_figures_are_not_finite_or_missing(tmp_path: Path) -> None:
    protocol = {"color": "ycocg", "crop": None, "lossless": True}
    impossible = {
        "method": "lvd", "bpd": None, "nll_nats": None, "std_error_bpd": None, "n": 12, "dims": 192,
        "bpd_factorized": 6.5, "params": 1234, "protocol": protocol, "seconds": None,
    }  # fmt: skip
    data = {"source": "photos", "how": "by place", "train": [9, 8, 8, 3], "valid": [1, 8, 8, 3], "test": [12, 8, 8, 3]}
    run = finished(tmp_path / "run", impossible, data)
    records = [{"stage": "prior", "seconds": None}, {"stage": "teacher", "epoch": 1}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "gap.json").write_text(
        json.dumps({"n": 12, "images": "all", "protocol": protocol, "teacher_elbo": -1234.5, "pc_log_likelihood": None})
    )
    lvd_juice("report", run)
    page = Page(run / "report.html")
    cards = page.text.split("Teacher and student")[0]
    assert cards.count("not finite") == 2
    assert "6.5000" in cards
    assert "test bpd: ycocg, whole images, lossless" in cards
    assert "of 12 test images" in cards
    assert re.search(r"teacher ELBO\n+-1,234\.5\n", page.text)
    assert re.search(r"PC log-likelihood\n+not finite\n+not recorded\n+not recorded\n", page.text)
    assert re.search(r"prior\n+1\n+not recorded\n+teacher\n+1\n+not recorded\n", page.text)

    lvd_juice("report", finished(tmp_path / "bare", {"method": "new"}, {}), "-o", tmp_path / "bare.html")
    bare = Page(tmp_path / "bare.html").text
    assert "new, learned from not recorded" in bare
    assert bare.split("Data")[0].count("not recorded") >= 6

    torn = {"method": "lvd", "bpd": 4.0, "protocol": {"color": "rgb"}}
    lvd_juice("report", finished(tmp_path / "torn", torn, {}), "-o", tmp_path / "torn.html")
    assert "test bpd: not recorded" in Page(tmp_path / "torn.html").text


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\n', "has no 'stage': damaged"),
        ("metrics.jsonl", '{"stage": "EM"}\n{"stage": 7}\n', "line 2: stage: found 7 (an integer), wanted a string"),
        ("metrics.jsonl", '{"stage": "EM", "seconds": "1"}\n', "line 1: seconds: found '1' (a string)"),
        ("metrics.jsonl", '{"stage": "EM", "seconds": 1' + 400 * "0" + "}\n", "line 1: seconds: found 1000"),
        ("gap.json", "[]", "found a list, wanted a JSON object"),
        ("settings.toml", "", "has no method: damaged, wanted all settings"),
        ("settings.toml", 'version = "0.1.0"\nmethod = "lvd"\n', "has no seed: damaged, wanted all settings"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, file: str, contents: str, message: str) -> None:
    run = finished(tmp_path / "run", {"method": "lvd"}, {})
    (run / file).write_text(contents)
    ran = lvd_juice("report", run, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"lvd-juice: error: {run / file}: {message}")
    assert not (run / "report.html").exists()


def test_records_of_kinds_that_are_not_known_are_counted(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", {"method": "lvd"}, {})
    (run / "metrics.jsonl").write_text('{"stage": "annealing", "cluster": null, "heat": [1, {}], "seconds": 2}\n')
    lvd_juice("report", run)
    assert re.search(r"annealing\n+1\n+2\.0\n", Page(run / "report.html").text)


def test_what_a_run_says_is_text_on_the_page(tmp_path: Path) -> None:
    nasty = '<script>alert(1)</script> {{ 7 * 7 }} {% raw %} " onload="x'
    run = finished(tmp_path / "a & b", {"method": nasty, "versions": {nasty: nasty}}, {"source": nasty, "how": nasty})
    Image.new("RGB", (4, 4)).save(run / 'x" onerror="y.png')
    lvd_juice("report", run)
    page = Page(run / "report.html")  # which refuses scripts
    assert page.text.count(nasty) >= 5
    assert len(page.loads) == 1
    assert "49" not in page.text
    assert {name for name, _ in page.attributes} <= {"lang", "charset", "name", "content", "class", "alt", "src"}


def test_rows_of_probability_0_are_counted_by_fit_eval_and_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 3, (60, 4))
    test = rng.integers(0, 3, (11, 4))
    test[[2, 7], 1] = 3  # which training never saw
    np.savez(tmp_path / "table.npz", train=rows[:40], valid=rows[40:], test=test)
    np.savez(tmp_path / "possible.npz", test=np.delete(test, [2, 7], axis=0))
    run, exact = tmp_path / "run", ["--set", "hclt.pseudocount=0", "--set", "hclt.step_size=[1,1]"]
    small = ["--method", "hclt", "--set", "hclt.latents=2", "--set", "hclt.epochs=2", "--set", "hclt.batch_size=40"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = json.loads(
            lvd_juice("fit", tmp_path / "table.npz", "-o", run, "--json", "--quiet", *small, *exact).stdout
        )
        evaluated = json.loads(lvd_juice("eval", run, tmp_path / "table.npz", "--json", "--quiet").stdout)
        spoken = lvd_juice("eval", run, tmp_path / "table.npz", "--quiet").stdout
        lvd_juice("report", run)
    others = json.loads(lvd_juice("eval", run, tmp_path / "possible.npz", "--json", "--quiet").stdout)
    assert "impossible" not in others
    for result in (found, evaluated):
        assert (result["bpd"], result["nll_nats"], result["std_error_bpd"]) == (None, None, None)
        assert (result["n"], result["impossible"]) == (11, 2)
        for name in ("bpd", "nll_nats", "std_error_bpd"):
            assert result[f"{name}_possible"] == pytest.approx(others[name])
    assert re.search(
        rf"bpd_possible +{others['bpd']:.4f} ± {others['std_error_bpd']:.4f}  \(bits per variable\)", spoken
    )
    assert re.search(r"impossible +2\n", spoken)
    text = " ".join(Page(run / "report.html").text.split())
    assert f"{others['bpd']:.4f} ± {others['std_error_bpd']:.4f} the same without the 2 of probability 0" in text


def test_images_of_another_shape_are_named(run: Path, gap: dict[str, Any], tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", np.zeros((3, 8, 8), np.uint8))
    for command in ("eval", "gap"):
        ran = lvd_juice(command, run, tmp_path / "grey.npy", "--quiet", check=False)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr == (
            f"lvd-juice: error: {tmp_path / 'grey.npy'}: found images of (8, 4, 1), wanted (8, 4, 3) "
            "(height, width, channels)\n"
        )


def test_a_page_or_picture_that_cannot_be_written_is_refused_before_the_work(
    run: Path, images: Path, gap: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("pyjuice_lvd.cli.models.load_test_data", work)
    monkeypatch.setattr("pyjuice_lvd.cli.report.write_report", work)
    monkeypatch.chdir(run.parent)
    for command, options in (("gap", [images, "-o", "none/x"]), ("report", ["-o", "none/x"])):
        ran = lvd_juice(command, run, *options, check=False)
        assert (ran.returncode, ran.stdout) == (2, "")
        (line,) = ran.stderr.splitlines()
        assert line.startswith("lvd-juice: error: none/x: cannot be written (No such file or directory)")


@pytest.fixture(scope="module")
def places(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs that have no prior over codes yet, and other data."""
    folder = tmp_path_factory.mktemp("places")
    for name in ("fresh", "unfinished", "baseline"):
        (folder / name).mkdir()
        for file in ("settings.toml", "data.json", "result.json"):
            (folder / name / file).write_bytes((run / file).read_bytes())
        (folder / name / "model").symlink_to(folder / "model")
    (folder / "model").mkdir()
    for path in (run / "model").iterdir():
        if "code" not in path.name:
            (folder / "model" / path.name).symlink_to(path)
    (folder / "unfinished" / "result.json").unlink()
    settings = folder / "baseline" / "settings.toml"
    settings.write_text(settings.read_text().replace('"lvd-pg"', '"hclt"'))
    (folder / "baseline" / "model").unlink()
    (folder / "baseline" / "model").mkdir()
    write_json(folder / "baseline" / "model" / "model.json", {"format": CircuitModel.format})
    np.savez(folder / "test.npz", test=np.load(images)[:5])
    np.save(folder / "other.npy", np.load(images)[:200])
    return folder


@pytest.mark.parametrize(
    ("command", "run_name", "data", "message"),
    [
        ("gap", "fresh", "other.npy", "found other training images than the run was fitted on; wanted the run's own"),
        ("gap", "fresh", "test.npz", "found test images only, wanted training images; wanted the run's own"),
        ("gap", "fresh", "nothing.npy", "nothing.npy"),
        ("gap", "baseline", "other.npy", "a run of method hclt, which has no teacher; wanted one of lvd-pg or lvd"),
        ("gap", "unfinished", "other.npy", "this run is unfinished"),
        ("report", "unfinished", None, "this run is unfinished"),
        ("report", "nowhere", None, "does not exist, wanted a run directory"),
    ],
)
def test_errors_are_one_line(places: Path, command: str, run_name: str, data: str | None, message: str) -> None:
    before = sorted(path.name for path in places.rglob("*"))
    ran = lvd_juice(command, places / run_name, *([] if data is None else [places / data]), check=False)
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("lvd-juice: error: ")
    assert message in line
    assert sorted(path.name for path in places.rglob("*")) == before
