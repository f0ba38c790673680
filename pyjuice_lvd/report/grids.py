"""Grids of images that a person can read: samples, and in-painting beside what was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.files.atomic import atomic_write

UInt8 = npt.NDArray[np.uint8]

_CELL = 96
"""Pixels of the picture that an image's longer side takes, about: whole multiples of its own."""
_FEW_LEVELS = 64
"""Grey samples that seldom reach this level are shown brightened."""
_GAP, _TITLE, _DPI = 6, 22, 120
IMAGE_BYTES = 16 * (_CELL + _GAP) ** 2
"""What an image in a picture takes as the picture is drawn, about: four bytes for each pixel, in several copies."""
_HIDDEN = (227, 119, 194)  # a pink that images seldom have


def plot_samples(path: Path, images: UInt8, title: str) -> None:
    """Draw images, uint8 (N, H, W, C), in a grid about as wide as high, under a title; a PNG file."""
    columns = math.ceil(math.sqrt(len(images) * images.shape[1] / images.shape[2]))
    # Digits have 17 of the 256 levels; a model leaves some probability to the others: the largest drawn says nothing.
    usual = int(np.percentile(images, 90))
    cells = _colours(images, usual if 0 < usual < _FEW_LEVELS else 255)
    _draw(path, [cells[first : first + columns] for first in range(0, len(cells), columns)], [title])


def plot_inpainting(
    path: Path,
    images: UInt8,
    hidden: npt.NDArray[np.bool_],
    drawn: UInt8,
    means: npt.NDArray[np.float64] | None,
    sample_title: str = "sample",
) -> None:
    """Draw a row for each image: itself, what is known of it, what was drawn, and the posterior mean if there is one.

    `images`, `means`: (N, H, W, C); `hidden`: bool (H, W); `drawn`: (n, N, H, W, C). Titles are above the columns.
    """
    white = int(images.max())
    original = _colours(images, white)
    masked = np.where(hidden[..., None], np.array(_HIDDEN, np.uint8), original)
    columns = [original, masked, *(_colours(sample, white) for sample in drawn)]
    titles = ["original", "masked", *(f"{sample_title} {number + 1}" for number in range(len(drawn)))]
    if means is not None:
        columns.append(_colours(means, white))
        titles.append("mean")
    _draw(path, [np.stack(row) for row in zip(*columns, strict=True)], titles)


def _colours(images: npt.NDArray[np.uint8 | np.float64], white: int) -> UInt8:
    """Turn images (N, H, W, C) into RGB; of grey ones, `white` is the level that is shown as white."""
    if images.shape[3] == 1:  # some have few levels, as digits have 17
        images = np.repeat(images * (255 / max(white, 1)), 3, axis=3)
    return np.rint(images).clip(0, 255).astype(np.uint8)


def _draw(path: Path, rows: Sequence[UInt8], titles: Sequence[str]) -> None:
    """Draw rows of RGB images, enlarged without smoothing, with a title above each column, or one above all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = rows[0].shape[1:3]
    scale = max(1, round(_CELL / max(height, width)))
    high, wide = scale * height + _GAP, scale * width + _GAP
    canvas = np.full((_TITLE + high * len(rows), _GAP + wide * len(rows[0]), 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row.repeat(scale, axis=1).repeat(scale, axis=2)):
            top, left = _TITLE + i * high, _GAP + j * wide
            canvas[top : top + scale * height, left : left + scale * width] = image
    # The object-oriented interface: pyplot would keep global state and look for a screen.
    figure = Figure(figsize=(canvas.shape[1] / _DPI, canvas.shape[0] / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.figimage(canvas)
    for j, title in enumerate(titles):
        middle = 0.5 if len(titles) == 1 else (_GAP + j * wide + scale * width / 2) / canvas.shape[1]
        figure.text(middle, 1 - _TITLE / 2 / canvas.shape[0], title, ha="center", va="center", fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
