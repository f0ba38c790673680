"""Clusters of the teacher's features: K-means gives every patch an outer and an inner cluster, its latent's value."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.progress import SILENT, Progress

# K-means sees at most this many features; the others join the nearest centre. Centres move little beyond it.
_FEATURES_SEEN = 200_000


@dataclass(frozen=True)
class Labels:
    """The latent of every patch: an outer cluster, and in its circuit a head (inner cluster).

    `outer` and `head`: int32 (N, P), from 0; `heads`: int32 (clusters,), how many heads each outer cluster has. Every
    outer cluster and every head has at least one patch.
    """

    outer: npt.NDArray[np.int32]
    head: npt.NDArray[np.int32]
    heads: npt.NDArray[np.int32]

    @property
    def values(self) -> npt.NDArray[np.int32]:
        """z, int32 (N, P): heads numbered through all outer clusters, 0..sum(heads) - 1."""
        first = np.concatenate([[0], np.cumsum(self.heads)[:-1]]).astype(np.int32)
        z: npt.NDArray[np.int32] = first[self.outer] + self.head
        return z


def one_shot_labels(
    h: npt.NDArray[np.float32], outer: int, inner: int, *, seed: int = 0, progress: Progress = SILENT
) -> Labels:
    """Cluster features once, without feedback from the circuits: the baseline of the paper's Sec. 4.

    Parameters
    ----------
    h : float32 (N, P, D)
        Features of every patch, before quantisation.
    outer, inner : int
        N1 outer clusters, each with N2 inner ones; fewer where features coincide.
    seed : int
        Of K-means.
    progress : Progress
        Where the work is shown.

    """
    n, positions, dims = h.shape
    flat = h.reshape(-1, dims)
    with progress.stage("clusters", total=1 + outer, unit="runs of K-means") as stage:
        outer_of = kmeans(flat, outer, seed)
        clusters = int(outer_of.max()) + 1
        head_of = np.zeros(len(flat), np.int32)
        heads = np.ones(clusters, np.int32)
        stage.advance()
        for cluster in range(clusters):
            members = np.flatnonzero(outer_of == cluster)
            head_of[members] = kmeans(flat[members], inner, seed + 1 + cluster)
            heads[cluster] = head_of[members].max() + 1
            stage.advance()
    if heads.sum() < outer * inner:
        progress.log(f"features coincide: {heads.sum()} clusters in place of {outer} x {inner}")
    return Labels(outer_of.reshape(n, positions), head_of.reshape(n, positions), heads)


def kmeans(h: npt.NDArray[np.float32], clusters: int, seed: int) -> npt.NDArray[np.int32]:
    """Assign features, float32 (n, D), to at most `clusters` clusters; int32 (n,), numbered from 0 without a gap."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    seen = h
    if len(h) > _FEATURES_SEEN:
        seen = h[np.sort(np.random.default_rng(seed).choice(len(h), _FEATURES_SEEN, replace=False))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than clusters: handled below
        model = KMeans(min(clusters, len(seen)), n_init=1, random_state=seed).fit(seen)
    nearest = model.labels_ if seen is h else model.predict(h)
    return np.unique(nearest, return_inverse=True)[1].astype(np.int32)
