"""The rooms of the house: imports run down only, from each room to those below it, and no file is in a circle."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "cli", "", "estimators", "bench", "report", "learn", "evaluate", "models", "codec", "teacher", "data",
    "distributed", "circuit", "settings", "files", "versions", "julia", "clustering", "large", "checks", "machine",
    "progress", "seeds", "shares", "units", "errors",
)  # fmt: skip
"""From the top; "" is the package itself, which names what users import."""


def modules() -> dict[str, Path]:
    package = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "pyjuice_lvd").rglob("*.py")
    }
    return package | {f"pyjuice_lvd.cli.{path.stem}": path for path in (ROOT / "cli").glob("*.py")}


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """What a module of the package imports, at its head, within functions or for types."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module for alias in node.names}
    return found & known.keys() - {name}


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}


def test_every_room_has_its_floor(graph: dict[str, set[str]]) -> None:
    assert {room(name) for name in graph} == set(ROOMS)


def test_the_readme_has_the_rooms_in_this_order() -> None:
    rows = re.findall(r"^\| `(?:pyjuice_lvd/)?(\w+)/`", (ROOT / "README.md").read_text(), re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "pyjuice_lvd").glob("*/__init__.py")} | {"cli"}
    assert rows[: len(folders)] == [name for name in ROOMS if name in folders]


def test_imports_run_down(graph: dict[str, set[str]]) -> None:
    floor = {name: number for number, name in enumerate(ROOMS)}
    up = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if room(name) != room(other) and floor[room(other)] <= floor[room(name)]
    ]
    assert up == []


def test_no_file_is_in_a_circle(graph: dict[str, set[str]]) -> None:
    # A package's own module stands for its files: what these import from it would be a circle in name only.
    files = {name: {other for other in others if not name.startswith(f"{other}.")} for name, others in graph.items()}
    try:
        TopologicalSorter(files).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))
