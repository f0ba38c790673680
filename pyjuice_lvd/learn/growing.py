"""Progressive growing (Liu et al., ICML 2023, Sec. 4 and Appendix B): clusters and their circuit learned together."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import integer, plain_array
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.rows import MIXTURE, Table, as_table
from pyjuice_lvd.clustering import divide, kmeans
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.run import Record
from pyjuice_lvd.large import blocks, by_blocks, contiguous, counts, renumbered, take
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.seeds import derived_seed
from pyjuice_lvd.settings import CircuitSettings, GrowingSettings

Features = npt.NDArray[np.floating[Any]]
Heads = npt.NDArray[np.int32]
Scores = npt.NDArray[np.float64]
"""log p(x | z) in nats, (n, heads)."""


_TOGETHER = 4096
"""Patches that are scored together: a multiple of what the engine works on at once."""

_WORTH_PRUNING = 0.1
"""Of the edges: where fewer would go, all stay, because blocks that are not dense take longer for each edge."""

_PRUNING_COSTS = 1e-3
"""Of validation patches' log-likelihood: where more would go, all edges stay."""


@dataclass(frozen=True)
class Grown:
    """A circuit of one or more heads, and the head of each patch it was learned from, int32 (n,)."""

    circuit: Circuit
    labels: Heads


def progressive_growing(
    x: npt.ArrayLike,
    h: npt.ArrayLike,
    *,
    num_heads: int,
    num_cats: int = 256,
    valid: npt.ArrayLike | None = None,
    circuit: CircuitSettings | None = None,
    growing: GrowingSettings | None = None,
    seed: int = 0,
    name: str = "patches",
    record: Record = lambda _: None,
    progress: Progress = SILENT,
) -> Grown:
    """Learn p(x | z) and the labels z together, from patches and any features of them.

    Each round (1) trains the circuit by EM on log p(x | z) and prunes it, (2) relabels z = argmax p(x | z), (3) picks
    the clusters of lowest mean log-likelihood, up to a share of the patches, (4) divides those by K-means on h into
    more clusters, and grows the circuit by a head for each new one. It ends with (1), at `num_heads` heads, or at fewer
    where features cannot be told apart: that is said in the log.

    With validation patches, each EM ends where they have not become likelier for `circuit.patience` epochs, and keeps
    its best parameters: few patches, and many heads, are soon learned by heart. Nor is anything pruned that they would
    be much less likely without.

    Parameters
    ----------
    x : integers (n, V)
        Patches, categories from 0.
    h : floats (n, D)
        A feature of each patch, of any encoder; not quantised, if there is a choice.
    num_heads : int
        N2, values of z.
    num_cats : int
        Categories of each variable.
    valid : integers (m, V), m > 0, optional
        Validation patches, of any head: they count by the mixture of all heads, by their shares of the patches.
    circuit, growing : settings, optional
        Of EM (`CircuitSettings`) and of the rounds (`GrowingSettings`).
    seed : int
        Of everything random.
    name : str
        What messages call these patches.
    record : callable
        Gets one record (plain numbers) after each round.
    progress : Progress
        Where messages are shown.

    Raises
    ------
    InputError
        Where the patches, features or settings are not what is wanted.

    """
    patches, features = _checked(x, h, num_heads)
    em, rounds = circuit or CircuitSettings(), growing or GrowingSettings()
    valid = valid if em.patience else None
    pc, labels = _first_circuit(patches, features, num_heads, num_cats, em, rounds, seed)
    number, last = 0, pc.num_heads >= num_heads
    while True:
        started, own_seed = time.monotonic(), derived_seed(seed, number)
        schedule = em if last else replace(em, epochs=rounds.epochs)
        pc, scores, measured = _train(pc, patches, labels, valid, schedule, rounds, own_seed)
        following, message = None, ""
        if not last:
            following, message = _next(pc, scores, labels, patches, features, num_heads, rounds, own_seed, measured)
        record({"stage": "patch circuit", "round": number, **measured, "seconds": time.monotonic() - started})
        if message:
            progress.log(f"{name}: {message}")
        if last:
            return _weighed(pc, labels)
        if following is not None:
            pc, labels = following
        last = following is None or pc.num_heads >= num_heads
        number += 1


