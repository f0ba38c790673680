"""Where p(h) over the positions of an image starts: trees chosen by their cuts, with transitions tied by direction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit import Circuit

Labels = npt.NDArray[np.integer]

_RIGHT, _LEFT, _DOWN, _UP = range(4)
_ADDED = 0.5
"""To each count of a transition, spread like all states."""


class Field(NamedTuple):
    """p(h), a circuit over the positions, and which of its edges are tied (`OffsetModel`)."""

    prior: Circuit
    ties: npt.NDArray[np.int32]


class Tree(NamedTuple):
    """A tree over the positions of a grid: the parent of each, -1 for the root, and in which direction it lies."""

    parent: npt.NDArray[np.int64]
    direction: npt.NDArray[np.int64]


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


def field(labels: Labels, grid: tuple[int, int], num_states: int, trees: list[Tree]) -> Field:
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
    made = [julia.call("tied_tree_of", tree.parent, tree.direction, share, transitions) for tree in trees]
    circuits, ties = [Circuit(handle) for handle, _ in made], [np.array(numbers) for _, numbers in made]
    if len(circuits) == 1:
        return Field(circuits[0], ties[0])
    weights = np.zeros(len(circuits), np.int32)  # of the mixture: its own
    return Field(Circuit.mixture(circuits), np.concatenate([*ties, weights]))
