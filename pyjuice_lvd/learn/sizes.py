"""What can be said before any work is done: whether data fit the settings, and a model this machine."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pyjuice_lvd import large
from pyjuice_lvd.circuit.rows import CATEGORIES_A_ROW, MANY_CATEGORIES
from pyjuice_lvd.data.patches import position_grid
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.machine import in_words, machine_memory
from pyjuice_lvd.models.windows import LEVELS, given_values
from pyjuice_lvd.settings import FIELD, HCLTS, OF_PATCHES, EinetSettings, OffsetSettings, Settings, WindowSettings

_PATCHES = 10_000
"""For each outer cluster where their number is left to the data: with fewer, circuits overfit (docs/settings.md)."""

_CLUSTERS = (2, 32)
"""The fewest and the most of these."""

_BYTES = 24
"""What a parameter takes while a circuit learns, measured: itself, its statistics, and the copies that are kept."""

_TABLE_BYTES = 12
"""That of an input with at least as many categories as a batch has rows: it has no statistics for each of them."""

_TEACHER_BYTES = 16
"""The teacher's: itself, its gradient, and Adam's two moments."""


def with_clusters(shape: tuple[int, ...], settings: Settings) -> Settings:
    """Say how many outer clusters there are, where `clusters.outer` is 0: by training images of that shape."""
    own = settings.clusters
    if settings.method not in OF_PATCHES or own.outer:
        return settings
    patches = shape[0] * (_patches(shape, settings)[0] if own.tied else 1)
    fewest, most = _CLUSTERS
    chosen = min(max(patches // _PATCHES, fewest), most, max(shape[0], 1))
    return replace(settings, clusters=replace(own, outer=chosen))


def check_fit(
    shape: tuple[int, ...],
    settings: Settings,
    num_cats: int = 256,
    *,
    largest: str | None = None,
    source: str = "X",
) -> None:
    """Check that a model of data can be learned at all, before anything is allocated.

    Parameters
    ----------
    shape : (N, H, W, C) or (N, V)
        Of the training images or the training table.
    settings : Settings
        All of them.
    num_cats : int
        Categories of each variable.
    largest : str, optional
        Says where a table's largest value is, for messages: `x.csv: found 7 in column 2 (age)`.
    source : str
        What the data are called there.

    Raises
    ------
    InputError
        Images do not fit the settings, or the model would take more memory than there is. The line names the setting,
        or the column.

    """
    if settings.method in OF_PATCHES:
        position_grid(shape[1], shape[2], settings.teacher.patch)
        if settings.offsets.steps:
            settings.offsets.of_channels(shape[3])
        if shape[0] < settings.clusters.outer:
            raise InputError(
                f"found {shape[0]} training images for clusters.outer = {settings.clusters.outer}, "
                "wanted at least as many images as clusters (0: by the number of patches)"
            )
    if settings.method in HCLTS and shape[0] < settings.hclt.trees:
        kind = "rows" if len(shape) == 2 else "images"
        raise InputError(f"hclt.trees: found {settings.hclt.trees} for {shape[0]} {kind}, wanted at most as many trees")
    if settings.method == "windows":
        pixels = min(settings.windows.pixels, math.prod(shape[:3]))
        if pixels < settings.windows.trees:
            raise InputError(
                f"windows.trees: found {settings.windows.trees} for {pixels} pixels, wanted at most as many trees"
            )
    if settings.method == "einet" and settings.einet.regions == "grid" and len(shape) == 2:
        raise InputError("einet.regions: found 'grid' for a table, wanted 'random' or 'auto': a table has no pixels")
    size, most = _size(shape, settings, num_cats), machine_memory()
    if settings.method in HCLTS and (pairs := _pairs(shape[0], math.prod(shape[1:]))) > most:
        raise InputError(
            f"{source}: found {math.prod(shape[1:]):,} variables: the mutual information of all pairs would take "
            f"{in_words(pairs)} of memory, wanted at most the {in_words(most)} of this machine "
            "(rat-spn and einet need none)"
        )
    largest = f"num_cats: found {num_cats}" if largest is None else largest
    if size <= most:
        return
    blamed = min(_others(settings), key=lambda name: _size(shape, _with_default(settings, name), num_cats))
    if _size(shape, settings, min(num_cats, 256)) < _size(shape, _with_default(settings, blamed), num_cats):
        raise InputError(
            f"{largest}, which makes {num_cats:,} categories: the model would take {in_words(size)} of memory, "
            f"wanted at most the {in_words(most)} of this machine"
        )
    raise InputError(
        f"{blamed}: found {_value(settings, blamed)}: the model would take {in_words(size)} of memory, "
        f"wanted at most the {in_words(most)} of this machine"
    )


def check_categories(num_cats: int, rows: int, largest: str) -> None:
    """Raise InputError where so many categories for so many rows of a table cannot be meant; `largest`: as above."""
    if num_cats > max(MANY_CATEGORIES, CATEGORIES_A_ROW * rows):
        raise InputError(
            f"{largest}, which makes {num_cats:,} categories for {rows:,} rows; "
            "wanted categories, numbered from 0 without large gaps"
        )


def _size(shape: tuple[int, ...], settings: Settings, num_cats: int) -> int:
    """Estimate the bytes that learning takes beside the data; what grows while it learns counts as it begins."""
    num_vars, settings = math.prod(shape[1:]), with_clusters(shape, settings)
    if settings.method in HCLTS:
        latents, tables = settings.hclt.latents, num_vars * settings.hclt.latents * num_cats
        saved = (_BYTES - _TABLE_BYTES) * tables if num_cats >= settings.hclt.batch_size else 0
        return settings.hclt.trees * (_BYTES * _hclt(num_vars, latents, num_cats) - saved)
    if settings.method == "rat-spn":
        own = settings.rat_spn
        return _BYTES * _random_regions(num_vars, own.depth, own.replicas, own.sums, own.inputs, num_cats)
    if settings.method == "einet":
        return _BYTES * _einet(shape, settings.einet, num_cats)
    if settings.method == "windows":
        return _windows(shape, settings.windows)
    if settings.offsets.steps:
        return _BYTES * _with_offsets(shape, settings) + _teacher(settings, *_patches(shape, settings))
    clusters, (ph, pw), channels = settings.clusters, settings.teacher.patch, shape[3]
    positions, pixels = shape[1] // ph * (shape[2] // pw), ph * pw * channels
    circuits = clusters.outer * (1 if clusters.tied else positions)
    patch = _hclt(pixels, settings.circuit.latents, num_cats) + settings.circuit.latents * clusters.inner
    small = _hclt(pixels, settings.refining.latents, num_cats) if settings.refining.rounds else 0
    prior = _hclt(positions, settings.prior.latents, clusters.outer * clusters.inner)
    counted = max(circuits * small, circuits * patch + prior)
    pairs = max(_pairs(shape[0], pixels), _pairs(shape[0], positions))  # at least so many patches, in one cluster
    return _BYTES * counted + _teacher(settings, positions, pixels) + pairs


def _pairs(rows: int, num_vars: int) -> int:
    """Count the bytes of the mutual information of all pairs of variables, and of the columns that it is found from.

    Columns that are large lie in a file; two numbers for each row do not.
    """
    return 8 * num_vars**2 + min(4 * rows * num_vars, large.LARGE) + 16 * rows


def _patches(shape: tuple[int, ...], settings: Settings) -> tuple[int, int]:
    """Count the positions of images, and the values of a patch."""
    (ph, pw), (_, height, width, channels) = settings.teacher.patch, shape
    return height // ph * (width // pw), ph * pw * channels


def _with_offsets(shape: tuple[int, ...], settings: Settings) -> int:
    """Count the parameters of a model with offsets."""
    own, (positions, pixels) = settings.offsets, _patches(shape, settings)
    circuit = _hclt(pixels // shape[3], settings.circuit.latents, 256) + settings.circuit.latents * own.joins
    circuits = settings.clusters.outer * shape[3] * circuit
    trees = 2 * own.kinds if own.trees == "lines" else 2 if own.trees == "combs" else 1
    batch = own.batch_size * positions * min(own.candidates or settings.clusters.outer, settings.clusters.outer)
    rows = batch * sum(_rows(own, shape[3])) * (pixels // shape[3] // 4 + own.joins + 5)  # kept of a batch
    tables = own.states * (settings.clusters.outer * own.joins + 2 * positions * trees * own.states)
    if own.trees == FIELD:
        offsets = sum((256 // step) ** 2 for step in own.of_channels(shape[3])[0])
        tables = own.states * settings.clusters.outer * own.joins + 2 * (own.states**2 + own.groups**2 * offsets)
    return circuits + tables + 4 * rows // _BYTES


def _rows(own: OffsetSettings, channels: int) -> list[int]:
    """Count the offsets of each channel under which a patch's anchor is in its window."""
    return [min(256 // step, 1 + 2 * window // step) for step, window in zip(*own.of_channels(channels), strict=True)]


def _hclt(num_vars: int, latents: int, num_cats: int) -> int:
    """Count the parameters of a hidden Chow-Liu tree."""
    return num_vars * latents * num_cats + (num_vars - 1) * latents**2 + latents


def _windows(shape: tuple[int, ...], own: WindowSettings) -> int:
    """Estimate the bytes of a model of windows, and of the windows that it learns from."""
    rows, values = min(own.pixels, math.prod(shape[:3])), given_values(shape[3], own.reach) + shape[3]
    return own.trees * _BYTES * _hclt(values, own.latents, LEVELS) + 2 * rows * values + _pairs(rows, values)


def _random_regions(num_vars: int, depth: int, replicas: int, sums: int, inputs: int, num_cats: int) -> int:
    """Count the parameters of a RAT-SPN, and the edges of its products, as if no two cuts met in a region."""
    depth = min(depth, (num_vars - 1).bit_length())
    parts = [inputs if level + 1 == depth else sums for level in range(depth)]
    pairs = sum(replicas * min(1 << level, num_vars) * (2 + sums) * part**2 for level, part in enumerate(parts))
    return replicas * inputs * num_vars * num_cats + pairs


def _einet(shape: tuple[int, ...], own: EinetSettings, num_cats: int) -> int:
    """Count the parameters of an EiNet, and the edges of its products."""
    num_vars = math.prod(shape[1:])
    if own.regions == "random" or len(shape) == 2:
        return _random_regions(num_vars, own.depth, own.replicas, own.sums, own.sums, num_cats)
    return _grid_cuts(shape[1], shape[2], own.steps) * own.sums**2 * (2 + own.sums) + num_vars * own.sums * num_cats


def _grid_cuts(height: int, width: int, steps: tuple[int, ...]) -> int:
    """Count the partitions of a grid of regions; cells that the image's edge cuts off count as whole ones."""
    if not steps:
        return 0
    step, rows, columns = steps[0], -(-height // steps[0]), -(-width // steps[0])
    along = (rows - 1) * rows * (rows + 1) // 6 * (columns * (columns + 1) // 2)
    across = (columns - 1) * columns * (columns + 1) // 6 * (rows * (rows + 1) // 2)
    return along + across + rows * columns * _grid_cuts(min(step, height), min(step, width), steps[1:])


def _teacher(settings: Settings, positions: int, pixels: int) -> int:
    """Estimate the bytes of the teacher's parameters, and of the distances of a batch's features to the codes."""
    own = settings.teacher
    blocks = own.blocks * (2 if own.decoder == "convolutional" else 1)
    width = own.channels * (pixels + 10 * blocks * own.channels + 2 * own.code_dim + 3 * own.mixtures * pixels)
    return _TEACHER_BYTES * (width + own.codes * own.code_dim) + 4 * own.batch_size * positions * own.codes


def _others(settings: Settings) -> list[str]:
    """Name the settings that make a model large."""
    if settings.method in HCLTS:
        return ["hclt.latents", "hclt.trees"]
    if settings.method == "rat-spn":
        return [f"rat_spn.{name}" for name in ("replicas", "sums", "inputs")]
    if settings.method == "einet":
        return [f"einet.{name}" for name in ("sums", "steps", "replicas")]
    if settings.method == "windows":
        return [f"windows.{name}" for name in ("latents", "trees", "pixels", "reach")]
    teacher = [f"teacher.{name}" for name in ("channels", "blocks", "code_dim", "codes", "mixtures", "batch_size")]
    teacher.append("teacher.patch")
    return [
        "circuit.latents",
        "clusters.outer",
        "clusters.inner",
        "prior.latents",
        "refining.latents",
        "offsets.states",
        "offsets.joins",
        "offsets.kinds",
        "offsets.batch_size",
        *teacher,
    ]


def _value(settings: Settings, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(getattr(settings, section), key)


def _with_default(settings: Settings, name: str) -> Settings:
    section, _, key = name.partition(".")
    own = getattr(settings, section)
    return replace(settings, **{section: replace(own, **{key: _value(Settings(), name)})})
