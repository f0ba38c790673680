"""What both kinds of model share: what they answer, and the folders that they are kept in."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import offset_model, tiny_model

from pyjuice_lvd import HCLT, LVDPG, Circuit, Windows, julia
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.models.base import DensityModel
from pyjuice_lvd.models.field import FieldModel
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.load import load_model, model_kind
from pyjuice_lvd.models.offsets import OffsetModel
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.models.windows import WindowModel


def whole(color: str | None = "ycocg", shape: tuple[int, int, int] | None = (2, 2, 3)) -> CircuitModel:
    variables = 4 if shape is None else int(np.prod(shape))
    circuit = Circuit.fully_factorized(num_vars=variables, num_cats=256)
    return CircuitModel(circuit, num_cats=256, image_shape=shape, color=color)


def everything() -> list[DensityModel]:
    shifted, _ = offset_model((2, 2, 3), (1, 2), "ycocg", (64, 128, 256), [list(range(256))] * 3)
    return [tiny_model(), tiny_model(tied=False), whole(), whole("ycc709"), whole(None), whole(None, None), shifted]


def data_for(model: DensityModel) -> np.ndarray:
    shape = (4,) if model.image_shape is None else model.image_shape
    return np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)


@pytest.mark.parametrize("number", range(7))
def test_a_model_is_loaded_as_what_it_is(tmp_path: Path, number: int) -> None:
    model = everything()[number]
    model.save(tmp_path)
    again, X = load_model(tmp_path), data_for(model)
    assert type(again) is model_kind(tmp_path) is type(model)
    np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
    assert (again.image_shape, again.dims, again.num_params) == (model.image_shape, model.dims, model.num_params)
    assert again.protocol("2x2") == model.protocol("2x2")
    assert again.bpd(X) == pytest.approx(-model.score_samples(X).mean() / (np.log(2) * model.dims))
    # The circuit written out scores what is modelled of them.
    rows = again.modelled(again.checked(X)).reshape(5, -1)
    pc = again.written_out()
    np.testing.assert_allclose(pc.log_likelihood(rows), again.score_samples(X), rtol=1e-5)
    assert pc.num_params == again.num_params_written_out
    for part in again.parts:
        assert all(isinstance(circuit, Circuit) and about for circuit, about in again.exported(part))


def test_protocols() -> None:
    assert whole().protocol() == {"color": "ycocg", "crop": None, "lossless": True}
    assert whole("ycc709").protocol("16x16") == {"color": "ycc709", "crop": "16x16", "lossless": False}
    assert whole(None).protocol() == {"color": "rgb", "crop": None, "lossless": True}
    assert whole(None, None).protocol() == {"color": None, "crop": None, "lossless": True}
    assert whole("ycc709", (2, 2, 1)).protocol()["lossless"]  # grey images have no colours to lose


def test_the_kind_is_known_without_julia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save(tmp_path)
    monkeypatch.setattr(julia, "call", None)
    assert model_kind(tmp_path) is JointModel


def test_a_model_without_latents_has_no_modes_of_patches() -> None:
    model = whole()
    hidden = np.ones((2, 2), bool)
    for ask in (
        lambda: model.sample(1, biased_modes=True),
        lambda: model.inpaint(data_for(model), hidden, biased_modes=True),
    ):
        with pytest.raises(InputError, match="biased_modes: found a model of one circuit"):
            ask()


@pytest.mark.parametrize("number", range(7))
def test_a_flag_is_true_or_false(number: int) -> None:
    model = everything()[number]
    X, hidden = data_for(model), np.ones(4 if model.image_shape is None else model.image_shape[:2], bool)
    asked: list[tuple[str, Callable[[Any], object]]] = [
        ("exact", lambda flag: model.sample(1, exact=flag)),
        ("biased_modes", lambda flag: model.sample(1, biased_modes=flag)),
        ("exact", lambda flag: model.inpaint(X, hidden, exact=flag)),
        ("biased_modes", lambda flag: model.inpaint(X, hidden, biased_modes=flag)),
    ]
    if model.image_shape is not None:
        asked.append(("exact", lambda flag: model.posterior_mean(X, hidden, exact=flag)))
    for name, ask in asked:
        for flag in ("no", 0, None):
            with pytest.raises(InputError, match=f"{name}: found .*, wanted true or false"):
                ask(flag)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "lvd-juice model 9"}, "found format 'lvd-juice model 9', wanted 'lvd-juice circuit model 1' or"),
        ({"format": 7}, "format: found 7"),
        ({"format": None}, "has no 'format'"),
        ({"patch": None}, "has no 'patch'"),
        ({"patch": [1, 2, 3]}, "patch: found [1, 2, 3], wanted a list of 2 values"),
        ({"patch": [1, 3]}, "patch: found 1x3 for images of 2x2"),
        ({"image_shape": "2x2"}, "image_shape: found '2x2'"),
        ({"circuits": "two"}, "circuits: found 'two'"),
        ({"circuits": -1}, "circuits: found none"),
        ({"circuits": 1}, "prior: found 3 values of z, wanted 2"),
        ({"color": "xyz"}, "color: found 'xyz'"),
        ({"tied": 1}, "tied: found 1"),
        ({"image_shape": [-2, -2, 1]}, "image_shape: found (-2, -2, 1), wanted sides of at least 1"),
        ({"tide": False}, "found 'tide', wanted image_shape, patch, color, circuits, tied"),
    ],
)
def test_a_damaged_description_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tiny_model().save(tmp_path)
    path = tmp_path / "model.json"
    table = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in table.items() if value is not None}))
    with pytest.raises(InputError) as error:
        load_model(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_description_that_is_no_table_is_named(tmp_path: Path) -> None:
    for text in ("[1]", "7", '"format"'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(InputError, match=r"model\.json: found .*, wanted a JSON object"):
            load_model(tmp_path)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    whole().save(tmp_path)
    with pytest.raises(InputError, match=r"model\.json: wanted format 'lvd-juice joint model 1'"):
        JointModel.load(tmp_path)


def test_older_models_do_not_say_whether_positions_are_tied(tmp_path: Path) -> None:
    tiny_model().save(tmp_path)
    table = json.loads((tmp_path / "model.json").read_text())
    del table["tied"]
    (tmp_path / "model.json").write_text(json.dumps(table))
    assert JointModel.load(tmp_path).tied


def test_circuits_that_do_not_fit_are_refused() -> None:
    model = tiny_model()
    made = {"image_shape": (2, 2, 1), "patch": (1, 2), "color": "rgb", "circuits": model.circuits, "prior": model.prior}
    for change, message in (
        ({"patch": (2, 2)}, "prior: found 2 positions, wanted 1"),
        ({"image_shape": (2, 2, 3)}, "circuits: found 2 variables in circuit 0, wanted 6"),
        ({"circuits": []}, "circuits: found none"),
        ({"circuits": model.circuits[:1]}, "prior: found 3 values of z, wanted 2"),
    ):
        wrong: dict[str, Any] = {**made, **change}
        with pytest.raises(InputError, match=message):
            JointModel(**wrong)
    with pytest.raises(InputError, match=r"circuit: found 12 variables, wanted those of images \(4, 4, 3\)"):
        CircuitModel(whole().circuit, num_cats=256, image_shape=(4, 4, 3), color="rgb")
    other = Circuit.fully_factorized(num_vars=2, num_cats=300)
    with pytest.raises(InputError, match="circuits: found 300 categories in circuit 1, wanted 256"):
        JointModel(**{**made, "circuits": [model.circuits[0], other]})
    with pytest.raises(InputError, match="circuit: found 300 categories, wanted 256"):
        CircuitModel(other, num_cats=256, image_shape=(1, 2, 1), color="rgb")


@pytest.mark.parametrize("kind", [JointModel, OffsetModel, FieldModel, CircuitModel, WindowModel])
def test_a_model_is_asked_as_its_estimator_is(kind: type[DensityModel]) -> None:
    """As docs/queries.md has it: `model.model_` takes the same arguments at the same places."""

    def places(function: Callable[..., object]) -> int:
        return sum(given.kind is not given.KEYWORD_ONLY for given in inspect.signature(function).parameters.values())

    estimators: dict[type[DensityModel], type] = {CircuitModel: HCLT, WindowModel: Windows}
    estimator = estimators.get(kind, LVDPG)
    shared = [name for name in dir(estimator) if not name.startswith("_") and callable(getattr(kind, name, None))]
    assert {"score_samples", "inpaint", "marginals", "posterior_mean"} <= set(shared)
    for name in shared:
        assert places(getattr(kind, name)) == places(getattr(estimator, name)), name


def test_an_empty_path_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a variable that is not set."""
    model = HCLT(num_latents=2, epochs=1).fit(np.random.default_rng(0).integers(0, 3, (50, 4)))
    model.save(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    circuit = model.model_.circuit
    for use in (HCLT.load, LVDPG.load, Windows.load, load_model, CircuitModel.load, Circuit.load, model.save,
                model.model_.save, circuit.save):  # fmt: skip
        with pytest.raises(InputError):
            use("")
    assert sorted(tmp_path.rglob("*")) == before
