"""K-means: features, such as the teacher's, in clusters, and clusters divided into more."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.large import blocks, by_blocks, renumbered, take

# K-means sees at most this many features; the others join the nearest centre. Centres move little beyond it.
_FEATURES_SEEN = 200_000


def kmeans(h: npt.NDArray[np.float32], clusters: int, seed: int, seen: int = _FEATURES_SEEN) -> npt.NDArray[np.int32]:
    """Assign features, float32 (n, D), to at most `clusters` clusters; int32 (n,), numbered from 0 without a gap.

    Centres come from at most `seen` of the features, chosen by the seed.
    """
    if clusters == 1:
        return np.zeros(len(h), np.int32)
    nearest = _nearest(h, min(clusters, len(h)), "k-means++", seed, seen)
    return renumbered(nearest)[1]


def divide(
    h: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], extra: int, first_new: int, seed: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Divide clusters into more by K-means, whose first centres start at the means of those that there are.

    Parameters
    ----------
    h : float32 (n, D)
        Features.
    labels : int32 (n,)
        Their clusters, with any numbers.
    extra : int
        New clusters, at most as many as there are old ones; their centres start at features far from the others.
    first_new : int
        Number of the first new cluster.
    seed : int
        Of the choice of these features.

    Returns
    -------
    labels : int32 (n,)
        The old numbers, and first_new + j for new cluster j.
    origins : int64 (m,)
        For each new cluster an old one that it has many features of, no two the same; m < extra where features
        coincide or are fewer than the clusters.

    """
    from scipy.optimize import linear_sum_assignment  # where it is used: HCLTs start without it

    old = np.unique(labels)
    centres = means_of(h, labels, old)
    rng = np.random.default_rng(seed)
    for _ in range(min(extra, len(h) - len(old))):
        # As K-means++ does: with probability in proportion to the squared distance.
        distance = by_blocks(len(h), partial(_distances, h, centres), 8 * h.shape[1])
        if not distance.any():
            break
        centres = np.vstack([centres, h[rng.choice(len(h), p=distance / distance.sum())]])
    nearest = _nearest(h, len(centres), centres.astype(np.float32), seed)
    made = [new for new in range(len(old), len(centres)) if (nearest == new).any()]
    number = np.zeros(len(centres), np.int32)
    number[: len(old)] = old
    number[made] = first_new + np.arange(len(made))
    shared = np.array([[np.sum((nearest == new) & (labels == label)) for label in old] for new in made])
    origins = linear_sum_assignment(shared, maximize=True)[1] if made else np.zeros(0, np.int64)
    return number[nearest], old[origins].astype(np.int64)


def _nearest(
    h: npt.NDArray[np.float32],
    clusters: int,
    start: str | npt.NDArray[np.float32],
    seed: int,
    limit: int = _FEATURES_SEEN,
) -> npt.NDArray[np.int32]:
    """Run K-means from `start`, its name for a choice of first centres or the centres; each feature's cluster."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    seen, seed = h, seed % 2**32  # scikit-learn knows no others
    if len(h) > limit:
        seen = take(h, np.sort(np.random.default_rng(seed).choice(len(h), limit, replace=False)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than clusters: some stay empty
        model = KMeans(clusters, init=start, n_init=1, random_state=seed).fit(seen)
    if seen is h:
        nearest: npt.NDArray[np.int32] = model.labels_
        return nearest
    return by_blocks(len(h), lambda rows: model.predict(h[rows]), 4 * h.shape[1])


def means_of(
    h: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], which: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """Give the mean of the features, float32 (n, D), with each of some labels: float64 (labels, D)."""
    size = int(which.max(initial=-1)) + 1
    totals, count = np.zeros((size, h.shape[1])), np.zeros(size, np.int64)
    for rows in blocks(len(h), 8 * h.shape[1]):
        own = labels[rows]
        count += np.bincount(own, minlength=size)[:size]
        for column, values in enumerate(h[rows].T):
            totals[:, column] += np.bincount(own, weights=values, minlength=size)[:size]
    means: npt.NDArray[np.float64] = totals[which] / count[which, None]
    return means


def nearest_of(h: npt.NDArray[np.float32], centres: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Give the nearest of some centres (k, D) to each of the features (n, D), n > 0: int32 (n,)."""
    from sklearn.metrics import pairwise_distances_argmin

    nearest: npt.NDArray[np.int32] = pairwise_distances_argmin(h, centres.astype(np.float32)).astype(np.int32)
    return nearest


def _distances(h: npt.NDArray[np.float32], centres: npt.NDArray[np.float64], rows: slice) -> npt.NDArray[np.float64]:
    """Give the squared distance of some features to the nearest of the centres."""
    own = h[rows]
    distance = np.min([((own - centre) ** 2).sum(axis=1) for centre in centres], axis=0)
    # Features that differ from their mean by rounding alone are all the same.
    distance[distance <= 1e-10 * (own**2).sum(axis=1)] = 0
    found: npt.NDArray[np.float64] = distance
    return found
