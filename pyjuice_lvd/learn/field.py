"""Where p(h) over the positions of an image starts: trees chosen by their cuts, with transitions that are tied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.reduce import on_first
from pyjuice_lvd.clustering import kmeans
from pyjuice_lvd.models.field_queries import Field
from pyjuice_lvd.settings import Settings

Labels = npt.NDArray[np.integer]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_RIGHT, _LEFT, _DOWN, _UP = range(4)
_ADDED = 0.5
"""To each count of a transition, spread like all states."""
_OF_NEXT, _OF_FIRST, _OF_STEPS, _OF_LEVELS = 5.0, 20.0, 30.0, 1e-3
"""To the counts of a field: of states that follow one another, of the first position's offsets, of offsets that follow
an offset, spread as all steps from offset to offset are, and as all offsets."""
_LEVELS = 256
_OF_KINDS = 4.0
"""To the counts of a kind's transitions, for each state, spread like those of all kinds."""
_ROUNDS = 10
"""Of EM on lines' kinds, which K-means starts."""


class TiedPrior(NamedTuple):
    """p(h), a circuit over the positions, and which of its edges are tied (`OffsetModel`), if any."""

    prior: Circuit
    ties: npt.NDArray[np.int32] | None


class Tree(NamedTuple):
    """A tree over the positions of a grid: the parent of each, -1 for the root, and in which direction it lies."""

    parent: npt.NDArray[np.int64]
    direction: npt.NDArray[np.int64]


def starting_prior(
    labels: Labels, seen: Float32, grid: tuple[int, int], num_states: int, settings: Settings
) -> TiedPrior:
    """Start p(h) at labels (N, P) as `offsets.trees` says; `seen` (N, P, F) of the positions tells kinds of lines."""
    own, prior, seed = settings.offsets, settings.prior, settings.seed
    if own.trees == "lines":
        return lines(labels, seen, grid, num_states, own.kinds, seed)
    if own.trees == "chow-liu":
        circuit = Circuit.hclt(labels, num_latents=prior.latents, num_cats=num_states, seed=seed)
        circuit.fit_em(
            labels, epochs=prior.epochs, batch_size=prior.batch_size, step_size=prior.step_size,
            pseudocount=prior.pseudocount, seed=seed,
        )  # fmt: skip
        return TiedPrior(circuit, None)
    along = ("rows", "columns") if own.trees == "combs" else (own.trees,)
    return combs_of(labels, grid, num_states, [comb(*grid, along=each) for each in along])


def starting_field(
    states: Labels, group: npt.NDArray[np.int64], nearest: npt.NDArray[np.int32], steps: Sequence[int],
    grid: tuple[int, int],
) -> Field:  # fmt: skip
    """Start p(s, d) at counts of neighbours' states (N, P), in their groups (S,), and `nearest` offsets (N, P, C)."""
    num_states, groups = len(group), int(group[-1]) + 1
    rows, columns = grid
    on_grid, offsets = states.reshape(-1, rows, columns), nearest.reshape(-1, rows, columns, len(steps))
    share = np.bincount(states.ravel(), minlength=num_states) + 1.0
    share /= share.sum()
    following = np.empty((2, num_states, num_states), np.float32)
    first, after = [], []

    def before(x: Labels) -> tuple[Labels, Labels]:  # of neighbours to the right and down, the one that comes first
        return x[:, :, :-1], x[:, :-1]

    def then(x: Labels) -> tuple[Labels, Labels]:
        return x[:, :, 1:], x[:, 1:]

    for a in range(2):
        counts = np.zeros((num_states, num_states))
        np.add.at(counts, (then(on_grid)[a].ravel(), before(on_grid)[a].ravel()), 1)
        following[a] = _columns(counts + _OF_NEXT * share[:, None])
    for c, step in enumerate(steps):
        size = _LEVELS // step
        counts = np.zeros((size, num_states))
        np.add.at(counts, (offsets[..., c].ravel(), states.ravel()), 1)
        of_all = counts.sum(axis=1, keepdims=True) + 1e-3
        first.append(_columns(counts + _OF_FIRST * of_all / of_all.sum()).astype(np.float32))
        table = np.zeros((2, groups, groups, size, size))
        for a in range(2):
            of, to = group[before(on_grid)[a].ravel()], group[then(on_grid)[a].ravel()]
            d, d2 = before(offsets)[a][..., c].ravel(), then(offsets)[a][..., c].ravel()
            np.add.at(table[a], (to, of, d2, d), 1)
            steps_taken = np.bincount(d2 - d + size - 1, minlength=2 * size - 1) + 1e-3
            by_step = steps_taken[np.arange(size)[:, None] - np.arange(size) + size - 1]
            table[a] += _OF_STEPS * _columns(by_step) + _OF_LEVELS * of_all / of_all.sum()
        after.append(np.ascontiguousarray(table / table.sum(axis=3, keepdims=True), np.float32))
    return Field(grid, group, share.astype(np.float32), tuple(first), following, tuple(after))


