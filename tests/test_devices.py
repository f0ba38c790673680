"""Circuits on a device: what they answer and learn there is what they do on the CPU."""

from copy import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from commands import lvd_juice
from models import field_model, offset_model, tiny_model

from pyjuice_lvd import Circuit, julia
from pyjuice_lvd.circuit import Evidence
from pyjuice_lvd.circuit.devices import current, use_device
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.models.field import FieldModel
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.joint_em import fit_end_to_end
from pyjuice_lvd.models.offsets import OffsetModel

rng = np.random.default_rng(3)
X = rng.integers(0, 4, (300, 6))


@pytest.fixture
def circuit() -> Circuit:
    return Circuit.hclt(X, num_latents=4, heads=2, seed=1, perturbation=0.9)


def same(one: Circuit, other: Circuit, rtol: float = 1e-4) -> bool:
    """Whether their parameters are equal, but for the order of sums."""
    pairs = zip(one.engine.learned(), other.engine.learned(), strict=True)
    return all(np.allclose(a, b, rtol=rtol, atol=1e-6) for a, b in pairs)


def test_likelihoods_flows_and_what_goes_by_them(circuit: Circuit) -> None:
    mask, heads = rng.random(X.shape) < 0.3, rng.integers(0, 2, len(X))
    evidence = rng.normal(size=(50, 6, 4)).astype(np.float32)

    def answers() -> list[np.ndarray]:
        flows = circuit.flows(X, heads=heads)
        pruned = circuit.prune(X, heads=heads, keep=0.5)
        grown = circuit.grow(X, heads=heads, select=[1], threshold=5, noise=0)
        return [
            circuit.log_likelihood(X, head="all"), circuit.log_likelihood(X, mask=mask, head=1),
            circuit.log_likelihood(Evidence(evidence.copy())), flows.nodes, flows.edges,
            pruned.log_likelihood(X), grown.log_likelihood(X, head=2),
        ]  # fmt: skip

    wanted = answers()
    with use_device("array") as name:
        assert name == current() == "array"
        found = answers()
    assert current() == "cpu"
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_em_learns_the_same_and_later_calls_see_what_it_learned(circuit: Circuit) -> None:
    other, valid = copy(circuit), rng.integers(0, 4, (40, 6))
    settings = {"heads": X[:, 0] % 2, "weights": rng.random(len(X)), "epochs": 3, "batch_size": 64, "valid": valid}
    history = circuit.fit_em(X, **settings)
    with use_device("array"):
        before = other.log_likelihood(X)
        np.testing.assert_allclose(other.fit_em(X, **settings), history, rtol=1e-5)
        assert same(other, circuit)
        after = other.log_likelihood(X)  # by the engine that there was before
    np.testing.assert_allclose(after, circuit.log_likelihood(X), rtol=1e-5)
    assert abs(after - before).max() > 0.01
    circuit.fit_em(X, epochs=2)
    with use_device("array"):
        other.fit_em(X, epochs=2)
    assert same(other, circuit)


