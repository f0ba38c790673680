"""How Julia is found, provided and explained: the choice of a bridge, `lvd-juice setup`, `lvd-juice doctor`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import python

from pyjuice_lvd import julia
from pyjuice_lvd.cli.doctor import doctor
from pyjuice_lvd.cli.setup import setup
from pyjuice_lvd.errors import InputError, JuliaUnavailableError
from pyjuice_lvd.julia import extras, find, provide


def fake_julia(folder: Path, script: str) -> Path:
    path = folder / "julia"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "printf '1.4.2\\n/usr/bin\\n/sys.so\\n/lib/libjulia.so.1\\n'",
            "is too old: found Julia 1.4.2, want 1.5 or newer",
        ),
        ("printf '1.9.0\\n/usr/bin\\n/sys.so\\n/lib/libc.so.6\\n'", "has no shared libjulia to embed"),
        ("printf '1.9.0\\n/usr/bin\\n/sys.so\\n/nowhere/libjulia.so.1\\n'", "has no shared libjulia to embed"),
        ("echo 'could not load sys.so: no such file' >&2; exit 1", "is broken: could not load sys.so: no such file"),
        ("kill -SEGV $$", "is broken: exit status -11"),
        ("echo hello", "is not a Julia: its version is 'hello'"),
        ("true", "is not a Julia: its version is nothing"),
    ],
)
def test_a_julia_that_cannot_run_is_named_with_its_fault(tmp_path: Path, script: str, reason: str) -> None:
    fake = fake_julia(tmp_path, script)
    with pytest.raises(JuliaUnavailableError) as error:
        find.probe(fake, "LVD_JULIA")
    assert str(error.value) == f"{fake} (LVD_JULIA) {reason}"


def test_a_broken_julia_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_julia(tmp_path, "exit 1")
    private = tmp_path / "data" / "lvd-juice" / "julia" / "bin"
    private.mkdir(parents=True)
    library = tmp_path / "libjulia.so.1"
    library.touch()
    good = fake_julia(private, f"printf '1.5.3\\n/usr/bin\\n/sys.so\\n{library}\\n'")
    monkeypatch.delenv("LVD_JULIA", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    found = find.find_for_libjulia()
    assert (found.executable, found.version, found.libjulia) == (good, (1, 5, 3), library)


def fails_to_start(**environment: str) -> str:
    """The one line that a program gets where Julia cannot start."""
    ran = python(
        """
        from pyjuice_lvd import julia
        from pyjuice_lvd.errors import LVDJuiceError
        try:
            julia.call("anything")
        except LVDJuiceError as error:
            print(type(error).__name__, error)
        """,
        **environment,
    )
    assert ran.stdout.count("\n") == 1, ran.stderr
    return ran.stdout.strip()


def test_without_julia_one_line_says_what_to_do(tmp_path: Path) -> None:
    nowhere = {"HOME": str(tmp_path), "XDG_DATA_HOME": "", "PATH": str(tmp_path), "LVD_JULIA": ""}
    line = fails_to_start(**nowhere, LVD_JULIA_BRIDGE="libjulia")
    assert line.startswith("JuliaUnavailableError no Julia found")
    assert line.endswith("run `lvd-juice setup`, or install Julia >= 1.10 and put it on PATH")


def test_the_environment_overrides_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="bridge: found 'pipe', want one of juliacall, libjulia"):
        find.choose("pipe")
    monkeypatch.setenv("LVD_JULIA_BRIDGE", "telepathy")
    with pytest.raises(InputError, match="LVD_JULIA_BRIDGE: found 'telepathy', want one of juliacall, libjulia"):
        find.choose()
    old = fake_julia(tmp_path, "printf '1.6.7\\n/usr/bin\\n/sys.so\\n/bin/sh\\n'")
    old.write_text(old.read_text().replace("/bin/sh\\n'", f"{tmp_path / 'libjulia.so.1'}\\n'"))
    (tmp_path / "libjulia.so.1").touch()
    monkeypatch.setenv("LVD_JULIA_BRIDGE", "juliacall")
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", str(old))
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path))
    with pytest.raises(JuliaUnavailableError, match=r"is Julia 1.6.7, want 1.10 or newer; run `lvd-juice setup`"):
        find.choose()


def test_threads_come_from_the_environment() -> None:
    assert fails_to_start(LVD_THREADS="many") == "InputError LVD_THREADS: found 'many', want a positive integer"


@pytest.mark.skipif(find.choose().bridge != "libjulia", reason="juliacall has settings of its own")
def test_optimization_comes_from_the_environment() -> None:
    line = fails_to_start(LVD_JULIA_OPTIMIZE="fast")
    assert line == "InputError LVD_JULIA_OPTIMIZE: found 'fast', want 0, 1, 2 or 3"
    script = "from pyjuice_lvd import julia; print(*map(julia.evaluate, {}))".format(
        ["Int(Base.JLOptions().opt_level)", "basename(DEPOT_PATH[2])", 'VERSION >= v"1.9"']
    )
    # The first of a level may have to compile the package.
    ran = [python(script, timeout=600, LVD_JULIA_OPTIMIZE=given).stdout for given in ("1", "")]
    (low, low_depot, keeps_code), (high, high_depot, _) = (said.split() for said in ran)
    assert (low, high) == ("1", "3")
    # Code that one level left behind must not change the results of another.
    assert (low_depot != high_depot) == (keeps_code == "True")


def test_a_users_settings_for_julia_do_not_make_it_look_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = find.choose().julia.executable
    there = find.probe(executable, "LVD_JULIA")
    for name in ("JULIA_LOAD_PATH", "JULIA_PROJECT", "JULIA_DEPOT_PATH", "JULIA_BINDIR"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    monkeypatch.setenv("JULIA_NUM_THREADS", "many")
    assert find.probe(executable, "LVD_JULIA") == there


def test_a_depot_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    depot = tmp_path / "file" / "depot"
    # juliacall's own packages are in the user's depot, which may have LVDJuice compiled as well: then only it is asked.
    alone = find.choose().bridge == "libjulia"
    line = fails_to_start(JULIA_DEPOT_PATH=str(depot) if alone else f"{depot}{os.pathsep}")
    assert line.startswith("JuliaUnavailableError ")
    assert line.endswith(f"; cannot write to {depot} (Not a directory): set JULIA_DEPOT_PATH to a folder where you can")
    line = fails_to_start(JULIA_DEPOT_PATH="")
    assert line.endswith("; found no depot in JULIA_DEPOT_PATH: unset it, or name a folder")


# ------------------------------------------------------------------------------------------------- setup and doctor


def test_setup_finds_what_is_there() -> None:
    started = time.monotonic()
    ran = CliRunner().invoke(setup, ["--json"])
    assert time.monotonic() - started < 5.0
    assert ran.exit_code == 0
    assert json.loads(ran.stdout).keys() == {"bridge", "version", "executable"}
    assert ran.stderr == ""


def test_setup_leaves_a_julia_that_the_user_named_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVD_JULIA_BRIDGE", "libjulia")
    monkeypatch.setenv("LVD_JULIA", str(fake_julia(tmp_path, "exit 3")))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(find, "juliacall_has_started", lambda: False)
    with pytest.raises(JuliaUnavailableError, match=r"is broken: exit status 3; mend or unset LVD_JULIA$"):
        provide.provide(lambda line: None)
    assert not (tmp_path / "data" / "lvd-juice" / "julia").exists()


def test_mirrors_are_those_of_the_machine_main_archives_first(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = """\
'http://c/debian-security/dists/bookworm-security/InRelease' c 0
'https://b/node/dists/nodistro/InRelease' b 0
'http://a/debian/dists/bookworm-updates/InRelease' a-updates 0
'http://a/debian/dists/bookworm/InRelease' a 0
'http://a/debian/dists/bookworm/main/binary-amd64/Packages.xz' a-main 0
"""
    monkeypatch.setattr(provide, "_run", lambda *args, **kwargs: listing)
    monkeypatch.setattr(provide, "_os_release", lambda key: "bookworm")
    assert provide._mirrors() == ["http://a/debian", "https://b/node", "http://c/debian-security"]


def test_a_set_up_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(provide, "_apt_root", lambda root, say: [])

    def unpack(apt: list[str], stage: Path, say: provide.Say) -> None:
        (stage / "bin").mkdir()
        fake_julia(stage / "bin", "exit 1")

    monkeypatch.setattr(provide, "_unpack", unpack)
    find.prefix().parent.mkdir(parents=True)
    (find.prefix().parent / "unpacking-cut-off").mkdir()
    with pytest.raises(JuliaUnavailableError, match=r"just unpacked.* is broken"):
        provide._from_debian(lambda line: None)
    assert list(find.prefix().parent.iterdir()) == []


def test_doctor_explains_the_choice() -> None:
    info = julia.start()
    ran = CliRunner().invoke(doctor, ["--json"])
    assert ran.exit_code == 0
    found = json.loads(ran.stdout)
    assert found["usable"] is True
    assert found["bridges"].keys() == set(find.BRIDGES)
    assert found["bridges"][info.bridge].startswith("can run Julia")
    assert (found["julia"]["threads"], found["julia"]["why"]) == (info.threads, info.why)
    assert found["torch_devices"][0] == "cpu"
    assert found["julia_packages"].keys() == {"CUDA", "ProbabilisticCircuits"}
    assert isinstance(found["gpus"], list)
    text = CliRunner().invoke(doctor).stdout
    assert info.why in text
    assert text.splitlines()[-1].split(maxsplit=1) == ["missing", "nothing"]


def test_doctor_does_not_need_julia(tmp_path: Path) -> None:
    ran = python(
        "import sys; from pyjuice_lvd.cli.doctor import doctor; doctor(['--json'])",
        HOME=str(tmp_path),
        XDG_DATA_HOME="",
        PATH=str(tmp_path),
        LVD_JULIA="",
        LVD_JULIA_BRIDGE="libjulia",
    )
    assert ran.returncode == 1
    found = json.loads(ran.stdout)
    assert found["usable"] is False
    assert "run `lvd-juice setup`" in found["problem"]


# ----------------------------------------------------------------------------------------- packages that only some want


def test_an_unknown_extra_is_told_before_any_work() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pyjuice_lvd.cli", "setup", "--with", "jucie"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "lvd-juice: error: --with: found 'jucie', want one of cuda, juice\n"


def a_choice(executable: Path, version: tuple[int, int, int], bridge: str = "libjulia") -> find.Choice:
    there = find.Julia(executable, "on PATH", version, executable, executable, executable, ())
    return find.Choice(bridge, "the test says so", there)


def test_an_old_julia_gets_no_extras(tmp_path: Path) -> None:
    old = a_choice(tmp_path / "julia", (1, 9, 4))
    with pytest.raises(JuliaUnavailableError, match=r"^CUDA.jl: Julia 1.9.4 \(.*\) is too old, want 1.10 or newer: "):
        extras.install(["cuda"], old, lambda line: None)


def test_extras_go_into_an_environment_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JULIA_LOAD_PATH", "/nowhere")
    fake = fake_julia(tmp_path, 'echo "load path: $JULIA_LOAD_PATH"; for word; do echo "$word"; done')
    lines: list[str] = []
    extras.install(["juice", "cuda", "juice"], a_choice(fake, (1, 12, 0)), lines.append)
    assert lines[0] == (
        "installing ProbabilisticCircuits.jl and CUDA.jl for Julia 1.12.0; the first time takes minutes"
    )
    assert lines[1] == "load path:"
    assert "--project=@lvd-juice-v#.#" in lines
    pinned = [extras.EXTRAS[name] for name in ("juice", "cuda")]
    assert lines[-2:] == [f"{extra.package}={extra.uuid}={extra.compat}" for extra in pinned]
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", "/own/project")  # or into the project that the user named
    extras.install(["cuda"], a_choice(fake, (1, 12, 0), "juliacall"), lines.append)
    assert "--project=/own/project" in lines


def test_an_extra_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    fake = fake_julia(tmp_path, "echo Resolving; echo 'ERROR: no server' >&2; echo 'ERROR: later'; exit 1")
    with pytest.raises(JuliaUnavailableError) as error:
        extras.install(["cuda"], a_choice(fake, (1, 12, 0)), lambda line: None)
    assert str(error.value).startswith("CUDA.jl cannot be installed: no server; Julia's")


def test_what_juliapkg_resolved_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """juliapkg writes its project anew and removes the manifest before it asks the network."""
    for name in ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pyjuliapkg").mkdir()
    before = {"Project.toml": "[deps]", "Manifest.toml": "version 1", "pyjuliapkg/meta.json": "{}"}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (1e9, 1e9))
    breaks = f"""