def _columns(counts: Float64) -> Float64:
    found: Float64 = counts / counts.sum(axis=0)
    return found


def comb(rows: int, columns: int, *, along: str) -> Tree:
    """Span a grid by a comb whose teeth run along the `rows`, or the `columns`, from a spine across their middle.

    A comb of rows has an edge for every row across any vertical cut, one of columns for every column across any
    horizontal one: a tree of S states carries at most log S nats for each.
    """
    if along == "columns":
        parent, direction = comb(columns, rows, along="rows")
        turned = np.arange(rows * columns).reshape(rows, columns).T.ravel()  # from places of the turned grid
        back = np.argsort(turned)
        parent = np.where(parent < 0, -1, turned[parent])[back]
        return Tree(parent, np.array([_DOWN, _UP, _RIGHT, _LEFT])[direction][back])
    parent, direction = np.empty((2, rows, columns), np.int64)
    spine, top = columns // 2, rows // 2
    for row in range(rows):
        for column in range(columns):
            here = row * columns + column
            if column != spine:
                step = -1 if column > spine else 1
                parent[row, column], direction[row, column] = here + step, _RIGHT if column > spine else _LEFT
            elif row != top:
                step = -columns if row > top else columns
                parent[row, column], direction[row, column] = here + step, _DOWN if row > top else _UP
            else:
                parent[row, column], direction[row, column] = -1, _RIGHT
    return Tree(parent.ravel(), direction.ravel())


def combs_of(labels: Labels, grid: tuple[int, int], num_states: int, trees: list[Tree]) -> TiedPrior:
    """Start p(h) at the counts of labels (N, P), 0..num_states - 1, of neighbours: an equal mixture of trees."""
    rows, columns = grid
    states = labels.reshape(-1, rows, columns)
    share = np.bincount(labels.ravel(), minlength=num_states) + 1.0
    share /= share.sum()
    transitions = np.empty((4, num_states, num_states), np.float32)  # direction, parent, child
    pairs = {_RIGHT: (states[:, :, :-1], states[:, :, 1:]), _DOWN: (states[:, :-1], states[:, 1:])}
    for direction, (first, second) in pairs.items():
        counts = np.zeros((num_states, num_states))
        np.add.at(counts, (first.ravel(), second.ravel()), 1)
        for to, table in ((direction, counts), (direction + 1, counts.T)):
            table = table + _ADDED * num_states * share
            transitions[to] = table / table.sum(1, keepdims=True)
    return _mixed([julia.call("tied_tree_of", tree.parent, tree.direction, share, transitions) for tree in trees])


def lines(labels: Labels, seen: Float32, grid: tuple[int, int], num_states: int, kinds: int, seed: int) -> TiedPrior:
    """Start p(h) at labels (N, P): an equal mixture of rows of kinds and of columns of kinds.

    Each line of positions is a Markov chain of states, whose transitions depend on the line's kind; the kinds are a
    Markov chain from line to line. A line's far ends thus know of each other through its kind, where a chain alone
    forgets. Kinds start as clusters of what is `seen` (N, P, F) along a line; EM on labels and hidden kinds goes on.
    """
    variables = np.arange(labels.shape[1]).reshape(grid)
    states, seen = labels.reshape(-1, *grid), seen.reshape(-1, *grid, seen.shape[2])
    made, numbers = [], 0
    for places, values, features in (
        (variables, states, seen),
        (variables.T, states.swapaxes(1, 2), seen.swapaxes(1, 2)),
    ):
        learned = _kinds(np.ascontiguousarray(values), features, num_states, kinds, seed)
        circuit, ties = julia.call("tied_lines_of", np.ascontiguousarray(places, np.int64), *learned)
        made.append((circuit, np.where(ties, ties + np.int32(numbers), 0)))
        numbers += int(ties.max())
    return _mixed(made)