def one_shot(
    x: npt.ArrayLike,
    h: npt.ArrayLike,
    *,
    num_heads: int,
    num_cats: int = 256,
    valid: npt.ArrayLike | None = None,
    circuit: CircuitSettings | None = None,
    seed: int = 0,
    record: Record = lambda _: None,
) -> Grown:
    """Learn p(x | z) for labels z by K-means on h, without feedback from the circuit: the paper's baseline (Sec. 4).

    Parameters and errors are those of `progressive_growing`.
    """
    patches, features = _checked(x, h, num_heads)
    em = circuit or CircuitSettings()
    valid = valid if em.patience else None
    started = time.monotonic()
    labels = kmeans(features, num_heads, seed)
    pc = _untrained(patches, labels, num_cats, em, seed)
    fitted = _em(pc, patches, labels, valid, em, seed)
    own = fitted["em"][-1] if valid is None else float(_own(_scores(pc, patches), labels).mean())
    measured = {**_size(pc), **fitted, "log_likelihood": own}
    record({"stage": "patch circuit", **measured, "seconds": time.monotonic() - started})
    return _weighed(pc, labels)


def _weighed(pc: Circuit, labels: Heads) -> Grown:
    """The heads' prior weights are their shares of the patches."""
    pc.head_weights = counts(labels, pc.num_heads)
    return Grown(pc, labels)


def _checked(x: npt.ArrayLike, h: npt.ArrayLike, num_heads: int) -> tuple[Table, npt.NDArray[np.float32]]:
    patches, features = as_table(x), plain_array("h", h)
    if not len(patches):
        raise InputError("x: found no patches, wanted at least 1")
    if features.ndim != 2 or features.dtype.kind != "f" or len(features) != len(patches):
        raise InputError(f"h: found {features.dtype} {features.shape}, wanted floats ({len(patches)}, D)")
    if not all(np.isfinite(features[rows]).all() for rows in blocks(len(features), 4 * features.shape[1])):
        raise InputError("h: found values that are not finite")
    integer("num_heads", num_heads, least=1)
    if features.dtype != np.float32:
        features = features.astype(np.float32)
    return patches, contiguous(features)


def _first_circuit(
    x: Table, h: npt.NDArray[np.float32], num_heads: int, num_cats: int, em: CircuitSettings, rounds: GrowingSettings,
    seed: int,
) -> tuple[Circuit, Heads]:  # fmt: skip
    """The circuit of the first round, untrained: an HCLT over all patches, or one over the patches of each label."""
    labels = kmeans(h, min(rounds.start, num_heads), seed)
    if not rounds.tree_per_head:
        return _untrained(x, labels, num_cats, em, seed), labels
    members = [np.flatnonzero(labels == head) for head in range(int(labels.max()) + 1)]
    trees = [_untrained(x[own], np.zeros(len(own), np.int32), num_cats, em, seed + n) for n, own in enumerate(members)]
    return Circuit.side_by_side(trees), labels


def _untrained(x: Table, labels: Heads, num_cats: int, em: CircuitSettings, seed: int) -> Circuit:
    return Circuit.hclt(
        x, num_latents=em.latents, num_cats=num_cats, heads=int(labels.max()) + 1, start=em.start,
        labels=labels if em.start == "clusters" else None, seed=seed,
    )  # fmt: skip


def _em(
    pc: Circuit, x: Table, labels: Heads, valid: npt.ArrayLike | None, em: CircuitSettings, seed: int
) -> dict[str, Any]:
    """EM on log p(x | z), to the best epoch by the validation patches, if there are; with its course, in nats."""
    schedule = {key: getattr(em, key) for key in ("epochs", "batch_size", "step_size", "pseudocount")}
    if valid is None:
        return {"em": pc.fit_em(x, heads=labels, seed=seed, **schedule)}
    pc.head_weights = counts(labels, pc.num_heads)
    history = pc.fit_em(
        x, heads=labels, seed=seed, **schedule, valid=valid, valid_heads=MIXTURE, patience=em.patience,
    )  # fmt: skip
    return {"em": history, "valid": history.valid, "kept_epoch": history.best}


def _train(
    pc: Circuit,
    x: Table,
    labels: Heads,
    valid: npt.ArrayLike | None,
    em: CircuitSettings,
    rounds: GrowingSettings,
    seed: int,
) -> tuple[Circuit, Scores, dict[str, Any]]:
    """Step 1: EM on log p(x | z), and pruning; with log p(x | z) of all heads after it, and what was measured."""
    fitted = _em(pc, x, labels, valid, em, seed)
    before = _own(_scores(pc, x), labels)
    pruned = pc.prune(x, heads=labels, min_flow=rounds.min_flow)
    if pruned.num_edges > (1 - _WORTH_PRUNING) * pc.num_edges or _costs_too_much(pruned, pc, valid):
        pruned = pc
    scores = _scores(pruned, x)
    after = _own(scores, labels)
    measured = {
        **_size(pruned),
        **fitted,
        "log_likelihood": float(after.mean()),
        "cluster_log_likelihoods": _means(after, labels, pruned.num_heads),
        "pruned_edges": pc.num_edges - pruned.num_edges,
        "pruning_loss": float(before.mean() - after.mean()),
    }
    return pruned, scores, measured


