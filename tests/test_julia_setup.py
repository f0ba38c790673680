"""How Julia is found, provided and explained: the choice of a bridge, `lvd-juice setup`, `lvd-juice doctor`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyjuice_lvd import julia
from pyjuice_lvd.cli.doctor import doctor
from pyjuice_lvd.cli.setup import setup
from pyjuice_lvd.errors import InputError, JuliaUnavailableError
from pyjuice_lvd.julia import find, provide


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


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
