"""EM on the joint model: the prior alone, and end to end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import tiny_model

from pyjuice_lvd import julia
from pyjuice_lvd.circuit import Statistics
from pyjuice_lvd.circuit.history import History
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.joint_em import fit_end_to_end, fit_prior


def alike(n: int, seed: int = 3) -> np.ndarray:
    """Images of two positions that are alike, of which the second tells of the first: p(z) has something to learn."""
    images = np.random.default_rng(seed).integers(0, 4, (n, 2, 2, 1), dtype=np.uint8)
    images[:, 1] = images[:, 0]
    return images


def learned(model: JointModel) -> list[np.ndarray]:
    return [array.copy() for part in (model.prior, *model.circuits) for array in part.parameters()]


def test_em_on_images_raises_their_likelihood_and_keeps_the_best_parameters() -> None:
    model = tiny_model(cats=4)
    images = np.random.default_rng(3).integers(0, 4, (200, 2, 2), dtype=np.uint8)
    images[:, 1] = images[:, 0]  # the two positions are equal: p(z) has something to learn
    train, valid = images[:150, ..., None], images[150:, ..., None]
    before = model.score_samples(valid).mean()
    history = fit_prior(model, train, valid, epochs=8, step_size=(0.5, 0.1), pseudocount=0.01)
    assert history[-1] > history[0]
    after = model.score_samples(valid).mean()
    assert after > before
    assert after == pytest.approx(max(history.valid), rel=1e-9)


def test_em_on_more_images_than_memory_holds_goes_share_by_share(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(3).integers(0, 4, (200, 2, 2, 1), dtype=np.uint8)
    images[:, 1] = images[:, 0]
    whole, shared = tiny_model(cats=4), tiny_model(cats=4)
    settings: dict[str, Any] = {"epochs": 6, "step_size": (0.2, 0.05), "batch_size": 16, "patience": 6}
    expected = fit_prior(whole, images[:150], images[150:], **settings)
    sizes: list[int] = []
    scored = JointModel.patch_scores
    monkeypatch.setattr(
        JointModel, "patch_scores", lambda self, x, mask=None: (sizes.append(len(x)), scored(self, x, mask))[1]
    )
    found = fit_prior(shared, images[:150], images[150:], memory=shared.evidence_bytes(40) / 2**30, **settings)
    assert max(sizes) <= 50  # the 50 of validation, which are scored in parts of their own
    assert sizes.count(40) == 6 * 3
    assert found.valid[-1] == pytest.approx(expected.valid[-1], abs=0.02)
    assert found[-1] == pytest.approx(expected[-1], abs=0.02)


def test_a_step_end_to_end_is_a_step_on_the_circuit_written_out() -> None:
    model, images = tiny_model(cats=4), alike(60)
    whole = model.written_out()
    stats = whole.accumulate(images.reshape(60, 4))
    expected = tiny_model(cats=4).circuits
    tied: list[Statistics | None] = [None, None]
    edges = inputs = 0
    for _ in range(2):  # copies of both circuits at each position
        for number, circuit in enumerate(expected):
            weight, leaf = circuit.parameters()
            own = slice(edges, edges + len(weight)), slice(inputs, inputs + len(leaf))
            edges, inputs = own[0].stop, own[1].stop
            copy = Statistics(stats.edges[own[0]], stats.inputs[own[1]], 0.0, 0.0, circuit.engine.structure)
            before = tied[number]
            tied[number] = copy if before is None else before + copy
    for circuit, sums in zip(expected, tied, strict=True):
        assert sums is not None
        circuit.apply(sums, step_size=0.5, pseudocount=0.2)
    history = fit_end_to_end(
        model, images, images[:1], epochs=1, step_size=(0.5, 0.5), batch_size=60, pseudocount=0.2, patience=9
    )
    assert history[0] == pytest.approx(stats.log_likelihood / 60, rel=1e-6)
    for circuit, wanted in zip(model.circuits, expected, strict=True):
        for found, values in zip(circuit.parameters(), wanted.parameters(), strict=True):
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-7)


def test_positions_that_are_not_tied_learn_as_the_circuit_written_out() -> None:
    model, images = tiny_model(cats=4, tied=False), alike(60)
    whole = model.written_out()
    (expected,) = whole.fit_em(images.reshape(60, 4), epochs=1, step_size=0.5, batch_size=60, pseudocount=0.2)
    settings: dict[str, Any] = {"step_size": (0.5, 0.5), "batch_size": 60, "pseudocount": 0.2, "prior_pseudocount": 0.2}
    history = fit_end_to_end(model, images, images, epochs=1, patience=9, **settings)
    assert history[0] == pytest.approx(expected, rel=1e-6)
    for found, values in zip(model.written_out().parameters(), whole.parameters(), strict=True):
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-7)


def test_end_to_end_reaches_what_the_prior_alone_does_not() -> None:
    train, valid = alike(400), alike(100, seed=4)
    only_prior, whole = tiny_model(cats=4), tiny_model(cats=4)
    fit_prior(only_prior, train, valid, epochs=40, step_size=(1.0, 0.5), pseudocount=0.01, patience=40)
    history = fit_end_to_end(
        whole, train, valid, epochs=40, step_size=(1.0, 0.5), pseudocount=0.01, prior_pseudocount=0.01, patience=40
    )
    assert whole.score_samples(valid).mean() > only_prior.score_samples(valid).mean() + 0.1
    assert whole.score_samples(valid).mean() == pytest.approx(max(history.valid), rel=1e-9)


def test_training_end_to_end_ends_early_with_the_best_parameters() -> None:
    model, images = tiny_model(cats=4), alike(300)
    unlike = np.random.default_rng(0).integers(0, 4, (100, 2, 2, 1), dtype=np.uint8)
    history = fit_end_to_end(model, images, unlike, epochs=30, step_size=(0.5, 0.5), patience=2)
    assert len(history) == history.best + 2 < 30
    best = max(history.valid) if history.best else tiny_model(cats=4).score_samples(unlike).mean()
    assert model.score_samples(unlike).mean() == pytest.approx(best, rel=1e-9)


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be tidied up after it that the test looks at."""


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_training_end_to_end_goes_on_between_two_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    settings: dict[str, Any] = {"epochs": 3, "step_size": (0.3, 0.1), "batch_size": 50, "patience": 3, "seed": 5}
    train, valid = alike(150), alike(50, seed=4)
    whole = tiny_model(cats=4)
    expected = fit_end_to_end(whole, train, valid, **settings)
    monkeypatch.setattr("pyjuice_lvd.circuit.steps.PIECE", 0.0)  # one batch for each call
    monkeypatch.setattr("pyjuice_lvd.circuit.checkpoint._INTERVAL", 0.0)
    checkpoint = tmp_path / "finetuning.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(julia, "call", dying_after(steps, julia.call))
        with pytest.raises(Killed):
            fit_end_to_end(tiny_model(cats=4), train, valid, checkpoint=checkpoint, **settings)
    model = tiny_model(cats=4)
    found = fit_end_to_end(model, train, valid, checkpoint=checkpoint, **settings)
    assert (found, found.valid, found.best) == (expected, expected.valid, expected.best)
    for array, values in zip(learned(model), learned(whole), strict=True):
        np.testing.assert_array_equal(array, values)
    other = alike(150, seed=6)
    for changed, images, held_out, message in (
        ({"seed": 6}, train, valid, "with seed = 5, wanted 6 or no file"),
        ({}, other, valid, "on other training images; wanted the same, or no file"),
        ({}, train, alike(50, seed=7), "on other valid; wanted the same, or no file"),
        ({"candidates": np.zeros((150, 2, 1), int)}, train, valid, "with candidates = 0, wanted 1 or no file"),
    ):
        with pytest.raises(InputError, match=message):
            fit_end_to_end(model, images, held_out, checkpoint=checkpoint, **{**settings, **changed})


