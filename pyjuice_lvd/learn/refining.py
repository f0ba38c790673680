"""Outer clusters refined by feedback from circuits: step 2 of progressive growing, for the clusters of the features.

K-means on the teacher's features does not know which patches one circuit models well together. Here one small circuit
for each cluster says so, in rounds of EM and relabelling: the classification EM algorithm (Celeux and Govaert, 1992) on
the mixture of these circuits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.exchange import exchanged, take_over
from pyjuice_lvd.circuit.reduce import alone, current, owners, spread
from pyjuice_lvd.circuit.rows import Table, some_rows
from pyjuice_lvd.files.run import Record
from pyjuice_lvd.large import contiguous, renumbered
from pyjuice_lvd.large import counts as counts_of
from pyjuice_lvd.progress import SILENT, Progress, Stage
from pyjuice_lvd.settings import RefiningSettings

_RANKED_BYTES = 32
"""What a patch and a cluster take while patches are ranked: the score, its exponential, its rank and a copy."""


class Ranks(NamedTuple):
    """The most probable clusters of each patch, the best first, int32 (n, m); of validation patches too, if given."""

    patches: npt.NDArray[np.int32]
    valid: npt.NDArray[np.int32] | None


def refine(
    x: Table,
    labels: npt.NDArray[np.int32],
    settings: RefiningSettings,
    *,
    valid: Table | None = None,
    candidates: int = 1,
    num_cats: int = 256,
    seed: int = 0,
    name: str = "outer clusters",
    record: Record = lambda _: None,
    progress: Progress = SILENT,
) -> Ranks:
    """Move patches to the clusters whose small circuits model them best.

    Each round is an epoch of EM for each cluster's HCLT on the patches of the cluster; then each patch goes to the
    cluster of the largest share times likelihood. Some of the patches take part (`settings.patches` for each cluster);
    in the end all are ranked. A cluster that no patch prefers is dropped: that is said in the log.

    Parameters
    ----------
    x : integers (n, V)
        Patches, n > 0, categories from 0.
    labels : int32 (n,)
        The clusters to begin with, from 0 without a gap.
    settings : RefiningSettings
        Of the rounds.
    valid : integers (k, V), optional
        Other patches, to be ranked by what has been learned from these.
    candidates : int
        How many clusters to name for each patch.
    num_cats : int
        Categories of each variable.
    seed : int
        Of the patches that take part, and of EM.
    name : str
        What messages call the clusters.
    record : callable
        Gets one record (plain numbers) after each round; log-likelihoods are means in nats.
    progress : Progress
        Where the work is shown.

    Returns
    -------
    Ranks
        m = min(candidates, clusters left), numbered from 0 without a gap.

    """
    clusters = int(labels.max()) + 1
    seen = some_rows(len(x), settings.patches * clusters, seed)
    rows, own = x[seen], labels[seen]
    own = np.unique(own, return_inverse=True)[1].astype(np.int32)
    reducer, owner = current(), owners(np.bincount(own).tolist())
    made: dict[int, Circuit] = {}
    steps = np.linspace(*settings.step_size, settings.rounds)
    work = (1 + settings.rounds) * len(rows) + len(x) + (0 if valid is None else len(valid))
    with progress.stage(name, total=work, unit="patches") as stage:
        for cluster in range(int(own.max()) + 1):
            members, own_seed = rows[own == cluster], seed + cluster
            if owner[cluster] == reducer.rank:
                with alone():
                    made[cluster] = Circuit.hclt(
                        members, num_latents=settings.latents, num_cats=num_cats, start="clusters", seed=own_seed
                    )
            stage.advance(len(members))
        circuits = list(exchanged(made).values())
        for number, step in enumerate(steps):
            started, owner = time.monotonic(), owners(np.bincount(own).tolist())
            for cluster, circuit in enumerate(circuits):
                if owner[cluster] != reducer.rank:
                    continue
                with alone():
                    circuit.fit_em(
                        rows[own == cluster],
                        epochs=1,
                        batch_size=settings.batch_size,
                        step_size=float(step),
                        pseudocount=settings.pseudocount,
                        seed=seed + number,
                    )
            take_over(circuits, owner)
            ranked, log_likelihood = _ranked(rows, circuits, np.bincount(own), 1, stage)
            moved = int((ranked[:, 0] != own).sum())
            used, own = renumbered(contiguous(ranked[:, 0]))
            circuits = [circuits[cluster] for cluster in used]
            record(
                {
                    "stage": "outer clusters",
                    "round": number,
                    "clusters": len(circuits),
                    "patches": len(rows),
                    "moved": moved,
                    "log_likelihood": log_likelihood,
                    "seconds": time.monotonic() - started,
                }
            )
            rounds, share = f"{number + 1}/{settings.rounds}", f"{moved / len(rows):.1%}"
            stage.advance(0, rounds=rounds, log_likelihood=log_likelihood, moved=share)
        counts = np.bincount(own)
        ranked, _ = _ranked(x, circuits, counts, candidates, stage)
        used = np.flatnonzero(counts_of(contiguous(ranked[:, 0])))
        if len(used) < len(circuits):  # what is dropped must not be named as a candidate either
            stage.update(completed=(1 + settings.rounds) * len(rows))
            circuits, counts = [circuits[cluster] for cluster in used], counts[used]
            ranked, _ = _ranked(x, circuits, counts, candidates, stage)
        others = None if valid is None else _ranked(valid, circuits, counts, candidates, stage)[0]
    if len(used) < clusters:
        progress.log(f"{name}: {clusters - len(used)} of {clusters} clusters had no patch left, and were dropped")
    return Ranks(ranked, others)


def _ranked(
    x: Table, circuits: Sequence[Circuit], counts: npt.NDArray[np.int64], candidates: int, stage: Stage
) -> tuple[npt.NDArray[np.int32], float]:
    """The circuits in order of each row's posterior, int32 (n, m), and the mean log-likelihood of their mixture, nats.

    Its weights are in proportion to the counts, int64 (circuits,).
    """
    share, total, most = np.log(counts / counts.sum()), np.zeros(1), min(candidates, len(circuits))
    processes = current().size

    def rank(part: slice) -> npt.NDArray[np.int32]:
        scores = np.stack([circuit.log_likelihood(x[part]) for circuit in circuits], axis=1) + share
        total[0] += np.logaddexp.reduce(scores, axis=1).sum()
        stage.advance((part.stop - part.start) * processes)
        return np.argsort(-scores, axis=1, kind="stable")[:, :most].astype(np.int32)

    ranked = spread(len(x), rank, row=_RANKED_BYTES * len(circuits))
    current().all_reduce(total)
    return ranked, float(total[0]) / len(x)
