"""Settings: layers, types, ranges, and messages that name the setting."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from pyjuice_lvd.data.color import COLORS
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.settings import (
    CircuitSettings,
    ClusterSettings,
    DataSettings,
    GrowingSettings,
    HCLTSettings,
    OffsetSettings,
    PriorSettings,
    Settings,
    SparseHCLTSettings,
    TeacherSettings,
    kept,
    preset_names,
    resolve,
    restored,
    setting_names,
)
from pyjuice_lvd.settings.choices import COLOR_NAMES, METHODS, SECTIONS, VARIANTS
from pyjuice_lvd.settings.kept import before
from pyjuice_lvd.settings.resolve import without_use

DOCS = Path(__file__).parents[1] / "docs" / "settings.md"
OLD = tomllib.loads((Path(__file__).parent / "kept" / "settings-0.1.0.toml").read_text(encoding="utf-8"))
"""What version 0.1.0 kept of `fit photos --preset tiny`, as it wrote it."""


def message(*args, **options) -> str:
    with pytest.raises(InputError) as error:
        resolve(*args, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


def flat(table: dict) -> dict[str, object]:
    return {
        name: value
        for key, item in table.items()
        for name, value in (
            [(f"{key}.{inner}", value) for inner, value in item.items()] if isinstance(item, dict) else [(key, item)]
        )
    }


def test_settings_come_back_from_json_and_toml():
    settings = resolve(
        "tiny",
        assignments=["circuit.step_size=[0.3, 1e-3]", "circuit.pseudocount=0.1000000001", "seed=4294967295"],
        crop="8x8",
    )
    table = settings.to_dict()
    assert Settings.from_dict(table) == settings
    assert Settings.from_dict(json.loads(json.dumps(table))) == settings
    assert Settings.from_dict(tomllib.loads(tomli_w.dumps(table))) == settings
    assert json.loads(json.dumps(table)) == table == tomllib.loads(tomli_w.dumps(table))


def test_settings_do_not_change():
    settings = Settings()
    for part in (settings, settings.data, settings.teacher, settings.clusters, settings.circuit, settings.prior):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, 1)
    assert hash(settings) == hash(Settings())


def test_what_is_left_out_is_the_default():
    assert resolve() == Settings() == Settings.from_dict({})
    settings = Settings.from_dict({"circuit": {"latents": 4}})
    assert settings.circuit == dataclasses.replace(Settings().circuit, latents=4)


def test_later_layers_win(tmp_path):
    config = tmp_path / "my.toml"
    config.write_text("seed = 1\n[data]\nsize = 32\n[circuit]\nlatents = 5\nepochs = 6\n")
    assert resolve("tiny").data.size == 16
    settings = resolve("tiny", config, ["circuit.latents=7", "circuit.latents=8", "threads=2"], threads=3)
    config.write_text("\ufeff" + config.read_text())  # as editors on Windows write it
    assert settings == resolve("tiny", config, ["circuit.latents=7", "circuit.latents=8", "threads=2"], threads=3)
    assert settings.seed == 1
    assert settings.data.size == 32
    assert (settings.circuit.latents, settings.circuit.epochs) == (8, 6)
    assert settings.threads == 3
    assert settings.prior == resolve("tiny").prior


def test_explicit_options():
    settings = resolve(method="lvd", color="rgb", crop="16x8", seed=5, threads=2, device="cpu")
    assert (settings.method, settings.seed, settings.threads, settings.device) == ("lvd", 5, 2, "cpu")
    assert settings.data == DataSettings(color="rgb", crop="16x8")


def test_a_resumed_run_starts_from_its_own_settings():
    run = resolve("tiny", assignments=["circuit.latents=3"])
    assert resolve(base=run) == run
    assert resolve(base=run, threads=2) == dataclasses.replace(run, threads=2)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_kept(name):
    text = (resources.files("pyjuice_lvd.settings.presets") / f"{name}.toml").read_text(encoding="utf-8")
    preset = flat(tomllib.loads(text))
    assert preset
    settings = flat(resolve(name).to_dict())
    assert {name: settings[name] for name in preset} == preset


def test_presets_that_exist_are_named():
    assert {"tiny", "small"} <= set(preset_names())
    text = message("huge")
    assert "preset" in text
    assert "'huge'" in text
    for name in preset_names():
        assert name in text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("data.color=rgb", "rgb"),
        ('data.color="rgb"', "rgb"),
        (" data.color = 'rgb' ", "rgb"),
        ("data.crop=16x16", "16x16"),
        ("data.crop=", ""),
        ("circuit.pseudocount=1", 1.0),
        ("circuit.pseudocount=1e-2", 0.01),
        ("prior.step_size=[1, 0.5]", (1.0, 0.5)),
        ("clusters.outer=1_000", 1000),
        ("seed=3 # a comment", 3),
    ],
)
def test_assignments_have_toml_values_and_bare_words(text, wanted):
    value: object = resolve(assignments=[text])
    for part in text.partition("=")[0].strip().split("."):
        value = getattr(value, part)
    assert value == wanted
    assert type(value) is type(wanted)


def test_an_assignment_may_set_a_section():
    assert resolve(assignments=["clusters={outer=3, inner=2}"]).clusters == ClusterSettings(outer=3, inner=2)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("circuit.latent=4", ["unknown setting circuit.latent", "did you mean circuit.latents?"]),
        ("circiut.latents=4", ["unknown setting circiut", "did you mean circuit?"]),
        ("sead=4", ["unknown setting sead", "did you mean seed?"]),
        ("latents=4", ["unknown setting latents", "circuit.latents or prior.latents"]),
        ("clusters.zzz=4", ["unknown setting clusters.zzz", "valid are outer, inner"]),
        ("seed.x=4", ["seed", "wanted an integer"]),
        ("circuit.latents.x=4", ["circuit.latents", "wanted an integer"]),
        ("circuit=4", ["circuit: found 4", "wanted a table [circuit]"]),
        ("circuit.latents", ["wanted section.key=value"]),
        ("=4", ["wanted section.key=value"]),
        ("circuit.latents=[4", ["'[4'", "wanted a TOML value or a bare word"]),
        ("data.color=two words", ["'two words'"]),
        ("data.size=16\nseed = 3", ["wanted one section.key=value"]),
        ("circuit.latents=4.0", ["circuit.latents: found 4.0 (a number), wanted an integer"]),
        ("circuit.latents=true", ["found True (true or false), wanted an integer"]),
        ("circuit.latents=many", ["found 'many' (a string), wanted an integer"]),
        ("circuit.pseudocount=x", ["found 'x' (a string), wanted a number"]),
        ("data.crop=16", ["data.crop: found 16 (an integer), wanted a string"]),
        ("data.crop=1979-05-27", ["data.crop", "wanted a string"]),
        ("circuit.step_size=0.1", ["circuit.step_size: found 0.1", "wanted a list of 2 values"]),
        ("circuit.step_size=[0.1]", ["circuit.step_size", "wanted a list of 2 values"]),
        ("circuit.step_size=[0.1, 'x']", ["circuit.step_size: found 'x' (a string), wanted a number"]),
    ],
)
def test_bad_assignments_are_named(text, parts):
    found = message(assignments=[text])
    assert found.startswith("--set ")
    assert text.partition("=")[0] in found
    for part in parts:
        assert part in found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("method=magic", "one of lvd"),
        ("seed=-1", "0 to 4294967295"),
        ("seed=4294967296", "0 to 4294967295"),
        ("threads=-1", "at least 0"),
        ("device=tpu", "one of auto, cpu, cuda"),
        ("data.size=8", "one of 16, 32"),
        ("data.color=cmyk", "ycocg"),
        ("data.crop=16", "HxW"),
        ("data.crop=0x4", "HxW"),
        ("data.crop=16x16x3", "HxW"),
        ("data.valid_fraction=0", "above 0"),
        ("data.test_fraction=1.0", "below 1"),
        ("data.test_fraction=0.9", "below 1"),
        ("clusters.outer=-1", "at least 0"),
        ("clusters.inner=0", "at least 1"),
        ("circuit.latents=0", "at least 1"),
        ("circuit.epochs=0", "at least 1"),
        ("circuit.batch_size=0", "at least 1"),
        ("circuit.step_size=[0.1, 0]", "above 0 and at most 1"),
        ("circuit.step_size=[1.5, 0.1]", "above 0 and at most 1"),
        ("circuit.step_size=[nan, 0.1]", "above 0 and at most 1"),
        ("circuit.pseudocount=-0.1", "0 or above"),
        ("circuit.pseudocount=inf", "finite"),
        ("hclt.pseudocount=1e39", "0, or 1e-30 to 1e20"),
        ("rat_spn.pseudocount=1e-40", "0, or 1e-30 to 1e20"),
        ("finetuning.pseudocount=inf", "finite"),
        ("growing.noise=1e39", "at most 1e20"),
        ("prior.memory=inf", "a finite number above 0"),
        ("prior.latents=0", "at least 1"),
        ("prior.epochs=0", "at least 1"),
        ("prior.soft_epochs=-1", "at least 0"),
        ("prior.batch_size=0", "at least 1"),
        ("prior.step_size=[0, 0.1]", "above 0"),
        ("prior.soft_step_size=[2, 0.1]", "at most 1"),
        ("prior.pseudocount=nan", "0 or above"),
        ("prior.patience=0", "at least 1"),
    ],
)
def test_ranges(text, wanted):
    found = message(assignments=[text if "crop" not in text else text.replace("=", "='") + "'"])
    assert text.partition("=")[0].rpartition(".")[2] in found
    assert "found" in found
    assert wanted in found


def test_numpys_values_are_as_good_as_pythons():
    config = {
        "teacher": {"patch": np.array([2, 2]), "epochs": np.int32(3), "commitment": np.float16(0.5), "flip": np.True_},
        "data": {"color": np.str_("rgb")},
        "circuit": {"latents": np.int64(3), "step_size": np.array([0.5, 0.25]), "pseudocount": np.int8(1)},
        "clusters": {"tied": np.False_},
    }
    plain = {
        "teacher": {"patch": [2, 2], "epochs": 3, "commitment": 0.5, "flip": True},
        "data": {"color": "rgb"},
        "circuit": {"latents": 3, "step_size": [0.5, 0.25], "pseudocount": 1.0},
        "clusters": {"tied": False},
    }
    found, wanted = resolve("cifar10-paper", config, seed=np.int64(7)), resolve("cifar10-paper", plain, seed=7)
    assert json.dumps(found.to_dict()) == json.dumps(wanted.to_dict())  # which knows no numpy
    made = CircuitSettings(**config["circuit"])
    assert json.dumps(dataclasses.asdict(made)) == json.dumps(dataclasses.asdict(CircuitSettings(**plain["circuit"])))
    for table, part in (
        ({"circuit": {"latents": np.float64(2)}}, "circuit.latents: found 2.0 (a number), wanted an integer"),
        ({"circuit": {"latents": np.True_}}, "circuit.latents: found True (true or false), wanted an integer"),
        ({"circuit": {"step_size": np.arange(3)}}, "circuit.step_size: found [0, 1, 2], wanted a list of 2 values"),
        ({"circuit": {"latents": np.zeros((99, 9))}}, "wanted an integer"),
        ({3: 4}, "unknown setting 3"),
        (np.zeros((9, 9)), "config: found array("),
        (5, "config: found 5, wanted the path of a TOML file, or nested tables"),
    ):
        found = message(None, table)
        assert part in found
        assert len(found) < 200


def test_ranges_hold_in_python_too():
    for make in (
        lambda: Settings(seed="a"),
        lambda: CircuitSettings(latents=2.5),
        lambda: ClusterSettings(outer=-1),
        lambda: ClusterSettings(inner=0),
        lambda: CircuitSettings(step_size=(0.0, 0.0)),
        lambda: PriorSettings(patience=0),
    ):
        with pytest.raises(InputError):
            make()


def test_bad_config_files_are_named(tmp_path):
    config = tmp_path / "my.toml"
    assert message(config=config) == f"{config}: cannot be read (No such file or directory)"
    assert message(config=tmp_path) == f"{tmp_path}: cannot be read (Is a directory)"
    for contents, part in (
        ("seed = ", "wanted TOML"),
        ("[circuit]\nlatent = 3\n", "did you mean circuit.latents?"),
        ("circuit = 3\n", "wanted a table [circuit]"),
        ("[seed]\n", "wanted an integer"),
        ("[circuit]\nlatents = '3'\n", "found '3' (a string), wanted an integer"),
        ("[[circuit]]\nlatents = 3\n", "wanted a table [circuit]"),
    ):
        config.write_text(contents)
        found = message(config=config)
        assert found.startswith(f"{config}: ")
        assert part in found
    config.write_bytes(b"\xff\xff")
    assert "wanted TOML" in message(config=config)


def test_every_setting_is_documented_with_its_default():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    defaults = flat(Settings().to_dict())
    assert list(rows) == list(defaults) == setting_names()
    assert {name: tomllib.loads(f"x = {text}")["x"] for name, text in rows.items()} == defaults


def test_settings_know_nothing_of_data_circuits_and_the_teacher():
    script = "import sys; import pyjuice_lvd.settings; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    for name in ("data", "circuit", "teacher", "models", "learn"):
        assert not [module for module in found if module.startswith(f"pyjuice_lvd.{name}")]
    assert tuple(COLORS) == COLOR_NAMES


# --- variants of progressive growing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "make",
    [
        lambda variant: GrowingSettings(variant=variant),
        lambda variant: Settings(growing=GrowingSettings(variant=variant)).growing,
        lambda variant: Settings.from_dict({"growing": {"variant": variant}}).growing,
        lambda variant: resolve(None, {"growing": {"variant": variant}}).growing,
        lambda variant: resolve(base=resolve(None, {"growing": {"variant": "reference"}}),
                                config={"growing": {"variant": variant}}).growing,
        lambda variant: resolve(assignments=[f"growing.variant={variant}"]).growing,
        lambda variant: restored(kept(Settings(growing=GrowingSettings(variant=variant)))).growing,
    ],
)  # fmt: skip
def test_a_variant_means_the_same_wherever_it_is_named(make, variant):
    found = make(variant)
    assert {name: getattr(found, name) for name in VARIANTS[variant]} == VARIANTS[variant]
    assert found.variant == variant
    assert found == dataclasses.replace(GrowingSettings(), **VARIANTS[variant], variant=variant)


def test_what_is_set_beside_a_variant_counts_in_any_order():
    one = GrowingSettings(variant="reference", start=1, stickiness=0.0)
    assert (one.start, one.stickiness, one.quantized) == (1, 0.0, True)
    for assignments in (
        ["growing.start=1", "growing.variant=reference"],
        ["growing.variant=reference", "growing.start=1"],
    ):
        assert resolve(assignments=assignments).growing.start == 1
        assert resolve(None, {"growing": {"variant": "reference"}}, assignments[:1]).growing.tree_per_head


def test_a_copy_that_names_another_variant_is_refused():
    with pytest.raises(InputError, match=r"growing\.variant: found 'reference' .*, wanted new GrowingSettings"):
        dataclasses.replace(GrowingSettings(), variant="reference")


# --- settings of earlier and later versions ---------------------------------------------------------------------------


def test_what_is_kept_comes_back_with_its_version():
    settings = resolve("tiny", crop="8x8", seed=3)
    table = tomllib.loads(tomli_w.dumps(kept(settings)))
    assert re.fullmatch(r"\d+\.\d+.*", table["version"])
    assert restored(table) == settings
    assert resolve(None, table) == settings  # a run's settings.toml is a valid --config


def test_the_version_before_this_one_is_read_as_it_was_written():
    settings = restored(OLD)
    assert flat(settings.to_dict()) | flat(OLD) == flat(settings.to_dict())
    assert settings.growing.noise == 0.5


def test_every_setting_that_came_later_says_what_was_done_before():
    assert set(setting_names()) - set(flat(OLD)) <= set(before({}))
    assert set(before({})) <= set(setting_names())


def test_rounds_of_pruning_had_the_steps_of_the_tree() -> None:
    table = kept(Settings(hclt=HCLTSettings(step_size=(0.5, 0.1))))
    table["sparse_hclt"] = {key: value for key, value in table["sparse_hclt"].items() if key != "step_size"}
    assert restored(table).sparse_hclt.step_size == (0.5, 0.1)
    assert restored(kept(Settings())).sparse_hclt.step_size == SparseHCLTSettings.step_size


@pytest.mark.parametrize("name", [name for name in before({}) if name in flat(OLD)])
def test_a_run_made_before_a_setting_was_added_goes_on_as_it_began(name):
    section, key = name.split(".")
    table = {**OLD, section: {own: value for own, value in OLD[section].items() if own != key}}
    found = getattr(getattr(restored(table), section), key)
    wanted = {
        "data.flip": False, "clusters.tied": True, "refining.rounds": 0, "circuit.start": "random",
        "growing.epochs": OLD["circuit"]["epochs"], "prior.memory": 4.0, "finetuning.epochs": 0,
        "finetuning.candidates": 0,
    }  # fmt: skip
    assert found == wanted[name]


def test_a_run_of_the_first_pipeline_had_no_finetuning():
    table = {name: value for name, value in OLD.items() if name not in ("finetuning", "refining", "growing", "hclt")}
    settings = restored(table)
    assert (settings.finetuning.epochs, settings.refining.rounds) == (0, 0)
    assert settings.hclt == HCLTSettings(search=False)  # nothing was searched for then


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("finetuning.candidates", 3, "finetuning.candidates: found 3 with refining.rounds = 0"),
        ("data.valid_fraction", 0.95, "data.valid_fraction + data.test_fraction"),
        ("circuit.latents", 0, "circuit.latents: found 0"),
    ],
)
def test_kept_settings_that_do_not_go_together_name_their_file(name, value, message):
    section, key = name.split(".")
    table = kept(Settings())
    table[section][key] = value
    with pytest.raises(InputError) as error:
        restored(table, "run/settings.toml: ")
    assert str(error.value).startswith(f"run/settings.toml: {message}")
    assert str(error.value).count("run/settings.toml") == 1


def test_settings_that_were_cut_short_are_refused():
    lines = tomli_w.dumps(kept(resolve("tiny"))).splitlines(keepends=True)
    whole = 0
    for end in range(len(lines)):
        try:
            table = tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:  # within a list
            continue
        whole += 1
        with pytest.raises(InputError, match=r"^x: has no [a-z_.]+: damaged, wanted all settings$"):
            restored(table, "x: ")
    assert whole > 50


@pytest.mark.parametrize("lost", ["method", "seed", "circuit.latents", "hclt.patience"])
def test_settings_from_before_there_was_a_version_are_whole_sections(lost):
    section, _, key = lost.rpartition(".")
    table = {name: dict(own) if isinstance(own, dict) else own for name, own in OLD.items()}
    del (table[section] if section else table)[key]
    assert "version" not in table
    with pytest.raises(InputError, match=f"^has no {lost}: damaged"):
        restored(table)


def test_settings_of_a_later_version_say_so():
    with pytest.raises(InputError) as error:
        restored({**kept(Settings()), "version": "99.0", "codec": {"bits": 24}}, "run: ")
    text = str(error.value)
    assert text.startswith("run: unknown setting codec; ")
    assert "written by version 99.0 of lvd-juice, this is " in text
    assert "\n" not in text


def test_the_teacher_is_a_section_like_the_others():
    assert TeacherSettings(patch=[2, 2]).patch == (2, 2)
    with pytest.raises(InputError, match=r"teacher\.codes: found 1, wanted at least 2"):
        TeacherSettings(codes=1)
    with pytest.raises(InputError, match=r"teacher\.patch: found \(0, 4\), wanted height and width"):
        resolve(assignments=["teacher.patch=[0, 4]"])
    with pytest.raises(InputError, match="data: found 5, wanted DataSettings"):
        Settings(data=5)


def test_numbers_without_end_and_nests_without_bottom_are_refused(tmp_path):
    assert "an integer of 64 bits" in message(assignments=[f"circuit.latents={10**30}"])
    config = tmp_path / "deep.toml"
    config.write_text("x = " + 10_000 * "[")
    assert message(config=config).startswith(f"{config}: ")
    assert "wanted a TOML value" in message(assignments=["circuit.latents=" + 10_000 * "["])


def test_the_file_or_option_is_named_where_a_value_is_out_of_range(tmp_path):
    config = tmp_path / "my.toml"
    config.write_text("[circuit]\nlatents = 0\n")
    assert message(config=config) == f"{config}: circuit.latents: found 0, wanted at least 1"
    assert message(assignments=["seed=-1"]).startswith("--set seed=-1: seed: found -1")


def test_settings_that_a_method_has_no_use_for_are_named():
    given = ["circuit.latents=4", "hclt.latents=4", "seed=1", "data.color=rgb", "growing.start=2", "hclt={epochs=3}"]
    assert without_use(given, Settings(method="hclt")) == ["circuit.latents=4", "growing.start=2"]
    assert without_use(given, Settings(method="lvd")) == ["hclt.latents=4", "growing.start=2", "hclt={epochs=3}"]
    assert without_use(given, Settings(method="lvd-pg")) == ["hclt.latents=4", "hclt={epochs=3}"]
    offsets = ["offsets.states=9", "prior.latents=3", "circuit.latents=4"]
    assert without_use(offsets, Settings()) == ["offsets.states=9"]
    assert without_use(offsets, Settings(offsets=OffsetSettings(steps=(8,)))) == ["prior.latents=3"]
    assert set(SECTIONS) == set(METHODS)
    assert {name for own in SECTIONS.values() for name in own} == {
        name.split(".")[0] for name in setting_names() if "." in name
    }
