"""The pictures that a run leaves behind: the teacher's reconstructions, and how the training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.evaluate.merit import std_error
from pyjuice_lvd.files.atomic import atomic_write
from pyjuice_lvd.units import bits_per_dimension, log_likelihood_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyjuice_lvd.evaluate.gap import Gap
    from pyjuice_lvd.teacher import Teacher

_PAIRS = 24


def plot_reconstructions(path: Path, images: npt.NDArray[np.uint8], teacher: Teacher) -> None:
    """Draw some images, uint8 (N, H, W, C), each above the teacher's reconstruction of it."""
    chosen = images[np.linspace(0, len(images) - 1, min(_PAIRS, len(images))).astype(int)]
    rows = [
        _strip(part) for half in np.array_split(chosen, 2) if len(half) for part in (half, teacher.reconstruct(half))
    ]
    figure = _figure(10, 1.7 * len(rows) / 2)
    grid = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for number, (axes, strip) in enumerate(zip(grid, rows, strict=True)):
        axes.imshow(strip, cmap="gray", vmin=0, vmax=strip.max() if strip.ndim == 2 else 255, interpolation="nearest")
        axes.set_ylabel("teacher" if number % 2 else "original", rotation=0, ha="right", va="center")
        axes.set_xticks([])
        axes.set_yticks([])
    _write(figure, path)


def _strip(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Lay images side by side, a dark line between them: (H, W) for grey images, (H, W, 3) for colour."""
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    strip = np.concatenate(list(framed), axis=1)
    return strip[:, :, 0] if strip.shape[2] == 1 else strip


def plot_training(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw a run's metrics: the teacher's loss, the patch circuits, or shapes, and EM on p(x)."""
    figure = _figure(10, 3.2)
    left, middle, right = figure.subplots(1, 3)
    teacher = [record for record in metrics if record["stage"] == "teacher" and "epoch" in record]
    _line(left, teacher, "epoch", {"train": "reconstruction_bpd", "validation": "valid_reconstruction_bpd"})
    left.set(title="teacher", xlabel="epoch", ylabel="reconstruction, bits per dimension")

    patches = {
        record["cluster"]: record["log_likelihood"]
        for record in metrics
        if record["stage"] == "patch circuit" and record["log_likelihood"] is not None  # not finite
    }
    if patches:
        middle.bar(list(patches), list(patches.values()))
        middle.set(title="patch circuits", xlabel="outer cluster", ylabel="mean log p(x | z) of a patch, nats")
    else:  # with offsets shapes are what refining makes of the clusters, and learn end to end
        rounds = [{**record, "round": record["round"] + 1} for record in metrics if record["stage"] == "outer clusters"]
        _line(middle, rounds, "round", {"small circuits": "log_likelihood"})
        middle.set(title="shapes", xlabel="round", ylabel="mean log-likelihood of a patch's residuals, nats")

    prior, whole = (
        [record for record in metrics if record["stage"] == stage and "epoch" in record]
        for stage in ("p(x)", "end to end")
    )
    joint = [*prior, *({**record, "epoch": record["epoch"] + len(prior)} for record in whole)]
    _line(right, joint, "epoch", {"train": "train", "validation": "valid"})
    if prior and whole:
        right.axvline(len(prior) + 0.5, color="gray", linewidth=0.8)
        right.text(len(prior) + 0.5, 0.02, " end to end", transform=right.get_xaxis_transform(), color="gray")
    right.set(title="EM on p(x)", xlabel="epoch", ylabel="mean log p(x), nats")
    _write(figure, path)


def plot_growth(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw progressive growing, round by round: each outer cluster's heads, edges and log-likelihood."""
    figure = _figure(10, 3.2)
    clusters: dict[int, list[Mapping[str, Any]]] = {}
    for record in metrics:
        if record["stage"] == "patch circuit":
            clusters.setdefault(record["cluster"], []).append(record)
    labels = {"heads": "heads", "edges": "edges", "log_likelihood": "mean log p(x | z) of a patch, nats"}
    for axes, (name, label) in zip(figure.subplots(1, 3), labels.items(), strict=True):
        for rounds in clusters.values():
            axes.plot(
                [record["round"] for record in rounds], [record[name] for record in rounds], marker=".", alpha=0.5
            )
        axes.set(xlabel="round", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle("progressive growing, a line for each outer cluster")
    _write(figure, path)


def plot_em(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw the metrics of a run that is EM on one circuit, or on one after another: their epochs follow each other."""
    figure = _figure(5, 3.2)
    axes = figure.subplots()
    of_em = [record for record in metrics if record["stage"] == "EM"]
    records = [{**record, "epoch": number} for number, record in enumerate(of_em, 1)]
    _line(axes, records, "epoch", {"train": "train", "validation": "valid"})
    axes.set(title="EM", xlabel="epoch", ylabel="mean log p(x), nats")
    _write(figure, path)


def plot_gap(path: Path, gap: Gap, protocol: str) -> None:
    """Draw the teacher's ELBO, LVD objective and log-likelihood, and the gaps; `protocol` says what they are of."""
    figure = _figure(10, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    names = ("teacher ELBO", "LVD objective", "PC log-likelihood")
    means = [float(values.mean()) for values in gap.quantities().values()]
    errors = [std_error(values) or 0.0 for values in gap.quantities().values()]
    left.errorbar(means, range(3), xerr=errors, fmt="o", capsize=4)
    for row, values in enumerate(list(gap.gaps().values())[:2]):
        mean, error = values.mean(), std_error(values)
        text = f"{mean:+,.1f}" if error is None else f"{mean:+,.1f} ± {error:,.1f}"
        place = (means[row] + means[row + 1]) / 2, row + 0.5
        left.annotate("", (means[row + 1], row + 0.9), (means[row], row + 0.1), arrowprops={"arrowstyle": "->"})
        left.text(*place, text, ha="center", va="center", bbox={"color": "white", "pad": 1})
        right.ecdf(values, label=" to ".join(names[row : row + 2]))
    left.set_yticks(range(3), names)
    left.set(ylim=(2.5, -0.5), xlabel="nats", title=f"mean over {len(gap.codes)} images ({protocol})")
    left.margins(x=0.3)
    units = (lambda nats: bits_per_dimension(nats, gap.dims), lambda bpd: log_likelihood_of(bpd, gap.dims))
    left.secondary_xaxis("top", functions=units).set_xlabel("bpd")
    right.axvline(0, color="grey", linewidth=0.8)
    right.set(title="gaps, image by image", xlabel="nats, at most", ylabel="share of the images")
    right.legend(frameon=False, loc="lower right")
    _write(figure, path)


def _line(axes: Axes, records: Sequence[Mapping[str, Any]], x: str, series: Mapping[str, str]) -> None:
    for label, name in series.items():
        points = [(record[x], record[name]) for record in records if record.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
    if axes.lines:
        axes.legend(frameon=False)


def _figure(width: float, height: float) -> Figure:
    # The object-oriented interface: pyplot would keep global state and look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Figure, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", bbox_inches="tight")
