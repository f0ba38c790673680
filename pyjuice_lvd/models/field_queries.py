"""What a field, and patches below it, say of images: the engine's calls, and hidden pixels (docs/offsets.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import plain_array
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.rows import Mask
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.models.joint_queries import LEVELS, Summary
from pyjuice_lvd.models.offset_queries import (
    WRAPPED,
    Float32,
    Float64,
    Ints,
    OffsetLabels,
    Shapes,
    UInt8,
    added,
    choice,
    fill_joins,
    given_joins,
    kept,
)  # fmt: skip
from pyjuice_lvd.shares import shares

_DIRECTIONS = 2
"""To the right, and down."""
_TOLERANCE = 1e-3
"""Of what probabilities sum to, less 1."""
_MARGINALS_BYTES = 2**25
"""How much of the marginals of single joins is in memory at once."""


@dataclass(frozen=True)
class Field:
    """p(s, d) over the positions of a grid, a state s and an offset d_c of each channel c at each.

    An equal mixture of two combs, whose teeth run along the rows, and along the columns, from the first position:
    p(s', d' | s, d) = p(s' | s) prod_c p_c(d'_c | d_c, g, g') along each of its edges, where g is the group of a state.
    """

    grid: tuple[int, int]
    """Rows and columns of positions."""
    group: npt.NDArray[np.int64]
    """(S,): the group of each state, 0, 1, ... in ascending order."""
    first: Float32
    """(S,): p(s) of the first position."""
    first_offsets: tuple[Float32, ...]
    """Of each channel (D_c, S): p_c(d | s) of the first position."""
    next: Float32
    """(2, S, S): of each direction, to the right and down, p(s' | s) by s', s."""
    next_offsets: tuple[Float32, ...]
    """Of each channel (2, Q, Q, D_c, D_c): p_c(d' | d, g, g') by direction, g', g, d', d."""

    def check(self, grid: tuple[int, int], offsets: Sequence[int]) -> None:
        """Check that it is a field over such a grid, with as many offsets of each channel; raises InputError."""
        if self.grid != grid:
            raise InputError(f"field: found a grid of {self.grid}, wanted {grid} positions")
        states, groups = len(self.group), int(self.group[-1]) + 1 if len(self.group) else 0
        if self.group.ndim != 1 or not states or self.group[0] or not np.isin(np.diff(self.group), (0, 1)).all():
            raise InputError("field: group: wanted 0, 1, ... in ascending order")
        wanted = {"first": ((states,), 0), "next": ((_DIRECTIONS, states, states), 1)}
        for c, d in enumerate(offsets):
            wanted[_first_of(c)] = ((d, states), 0)
            wanted[_next_of(c)] = ((_DIRECTIONS, groups, groups, d, d), 3)
        tables = self.arrays()
        if len(self.first_offsets) != len(offsets) or len(self.next_offsets) != len(offsets):
            raise InputError(f"field: found {len(self.first_offsets)} channels, wanted {len(offsets)}")
        for name, (shape, axis) in wanted.items():
            table = plain_array(f"field: {name}", tables[name])
            if table.shape != shape or table.dtype != np.float32 or not table.flags.c_contiguous:
                raise InputError(f"field: {name}: found {table.dtype} {table.shape}, wanted float32 {shape}")
            sums = table.sum(axis=axis, dtype=np.float64)
            if not ((table >= 0).all() and np.allclose(sums, 1, rtol=0, atol=_TOLERANCE)):
                raise InputError(f"field: {name}: found what is no distribution, wanted numbers that sum to 1")

    @property
    def tables(self) -> list[Float32]:
        """All its parameters: its own memory."""
        return [self.first, *self.first_offsets, self.next, *self.next_offsets]

    @property
    def num_params(self) -> int:
        """Count them, but for those of channels without offsets."""
        offsets = [*self.first_offsets, *self.next_offsets]
        return self.first.size + self.next.size + sum(table.size for table in offsets if table.shape[-2] > 1)

    def handle(self) -> julia.Handle:
        """Give the engine's form of it, which shares its memory."""
        offsets = (table[a] for a in range(_DIRECTIONS) for table in self.next_offsets)
        handle: julia.Handle = julia.call(
            "field", *self.grid, self.group + 1, self.first, *self.first_offsets, *self.next, *offsets
        )
        return handle

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Give what a file holds of it."""
        firsts = {_first_of(c): table for c, table in enumerate(self.first_offsets)}
        return {
            "group": self.group, "first": self.first, "next": self.next, **firsts,
            **{_next_of(c): table for c, table in enumerate(self.next_offsets)},
        }  # fmt: skip

    @staticmethod
    def names(channels: int) -> list[str]:
        """Name the arrays of a field of so many channels."""
        return ["group", "first", "next", *map(_first_of, range(channels)), *map(_next_of, range(channels))]

    @classmethod
    def of_arrays(cls, grid: tuple[int, int], arrays: Mapping[str, npt.NDArray[np.generic]], channels: int) -> Self:
        """Make one of `arrays`."""
        return cls(
            grid, np.asarray(arrays["group"], np.int64), _table(arrays["first"]),
            tuple(_table(arrays[_first_of(c)]) for c in range(channels)), _table(arrays["next"]),
            tuple(_table(arrays[_next_of(c)]) for c in range(channels)),
        )  # fmt: skip

    def as_states(self, join: Float32, most: int) -> tuple[Circuit, Float32, list[Float32]]:
        """Give the same p(h) as a circuit whose values are all (s, d), with p(j | h) and p_c(d | h) of each.

        Raises InputError where these are more than `most`.
        """
        sizes = [len(self.first), *map(len, self.first_offsets)]
        if (many := math.prod(sizes)) > most:
            raise InputError(f"field: found {many} values of state and offsets, wanted at most {most} to write it out")
        state, *offset = np.indices(sizes).reshape(len(sizes), -1)
        root = self.first[state].astype(np.float64)
        for table, d in zip(self.first_offsets, offset, strict=True):
            root *= table[d, state]
        to = np.empty((2 * _DIRECTIONS, len(state), len(state)), np.float32)
        for a in range(_DIRECTIONS):
            step = self.next[a][state[None], state[:, None]]
            for table, d in zip(self.next_offsets, offset, strict=True):
                group = self.group[state]
                step = step * table[a, group[None], group[:, None], d[None], d[:, None]]
            to[2 * a] = to[2 * a + 1] = step / step.sum(axis=1, keepdims=True)
        made = []
        for along in (1, 0):
            parent, direction = self._comb(along)
            made.append(Circuit(julia.call("tied_tree_of", parent, direction, root / root.sum(), to)[0]))
        chosen = (np.eye(size, dtype=np.float32)[:, d] for size, d in zip(sizes[1:], offset, strict=True))
        return Circuit.mixture(made), np.ascontiguousarray(join[:, state]), [*map(np.ascontiguousarray, chosen)]

    def _comb(self, along: int) -> tuple[Ints, Ints]:
        """Give a comb along rows, or not: parents, -1 for the first, and directions, 0 to the right and 2 down."""
        rows, columns = self.grid
        row, column = np.divmod(np.arange(rows * columns), columns)
        right = (column > 0) if along else (row == 0)
        parent = np.where(right, np.arange(rows * columns) - 1, np.arange(rows * columns) - columns)
        parent[0] = -1
        return parent.astype(np.int64), np.where(right, 0, 2).astype(np.int64)


def _first_of(channel: int) -> str:
    return f"first/{channel}"


def _next_of(channel: int) -> str:
    return f"next/{channel}"


def _table(array: npt.NDArray[np.generic]) -> Float32:
    return np.require(array, np.float32, ["C", "A", "W"])


@dataclass(frozen=True)
class FieldEmissions(Shapes):
    """Patches below a field: p(x_i | s, d) = sum_j join[j, s] prod_c p_jc(x_ic - steps[c] d_c mod 256).

    `shifts` are those of the first position.
    """

    field: Field

    @property
    def marginal_bytes(self) -> int:
        """Bytes of the marginals of one position, and of the shares of joins."""
        return 8 * sum(shift.size for shift in self.shifts) + 4 * len(self.join)

    def log_likelihood(self, patches: UInt8, hidden: Mask) -> Float64:
        """log p(what is known) of images' patches (n, P, V): (n,), in nats."""
        out = np.zeros(len(patches))
        julia.call("field_scores!", out, *self._asked_of(patches, hidden))
        return out

    def draws(self, patches: UInt8, hidden: Mask, n: int, seed: int) -> tuple[Float64, Ints, Ints]:
        """Draw states (N, n, P) and offsets in levels (N, n, P, C) given what is known, and log p of that, (N,)."""
        totals, positions = np.zeros(len(patches)), patches.shape[1]
        state = np.zeros((len(patches), n, positions), np.int32)
        offset = np.zeros((*state.shape, len(self.steps)), np.int32)
        mask = np.ascontiguousarray(hidden)
        julia.call("field_draws!", totals, state, offset, self.field.handle(), self.handle(), patches, mask, seed)
        return totals, state.astype(np.int64), offset.astype(np.int64) * np.array(self.steps) % LEVELS

    def marginals(self, patches: UInt8, hidden: Mask, *, joins: bool = False) -> tuple[Float64, Float32, list[Float64]]:
        """Give log p(what is known) (N,), p(j | known) (N, P, J) if asked for, and p(s, d_c | known) (N, P, D_c, S)."""
        totals, (n, positions, _) = np.zeros(len(patches)), patches.shape
        found = [np.zeros((n, positions, *table.shape)) for table in self.shifts]
        of = np.zeros((n, positions, len(self.join)) if joins else (0, 0, 0), np.float32)
        julia.call("field_marginals!", totals, of, *self._asked_of(patches, hidden), *found)
        return totals, of, found

    def labels(self, patches: UInt8) -> OffsetLabels:
        """Give probable states and joins (N, P), and offsets (N, P, C) in steps."""
        state, join = (np.zeros(patches.shape[:2], np.int32) for _ in range(2))
        offset = np.zeros((*patches.shape[:2], len(self.steps)), np.int32)
        julia.call("field_labels!", state, join, offset, self.field.handle(), self.handle(), patches)
        return OffsetLabels(*(part.astype(np.int64) for part in (state, join, offset)))

    def log_joint_of(self, patches: UInt8, labels: OffsetLabels) -> Float64:
        """log p(x, s, j, d) of images' patches (N, P, V), with these labels: (N,), in nats."""
        out = np.zeros(len(patches))
        state, offset = (np.ascontiguousarray(part, np.int32) for part in (labels.h, labels.offset))
        julia.call("field_log_prior!", out, self.field.handle(), state, offset)
        rows = patches.reshape(-1, patches.shape[2])
        given = self.log_given(rows, labels.h.ravel(), labels.join.ravel(), labels.offset.reshape(len(rows), -1))
        found: Float64 = out + given.reshape(len(patches), -1).sum(axis=1)
        return found

    def anomalies(self, patches: UInt8) -> Float64:
        """-log p(x_i | all other patches), (N, P)."""
        out = np.zeros(patches.shape[:2])
        julia.call("field_anomalies!", out, self.field.handle(), self.handle(), patches)
        return out

    def _asked_of(self, patches: UInt8, hidden: Mask) -> tuple[object, ...]:
        mask = np.ascontiguousarray(hidden) if hidden.any() else None
        return self.field.handle(), self.handle(), np.ascontiguousarray(patches), mask

    def fill(
        self, patches: UInt8, hidden: Mask, state: Ints, offset: Ints, rng: np.random.Generator, *, modes: bool,
        exact: bool,
    ) -> None:  # fmt: skip
        """Fill what is hidden of patches (n, P, V), in place, given states (n, P) and offsets in levels (n, P, C).

        A join is drawn given these and what is known of the patch, then the hidden residuals from its heads.
        """
        unknown = hidden.any(axis=2)
        rows, masks, s, d = patches[unknown], hidden[unknown], state[unknown], offset[unknown].astype(np.uint8)
        with np.errstate(divide="ignore"):
            weights = np.log(self.join.T[s].astype(np.float64))
        partly = np.flatnonzero(~masks.all(axis=1))
        channels = len(self.steps)
        for circuits, joins in zip(self.shapes, self.joins, strict=True):
            for c, circuit in enumerate(circuits):
                own = rows[partly, c::channels] - d[partly, c, None]
                weights[partly, joins] += circuit.log_likelihood(own, mask=masks[partly, c::channels], head="all")
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))
        join = choice(weights, rng)
        fill_joins(self, rows, masks, join, d, rng, modes=modes)
        if not exact:
            for c in range(channels):
                here = rows[:, c::channels]
                read = _read(here, d[:, c, None])
                here[:] = np.where(masks[:, c::channels] & (self.steps[c] < LEVELS), read, here)
        patches[unknown] = rows

    def mixed(
        self, patches: UInt8, hidden: Mask, size: int, summary: Summary, *, exact: bool
    ) -> tuple[Float64, Float64]:
        """Give log p(what is known) (N,), and a summary of hidden values' marginals, (N, P, size), 0 elsewhere.

        The summary is taken of the marginals given the join and what is known, or, of a patch of which nothing is
        known, given what is known of the others. All but `exact` ones are of values as they are read under an offset.
        """
        totals, _, marginals = self.marginals(patches, hidden)
        out = np.zeros((*patches.shape[:2], size))
        wholly = np.asarray(hidden.all(axis=2))
        partly = np.asarray(hidden.any(axis=2)) & ~wholly
        if wholly.any() and np.isfinite(totals).all():
            own = [of[wholly] for of in marginals]
            found = np.empty((len(own[0]), size))
            for part in shares(len(found), 8 * patches.shape[2] * LEVELS, _MARGINALS_BYTES):
                found[part] = summary(self._of_unknown([of[part] for of in own], exact=exact))
            out[wholly] = found
        if partly.any() and np.isfinite(totals).all():
            out[partly] = self._of_partly(patches, hidden, partly, size, summary, exact=exact)
        return totals, out

    @cached_property
    def _residuals(self) -> list[Float64]:
        """Of each channel p(residual of a pixel | s), (S, V / C, LEVELS)."""
        found = []
        for c in range(len(self.steps)):
            mean: Float64 = np.zeros((self.join.shape[1], self.shapes[0][c].num_vars, LEVELS))
            for circuits, joins in zip(self.shapes, self.joins, strict=True):
                nothing = np.zeros((circuits[c].num_heads, circuits[c].num_vars), np.uint8)
                given = circuits[c].posterior_marginals(nothing, nothing == 0, head=np.arange(len(nothing)))
                mean += np.tensordot(self.join[joins].T.astype(np.float64), given, 1)
            found.append(mean)
        return found

    def _of_unknown(self, weights: list[Float64], *, exact: bool) -> Float64:
        """Give the marginals (m, V, LEVELS) of patches of which nothing is known, with p(s, d_c), (m, D_c, S)."""
        channels, pixels = len(self.steps), self._residuals[0].shape[1]
        out = np.zeros((len(weights[0]), pixels, channels, LEVELS))
        for c, (step, own) in enumerate(zip(self.steps, weights, strict=True)):
            given = (own.reshape(-1, own.shape[2]) @ self._residuals[c].reshape(own.shape[2], -1)).reshape(
                *own.shape[:2], pixels, LEVELS
            )
            for d in range(own.shape[1]):
                out[:, :, c] += _turned(given[:, d], step * d, read=not exact and step < LEVELS)
        out /= out.sum(axis=3, keepdims=True)
        return out.reshape(len(out), -1, LEVELS)

    def _of_partly(
        self, patches: UInt8, hidden: Mask, partly: npt.NDArray[np.bool_], size: int, summary: Summary, *, exact: bool
    ) -> Float64:
        """Give the summary (m, size) of patches of which something is known."""
        m = int(partly.sum())
        number = np.zeros(partly.shape, np.int64)
        number[partly] = np.arange(1, m + 1)
        joins = np.zeros((m, len(self.join)), np.float32)
        offsets = [np.zeros((m, len(shift), len(self.join)), np.float32) for shift in self.shifts]
        mask = np.ascontiguousarray(hidden)
        julia.call("field_shares_of!", joins, number, patches, mask, self.field.handle(), self.handle(), *offsets)

        def turn(found: Float64, levels: Ints, c: int) -> Float64:
            turned = np.empty_like(found)
            for level in np.unique(levels):
                here = levels == level
                turned[here] = _turned(found[here], int(level), read=not exact and self.steps[c] < LEVELS)
            return turned

        means, rows, masks, share = np.zeros((m, size)), patches[partly], hidden[partly], kept(joins)
        row, join = np.nonzero(share)
        for piece in shares(len(row), 8 * rows.shape[1] * LEVELS, _MARGINALS_BYTES):
            own, of = row[piece], join[piece]
            found = given_joins(self, rows[own], masks[own], of, [offset[own, :, of] for offset in offsets], turn)
            added(means, own, share[own, of, None] * summary(found))
        return means


def _read(values: UInt8, level: UInt8) -> UInt8:
    """Read values as those nearest to an offset, in levels, on the circle: beyond 0..255 they stand for that end."""
    residual = (values - level).view(np.int8).astype(np.int64)
    near = level.astype(np.int64) + residual
    found: UInt8 = np.where(np.abs(residual) < WRAPPED, np.clip(near, 0, LEVELS - 1), values).astype(np.uint8)
    return found


def _turned(given: Float64, level: int, *, read: bool) -> Float64:
    """Move p(residual), (..., LEVELS), by an offset, in levels; what `_read` reads as an end goes there."""
    turned = np.roll(given, level, axis=-1)
    if read:
        values = np.arange(LEVELS, dtype=np.uint8)
        stands_for = _read(values, np.full(LEVELS, level, np.uint8))
        for end in (0, LEVELS - 1):
            moved = (stands_for == end) & (values != end)
            turned[..., end] += turned[..., moved].sum(axis=-1)
            turned[..., moved] = 0
    return turned
