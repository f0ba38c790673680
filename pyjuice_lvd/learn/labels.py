"""Outer clusters and labels: the value of the latent z of every training patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.reduce import on_first
from pyjuice_lvd.clustering import kmeans, means_of, nearest_of
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_arrays, write_arrays
from pyjuice_lvd.files.run import Record
from pyjuice_lvd.large import blocks, by_blocks, contiguous, empty
from pyjuice_lvd.learn.refining import refine
from pyjuice_lvd.progress import Progress
from pyjuice_lvd.settings import Settings

Integers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Labels:
    """The latent of every patch: an outer cluster, and in its circuit a head (inner cluster).

    `outer` and `head`: int32 (N, P), from 0; `heads`: int32 (clusters,), how many heads each outer cluster has. Every
    outer cluster and every head has at least one patch. `candidates`: int32 (N, P, M), the most probable outer
    clusters of each patch, where refining ranked them.
    """

    outer: Integers
    head: Integers
    heads: Integers
    candidates: Integers | None = None

    @property
    def values(self) -> Integers:
        """z, int32 (N, P): heads numbered through all outer clusters, 0..sum(heads) - 1."""
        first = np.concatenate([[0], np.cumsum(self.heads)[:-1]]).astype(np.int32)

        def numbered(rows: slice) -> Integers:
            z: Integers = first[self.outer[rows]] + self.head[rows]
            return z

        return by_blocks(len(self.outer), numbered, 8 * self.outer.shape[1])

    def save(self, path: Path) -> None:
        """Write the labels to a safetensors file."""
        arrays = {"outer": self.outer, "head": self.head, "heads": self.heads}
        write_arrays(path, arrays if self.candidates is None else {**arrays, "candidates": self.candidates})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises InputError where the file is missing, damaged or no labels."""
        arrays, _ = read_arrays(path)
        outer, head, heads = (_integers(path, arrays, name) for name in ("outer", "head", "heads"))
        if outer.ndim != 2 or head.shape != outer.shape or heads.ndim != 1:
            raise InputError(f"{path}: damaged, found labels {outer.shape}, {head.shape} and {heads.shape}")
        within = outer.size and outer.min() >= 0 and outer.max() < len(heads)
        parts = blocks(len(outer), 8 * max(1, outer.shape[1]))
        if not within or head.min() < 0 or any((head[rows] >= heads[outer[rows]]).any() for rows in parts):
            raise InputError(f"{path}: damaged, found labels beyond the clusters and heads that there are")
        return cls(outer, head, heads, arrays.get("candidates"))


def _integers(path: Path, arrays: dict[str, npt.NDArray[Any]], name: str) -> Integers:
    if name not in arrays or arrays[name].dtype != np.int32:
        raise InputError(f"{path}: damaged, found no integers named {name!r}")
    return arrays[name]


@dataclass(frozen=True)
class Featured:
    """Patches of images, uint8 (N, P, V), and their features, float32 (N, P, D)."""

    x: npt.NDArray[np.uint8]
    h: npt.NDArray[np.float32]

    def at(self, position: int | None) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Give those at a position, or at all of them: (n, V) and (n, D)."""
        positions = slice(None) if position is None else slice(position, position + 1)
        x, h = (contiguous(each[:, positions]) for each in (self.x, self.h))
        return x.reshape(-1, x.shape[2]), h.reshape(-1, h.shape[2])


@dataclass(frozen=True)
class OuterClusters:
    """Outer clusters: of each patch the most probable ones, the best first; and of each validation patch the best.

    `candidates`: int32 (N, P, M), numbered from 0 without a gap. `valid`: int32 (n, P), if there are validation images.
    """

    candidates: Integers
    valid: Integers | None = None


def outer_clusters(
    patches: Featured,
    settings: Settings,
    *,
    valid: Featured | None = None,
    candidates: int,
    record: Record = lambda _: None,
    progress: Progress,
) -> OuterClusters:
    """Cluster the features of all patches once, as they are, and refine the clusters.

    Of a patch's candidates, at most so many, the first is its outer cluster; without refining it is the only one.
    Positions that are not tied have clusters of their own, which follow one another. Validation patches are only
    assigned, to the clusters of the nearest mean feature, or as refining ranks them.
    """
    clusters, wanted, first, ranks, held_out = settings.clusters, max(candidates, 1), 0, [], []
    for position in (None,) if clusters.tied else range(patches.h.shape[1]):
        x, h = patches.at(position)
        own = on_first(partial(kmeans, h, clusters.outer, settings.seed))[:, None]
        others = None if valid is None else valid.at(position)
        nearest = None
        if settings.refining.rounds:
            own, nearest = refine(
                x, own[:, 0], settings.refining, valid=None if others is None else others[0], candidates=wanted,
                seed=settings.seed, record=_at_position(record, position), progress=progress,
                name="outer clusters" if position is None else f"outer clusters of position {position}",
            )  # fmt: skip
        elif others is not None:
            nearest = nearest_of(others[1], means_of(h, own[:, 0], np.unique(own)))[:, None]
        if nearest is not None and valid is not None:
            held_out.append((nearest[:, 0] + np.int32(first)).reshape(len(valid.h), -1))
        own += np.int32(first)
        ranks.append(own.reshape(len(patches.h), -1, own.shape[1]))
        first = int(own.max()) + 1
    return OuterClusters(_side_by_side(ranks), np.concatenate(held_out, axis=1) if held_out else None)


def _side_by_side(ranks: Sequence[Integers]) -> Integers:
    """Put the candidates of positions, each (N, P', M'), side by side: (N, P, M)."""
    if len(ranks) == 1:
        return ranks[0]
    widest = max(own.shape[2] for own in ranks)  # positions with fewer clusters name their last candidate again
    found = empty((len(ranks[0]), len(ranks), widest), np.int32)
    for position, own in enumerate(ranks):
        found[:, position, : own.shape[2]] = own[:, 0]
        found[:, position, own.shape[2] :] = own[:, 0, -1:]
    return found


def _at_position(record: Record, position: int | None) -> Record:
    return record if position is None else lambda entry: record({**entry, "position": position})


def position_by_position(circuits: Sequence[Circuit], labels: Labels) -> tuple[list[Circuit], Integers]:
    """Number z at each position by its own heads; give all positions as many of them.

    A position whose features could not be told apart has fewer: its last head then stands for several values of z.
    """
    circuits, ends = list(circuits), labels.outer.max(axis=0) + 1
    counts = np.array([heads.sum() for heads in np.split(labels.heads, ends[:-1])], np.int32)
    for last, missing in zip(ends - 1, counts.max() - counts, strict=True):
        if missing:
            heads = np.arange(labels.heads[last] + missing)
            circuits[last] = circuits[last].with_heads(np.minimum(heads, labels.heads[last] - 1))
    return circuits, labels.values - (np.cumsum(counts, dtype=np.int32) - counts)
