"""README and docs: links lead somewhere, every example runs on small data or says why not, the site builds."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
from models import offset_model

from pyjuice_lvd.cli.main import COMMANDS, cli, main
from pyjuice_lvd.julia import find
from pyjuice_lvd.settings import resolve

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
NUMBER = r"-?\d+(?:\.\d+)?"

# Blocks that only have their names and settings checked, each with its reason in the page. Let no number grow.
NOT_RUN = {
    "CONTRIBUTING.md": 1, "benchmarks/README.md": 9,
    "docs/distributed.md": 1, "docs/juice.md": 1, "docs/julia.md": 1,
}  # fmt: skip

SMALL: dict[str, dict[str, Any]] = {
    "teacher": {"epochs": 1, "channels": 8, "codes": 8},
    "clusters": {"outer": 2, "inner": 2},
    "circuit": {"latents": 2, "epochs": 2, "start": "random"},
    "growing": {"epochs": 1},
    "prior": {"latents": 2, "epochs": 2, "soft_epochs": 1},
    "finetuning": {"epochs": 1},
    "hclt": {"latents": 2, "epochs": 2},
    "sparse_hclt": {"rounds": 1, "epochs": 2},
    "rat_spn": {"depth": 2, "replicas": 2, "epochs": 2},
    "einet": {"sums": 3, "depth": 2, "replicas": 2, "epochs": 2},
    "windows": {"trees": 2, "latents": 4, "epochs": 2, "batch_size": 256, "pixels": 2000},
}
"""Settings that come after the examples' own, so that each takes a second or so."""

STAND_INS = {"photos": "photos.npz", "digits": "digits.npz"}
"""Smaller data for those that examples name."""


class Block(NamedTuple):
    """A fenced block of a page; `reason` says why it is not run."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    found = re.finditer(r"^(?:<!-- not run: (.+) -->\n)?```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    return [Block(page, text[: match.start(2)].count("\n") + 1, match[2], match[3], match[1]) for match in found]


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell example, without comments."""
    return [words for line in text.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]


def options_of(command: str) -> set[str]:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None, command
    return {option for parameter in found.params for option in parameter.opts}


# ------------------------------------------------------------------------------------------------------------- pages


def test_links_lead_to_files() -> None:
    for page in PAGES:
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text())
        missing = [link for link in links if "://" not in link and not (ROOT / page).parent.joinpath(link).exists()]
        assert not missing, f"{page}: {missing}"


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    for page in PAGES:
        assert (ROOT / page).read_text().count("```") == 2 * len(blocks(page)), page
    for block in ALL_BLOCKS:
        assert block.language in {"python", "sh", "toml", "julia", "bibtex", "text"}, block
    assert Counter(block.page for block in ALL_BLOCKS if block.reason) == NOT_RUN


def test_what_is_not_run_still_exists() -> None:
    for block in ALL_BLOCKS:
        for program, *words in commands(block.text) if block.reason and block.language == "sh" else ():
            if program == "lvd-juice":
                command = cli.get_command(click.Context(cli), words[0])
                assert command is not None, block
                given = command.make_context(words[0], words[1 : words.index(">") if ">" in words else None])
                if words[0] == "fit":
                    resolve(given.params["preset"], None, given.params["assignments"])
            elif program == "python":
                script = (ROOT / words[0]).read_text()
                if "parser_of" in script:  # what all comparisons take
                    script += (ROOT / words[0]).with_name("common.py").read_text()
                assert not [word for word in words if word.startswith("--") and f'"{word}"' not in script], block


def test_outlines_name_commands_and_options_that_exist() -> None:
    outlined = set()
    for block in ALL_BLOCKS:
        for line in re.sub(r"\n +", " ", block.text).splitlines() if block.language == "text" else ():
            if line.startswith("lvd-juice "):
                names = re.match(r"lvd-juice ([a-z]+(?: \| [a-z]+)*)", line)
                assert names, line
                outlined |= {*names[1].split(" | ")} if block.page == "README.md" else set()
                for name in names[1].split(" | "):
                    assert {*re.findall(r"(?<=[\s\[|])--?[a-z][a-z-]*", line)} <= options_of(name), line
    assert outlined == set(COMMANDS)


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()