def test_a_checkpoint_knows_its_candidates(tmp_path: Path) -> None:
    model, images, path = tiny_model(cats=4), alike(60), tmp_path / "finetuning.safetensors"
    settings: dict[str, Any] = {"epochs": 1, "step_size": (0.3, 0.1), "checkpoint": path}
    fit_end_to_end(model, images, images, candidates=np.zeros((60, 2, 1), int), **settings)
    with pytest.raises(InputError, match="on other candidates"):
        fit_end_to_end(model, images, images, candidates=np.ones((60, 2, 1), int), **settings)


def dying_after(steps: int, call: Callable[..., Any]) -> Callable[..., Any]:
    def dying(name: str, *args: Any) -> Any:
        nonlocal steps
        if name == "advance!":
            steps -= 1
            if steps < 0:
                raise Killed
        return call(name, *args)

    return dying


def test_a_circuit_without_a_patch_stays_as_it_is() -> None:
    model, images = tiny_model(cats=4), alike(40)
    _, leaf = model.prior.parameters()
    table = leaf.reshape(-1, 3, 2)  # (positions, values of z, latents): the last value is the second circuit's
    table[:, 2] = 0
    table /= table.sum(1, keepdims=True)
    before = [array.copy() for array in model.circuits[1].parameters()]
    fit_end_to_end(model, images, images, epochs=2, step_size=(0.5, 0.5), prior_pseudocount=0.0)
    for found, values in zip(model.circuits[1].parameters(), before, strict=True):
        np.testing.assert_array_equal(found, values)


