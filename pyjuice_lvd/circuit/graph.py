"""A circuit as a graph that people look at: for networkx, and drawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit.engine import KINDS, Engine
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.atomic import atomic_write

if TYPE_CHECKING:
    import networkx
    from matplotlib.figure import Figure

_MOST_DRAWN = 300
"""Units: with more of them nothing can be told apart."""

_FORMATS = (".svg", ".png", ".pdf")
_SHOWN_WEIGHTS, _SHOWN_SHARES = 60, 4
"""So many edges' weights are written beside them, and so many categories' probabilities below an input."""

_COLOURS = {"product": "#f0d9b5", "sum": "#b5d3f0"}
_INPUT_COLOUR = "#d8ecd0"


def to_networkx(engine: Engine) -> networkx.DiGraph[int]:
    """See `Circuit.to_networkx`."""
    try:
        import networkx
    except ImportError:
        raise InputError("to_networkx: found no networkx, wanted it installed: pip install networkx") from None
    arrays, names = engine.arrays(), {number: name for name, number in KINDS.items()}
    graph: networkx.DiGraph[int] = networkx.DiGraph(num_vars=engine.num_vars, heads=(arrays["heads"] - 1).tolist())
    heads: dict[int, list[int]] = {}
    for head, unit in enumerate(graph.graph["heads"]):
        heads.setdefault(unit, []).append(head)
    for unit, number in enumerate(arrays["kind"].tolist()):
        about: dict[str, Any] = {"kind": names[number]}
        if unit in heads:
            about["heads"] = heads[unit]
        if number >= KINDS["categorical"]:
            about |= {"variable": int(arrays["variable"][unit]) - 1, "probabilities": _distribution(arrays, unit)}
        graph.add_node(unit, **about)
        first, end = arrays["child_start"][unit : unit + 2] - 1
        for child, weight in zip(arrays["child"][first:end], arrays["weight"][first:end], strict=True):
            if number == KINDS["product"]:
                graph.add_edge(unit, int(child) - 1)
            elif weight > 0:
                graph.add_edge(unit, int(child) - 1, weight=float(weight))
    return graph


def _distribution(arrays: dict[str, npt.NDArray[Any]], unit: int) -> npt.NDArray[np.float32]:
    start, stride, cats = (int(arrays[name][unit]) for name in ("param_start", "param_stride", "categories"))
    return arrays["leaf"][start - 1 + np.arange(cats) * stride]


def draw(engine: Engine, path: str | os.PathLike[str]) -> None:
    """See `Circuit.draw`."""
    file = Path(path)
    if file.suffix.lower() not in _FORMATS:
        raise InputError(f"{file}: wanted a file that ends in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}")
    if engine.num_nodes > _MOST_DRAWN:
        raise InputError(f"draw: found a circuit of {engine.num_nodes:,} units, wanted at most {_MOST_DRAWN}")
    figure = _drawn(to_networkx(engine))
    with atomic_write(file) as target:
        figure.savefig(target, format=file.suffix.lower()[1:], bbox_inches="tight")


def _drawn(graph: networkx.DiGraph[int]) -> Figure:
    """Draw heads above, inputs below, and edges straight between them."""
    from matplotlib.figure import Figure

    place = _places(graph)
    wide, high = (max(coordinate) - min(coordinate) for coordinate in zip(*place.values(), strict=True))
    figure = Figure(figsize=(1.5 + 0.85 * wide, 1.5 + 1.1 * high))
    axes = figure.subplots()
    axes.set_axis_off()
    weighted = graph.size() <= _SHOWN_WEIGHTS
    for parent, child, weight in graph.edges(data="weight"):
        (x, y), (u, v) = place[parent], place[child]
        axes.plot((x, u), (y, v), color="#888888", linewidth=0.8 if weight is None else 0.4 + 1.6 * weight, zorder=1)
        if weighted and weight is not None:
            at, paper = (0.7 * x + 0.3 * u, 0.7 * y + 0.3 * v), {"color": "white", "pad": 0.5}
            axes.text(*at, f"{weight:.2g}", fontsize=6, ha="center", va="center", bbox=paper)
    for unit, about in graph.nodes(data=True):
        (x, y), kind = place[unit], about["kind"]
        colour = _COLOURS.get(kind, _INPUT_COLOUR)
        sign = {"product": "×", "sum": "+"}.get(kind) or f"X{about['variable']}"
        axes.scatter([x], [y], s=320, color=colour, edgecolors="#444444", linewidths=0.8, zorder=2)
        axes.text(x, y, sign, fontsize=8, ha="center", va="center", zorder=3)
        if "heads" in about:
            named = f"head{'s' if len(about['heads']) > 1 else ''} {', '.join(map(str, about['heads']))}"
            axes.text(x, y + 0.32, named, fontsize=6, ha="center", va="bottom")
        if "probabilities" in about:
            axes.text(x, y - 0.3, _caption(kind, about["probabilities"]), fontsize=5, ha="center", va="top")
    axes.margins(0.15 if len(place) > 1 else 1)
    return figure


def _caption(kind: str, probabilities: npt.NDArray[np.float32]) -> str:
    if kind in ("indicator", "literal"):
        return f"= {int(probabilities.argmax())}"
    some = "\n".join(f"{p:.2g}" for p in probabilities[:_SHOWN_SHARES])
    return some + ("\n..." if len(probabilities) > _SHOWN_SHARES else "")


def _places(graph: networkx.DiGraph[int]) -> dict[int, tuple[float, float]]:
    """Place each unit above its children: x from 0 within its layer, ordered by where its children are, and y."""
    layer: dict[int, int] = {}
    for unit in sorted(graph):  # children come before parents
        layer[unit] = 1 + max((layer[child] for child in graph.successors(unit)), default=-1)
    for head in graph.graph["heads"]:  # beside one another
        layer[head] = max(layer.values()) if graph.in_degree(head) == 0 else layer[head]
    rows: list[list[int]] = [[] for _ in range(max(layer.values()) + 1)]
    for unit in sorted(graph):
        rows[layer[unit]].append(unit)
    rows[0].sort(key=lambda unit: (graph.nodes[unit]["variable"], unit))
    x: dict[int, float] = {}
    widest = max(map(len, rows))
    for row in rows:
        row.sort(key=lambda unit: np.mean([x[child] for child in graph.successors(unit)] or [len(x)]))
        for number, unit in enumerate(row):
            x[unit] = (number + 0.5) * widest / len(row)
    return {unit: (x[unit], 1.3 * layer[unit]) for unit in graph}
