"""Behind `fit --method windows`: a circuit over windows, learned by EM from the pixels of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit.reduce import on_first
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.files import names
from pyjuice_lvd.files.run import Record
from pyjuice_lvd.large import digest_of
from pyjuice_lvd.learn.baselines import em_settings, learn_by_em, mixture_of_trees
from pyjuice_lvd.learn.pieces import Pieces
from pyjuice_lvd.learn.sizes import check_fit
from pyjuice_lvd.models.windows import CENTRE, LEVELS, WEIGHT_UNIT, Int64, Rows, WindowModel, Windows, neighbours
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.settings import Settings
from pyjuice_lvd.shares import shares

UInt8 = npt.NDArray[np.uint8]

_REFERENCE, _ROUNDS = 16_000_000, 10
"""Values, in all, of the windows that the reference levels go by, and rounds of least squares."""

_VALID = 10
"""Of the windows to stop early by there are so many times fewer, at most."""


def learn_windows(
    train: UInt8,
    valid: UInt8,
    settings: Settings,
    *,
    folder: Path | None = None,
    record: Record = lambda _: None,
    progress: Progress = SILENT,
) -> WindowModel:
    """Learn a model of windows: trees over clusters of windows, then EM on their mixture (docs/windows.md).

    Parameters
    ----------
    train, valid : uint8 (N, H, W, C)
        Images to learn from, and to stop early by.
    settings : Settings
        `windows`, the seed and the colour transform.
    folder : Path, optional
        Where the state is kept. An interrupted call goes on from what is there, with the same outcome.
    record : callable
        Gets one record (plain numbers and texts) for every piece of work.
    progress : Progress
        Where the work is shown.

    Raises
    ------
    InputError
        The model would take more memory than there is.

    """
    check_fit(train.shape, settings)
    digests = {"training_images": digest_of(train), "validation_images": digest_of(valid)}
    pieces = Pieces(folder, settings, **digests)
    done = pieces.finished(names.DESCRIPTION)
    if done is not None:
        return WindowModel.load(done.parent)
    own, color = settings.windows, settings.data.color
    shape = train.shape[1], train.shape[2], train.shape[3]
    plain = Windows(shape, own.reach, np.zeros((shape[2], shape[2] * neighbours(own.reach)), np.int32), True)
    some = _windows_of(train, plain, _REFERENCE // plain.values, color, settings.seed)
    weights = on_first(lambda: reference_weights(some, shape[2]))  # processors round differently
    windows = replace(plain, weights=weights, whole=False)
    rows = _windows_of(train, windows, own.pixels, color, settings.seed)
    held_out = _windows_of(valid, windows, max(1, len(rows.values) // _VALID), color, settings.seed + 1)
    # The pixel is near the root, so that what is known is summed once, on the way up.
    inputs = {"leaves": "categorical", "num_cats": LEVELS, "root": windows.given}
    circuit, _ = learn_by_em(
        lambda: mixture_of_trees(*rows, inputs, own, settings.seed, progress),
        *rows, em_settings(own, len(rows.values), *held_out, settings.seed),
        pieces=pieces, record=record, progress=progress,
    )  # fmt: skip
    model = WindowModel(circuit, windows=windows, color=color)
    if pieces.folder is not None:
        model.save(pieces.folder)
    pieces.drop(names.UNTRAINED, names.EM)
    return model


def reference_weights(rows: Rows, channels: int) -> npt.NDArray[np.int32]:
    """Find the weights of the reference levels, of whole windows without: int32 (C, neighbours' values).

    Those of the least sum of absolute errors, each divided by its window's contrast, so that flat windows count as much
    as others: by weighted least squares, again and again.
    """
    far = rows.values.astype(np.float64) - CENTRE
    far[rows.outside] = 0
    near, own = far[:, : -2 * channels - 2], far[:, -channels:]
    calm = 1 / (1 + np.abs(near).mean(axis=1))
    found = np.zeros((channels, near.shape[1]))
    for weights, target in zip(found, own.T, strict=True):
        for _ in range(_ROUNDS):
            share = calm / (1 + np.abs(target - near @ weights))
            weights[:] = np.linalg.solve((near.T * share) @ near + np.eye(len(weights)), near.T @ (share * target))
    return np.rint(found * WEIGHT_UNIT).astype(np.int32)


def _windows_of(images: UInt8, windows: Windows, most: int, color: str, seed: int) -> Rows:
    """Give the windows of pixels at about even distances, by chance: at most so many."""
    total = len(images) * windows.pixels
    pixels = np.arange(total)
    if total > most:  # one of each of `most` equal parts
        pixels = ((np.arange(most) + np.random.default_rng(seed).random(most)) * (total / most)).astype(np.int64)
    forward = color_transform(color, windows.image_shape[2]).forward
    found = Rows(np.empty((len(pixels), windows.values), np.uint8), np.empty((len(pixels), windows.values), bool))
    for part in shares(len(images), images[0].nbytes):
        first, last = np.searchsorted(pixels, (part.start * windows.pixels, part.stop * windows.pixels))
        own: Int64 = pixels[first:last] - part.start * windows.pixels
        found.values[first:last], found.outside[first:last] = windows.rows(forward(np.asarray(images[part])), own)
    return found
