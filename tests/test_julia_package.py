"""The Julia package: its own tests, run by the Julia that the door found, and how checkouts and wheels load it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import python

from pyjuice_lvd import julia
from pyjuice_lvd.julia import find

ROOT = Path(__file__).parent.parent


KERNELS = ("circuit", "inputs", "evaluate", "dense", "em")
"""Julia's tests of what gains most by being compiled as far as Julia can, which may fuse and reorder more."""


def run_julias_tests(optimization: str, *files: str) -> None:
    """Run Julia's own tests of some files, or of all but those (`-...`), compiled by `-O...`."""
    executable = find.choose().julia.executable
    options = ["--startup-file=no", optimization, f"--project={ROOT / 'julia'}"]
    ran = subprocess.run(
        [executable, *options, ROOT / "julia" / "test" / "runtests.jl", *files],
        env={**os.environ, "JULIA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-5000:]
    passed = re.search(r"LVDJuice +\| +(\d+) +(\d+)", ran.stdout)  # "Test Summary: | Pass  Total"
    assert passed, ran.stdout
    assert passed[1] == passed[2]


def test_julia_package() -> None:
    run_julias_tests("-O1", *(f"-{file}" for file in KERNELS))  # most of the time goes into compiling


def test_kernels_as_users_have_them() -> None:
    run_julias_tests("-O3", *KERNELS)


def test_the_project_of_a_checkout_is_that_of_the_package() -> None:
    """Two files, because Julia looks for extensions beside the package's own."""
    checkout, package = (tomllib.loads((folder / "Project.toml").read_text()) for folder in (ROOT, ROOT / "julia"))
    assert {key: checkout[key] for key in ("name", "uuid", "version", "deps")} == {
        key: package[key] for key in ("name", "uuid", "version", "deps")
    }
    assert (ROOT / checkout["path"]).is_file()


# ------------------------------------------------------------------------------------------------- as it is loaded


def checkout(folder: Path, *, extensions: str = "", code: str = "") -> Path:
    """The door in front of a package that is nothing but the boundary: it precompiles in a moment."""
    here = Path(find.__file__).parent
    shutil.copytree(here, folder / "pyjuice_lvd" / "julia", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(here.parent / "errors.py", folder / "pyjuice_lvd")
    (folder / "pyjuice_lvd" / "__init__.py").touch()
    package = folder / "julia"
    shutil.copytree(find.sources() / "door", package / "src" / "door")
    project = (find.sources().parent / "Project.toml").read_text()
    # Its own extensions stay behind.
    project = re.sub(r"(?m)^\[(weakdeps|extensions)\]\n(?:[^\[].*\n|\n)*", "", project)
    (package / "Project.toml").write_text(project + extensions)
    includes = 'include("door/boundary.jl")\ninclude("door/extensions.jl")\n'
    (package / "src" / "LVDJuice.jl").write_text(f"module LVDJuice\n{includes}{code}\nend\n")
    return folder


def in_checkout(
    folder: Path, depot: Path, code: str, *args: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    depots = os.pathsep.join([str(depot), str(julia.start().depot), ""])  # what others have precompiled stays in sight
    settings = {"PYTHONSAFEPATH": "1", "PYTHONPATH": path, "JULIA_DEPOT_PATH": depots, "LVD_THREADS": "1"}
    return python(code, *args, **settings, **environment)


def test_two_checkouts_keep_their_precompiled_packages_apart(tmp_path: Path) -> None:
    folders = [checkout(tmp_path / name) for name in ("one", "two")]
    for folder in folders:  # as in a wheel that someone else installed
        (folder / "julia" / "src").chmod(0o555)
    code = "from pyjuice_lvd import julia; info = julia.start(); print(info.sources, info.depot)"
    precompiled: list[dict[Path, bytes]] = []
    for folder in (*folders, folders[0]):
        ran = in_checkout(folder, tmp_path / "depot", code)
        assert ran.stdout.split() == [str(folder / "julia" / "src"), str(tmp_path / "depot")], ran.stderr
        files = (tmp_path / "depot").glob("lvd-juice/**/LVDJuice/*.ji")
        precompiled.append({file: file.read_bytes() for file in files})
    first, both, again = precompiled
    assert (len(first), len(both)) == (1, 2)
    assert again == both  # each compilation has a number of its own: there was no third


def test_what_julia_prints_to_a_file_is_there_when_the_call_is_over(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "one", code='__init__() = println(stderr, "LVDJuice is loaded")')
    code = """
        import os, sys
        os.dup2(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), 2)
        from pyjuice_lvd import julia
        julia.start()
        print("Julia has started", file=sys.stderr, flush=True)
        julia.evaluate('println(stderr, "a call")')
        print("it has returned", file=sys.stderr, flush=True)
    """
    ran = in_checkout(folder, tmp_path / "depot", code, str(tmp_path / "log"))
    assert ran.returncode == 0, ran.stderr
    said = (tmp_path / "log").read_text().splitlines()
    assert said[-4:] == ["LVDJuice is loaded", "Julia has started", "a call", "it has returned"]


TOY = "c7a5b0de-5d0e-4f0c-9a44-3d5c9c1f7e21"

WITH_TOY = """
from pyjuice_lvd import julia
from pyjuice_lvd.errors import InputError, JuliaError

print(julia.evaluate("string(Base.PkgId(LVDJuice).uuid)"))
try:
    julia.call("answer", 21)
except JuliaError as error:
    print("MethodError" in str(error))
for name in ("LVDJuiceToyExt", "LVDJuiceToyExt", "LVDJuiceToysExt", "LVDJuiceGoneExt"):
    try:
        julia.load_extension(name)
        print(julia.call("answer", 21))
    except InputError as error:
        print(str(error).splitlines()[0])
print(julia.evaluate("!isdefined(Base, :get_extension) || Base.get_extension(LVDJuice, :LVDJuiceToyExt) !== nothing"))
"""


def wheel_of(folder: Path) -> Path:
    """Build a wheel as of a checkout with `folder`'s Julia package, and unpack it; returns where."""
    root = Path(__file__).parent.parent
    tree = folder.with_name("tree")
    for name in ("pyjuice_lvd", "cli"):
        shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(folder / "julia", tree / "julia")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tree)
    build = [sys.executable, "-c", "from setuptools.build_meta import build_wheel; build_wheel('dist')"]
    subprocess.run(build, cwd=tree, check=True, capture_output=True, timeout=120)
    (wheel,) = (tree / "dist").glob("*.whl")
    shutil.unpack_archive(wheel, folder.with_name("installed"), "zip")
    return folder.with_name("installed")


@pytest.mark.parametrize("place", ["checkout", "wheel"])
def test_an_extension_is_loaded_with_the_package_that_it_is_for(tmp_path: Path, place: str) -> None:
    extensions = f"""
[weakdeps]
Gone = "7b0c1f0e-1f3b-4d0e-8e55-0a6f2f6f9b11"
Toy = "{TOY}"

[extensions]
LVDJuiceGoneExt = "Gone"
LVDJuiceToyExt = ["Toy"]
"""
    folder = checkout(tmp_path / "one", extensions=extensions, code="function answer end")
    (folder / "julia" / "ext").mkdir()
    extension = "module LVDJuiceToyExt\nusing LVDJuice, Toy\nLVDJuice.answer(x::Int) = Toy.twice(x)\nend\n"
    (folder / "julia" / "ext" / "LVDJuiceToyExt.jl").write_text(extension)
    toy = tmp_path / "others" / "Toy"
    (toy / "src").mkdir(parents=True)
    (toy / "Project.toml").write_text(f'name = "Toy"\nuuid = "{TOY}"\nversion = "1.0.0"\n')
    (toy / "src" / "Toy.jl").write_text("module Toy\ntwice(x) = 2x\nend\n")
    # A load path of the user's own, without Julia's standard library, is kept, and no obstacle.
    installed = folder if place == "checkout" else wheel_of(folder)
    ran = in_checkout(installed, tmp_path / "depot", WITH_TOY, JULIA_LOAD_PATH=str(toy.parent))
    assert ran.returncode == 0, ran.stderr
    *lines, gone, last = ran.stdout.splitlines()
    unknown = "extension: found LVDJuiceToysExt, want one of LVDJuiceGoneExt, LVDJuiceToyExt"
    assert lines == ["d0f6d2d6-1c43-4b0e-9d37-6b9b8d1f3a10", "True", "42", "42", unknown]
    assert "Gone" in gone
    assert last == "True"