def test_all_circuits_as_candidates_are_no_restriction() -> None:
    restricted, free, images = tiny_model(cats=4), tiny_model(cats=4), alike(120)
    both = np.broadcast_to(np.array([1, 0]), (120, 2, 2))
    settings: dict[str, Any] = {"epochs": 2, "step_size": (0.5, 0.2), "batch_size": 50}
    found = fit_end_to_end(restricted, images, images, candidates=both, **settings)
    expected = fit_end_to_end(free, images, images, **settings)
    assert (list(found), found.valid) == (list(expected), expected.valid)
    for array, values in zip(learned(restricted), learned(free), strict=True):
        np.testing.assert_array_equal(array, values)


def test_candidates_make_it_a_lower_bound_that_full_batches_raise() -> None:
    model, images = tiny_model(cats=4), alike(200)
    one = np.random.default_rng(0).integers(0, 2, (200, 2, 1))
    before = model.score_samples(images).mean()
    history = fit_end_to_end(
        model, images, images, epochs=20, step_size=(1.0, 1.0), batch_size=200, candidates=one, pseudocount=0.0,
        prior_pseudocount=0.0, patience=20,
    )  # fmt: skip
    assert history[0] < before - 0.1
    assert np.all(np.diff(history) > -1e-5)
    assert history[-1] > history[0] + 0.1
    assert all(valid > bound for valid, bound in zip(history.valid, history[1:], strict=False))


@pytest.mark.parametrize("fit", [fit_prior, fit_end_to_end])
def test_images_that_do_not_fit_are_called_by_their_own_name(fit: Callable[..., History]) -> None:
    model, images = tiny_model(cats=4), alike(5)
    for name, given in (("train", (images[:, :1], images)), ("valid", (images, images[:, :1]))):
        with pytest.raises(InputError, match=f"^{name}: found images of"):
            fit(model, *given, epochs=1, step_size=(0.1, 0.1))


def test_what_cannot_be_trained_end_to_end_is_refused() -> None:
    model = tiny_model(cats=4)
    for wrong in (np.zeros((5, 1, 1), int), np.zeros((5, 2, 0), int), np.zeros((5, 2), int), np.zeros((5, 2, 1))):
        with pytest.raises(InputError, match=r"candidates: found .*, wanted integers \(5, 2, M\)"):
            fit_end_to_end(model, alike(5), alike(5), epochs=1, step_size=(0.1, 0.1), candidates=wrong)
    with pytest.raises(InputError, match=r"candidates: found 0\.\.2, wanted 0\.\.1"):
        fit_end_to_end(
            model,
            alike(5),
            alike(5),
            epochs=1,
            step_size=(0.1, 0.1),
            candidates=np.arange(3).reshape(1, 1, 3).repeat(5, 0).repeat(2, 1),
        )
    with pytest.raises(InputError, match=r"outside 0\.\.3"):
        fit_end_to_end(model, np.full((5, 2, 2, 1), 9, np.uint8), alike(5), epochs=1, step_size=(0.1, 0.1))
    with pytest.raises(InputError, match="at least one image"):
        fit_end_to_end(model, alike(0), alike(5), epochs=1, step_size=(0.1, 0.1))
    with pytest.raises(InputError, match="step_size"):
        fit_end_to_end(model, alike(5), alike(5), epochs=1, step_size=(2.0, 0.1))


@pytest.mark.parametrize("fit", [fit_prior, fit_end_to_end])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 1.5}, "epochs: found 1.5 (a number), wanted an integer"),
        ({"step_size": (0.1,)}, "step_size: found (0.1,), wanted a list of 2 values"),
        ({"batch_size": None}, "batch_size: found None (NoneType), wanted an integer"),
        ({"pseudocount": np.inf}, "pseudocount = Inf: want 0, or 1e-30 to 1e20"),
        ({"pseudocount": 1e39}, "pseudocount = 1.0e39: want 0, or 1e-30 to 1e20"),
        ({"patience": 0}, "patience: found 0, wanted at least 1"),
        ({"seed": None}, "seed: found None (NoneType), wanted an integer"),
    ],
)
def test_parameters_of_em_are_checked(fit: Callable[..., object], wrong: dict[str, object], message: str) -> None:
    model = tiny_model(cats=4)
    before = learned(model)
    with pytest.raises(InputError) as caught:
        fit(model, alike(5), alike(5), **{"epochs": 1, "step_size": (0.1, 0.1), **wrong})
    assert str(caught.value).startswith(message)
    for array, values in zip(learned(model), before, strict=True):
        np.testing.assert_array_equal(array, values)


def test_the_priors_own_parameters_are_checked() -> None:
    for fit, wrong, message in (
        (fit_prior, {"memory": -1}, "memory: found -1.0, wanted a finite number"),
        (fit_end_to_end, {"prior_pseudocount": np.nan}, "prior_pseudocount = NaN: want 0, or"),
    ):
        with pytest.raises(InputError, match=message):
            fit(tiny_model(cats=4), alike(5), alike(5), epochs=1, step_size=(0.1, 0.1), **wrong)
