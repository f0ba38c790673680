"""The site has pages from outside docs/ too, and links between pages lead where the files lie on a code host."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "CITATION.cff",
    "benchmarks/*.md",
    "benchmarks/*.json",
)
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages and data from outside docs/."""
    for path in (path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        place = _on_site(path.relative_to(ROOT).as_posix())
        files.append(File.generated(config, place, abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page from places in the repository into places on the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(Path(page.file.abs_src_path or "").relative_to(ROOT).as_posix())

    def moved(link: re.Match[str]) -> str:
        target = _on_site(posixpath.normpath(posixpath.join(folder, link[1])))
        return posixpath.relpath(target, posixpath.dirname(here) or ".")

    return _LINK.sub(moved, markdown)


def _on_site(place: str) -> str:
    """Say where a file of the repository, such as `docs/data.md`, lies on the site."""
    return "index.md" if place == "README.md" else place.removeprefix("docs/")
