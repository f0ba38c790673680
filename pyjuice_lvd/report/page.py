"""A run on one HTML page: its figures, settings, data and plots, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, Template, Undefined

from pyjuice_lvd.evaluate.merit import protocol_text
from pyjuice_lvd.files import names
from pyjuice_lvd.files.atomic import atomic_write
from pyjuice_lvd.files.formats import flat, read_table
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.settings import check_whole

from .tables import GAP_TITLES, MISSING, figure, gap_impossible, gap_rows, text

_METHODS = {
    "lvd-pg": "latent variable distillation with progressive growing",
    "lvd": "one-shot latent variable distillation",
    "hclt": "hidden Chow-Liu trees",
    "sparse-hclt": "hidden Chow-Liu trees, pruned and grown by turns",
    "rat-spn": "a random and tensorised sum-product network",
    "einet": "an einsum network",
    "windows": "pixel after pixel, each given those before it near by, by one circuit",
}

# In the order in which they are shown; other pictures in the run's folder follow, by name.
_PICTURES = {
    names.GAP_PICTURE: "Teacher and student on the same images: the teacher's ELBO, the LVD objective and log p(x)",
    names.RECONSTRUCTIONS: "Held-out images, and below each what the teacher makes of it from its codes",
    names.TRAINING: "Training",
    names.GROWTH: "Progressive growing: heads, edges and likelihood of each outer cluster's circuit, round by round",
}


def write_report(run: RunDirectory, path: str | os.PathLike[str]) -> list[str]:
    """Write the report of a finished run to an HTML file, aside and renamed; return the names of the pictures in it.

    The page needs no network: pictures, all `.png` files of the run's folder, are in it. A figure that the run lacks is
    said to be missing. Raises InputError where a file of the run is damaged, or the page cannot be written.
    """
    result, settings, metrics = run.result, run.settings, run.metrics()
    check_whole(settings, f"{run / names.SETTINGS}: ")
    gap = dict(read_table(run / names.GAP)) if (run / names.GAP).exists() else None
    pictures = _pictures(run.path)
    sections = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    page = _template().render(
        name=run.path.resolve().name,
        result=result,
        figures=flat(result),
        methods=_METHODS,
        data=dict(run.data),
        gap=gap,
        gap_titles=GAP_TITLES,
        gap_rows=gap_rows(gap or {}),
        gap_impossible=gap_impossible(gap or {}),
        pictures=[
            (_PICTURES.get(picture.name, picture.stem), base64.b64encode(picture.read_bytes()).decode())
            for picture in pictures
        ],
        stages=_stages(metrics, result),
        plain_settings={name: value for name, value in settings.items() if name not in sections},
        settings_sections=sections,
    )
    with atomic_write(path) as file:
        file.write(page.encode(errors="replace"))  # a folder's name may be no text
    return [picture.name for picture in pictures]


def stage_seconds(metrics: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Add up the seconds of each stage of a run's metrics, in their order; None for one without.

    Where a stage has records of its epochs and one of the whole, the latter's count.
    """
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for record in metrics:
        stages.setdefault(record["stage"], []).append(record)
    found: dict[str, float | None] = {}
    for stage, records in stages.items():
        timed = [record for record in records if record.get("seconds") is not None]
        whole = [record for record in timed if "epoch" not in record] or timed
        found[stage] = sum(record["seconds"] for record in whole) if timed else None
    return found


def _stages(metrics: Iterable[Mapping[str, Any]], result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Give the stages of the work in their order, with their records and seconds."""
    records = Counter(record["stage"] for record in metrics)
    seconds = {stage: MISSING if spent is None else spent for stage, spent in stage_seconds(metrics).items()}
    return [
        *((stage, text(records[stage]), figure(spent, 1)) for stage, spent in seconds.items()),
        ("the last call of fit, all in all", "", figure(result.get("seconds", MISSING), 1)),
    ]


def _pictures(folder: Path) -> list[Path]:
    known = [folder / name for name in _PICTURES]
    others = sorted(path for path in folder.glob("[!.]*.png") if path not in known)
    return [path for path in (*known, *others) if path.is_file()]


def _template() -> Template:
    """Read the page's template, with the filters that it writes values with."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined)
    environment.filters |= {
        "figure": _where_recorded(figure),
        "protocol": _where_recorded(protocol_text),
        "shape": _where_recorded(lambda sizes: " x ".join(map(text, sizes))),
        "text": _where_recorded(text),
    }
    return environment.from_string(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))


def _where_recorded(write: Callable[..., str]) -> Callable[..., str]:
    """Let a filter say that a value is missing where the run's files have no such entry."""

    def written(value: Any, *options: Any) -> str:
        if isinstance(value, Undefined):
            return MISSING
        try:
            return write(value, *(None if isinstance(option, Undefined) else option for option in options))
        except KeyError:  # a protocol without all of its entries
            return MISSING

    return written