def _mixed(made: list[tuple[julia.Handle, npt.NDArray[np.int32]]]) -> TiedPrior:
    """Mix circuits in equal parts."""
    circuits, ties = [Circuit(handle) for handle, _ in made], [np.array(numbers) for _, numbers in made]
    if len(circuits) == 1:
        return TiedPrior(circuits[0], ties[0])
    weights = np.zeros(len(circuits), np.int32)  # of the mixture: its own
    return TiedPrior(Circuit.mixture(circuits), np.concatenate([*ties, weights]))


def _kinds(
    labels: Labels, seen: Float32, num_states: int, kinds: int, seed: int
) -> tuple[Float64, Float64, Float64, Float32]:
    """Learn kinds of lines from labels (N, R, L) and what is seen (N, R, L, F).

    Returns p(kind of the first line) (G,), p(kind | that of the line before) (G, G), p(state of a line's first
    position | kind) (G, S), all float64, and p(state | that before, kind), float32 (G, S, S): EM on a hidden Markov
    model whose observations are lines (Baum and Welch), Markov chains themselves.
    """
    halves = np.array_split(seen, 2, axis=2) if seen.shape[2] > 1 else [seen]
    about = np.concatenate([*(half.mean(axis=2) for half in halves), seen.std(axis=2)], axis=2)
    features = about.reshape(-1, about.shape[2]).astype(np.float32)
    kind = on_first(lambda: kmeans(features, kinds, seed)).reshape(labels.shape[:2])
    kinds, share = int(kind.max()) + 1, np.bincount(labels.ravel(), minlength=num_states) + 1.0
    share /= share.sum()
    pairs = (labels[:, :, :-1].astype(np.int64) * num_states + labels[:, :, 1:]).reshape(-1)
    of_all = np.bincount(pairs, minlength=num_states**2).reshape(num_states, -1) + _ADDED * num_states * share
    of_all /= of_all.sum(axis=1, keepdims=True)
    first_of_all = np.bincount(labels[:, :, 0].ravel(), minlength=num_states) + num_states * share
    first_of_all /= first_of_all.sum()
    belief = np.eye(kinds)[kind]
    change = np.ones((kinds, kinds))
    np.add.at(change, (kind[:, :-1], kind[:, 1:]), 1)
    starts, transitions = np.empty((kinds, num_states)), np.empty((kinds, num_states, num_states), np.float32)
    for _ in range(_ROUNDS if kinds > 1 else 1):
        root, change = _scaled(belief[:, 0].sum(axis=0) + 1), _scaled(change)
        for k in range(kinds):
            weights = belief[:, :, k]
            counts = np.bincount(pairs, np.repeat(weights, labels.shape[2] - 1), num_states**2)
            transitions[k] = _scaled(counts.reshape(num_states, -1) + _OF_KINDS * num_states * of_all)
            counts = np.bincount(labels[:, :, 0].ravel(), weights.ravel(), num_states)
            starts[k] = _scaled(counts + _OF_KINDS * num_states * first_of_all)
        belief, change = _beliefs(_of_lines(labels, starts, transitions), root, change)
        change += 1
    return root, _scaled(change), starts, transitions


def _scaled(counts: Float64) -> Float64:
    found: Float64 = counts / counts.sum(axis=-1, keepdims=True)
    return found


def _of_lines(labels: Labels, starts: Float64, transitions: Float32) -> Float64:
    """log p(states of a line | its kind), (N, R, G)."""
    first, then = np.log(starts), np.log(transitions)
    found = first[:, labels[:, :, 0]]
    for i in range(1, labels.shape[2]):
        found = found + then[:, labels[:, :, i - 1], labels[:, :, i]]
    return np.moveaxis(found, 0, 2)


def _beliefs(scores: Float64, root: Float64, change: Float64) -> tuple[Float64, Float64]:
    """p(kind of a line | all lines) (N, R, G), and how often each kind follows each, (G, G): forward and backward."""
    likely = np.exp(scores - scores.max(axis=2, keepdims=True))
    forward, scale = np.empty_like(likely), np.empty(likely.shape[:2])
    for r in range(likely.shape[1]):
        here = (root if r == 0 else forward[:, r - 1] @ change) * likely[:, r]
        scale[:, r] = here.sum(axis=1)
        forward[:, r] = here / scale[:, r, None]
    backward, counts = np.ones_like(likely), np.zeros_like(change)
    for r in range(likely.shape[1] - 1, 0, -1):
        after = likely[:, r] * backward[:, r] / scale[:, r, None]
        counts += forward[:, r - 1].T @ after
        backward[:, r - 1] = after @ change.T
    return forward * backward, counts * change
