"""New circuits from old ones, where the data call for less or more: pruning and growing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import integer, number, plain_array
from pyjuice_lvd.circuit.engine import KINDS, Engine, Evidence
from pyjuice_lvd.circuit.rows import as_heads, as_weights
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.progress import Progress

MIN_FLOW = 1e-4
"""Of the rows' weight: edges with no more flow are pruned."""


def prune(
    engine: Engine,
    X: npt.ArrayLike | Evidence,
    mask: npt.ArrayLike | None,
    heads: npt.ArrayLike | None,
    weights: npt.ArrayLike | None,
    min_flow: float | None,
    keep: float | None,
    progress: Progress,
) -> julia.Handle:
    """See `Circuit.prune`."""
    if min_flow is not None and keep is not None:
        raise InputError(f"keep: found {keep} together with min_flow = {min_flow}, wanted one of them")
    least = number("min_flow", MIN_FLOW if min_flow is None else min_flow)
    keep = None if keep is None else number("keep", keep)
    julia.call("check_pruning", least, keep)
    job = engine.flow_job(X, mask, heads, weights, progress)
    pruned: julia.Handle
    if keep is not None:
        pruned = julia.call("prune_to_fraction", job, keep)
    elif julia.call("has_silent_edges", job, least):
        rows, hidden = engine.rows(X, mask)
        n = len(rows)
        sources = as_heads(heads, n, engine.num_heads), as_weights(weights, n)
        support = engine.run("support_job", rows, hidden, *sources, stage="support", total=n, progress=progress)
        pruned = julia.call("prune_unsupported", job, support)
    else:
        pruned = julia.call("prune_by_flow", job, least)
    return pruned


def with_copies(engine: Engine, copies: int) -> julia.Handle:
    """See `Circuit.with_copies`."""
    copies = integer("copies", copies, least=1)
    found = engine.arrays()
    inputs = found["kind"] >= KINDS["categorical"]
    inner, first = int((~inputs).sum()), int(inputs.sum())
    # Inputs come first; of each unit its place, from 1, in the first copy.
    place = np.where(inputs, np.cumsum(inputs), first + np.cumsum(~inputs))
    order = np.concatenate([np.flatnonzero(inputs), *copies * [np.flatnonzero(~inputs)]])
    own = {name: found[name][order] for name in ("kind", "variable", "categories", "param_start", "param_stride")}
    lengths = np.diff(found["child_start"])[order]
    child, weight = place[found["child"] - 1], found["weight"]
    child = np.concatenate([np.where(child > first, child + inner * copy, child) for copy in range(copies)])
    heads = place[found["heads"] - 1]
    heads = np.concatenate([np.where(heads > first, heads + inner * copy, heads) for copy in range(copies)])
    circuit: julia.Handle = julia.call(
        "circuit_of", engine.num_vars, *own.values(), found["success"][order],
        1 + np.concatenate([[0], np.cumsum(lengths)]), child.astype(np.int32), np.tile(weight, copies), found["leaf"],
        heads.astype(np.int32), np.tile(found["head_weight"] / np.float32(copies), copies),
    )  # fmt: skip
    return circuit


def grow(
    engine: Engine,
    X: npt.ArrayLike | Evidence,
    mask: npt.ArrayLike | None,
    heads: npt.ArrayLike,
    weights: npt.ArrayLike | None,
    select: npt.ArrayLike,
    threshold: float,
    noise: float,
    seed: int,
    progress: Progress,
) -> julia.Handle:
    """See `Circuit.grow`."""
    chosen = np.atleast_1d(plain_array("select", select))
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise InputError(f"select: found {chosen.dtype} {chosen.shape}, wanted integers (m,)")
    chosen = julia.lendable(chosen, np.int64)
    parameters, seed = (chosen, number("threshold", threshold), number("noise", noise)), integer("seed", seed)
    julia.call("check_selection", engine.circuit, *parameters)
    rows, _ = engine.rows(X, mask)
    n = len(rows)
    head_of = as_heads(heads, n, engine.num_heads)
    counted = np.where(np.isin(head_of, chosen), as_weights(weights, n), np.float32(0))
    total = float(counted.sum(dtype=np.float64))
    nodes = np.zeros(engine.num_nodes)  # without a row for the selected heads, nothing has flow
    if total > 0:
        nodes, _ = julia.call("unit_flows", engine.flow_job(X, mask, head_of, counted, progress))
    grown: julia.Handle = julia.call("grow_circuit", engine.circuit, nodes, total, *parameters, seed)
    return grown