def _costs_too_much(pruned: Circuit, pc: Circuit, valid: npt.ArrayLike | None) -> bool:
    """Whether pruning makes the validation patches, if there are, much less likely."""
    if valid is None:
        return False
    after, before = (float(each.log_likelihood(valid, head=MIXTURE).mean()) for each in (pruned, pc))
    return before - after > _PRUNING_COSTS * abs(before)


def _scores(pc: Circuit, x: Table) -> Scores:
    """log p(x | z) of all heads."""
    return by_blocks(len(x), lambda rows: pc.log_likelihood(x[rows], head="all"), 8 * pc.num_heads, unit=_TOGETHER)


def _own(scores: Scores, labels: Heads) -> npt.NDArray[np.float64]:
    """log p(x | z) of each patch's head."""
    return by_blocks(len(labels), lambda rows: scores[rows][np.arange(len(labels[rows])), labels[rows]], 24)


def _means(scores: npt.NDArray[np.float64], labels: Heads, heads: int) -> list[float]:
    return [float(scores[labels == head].mean()) for head in range(heads)]


def _size(pc: Circuit) -> dict[str, int]:
    return {"heads": pc.num_heads, "units": pc.num_nodes, "edges": pc.num_edges, "params": pc.num_params}


def _next(
    pc: Circuit,
    scores: Scores,
    labels: Heads,
    x: Table,
    h: npt.NDArray[np.float32],
    num_heads: int,
    rounds: GrowingSettings,
    seed: int,
    measured: dict[str, Any],
) -> tuple[tuple[Circuit, Heads] | None, str]:
    """Steps 2 to 4: the circuit and labels of the next round, None if it would have no more heads; and what to say."""
    before = pc.num_heads
    moved = relabel(scores, labels, rounds.stickiness)
    measured["moved"] = int((moved != labels).sum())
    used, labels = renumbered(moved)
    message = ""
    if len(used) < before:
        message = f"{before - len(used)} of {before} heads had no patch left, and were dropped"
        pc, scores = pc.with_heads(used), contiguous(scores[:, used])
    own = _own(scores, labels)
    measured["relabelled_log_likelihood"] = float(own.mean())
    picked = pick(np.array(_means(own, labels, pc.num_heads)), counts(labels), rounds.share)
    members = np.flatnonzero(np.isin(labels, picked))
    wanted = min(len(picked) if rounds.new_heads == "double" else 1, num_heads - pc.num_heads)
    divided, origins = divide(take(h, members), labels[members], wanted, pc.num_heads, seed)
    measured |= {"picked": picked.tolist(), "new_heads": len(origins)}
    if pc.num_heads + len(origins) <= before:
        return None, f"{before} heads in place of {num_heads}: no more clusters can be told apart"
    # The flows that say what to copy are those of the patches as they are labelled now, before the division.
    grown = pc.grow(x, heads=labels, select=origins, threshold=rounds.threshold, noise=rounds.noise, seed=seed)
    labels[members] = divided
    return (grown, labels), message


def relabel(scores: Scores, labels: Heads, stickiness: float = 0.0) -> Heads:
    """Step 2: the head under which each patch is most likely; `stickiness` nats are in favour of its present one.

    `scores`: log p(x | z), float64 (n, heads). Ties go to the present head, then to the first.
    """

    def best(rows: slice) -> Heads:
        found = scores[rows].argmax(axis=1).astype(np.int32)
        stays = _own(scores[rows], labels[rows]) + stickiness >= _own(scores[rows], found)
        return np.where(stays, labels[rows], found).astype(np.int32)

    return by_blocks(len(labels), best, 8 * scores.shape[1])


def pick(means: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    """Step 3: the clusters by ascending mean log-likelihood, until they hold `share` of the patches."""
    order = np.argsort(means, kind="stable")
    held = np.cumsum(counts[order])
    return order[: int(np.searchsorted(held, share * counts.sum())) + 1]
