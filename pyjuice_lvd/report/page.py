"""A run on one HTML page: its figures, settings, data and plots, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pyjuice_lvd.evaluate.merit import protocol_text
from pyjuice_lvd.files.atomic import atomic_write
from pyjuice_lvd.files.formats import read_json
from pyjuice_lvd.files.run import RunDirectory

_METHODS = {
    "lvd-pg": "latent variable distillation with progressive growing",
    "lvd": "one-shot latent variable distillation",
    "hclt": "hidden Chow-Liu trees",
    "rat-spn": "a random and tensorised sum-product network",
}

# In the order in which they are shown; other pictures in the run's folder follow, by name.
_PICTURES = {
    "gap.png": "Teacher and student on the same images: the teacher's ELBO, the LVD objective and log p(x)",
    "reconstructions.png": "Held-out images, and below each what the teacher makes of it from its codes",
    "training.png": "Training",
    "growth.png": "Progressive growing: heads, edges and likelihood of each outer cluster's circuit, round by round",
}

_QUANTITIES = {
    "teacher_elbo": "teacher ELBO", "lvd_objective": "LVD objective", "pc_log_likelihood": "PC log-likelihood",
}  # fmt: skip

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #888; --card: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h1 + p { margin-top: 0; color: var(--faint); }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; margin-top: 1.5rem; }
.cards div { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; }
.cards b { display: block; font-size: 1.5rem; }
.cards span, figcaption { color: var(--faint); font-size: .9rem; }
.cards .lossy { color: #c33; font-weight: bold; }
table { border-collapse: collapse; }
td, th { padding: .2rem 1.2rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; background: white; border-radius: .3rem; }
summary { cursor: pointer; }
"""


def write_report(run: RunDirectory, path: str | os.PathLike[str]) -> list[str]:
    """Write the report of a finished run to an HTML file, aside and renamed; return the names of the pictures in it.

    The page needs no network: pictures, all `.png` files of the run's folder, are in it. Raises InputError where a file
    of the run is damaged, or the page cannot be written.
    """
    result, data = run.result, read_json(run / "data.json")
    pictures = _pictures(run.path)
    title = f"{run.path.resolve().name}: {result['method']} on {Path(data['source']).name}"
    gap = read_json(run / "gap.json") if (run / "gap.json").exists() else None
    sections = [
        f"<h1>{escape(run.path.resolve().name)}</h1>",
        f"<p>{escape(_METHODS[result['method']])}, learned from {escape(data['source'])}</p>",
        _headline(result),
        "" if gap is None else _gap(gap),
        _section("Plots", "".join(map(_figure, pictures))) if pictures else "",
        _section("Data", _data(data)),
        _section("Stages", _stages(run.metrics(), result)),
        _section("Settings", _settings(run.settings)),
        _section("Result", _details("all figures", _facts(_flat(result)))),
        _section("Versions", _facts(result["versions"])) if "versions" in result else "",
    ]
    page = _page(title, "\n".join(filter(None, sections)))
    with atomic_write(path) as file:
        file.write(page.encode())
    return [picture.name for picture in pictures]


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def _headline(result: Mapping[str, Any]) -> str:
    """Show the figures that a run is judged by. A bpd stands beside its protocol, never alone."""
    protocol = result["protocol"]
    mark = "" if protocol["lossless"] else ' class="lossy"'
    per = "test bits per variable" if protocol["color"] is None else f"test bpd: {protocol_text(protocol)}"
    entries = "rows" if protocol["color"] is None else "images"
    cards = [
        (f"{result['bpd']:.4f}{_error(result['std_error_bpd'], 4)}", f"<span{mark}>{escape(per)}</span>"),
        (f"{result['bpd_factorized']:.4f}", "<span>the same with every dimension on its own: the floor</span>"),
        (f"{-result['nll_nats']:,.1f}", f"<span>mean log p(x) in nats, of {result['n']:,} test {entries}</span>"),
        (f"{result['params']:,}", f"<span>parameters, for {result['dims']:,} dimensions</span>"),
    ]
    return '<div class="cards">' + "".join(f"<div><b>{value}</b>{about}</div>" for value, about in cards) + "</div>"


def _gap(gap: Mapping[str, Any]) -> str:
    """Show what `gap` found: the three quantities, and what each is above the one before."""
    rows, before = [], ""
    for key, name in _QUANTITIES.items():
        step = gap["gaps"].get(f"{before}_to_{key}")
        rows.append(
            (
                name,
                f"{gap[key]:,.1f}{_error(gap['std_errors'][key], 1)}",
                f"{gap[f'{key}_bpd']:.4f}",
                "" if step is None else f"{step['nats']:+,.1f}{_error(step['std_error'], 1)}",
            )
        )
        before = key
    about = f"{gap['n']:,} images, {protocol_text(gap['protocol'])}; {gap['images']}"
    table = _table(("", "nats", "bpd", "above the one before, nats"), rows)
    return _section("Teacher and student", f"<p>{escape(about)}</p>{table}")


def _data(data: Mapping[str, Any]) -> str:
    shapes = {part: " x ".join(f"{size:,}" for size in data[part]) for part in ("train", "valid", "test")}
    return _facts({"source": data["source"], "split": data["how"], **shapes})


def stage_seconds(metrics: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Add up the seconds of each stage of a run's metrics, in their order; None for one without.

    Where a stage has records of its epochs and one of the whole, the latter's count.
    """
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for record in metrics:
        stages.setdefault(record["stage"], []).append(record)
    found: dict[str, float | None] = {}
    for stage, records in stages.items():
        timed = [record for record in records if "seconds" in record]
        whole = [record for record in timed if "epoch" not in record] or timed
        found[stage] = sum(record["seconds"] for record in whole) if timed else None
    return found


def _stages(metrics: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> str:
    """Show the stages of the work in their order, with their records and seconds."""
    records = Counter(record["stage"] for record in metrics)
    rows = [
        (stage, f"{records[stage]:,}", "not recorded" if seconds is None else f"{seconds:,.1f}")
        for stage, seconds in stage_seconds(metrics).items()
    ]
    rows.append(("the last call of fit, all in all", "", f"{result['seconds']:,.1f}"))
    return _table(("stage", "records", "seconds"), rows)


def _settings(settings: Mapping[str, Any]) -> str:
    sections = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    plain = {name: value for name, value in settings.items() if name not in sections}
    return _facts(plain) + "".join(_details(f"[{name}]", _facts(table)) for name, table in sections.items())


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{body}</details>\n"


def _pictures(folder: Path) -> list[Path]:
    known = [folder / name for name in _PICTURES]
    others = sorted(path for path in folder.glob("[!.]*.png") if path not in known)
    return [path for path in (*known, *others) if path.is_file()]


def _figure(path: Path) -> str:
    caption = escape(_PICTURES.get(path.name, path.stem))
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>" for name, value in facts.items())
    return f"<table>{''.join(rows)}</table>\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out rows of cells under their titles; the first column is text, the others are numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        first, *numbers = (escape(cell) for cell in cells)
        rest = "".join(f'<{tag} class="number">{cell}</{tag}>' for cell in numbers)
        return f"<tr><{tag}>{first}</{tag}>{rest}</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>\n"


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested tables into one, with names such as `protocol.color`."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _text(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _error(value: float | None, digits: int) -> str:
    return "" if value is None else f" ± {value:,.{digits}f}"