# ---------------------------------------------------------------------------------------------------------- examples


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data and a small run, learned once."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:4, :16]
    slope, level = rng.uniform(-3, 3, (2, 640, 1, 1, 1)), rng.uniform(60, 180, (640, 1, 1, 3))
    values = level + slope[0] * (x[..., None] - 8) + slope[1] * (y[..., None] - 8) + rng.normal(0, 4, (640, 4, 16, 3))
    images = np.clip(values, 0, 255).astype(np.uint8)
    np.save(folder / "images.npy", images[:550])
    np.savez(folder / "photos.npz", train=images[:60], valid=images[60:70], test=images[70:80])
    np.savez(folder / "digits.npz", train=images[:60, :, :8, 0] // 15, test=images[60:70, :, :8, 0] // 15)
    lvd_juice(["fit", str(folder / "photos.npz"), "-o", str(folder / "RUN"), "--preset", "tiny", "--method", "lvd-pg",
               "--set", "offsets.steps=[]"])  # fmt: skip
    return folder


def lvd_juice(words: list[str]) -> None:
    """Run a command in this process, small."""
    words = [STAND_INS.get(word, word) for word in words]
    if words[0] == "fit":
        small = [f"{section}.{key}={value}" for section, table in SMALL.items() for key, value in table.items()]
        words += ["--quiet", *(word for assignment in small for word in ("--set", assignment))]
    assert main(words) == 0, words


def of_run(**more: Callable[[Any], Any]) -> Callable[[Path], dict[str, Any]]:
    """Names that examples take for granted: the model of RUN, and what `more` makes of its images (80, 4, 16, 3)."""

    def names(place: Path) -> dict[str, Any]:
        from pyjuice_lvd import LVDPG

        images = np.load(place / "images.npy")[:80]
        return {"model": LVDPG.load(place / "RUN"), **{name: of(images) for name, of in more.items()}}

    return names


def patches_with_features(place: Path) -> dict[str, Any]:
    patches = np.load(place / "images.npy")[:300, :2, :2].reshape(300, -1)
    return {"patches": patches, "features": patches.astype(float)}


def with_offsets(place: Path) -> dict[str, Any]:
    model, _ = offset_model((4, 16, 3), (4, 4), "ycocg", (32, 32, 64), [list(range(256))] * 3)
    return {"model": model, "images": np.load(place / "images.npy")[:3]}


GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "README.md": lambda _: {"table": np.random.default_rng(0).integers(0, 3, (200, 12))},
    "docs/export.md": of_run(images=lambda images: images[:5]),
    "docs/features.md": lambda place: {"images": np.load(place / "images.npy")[:80]},
    "docs/growing.md": patches_with_features,
    "docs/joint.md": of_run(train=lambda images: images[:60], valid=lambda images: images[60:]),
    "docs/offsets.md": with_offsets,
    "docs/queries.md": of_run(images=lambda images: images[:3]),
    "docs/teacher.md": of_run(images=lambda images: images[:16], held_out=lambda images: images[60:70]),
}
RUN_PAGES = sorted(
    {block.page for block in ALL_BLOCKS if block.language in ("python", "sh", "toml") and not block.reason}
)


@pytest.mark.parametrize("page", RUN_PAGES)
def test_examples_run(page: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, in one folder and with one set of names."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names = GIVEN.get(page, lambda _: {})(place) | {"small": SMALL}
    for block in blocks(page):
        if block.reason is not None:
            continue
        if block.language == "python":
            code = "\n" * block.line + block.text.replace(
                'preset="tiny", random', 'preset="tiny", config=small, random'
            )
            exec(compile(code, ROOT / page, "exec"), names)
        elif block.language == "toml":
            resolve(config=tomllib.loads(block.text))
        elif block.language == "sh":
            for program, *words in commands(block.text):
                if program == "make":
                    subprocess.run(
                        ["make", "--dry-run", "--silent", "-C", ROOT, *words], check=True, capture_output=True
                    )
                else:
                    assert program == "lvd-juice", block
                    lvd_juice(words)
    if page == "docs/export.md":
        assert names["log_p"] == pytest.approx(names["model"].score_samples(names["images"]), rel=1e-5)


def run_julia(code: str, folder: Path) -> str:
    """What the example prints."""
    script = folder / "example.jl"
    script.write_text(code)
    ran = subprocess.run(
        [find.choose().julia.executable, "--startup-file=no", "-O1", f"--project={ROOT / 'julia'}", script],
        env={**os.environ, "JULIA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def julia_examples(page: str) -> list[str]:
    return [block.text for block in ALL_BLOCKS if (block.page, block.language, block.reason) == (page, "julia", None)]


def test_the_julia_example_prints_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "julia.md").read_text()
    (code,) = julia_examples("docs/julia.md")
    (promised,) = re.findall(r"It prints\n\n```text\n(.*?)```", page, re.DOTALL)
    printed = run_julia(code, tmp_path)
    assert re.sub(NUMBER, "#", printed) == re.sub(NUMBER, "#", promised)
    # Another Julia draws other numbers from the same seed.
    found, wanted = ([float(number) for number in re.findall(NUMBER, text)] for text in (printed, promised))
    assert found == pytest.approx(wanted, rel=0.05)


def test_the_example_of_another_backend_runs(tmp_path: Path) -> None:
    (code,) = julia_examples("docs/engine.md")
    run_julia(code, tmp_path)
    assert {block.page for block in ALL_BLOCKS if block.language == "julia"} == {"docs/julia.md", "docs/engine.md"}


# -------------------------------------------------------------------------------------------------------------- site


def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        html = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"([^\"]*)\"|<link[^>]*\shref=\"([^\"]*)\"", html)
        assert not [place for pair in loaded for place in pair if re.match(r"\w+:|//", place)], page
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet
    assert "fit_em" in (tmp_path / "site" / "api.html").read_text()  # from the docstrings
