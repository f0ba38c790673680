"""Hidden Chow-Liu trees: the tree over the variables, and where its parameters start."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import integer, integers, number, one_of, plain_array
from pyjuice_lvd.circuit.devices import backend
from pyjuice_lvd.circuit.engine import PIECE
from pyjuice_lvd.circuit.leaves import (
    Leaves,
    categories_for,
    categories_given,
    check_number,
    check_values,
    in_bins,
    kinds_of,
    leaves_for,
    standardised,
)
from pyjuice_lvd.circuit.reduce import current, on_first
from pyjuice_lvd.circuit.rows import (
    Mask,
    Table,
    as_heads,
    as_mask,
    as_numbers,
    as_table,
    for_engine,
    mean_filled,
    some_rows,
)
from pyjuice_lvd.clustering import kmeans
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.large import empty
from pyjuice_lvd.progress import Progress
from pyjuice_lvd.settings.choices import STARTS

_ROWS_A_STATE = 1000
"""So many rows for each state are counted: enough for what EM goes on from."""

_CENTRES_SEE = 100
"""K-means finds its centres from so many rows for each state."""

_NEIGHBOUR = 0.1
"""Weight of a neighbour's value beside a variable's own."""


def hclt(
    X: npt.ArrayLike,
    mask: npt.ArrayLike | None,
    num_latents: int,
    num_cats: int | npt.ArrayLike | None,
    leaves: Leaves,
    heads: int,
    start: str,
    labels: npt.ArrayLike | None,
    perturbation: float,
    pseudocount: float,
    root: int | None,
    seed: int,
    progress: Progress,
) -> julia.Handle:
    """See `Circuit.hclt`."""
    kinds = kinds_of(leaves)
    data = as_numbers(X) if "gaussian" in kinds else as_table(X)
    for count, what in zip(data.shape, ("rows", "variables"), strict=True):
        if not count:
            raise InputError(f"X: found no {what}, wanted at least 1")
    hidden = None if mask is None else as_mask(mask, data.shape)
    num_latents, heads, seed = integers(num_latents=num_latents, heads=heads, seed=seed)
    if root is not None and not 0 <= integer("root", root) < data.shape[1]:
        raise InputError(f"root: found {root}, wanted a variable, 0..{data.shape[1] - 1}")
    check_number(kinds, data.shape[1])
    if num_cats is None:
        cats, each = categories_for(kinds, data, hidden), None
    else:
        cats, each = categories_given(num_cats, kinds, data.shape[1])
    julia.call("check_hclt", data.shape[1], num_latents, cats, heads)
    perturbation, pseudocount = number("perturbation", perturbation), number("pseudocount", pseudocount)
    one_of("start", start, STARTS)
    if start == "random" and labels is not None:
        raise InputError("labels: found with start = 'random', wanted none: they are for start = 'clusters'")
    head_of = as_heads(labels, len(data), heads, "labels")
    check_values(kinds, data, cats, hidden, each)
    binned, bins = in_bins(kinds, data, cats if each is None else each, hidden)
    parent = chow_liu_parents(binned, bins, pseudocount, progress, mask=hidden)
    if root is not None:
        parent = rerooted(parent, root)
    sizes = num_latents, cats, heads, perturbation, seed
    inputs = leaves_for(kinds, cats, data, hidden, own=num_cats is None and len(set(kinds)) > 1, each=each)
    circuit: julia.Handle
    if start == "random":
        circuit = julia.call("tree_circuit", parent, *sizes, inputs)
    else:
        seen = rows_for_states(len(data), num_latents, seed)
        data, hidden = for_engine(data[seen], masked=hidden is not None), None if hidden is None else hidden[seen]
        if len(set(kinds)) == 1:
            states = hidden_states(data, parent, num_latents, seed, progress, mask=hidden)
        else:  # distances are between columns of one size
            states = hidden_states(standardised(mean_filled(data, hidden)), parent, num_latents, seed, progress)
        circuit = julia.call("hclt_from_states", parent, *sizes, data, hidden, states, head_of[seen], inputs)
    return circuit


def rerooted(parent: npt.NDArray[np.int64], root: int) -> npt.NDArray[np.int64]:
    """Turn the edges of a tree, the parent of each variable and -1 for the root, so that `root` is it."""
    turned, below, above = parent.copy(), -1, root
    while above >= 0:
        turned[above], below, above = below, above, parent[above]
    return turned


def hclt_over(
    parent: npt.ArrayLike, num_latents: int, num_cats: int, leaves: Leaves, heads: int, perturbation: float, seed: int
) -> julia.Handle:
    """See `Circuit.from_tree`."""
    tree = plain_array("parent", parent)
    if tree.ndim != 1 or tree.dtype.kind not in "iu":
        raise InputError(f"parent: found {tree.dtype} {tree.shape}, wanted integers (V,)")
    *sizes, seed = integers(num_latents=num_latents, num_cats=num_cats, heads=heads, seed=seed)
    spread = number("perturbation", perturbation)
    kinds = kinds_of(leaves)
    check_number(kinds, len(tree))
    inputs = leaves_for(kinds, sizes[1])
    circuit: julia.Handle = julia.call("tree_circuit", julia.lendable(tree, np.int64), *sizes, spread, seed, inputs)
    return circuit


def chow_liu_parents(
    X: Table, num_cats: int, pseudocount: float, progress: Progress, *, mask: Mask | None = None
) -> npt.NDArray[np.int64]:
    """Find the Chow-Liu tree of a table's variables: the parent of each, int64 (V,), -1 for the root.

    The same on every device: pairs are counted on the one in use, and counts are integers.
    """
    reducer = current()
    columns = empty((X.shape[1], X.shape[0]), np.uint32)
    job = julia.call("mutual_information_job", X, mask, num_cats, float(pseudocount), columns, *backend())
    julia.call("share_out!", job, reducer.rank + 1, reducer.size)
    with progress.stage("mutual information", total=X.shape[1], unit="variables") as stage:
        done = False
        while not done:
            done, finished, _ = julia.call("advance!", job, PIECE)
            stage.update(completed=finished)
    mutual_information = julia.call("mutual_information", job)
    reducer.all_reduce(mutual_information)  # each pair is one process' own: the sums are exact
    parent: npt.NDArray[np.int64] = julia.call("chow_liu_parents", mutual_information)
    return parent


def rows_for_states(n: int, num_states: int, seed: int) -> npt.NDArray[np.int64] | slice:
    """Choose the rows of `n` that hidden states are guessed for."""
    return some_rows(n, _ROWS_A_STATE * num_states, seed)


def hidden_states(
    X: Table,
    parent: npt.NDArray[np.int64],
    num_states: int,
    seed: int,
    progress: Progress,
    *,
    mask: Mask | None = None,
) -> npt.NDArray[np.int32]:
    """Guess the hidden states of an HCLT from ordered categories, such as grey levels: int32 (n, V), from 0.

    The state of a variable is its cluster by K-means on its value and those of its neighbours in the tree, which count
    less: what a state has to say to the variable itself, and to the next one. So the latents within a circuit are
    distilled as z is (Liu, Zhang and Van den Broeck, ICLR 2023, who take the features from a neural network). A missing
    value counts here as the mean of its variable.
    """
    values = mean_filled(X, mask)
    states = np.empty(X.shape, np.int32)
    with progress.stage("hidden states", total=X.shape[1], unit="variables") as stage:
        for i in range(X.shape[1]):
            near = np.flatnonzero(parent == i)
            if parent[i] >= 0:
                near = np.append(near, parent[i])
            local = np.hstack([values[:, i : i + 1], _NEIGHBOUR * values[:, near]])
            states[:, i] = on_first(partial(kmeans, local, num_states, seed + i, seen=_CENTRES_SEE * num_states))
            stage.advance(1)
    return states