import pathlib
project = pathlib.Path({str(tmp_path)!r})
(project / "Manifest.toml").unlink()
(project / "Project.toml").write_text("[deps]\\nCUDA = 1")
(project / "pyjuliapkg" / "juliapkg.json").write_text("more")
print("ERROR: no network")
raise SystemExit(1)
"""
    monkeypatch.setattr(extras, "BY_JULIAPKG", breaks)
    monkeypatch.setattr(extras, "_juliapkg_project", lambda: tmp_path)
    with pytest.raises(JuliaUnavailableError, match=r"CUDA.jl cannot be installed: no network; "):
        extras.install(["cuda"], a_choice(tmp_path / "julia", (1, 12, 0), "juliacall"), lambda line: None)
    there = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in there.items()} == before
    assert {path.stat().st_mtime for path in there.values()} == {1e9}


def test_julia_says_which_version_of_a_package_it_would_load(tmp_path: Path) -> None:
    folder = tmp_path / "Stray"
    (folder / "src").mkdir(parents=True)
    uuid = "0d2fb6a1-8f6e-4a52-9d0c-5a3f3c2f8d11"
    (folder / "Project.toml").write_text(f'name = "Stray"\nuuid = "{uuid}"\nversion = "1.2.3"\n')
    (folder / "src" / "Stray.jl").write_text("module Stray end\n")
    assert julia.call("installed_version", "Stray", uuid) == ""
    julia.evaluate(f'push!(LOAD_PATH, raw"{folder}")')
    try:
        assert julia.call("installed_version", "Stray", uuid) == "1.2.3"
    finally:
        julia.evaluate("pop!(LOAD_PATH)")
