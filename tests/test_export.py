"""`lvd-juice export`: the files that it writes, read back, answer as the run's model does."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import offset_model, tiny_model
from scipy.special import logsumexp

from pyjuice_lvd import Circuit
from pyjuice_lvd.circuit.engine import Evidence
from pyjuice_lvd.cli.main import main
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.models.base import DensityModel
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.settings import Settings, resolve

SMALL = [
    "--set", "teacher.epochs=1", "--set", "teacher.codes=8", "--set", "teacher.channels=8",
    "--set", "teacher.patch=[2,4]", "--set", "clusters.outer=3", "--set", "clusters.inner=2",
    "--set", "circuit.latents=2", "--set", "circuit.epochs=2", "--set", "prior.latents=2", "--set", "prior.epochs=1",
    "--set", "prior.soft_epochs=1",
]  # fmt: skip


def export(capsys: pytest.CaptureFixture[str], run: Path, output: Path, *options: str) -> dict[str, Any]:
    assert main(["export", str(run), "-o", str(output), "--json", "--quiet", *options]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert captured.err == ""
    result: dict[str, Any] = json.loads(line)
    assert result["bytes"] == sum(Path(file).stat().st_size for file in result["files"])
    return result


def refused(capsys: pytest.CaptureFixture[str], run: Path, output: Path, *options: str) -> str:
    assert main(["export", str(run), "-o", str(output), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def header(path: Path) -> list[str]:
    return list(itertools.takewhile(lambda line: line.startswith("c "), path.read_text().splitlines()))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["fit", "digits", "-o", str(run), "--method", "lvd", "--quiet", *SMALL]) == 0
    return run


@pytest.mark.parametrize("suffix", [".jpc", ".jpc.gz", ".safetensors"])
def test_the_joint_circuit_scores_images_as_the_run_does(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    capsys.readouterr()
    result = export(capsys, digits, tmp_path / f"model{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"model{suffix}"]
    pc = Circuit.load(tmp_path / f"model{suffix}")
    assert (result["method"], result["part"], result["files"]) == ("lvd", "joint", [str(tmp_path / f"model{suffix}")])
    assert (pc.num_vars, pc.num_heads) == (result["variables"], result["heads"]) == (64, 1)
    assert (pc.num_nodes, pc.num_edges, pc.num_params) == (result["units"], result["edges"], result["params"])
    images = load_data("digits").test
    assert main(["eval", str(digits), "digits", "--json", "--quiet"]) == 0
    nll = json.loads(capsys.readouterr().out)["nll_nats"]
    assert -pc.log_likelihood(images.reshape(-1, 64)).mean() == pytest.approx(nll, rel=1e-5)
    scores = JointModel.load(digits / "model").score_samples(images)
    np.testing.assert_allclose(pc.log_likelihood(images.reshape(-1, 64)), scores, rtol=1e-5)


def test_the_parts_make_up_the_joint_model(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patches = export(capsys, digits, tmp_path / "patches.jpc", "--part", "patches")
    assert patches["files"] == [str(tmp_path / f"patches-000{index}.jpc") for index in range(3)]
    circuits = [Circuit.load(file) for file in patches["files"]]
    assert [pc.num_vars for pc in circuits] == [8, 8, 8]
    assert patches["heads"] == sum(pc.num_heads for pc in circuits) == 6
    for file, values in zip(patches["files"], ("0..1", "2..3", "4..5"), strict=True):
        assert header(Path(file))[1:4] == [
            f"c p(x | z) of patches, a head for each of z = {values}",
            "c 2x4x1 (height, width, channels), colours ycocg (lossless)",
            "c variable 1 + (row * 4 + column) * 1 + channel, values 0..255",
        ]
    export(capsys, digits, tmp_path / "prior.jpc", "--part", "prior")
    assert header(tmp_path / "prior.jpc")[1:] == [
        "c p(z) of a grid of 4x2 positions",
        "c variable 1 + row * 2 + column, values 0..5: the heads of its patch circuits, one circuit after another",
    ]
    prior = Circuit.load(tmp_path / "prior.jpc")
    images = load_data("digits").test
    x = to_patches(images, (2, 4))
    scores = np.concatenate([pc.log_likelihood(x.reshape(-1, 8), head="all") for pc in circuits], axis=1)
    joint = prior.log_likelihood(Evidence(scores.reshape(len(x), 8, 6).astype(np.float32)))
    np.testing.assert_allclose(joint, JointModel.load(digits / "model").score_samples(images), rtol=1e-5)


def test_a_model_larger_than_the_limit_is_named(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = export(capsys, digits, tmp_path / "model.jpc")["params"]
    kept = (tmp_path / "model.jpc").read_bytes()
    line = refused(capsys, digits, tmp_path / "model.jpc", "--max-params", str(params - 1))
    assert f"the joint circuit has {params:,} parameters, wanted at most {params - 1:,}; raise --max-params" in line
    assert "--part patches" in line
    assert (tmp_path / "model.jpc").read_bytes() == kept
    assert export(capsys, digits, tmp_path / "model.jpc", "--max-params", str(params))["params"] == params
    assert export(capsys, digits, tmp_path / "prior.jpc", "--max-params", "1", "--part", "prior")["variables"] == 8


def test_bad_requests_are_refused(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert "model.txt: wanted a file that ends in .safetensors" in refused(capsys, digits, tmp_path / "model.txt")
    assert "none: does not exist, wanted a run directory" in refused(capsys, tmp_path / "none", tmp_path / "model.jpc")
    assert "cannot be written" in refused(capsys, digits, tmp_path / "nowhere" / "model.jpc", "--quiet")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with RunDirectory.create(run, settings=resolve(method="hclt").to_dict()) as directory:
        directory.finish({})  # without a model, which would be missed otherwise
    assert "model.jpc: cannot be written (No such file" in refused(capsys, run, tmp_path / "nowhere" / "model.jpc")
    (tmp_path / "folder.jpc").mkdir()
    assert "folder.jpc: is a folder, wanted a file to write" in refused(capsys, run, tmp_path / "folder.jpc")


def finished_run(path: Path, model: DensityModel, settings: Settings) -> Path:
    with RunDirectory.create(path, settings=settings.to_dict()) as run:
        model.save(run / "model")
        run.finish({})
    return path


def test_colour_images_of_both_kinds_of_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 4, 6, 3), dtype=np.uint8)
    circuits = [Circuit.hclt(to_patches(images, (4, 2))[:, 0], num_latents=2, num_cats=256, heads=2, perturbation=0.9)]
    prior = Circuit.hclt(rng.integers(0, 2, (50, 3)), num_latents=2, num_cats=2, perturbation=0.9)
    joint = JointModel(image_shape=(4, 6, 3), patch=(4, 2), color="ycc709", circuits=circuits, prior=prior)
    whole = CircuitModel(
        Circuit.hclt(images.reshape(50, -1), num_latents=2, num_cats=256), num_cats=256, image_shape=(4, 6, 3),
        color="ycc709",
    )  # fmt: skip
    models: list[tuple[str, JointModel | CircuitModel]] = [("lvd-pg", joint), ("hclt", whole)]
    for method, model in models:
        run = finished_run(tmp_path / method, model, resolve(method=method, color="ycc709"))
        export(capsys, run, tmp_path / f"{method}.jpc")
        assert header(tmp_path / f"{method}.jpc")[1:] == [
            "c p(x) of images",
            "c 4x6x3 (height, width, channels), colours ycc709 (LOSSY)",
            "c variable 1 + (row * 6 + column) * 3 + channel, values 0..255",
        ]
        rows = joint.color.forward(images).reshape(50, -1)
        found = Circuit.load(tmp_path / f"{method}.jpc").log_likelihood(rows)
        np.testing.assert_allclose(found, model.score_samples(images), rtol=1e-5)
    assert "found 'prior' for a run of hclt" in refused(
        capsys, tmp_path / "hclt", tmp_path / "prior.jpc", "--part", "prior"
    )
    assert not (tmp_path / "prior.jpc").exists()


def test_positions_that_are_not_tied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(cats=4, tied=False)
    run = finished_run(tmp_path / "run", model, resolve(assignments=["clusters.tied=false"]))
    images = np.random.default_rng(0).integers(0, 4, (20, 2, 2), dtype=np.uint8)
    export(capsys, run, tmp_path / "joint.jpc")
    found = Circuit.load(tmp_path / "joint.jpc").log_likelihood(images.reshape(20, 4))
    np.testing.assert_allclose(found, model.score_samples(images), rtol=1e-5)
    files = export(capsys, run, tmp_path / "patches.jpc", "--part", "patches")["files"]
    assert [header(Path(file))[1] for file in files] == [
        "c p(x | z) of the patch at position 0, a head for each of z = 0..1",
        "c p(x | z) of the patch at position 0, a head for each of z = 2..2",
        "c p(x | z) of the patch at position 1, a head for each of z = 0..2",
    ]


def test_shapes_under_offsets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = offset_model((2, 4, 3), (2, 2), "ycocg", (64, 128, 256), [list(range(256))] * 3)
    run = finished_run(tmp_path / "run", model, resolve())
    images = np.random.default_rng(0).integers(0, 256, (20, 2, 4, 3), dtype=np.uint8)
    export(capsys, run, tmp_path / "joint.jpc.gz")
    found = Circuit.load(tmp_path / "joint.jpc.gz").log_likelihood(model.color.forward(images).reshape(20, -1))
    np.testing.assert_allclose(found, model.score_samples(images), rtol=1e-5)
    files = export(capsys, run, tmp_path / "patches.jpc", "--part", "patches")["files"]
    circuits = [circuit for channels in model.shapes for circuit in channels]
    assert [Circuit.load(file).num_params for file in files] == [circuit.num_params for circuit in circuits]
    assert header(Path(files[4]))[1].startswith("c p(x | join) of channel 1 of patches under shape 1, offset 0")
    export(capsys, run, tmp_path / "prior.jpc", "--part", "prior")
    assert header(tmp_path / "prior.jpc")[1] == "c p(h) of a grid of 1x2 positions"


def test_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = np.array(list(itertools.product(range(3), repeat=4)))
    model = CircuitModel(
        Circuit.rat_spn(num_vars=4, depth=2, replicas=2, num_sums=2, num_inputs=2, num_cats=3), num_cats=3
    )
    run = finished_run(tmp_path / "run", model, resolve(method="rat-spn"))
    export(capsys, run, tmp_path / "table.jpc.gz")
    found = Circuit.load(tmp_path / "table.jpc.gz").log_likelihood(every)
    np.testing.assert_allclose(found, model.score_samples(every), rtol=1e-5)
    assert logsumexp(found) == pytest.approx(0, abs=1e-5)
