"""Results as text: how figures are written, and tables on the terminal."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.console
    import rich.table

MISSING = "not recorded"
"""Stands where a file has no such figure."""

GAP_TITLES = ("", "nats", "bpd", "above the one before, nats")
"""The heads of the columns of `gap_rows`."""


def text(value: Any) -> str:
    """Write a setting or a figure for people; a table as `name=value, ...`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 or not math.isfinite(value) else f"{value:,.0f}"
    return "none" if value is None or value == "" else str(value)


def figure(value: float | str | None, digits: int, error: float | None = None, sign: str = "") -> str:
    """Write a measured figure with its standard error, where there is one.

    None is what files have in place of infinities and NaN; a text, such as `MISSING`, stays as it is.
    """
    if value is None:
        return "not finite"
    if isinstance(value, str):
        return value
    tolerance = "" if error is None or math.isnan(error) else f" ± {error:,.{digits}f}"
    return f"{value:{sign},.{digits}f}{tolerance}"


def gap_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Write what `gap` found, under `GAP_TITLES`: the three quantities, and how far each is above the one before."""
    names = {"teacher_elbo": "teacher ELBO", "lvd_objective": "LVD objective", "pc_log_likelihood": "PC log-likelihood"}
    rows, before = [], ""
    for key, name in names.items():
        step = found.get("gaps", {}).get(f"{before}_to_{key}", {})
        rows.append(
            (
                name,
                figure(found.get(key, MISSING), 1, found.get("std_errors", {}).get(key)),
                figure(found.get(f"{key}_bpd", MISSING), 4),
                figure(step.get("nats", MISSING), 1, step.get("std_error"), "+") if before else "",
            )
        )
        before = key
    return rows


def gap_impossible(found: Mapping[str, Any]) -> str:
    """Say how many images `gap` left out, because one of the three quantities has probability 0 of them."""
    counts = (f"{count:,} under {name.replace('_', ' ')}" for name, count in found.get("impossible", {}).items())
    return ", ".join(counts)


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> rich.table.Table:
    """Lay out rows under their titles: the first column to the left, the others, numbers, to the right."""
    from rich.table import Table
    from rich.text import Text

    laid_out = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, title in enumerate(titles):
        laid_out.add_column(Text(title), justify="right" if number else "left", overflow="fold")
    for row in rows:
        laid_out.add_row(*(Text(str(cell)) for cell in row))
    return laid_out


def facts(rows: Iterable[tuple[str, str]]) -> rich.table.Table:
    """Lay out names and what is so, a line for each where there is room."""
    from rich.table import Table
    from rich.text import Text

    laid_out = Table.grid(padding=(0, 2), pad_edge=False)
    laid_out.add_column(no_wrap=True)
    laid_out.add_column(overflow="fold")
    for name, what in rows:
        laid_out.add_row(Text(name), Text(what))
    return laid_out


def lay_out(*parts: rich.table.Table | str) -> str:
    """Turn tables and texts into the text for stdout, with an empty line between them.

    On a terminal, what is wider than it goes on in the next line of its column. Elsewhere nothing is cut or wrapped,
    however long, and there are no colours: a line of a file is a line of the table.
    """
    from rich.console import Console
    from rich.text import Text

    terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=terminal, highlight=False)
    blocks = [Text(part) if isinstance(part, str) else part for part in parts]
    if not terminal:
        endless = console.options.update(max_width=sys.maxsize)
        console.width = max(console.measure(part, options=endless).maximum for part in blocks)
    texts = []
    for part in blocks:
        with console.capture() as capture:
            console.print(part)
        texts.append("\n".join(line.rstrip() for line in capture.get().splitlines()))
    return "\n\n".join(texts)