@pytest.mark.parametrize("num_cats", [4, 60])  # as products of matrices, and counted
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_trees_are_the_same(num_cats: int, share: float) -> None:
    values = np.minimum(rng.integers(0, num_cats, (200, 9)), np.arange(9) * num_cats // 9)
    mask = rng.random(values.shape) < share if share else None
    make = partial(Circuit.hclt, values, mask=mask, num_latents=2, num_cats=num_cats, seed=1)
    wanted = make()
    with use_device("array"):
        found = make()
    arrays = zip(found.engine.arrays().values(), wanted.engine.arrays().values(), strict=True)
    assert all(np.array_equal(a, b) for a, b in arrays)


def test_likelihoods_of_many_rows_go_in_whole_passes(circuit: Circuit, monkeypatch: pytest.MonkeyPatch) -> None:
    call, sizes = julia.call, []

    def noted(name: str, *arguments: object) -> object:
        if name == "log_likelihoods!":
            sizes.append(len(arguments[0]))
        return call(name, *arguments)

    many = np.tile(X, (70, 1))
    with use_device("array"):
        at_once = julia.call("samples_at_once", circuit.engine.evaluator(soft=False))
        monkeypatch.setattr(julia, "call", noted)
        found = circuit.log_likelihood(many)
    assert len(many) > 2 * at_once
    assert sum(sizes) == len(many)
    assert all(size % at_once == 0 for size in sizes[:-1])
    np.testing.assert_allclose(found, circuit.log_likelihood(many), rtol=1e-5)


def joint_model() -> tuple[JointModel, np.ndarray]:
    return tiny_model(), np.random.default_rng(5).integers(0, 256, (60, 2, 2, 1)).astype(np.uint8)


def shapes_under_offsets() -> tuple[OffsetModel, np.ndarray]:
    model, values = offset_model((4, 4, 1), (2, 2), "rgb", (64,), [list(range(0, 256, 16))])
    return model, np.random.default_rng(5).choice(values[0], (40, 4, 4, 1)).astype(np.uint8)


def shapes_below_a_field() -> tuple[FieldModel, np.ndarray]:
    model, values = field_model((4, 4, 1), (2, 2), "rgb", (64,), [list(range(0, 256, 16))])
    return model, np.random.default_rng(5).choice(values[0], (40, 4, 4, 1)).astype(np.uint8)


@pytest.mark.parametrize("make", [joint_model, shapes_under_offsets, shapes_below_a_field])
def test_models_of_patches_answer_and_learn_as_on_the_cpu(make) -> None:
    (model, images), (other, _) = make(), make()
    before = model.score_samples(images)
    settings = {"epochs": 2, "batch_size": 16, "step_size": (0.5, 0.1)}
    history = fit_end_to_end(model, images, images[:20], **settings)
    with use_device("array"):
        np.testing.assert_allclose(other.score_samples(images), before, rtol=1e-5)
        np.testing.assert_allclose(fit_end_to_end(other, images, images[:20], **settings), history, rtol=1e-5)
        scores = other.score_samples(images)
    np.testing.assert_allclose(scores, model.score_samples(images), rtol=1e-5)
    assert abs(scores - before).max() > 0.01


def test_posteriors_of_offsets_are_as_on_the_cpu() -> None:
    model, images = shapes_under_offsets()
    mask = np.random.default_rng(6).random(images.shape) < 0.4

    def answers() -> list[np.ndarray]:
        scores = model.score_samples(images, mask=mask)
        return [scores, model.posterior(images, mask=mask), *model.offset_posterior(images, mask=mask)]

    wanted = answers()
    with use_device("array"):
        found = answers()
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("devices", [("cpu", "array"), ("array", "cpu")])
def test_training_goes_on_on_another_device(devices: tuple[str, str], tmp_path: Path) -> None:
    (once, images), (model, _), (resumed, _) = (shapes_under_offsets() for _ in range(3))
    settings = {"epochs": 2, "batch_size": 16, "step_size": (0.5, 0.1)}
    fit_end_to_end(once, images, images, **settings)

    def stop(history: list[float]) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "checkpoint.safetensors"
    with use_device(devices[0]), pytest.raises(KeyboardInterrupt):
        fit_end_to_end(model, images, images, **settings, checkpoint=path, on_epoch=stop)
    with use_device(devices[1]):
        history = fit_end_to_end(resumed, images, images, **settings, checkpoint=path)
    assert len(history) == settings["epochs"]
    for mine, other in zip(resumed.learned(), once.learned(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-6)


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    wanted = "device: found 'tpu', wanted one of auto, cpu, cuda, array"
    with pytest.raises(InputError, match=wanted), use_device("tpu"):
        pass
    with use_device("array"), use_device("auto") as name:
        assert name == "array"
    with use_device("auto") as name:
        assert name == "cpu"
    if _cuda_works():
        pytest.skip("CUDA.jl works here")
    with pytest.raises(InputError, match=r"device: found '?cuda'?, but"), use_device("cuda"):
        pass
    np.savetxt(tmp_path / "table.csv", X, delimiter=",", fmt="%d")
    command = ("fit", tmp_path / "table.csv", "--method", "hclt", "--device", "cuda", "-o", tmp_path / "run")
    ran = lvd_juice(*command, check=False)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("lvd-juice: error: device: found ")
    assert not (tmp_path / "run").exists()


def _cuda_works() -> bool:
    try:
        with use_device("cuda"):
            return True
    except InputError:
        return False


def test_julia_names_devices() -> None:
    with pytest.raises(InputError, match="device: found tpu"):
        julia.call("backend", "tpu")
