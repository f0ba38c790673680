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
from pyjuice_lvd.clustering import kmeans
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


def outer_clusters(
    x: npt.NDArray[np.uint8],
    h: npt.NDArray[np.float32],
    settings: Settings,
    *,
    candidates: int,
    record: Record = lambda _: None,
    progress: Progress,
) -> Integers:
    """Cluster the features of all patches once, as they are, and refine the clusters: int32 (N, P, M).

    The first of the M, at most `candidates`, is a patch's outer cluster, the others are the next most probable; without
    refining, M is 1.
    Positions that are not tied have clusters of their own, which follow one another. `x`: patches (N, P, V), `h`:
    features (N, P, D).
    """
    clusters, wanted, first, ranks = settings.clusters, max(candidates, 1), 0, []
    for position in (None,) if clusters.tied else range(h.shape[1]):
        positions = slice(None) if position is None else slice(position, position + 1)
        features = contiguous(h[:, positions]).reshape(-1, h.shape[2])
        own = on_first(partial(kmeans, features, clusters.outer, settings.seed))[:, None]
        if settings.refining.rounds:
            own = refine(
                contiguous(x[:, positions]).reshape(-1, x.shape[2]), own[:, 0], settings.refining,
                candidates=wanted, seed=settings.seed, record=_at_position(record, position), progress=progress,
                name="outer clusters" if position is None else f"outer clusters of position {position}",
            )  # fmt: skip
        own += np.int32(first)
        ranks.append(own.reshape(len(h), -1, own.shape[1]))
        first = int(own.max()) + 1
    if len(ranks) == 1:
        return ranks[0]
    widest = max(own.shape[2] for own in ranks)  # positions with fewer clusters name their last candidate again
    found = empty((len(h), len(ranks), widest), np.int32)
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
