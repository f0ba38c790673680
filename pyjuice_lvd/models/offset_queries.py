"""What the emissions of the offsets model say of patches: scores, posteriors, hidden pixels (docs/offsets.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.rows import Mask
from pyjuice_lvd.models.joint_queries import LEVELS, NEGLIGIBLE, Summary, filled
from pyjuice_lvd.shares import shares

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Turn = Callable[[Float64, Ints, int], Float64]
"""Moves marginals of residuals (m, V, LEVELS) of a channel by offsets (m,), in levels."""

_MARGINALS_BYTES = 2**25
"""How much of the marginals of single joins, or offsets, is in memory at once."""

WRAPPED = 64
"""Values as near as this to their state's mean offset may have wrapped around: residuals are hardly ever larger."""

_TOGETHER = 0.5
"""The least length of the mean of offsets as points of the unit circle: 0 where they are all over it, 1 where equal."""

_LEAST_KIND = 1e-4
"""Kinds of states below this posterior probability are left out of means."""

_LEAST_SHARE = 1e-7
"""Joins, and their offsets, below this posterior probability are left out of mixtures: float32 rounds as much."""


class OffsetLabels(NamedTuple):
    """One value of all latents of images: int64 states h (N, P), joins j (N, P), and offsets d (N, P, C) in steps."""

    h: Ints
    join: Ints
    offset: Ints


@dataclass(frozen=True)
class Shapes:
    """Shapes of patches under offsets: a join j is a head r of the channel circuits of a shape k.

    The joins of shape 0 come first, then those of shape 1 and so on. The channels of a patch x_i (V,) lie interleaved:
    channel c is `x_i[c::C]`.
    """

    steps: tuple[int, ...]
    """Between the offsets of each channel, in levels."""
    shapes: tuple[tuple[Circuit, ...], ...]
    """For each shape the circuit of each channel, over a channel's values in a patch."""
    join: Float32
    """(J, S): p(j | h), by state."""
    shifts: tuple[Float32, ...]
    """Of each channel (D_c, S): p_c(d | h), by state."""

    @property
    def circuits(self) -> Iterator[Circuit]:
        """All channel circuits, shape after shape."""
        return (circuit for channels in self.shapes for circuit in channels)

    @property
    def joins(self) -> Iterator[slice]:
        """The joins of each shape."""
        first = 0
        for channels in self.shapes:
            yield slice(first, first + channels[0].num_heads)
            first += channels[0].num_heads

    def handle(self) -> julia.Handle:
        """Give the engine's form of it, which shares its memory."""
        engines = (circuit.engine.evaluator(soft=False) for circuit in self.circuits)
        steps = np.array(self.steps, np.int64)
        handle: julia.Handle = julia.call("emissions", steps, self.join, *self.shifts, *engines)
        return handle

    def log_given(self, patches: UInt8, h: Ints, join: Ints, offset: Ints) -> Float64:
        """log p(x, j | h, d) of patches (n, V), with states and joins (n,) and offsets (n, C): (n,), in nats."""
        channels = len(self.steps)
        with np.errstate(divide="ignore"):
            found: Float64 = np.log(self.join[join, h].astype(np.float64))
        for circuits, joins in zip(self.shapes, self.joins, strict=True):
            own = np.flatnonzero((join >= joins.start) & (join < joins.stop))
            head = join[own] - joins.start
            for c, circuit in enumerate(circuits):
                moved = (self.steps[c] * offset[own, c] % LEVELS).astype(np.uint8)
                scores = circuit.log_likelihood(patches[own, c::channels] - moved[:, None], head="all")
                found[own] += scores[np.arange(len(own)), head]
        return found


@dataclass(frozen=True)
class Emissions(Shapes):
    """e(h) = p(x_i | h) = sum_j join[j, h] prod_c sum_d shifts[c][d, h] p_jc(x_ic - steps[c] d mod 256) of a patch."""

    @property
    def share_bytes(self) -> int:
        """Bytes of the shares of joins, and of them with each offset, of one patch."""
        return self.join.itemsize * len(self.join) * (1 + sum(map(len, self.shifts)))

    def scores(self, patches: UInt8, hidden: Mask) -> Float32:
        """log e(h) of patches (N, P, V), what is hidden summed out: float32 (N, P, S), in nats; 0 if all is hidden."""
        scores = np.zeros((*patches.shape[:2], self.join.shape[1]), np.float32)
        julia.call("emission_scores!", scores, patches, hidden if hidden.any() else None, self.handle())
        return scores

    def join_shares(self, patches: UInt8, hidden: Mask, weights: Float64) -> Float32:
        """sum_h weights[h] p(j | h, what is known) of patches (n, V), with weights (n, S): float32 (n, J)."""
        joins = np.zeros((len(patches), len(self.join)), np.float32)
        julia.call("emission_shares!", joins, *self._asked(patches, hidden, weights))
        return joins

    def shares(self, patches: UInt8, hidden: Mask, weights: Float32 | Float64) -> tuple[Float32, list[Float32]]:
        """As `join_shares`, and sum_h weights[h] p(j, d_c = d | h, what is known), float32 (n, D_c, J), of channels."""
        joins = np.zeros((len(patches), len(self.join)), np.float32)
        offsets = [np.zeros((len(patches), len(shift), len(self.join)), np.float32) for shift in self.shifts]
        julia.call("emission_shares!", joins, *self._asked(patches, hidden, weights), *offsets)
        return joins, offsets

    def _asked(self, patches: UInt8, hidden: Mask, weights: Float32 | Float64) -> tuple[object, ...]:
        mask = np.ascontiguousarray(hidden) if hidden.any() else None
        return np.ascontiguousarray(patches), mask, np.ascontiguousarray(weights, np.float32), self.handle()

    def most_probable(self, patches: UInt8, h: Ints) -> tuple[Ints, Ints]:
        """Give the join (n,) and the offsets (n, C) of the largest p(j, d | h, x) of patches (n, V), given h (n,).

        Exact, but for shares that are alike in float32: given h and j, the channels are independent. 0 where x is
        impossible under h.
        """
        states = np.eye(self.join.shape[1], dtype=np.float32)
        joins, offsets = self.shares(patches, np.zeros(patches.shape, bool), states[h])
        most = joins.astype(np.float64)
        for of in offsets:
            most *= np.divide(of.max(axis=1), joins, out=np.zeros_like(joins), where=joins > 0)
        join = most.argmax(axis=1)
        each = np.arange(len(join))
        return join, np.stack([of[each, :, join].argmax(axis=1) for of in offsets], axis=1)

    def log_joint(self, patches: UInt8, h: Ints, join: Ints, offset: Ints) -> Float64:
        """log p(x, j, d | h) of patches (n, V), with states and joins (n,) and offsets (n, C): (n,), in nats."""
        tables = np.stack([shift[offset[:, c], h] for c, shift in enumerate(self.shifts)])
        with np.errstate(divide="ignore"):
            given: Float64 = np.log(tables.astype(np.float64)).sum(axis=0)
        return given + self.log_given(patches, h, join, offset)

    def complete(
        self,
        patches: UInt8,
        hidden: Mask,
        h: npt.NDArray[np.integer],
        rng: np.random.Generator,
        *,
        modes: bool,
        exact: bool,
    ) -> None:
        """Fill what is hidden of patches (n, P, V), in place, given the states `h` (n, P).

        A join and an offset of each channel are drawn given h and what is known of the patch, then the hidden values
        less the offset from the join's heads: samples, or, with `modes`, the most probable ones (`Circuit.mpe`). All
        but `exact` ones are then taken as `reading` has them.
        """
        unknown = hidden.any(axis=2)
        rows, masks, states = patches[unknown], hidden[unknown], h[unknown].astype(np.int64)
        join, offset = self._drawn(rows, masks, states, rng)
        fill_joins(self, rows, masks, join, offset, rng, modes=modes)
        if not exact:
            channels = len(self.steps)
            for c in range(channels):
                here = rows[:, c::channels]
                here[:] = np.where(masks[:, c::channels], self.reading[c][states[:, None], here], here)
        patches[unknown] = rows

    @cached_property
    def reading(self) -> list[UInt8]:
        """What values stand for in a patch of a state, for each channel (S, LEVELS), where they wrapped around.

        A residual that takes a bright patch beyond 255 makes it black, modulo 256, and the other way round. In a state,
        values are read as those nearest to its mean offset, on the circle: where that is beyond 0..255, but nearer than
        `WRAPPED` to that offset, they stand for that end. All others stand for themselves, as do all in a state whose
        offsets are spread too wide to have a mean.
        """
        found, levels = [], np.arange(LEVELS)
        for step, shift in zip(self.steps, self.shifts, strict=True):
            turns = np.exp(2j * np.pi * step * np.arange(len(shift)) / LEVELS)
            mean = shift.T.astype(np.float64) @ turns
            centre = np.round(np.angle(mean) * LEVELS / (2 * np.pi)) % LEVELS
            beside = (levels - centre[:, None] + LEVELS // 2) % LEVELS - LEVELS // 2
            near = centre[:, None] + beside
            wrapped = (near < 0) | (near >= LEVELS)
            wrapped &= (np.abs(beside) < WRAPPED) & (np.abs(mean) > _TOGETHER)[:, None] & (step < LEVELS)
            found.append(np.where(wrapped, np.clip(near, 0, LEVELS - 1), levels).astype(np.uint8))
        return found

    def _drawn(self, rows: UInt8, hidden: Mask, h: Ints, rng: np.random.Generator) -> tuple[Ints, UInt8]:
        """Draw the join (m,), and the offset (m, C) of each channel, of rows given their states and what is known."""
        join, offset = np.empty(len(rows), np.int64), np.zeros((len(rows), len(self.steps)), np.uint8)
        wholly = hidden.all(axis=1)
        states = np.eye(self.join.shape[1])
        for chosen, known in ((np.flatnonzero(wholly), False), (np.flatnonzero(~wholly), True)):
            for part in shares(len(chosen), 4 * (self.share_bytes if known else len(self.join) * 8)):
                own = chosen[part]
                if known:
                    joins, offsets = self.shares(rows[own], hidden[own], states[h[own]])
                    join[own] = choice(joins, rng)
                    given = [of[np.arange(len(own)), :, join[own]] for of in offsets]
                else:
                    join[own] = choice(self.join.T[h[own]], rng)
                    given = [shift.T[h[own]] for shift in self.shifts]
                for c, (step, weights) in enumerate(zip(self.steps, given, strict=True)):
                    offset[own, c] = step * choice(weights, rng) % LEVELS
        return join, offset


def fill_joins(
    emissions: Shapes, rows: UInt8, hidden: Mask, join: Ints, offset: UInt8, rng: np.random.Generator, *, modes: bool
) -> None:
    """Fill what is hidden of rows (m, V), in place, under joins (m,) and offsets, in levels, (m, C)."""
    channels = len(emissions.steps)
    for circuits, joins in zip(emissions.shapes, emissions.joins, strict=True):
        here = (join >= joins.start) & (join < joins.stop)
        for c, circuit in enumerate(circuits):
            own = here & hidden[:, c::channels].any(axis=1)
            if own.any():
                residual = rows[own, c::channels] - offset[own, c, None]
                head = join[own] - joins.start
                found = filled(circuit, residual, hidden[own, c::channels], head, rng, modes=modes)
                rows[own, c::channels] = found + offset[own, c, None]


def choice(weights: Float32 | Float64, rng: np.random.Generator) -> Ints:
    """Draw a column of each row of weights (m, K), in proportion to them; none of weight 0."""
    cumulative = weights.astype(np.float64).cumsum(axis=1)
    cumulative /= cumulative[:, -1:]
    found: Ints = (cumulative <= rng.random(len(weights))[:, None]).sum(axis=1)
    return found


class Mixer:
    """Averages a summary of the hidden values' marginals over all that is not known: `models.latent.Mixing`.

    The summary is taken of the marginals given the join and what is known of the patch, or, of a patch of which nothing
    is known, given its state: of these there is one table, made when it is first needed. All but `exact` ones are of
    values as `Emissions.reading` has them, of a patch of which something is known in the most probable state of a kind.
    """

    def __init__(self, emissions: Emissions, size: int, summary: Summary, *, exact: bool) -> None:
        self.emissions, self.size, self.summary, self.exact = emissions, size, summary, exact

    def __call__(self, patches: UInt8, hidden: Mask, posterior: Float64) -> Float64:
        """Give the means (n, P, size) for patches (n, P, V) and the posterior (n, P, S); 0 where nothing is hidden."""
        weight = np.where(posterior > NEGLIGIBLE, posterior, 0)
        weight /= weight.sum(axis=2, keepdims=True)
        out = np.zeros((*weight.shape[:2], self.size))
        wholly = hidden.all(axis=2)
        partly = hidden.any(axis=2) & ~wholly
        if wholly.any():
            out[wholly] = weight[wholly] @ self._of_states
        if partly.any():
            out[partly] = self._partly(patches[partly], hidden[partly], weight[partly])
        return out

    @cached_property
    def _of_states(self) -> Float64:
        """The summaries (S, size) of patches of which nothing but the state is known."""
        emissions, channels = self.emissions, len(self.emissions.steps)
        residuals = []  # of each channel (J, V / C, LEVELS)
        for c in range(channels):
            own = [circuits[c] for circuits in emissions.shapes]
            nothing = [np.zeros((circuit.num_heads, circuit.num_vars), np.uint8) for circuit in own]
            residuals.append(
                np.concatenate(
                    [
                        circuit.posterior_marginals(rows, rows == 0, head=np.arange(len(rows)))
                        for circuit, rows in zip(own, nothing, strict=True)
                    ]
                )
            )
        states, pixels = emissions.join.shape[1], residuals[0].shape[1]
        found = np.empty((states, self.size))
        for part in shares(states, 8 * channels * pixels * LEVELS, _MARGINALS_BYTES):
            marginals = np.zeros((part.stop - part.start, pixels, channels, LEVELS))
            for c, (step, shift) in enumerate(zip(emissions.steps, emissions.shifts, strict=True)):
                mean = np.tensordot(emissions.join[:, part].T.astype(np.float64), residuals[c], 1)
                for d, weight in enumerate(shift[:, part]):
                    marginals[:, :, c] += weight[:, None, None] * np.roll(mean, step * d, axis=2)
            marginals /= marginals.sum(axis=3, keepdims=True)
            marginals = marginals.reshape(len(marginals), -1, LEVELS)
            found[part] = self.summary(self._read(marginals, np.arange(part.start, part.stop)))
        return found

    def _read(self, marginals: Float64, state: Ints) -> Float64:
        """Move what marginals (m, V, LEVELS) have of values that stand for an end, in the rows' states (m,), there."""
        if not self.exact:
            for c, reading in enumerate(self.emissions.reading):
                stands_for, own = reading[state][:, None], marginals[:, c :: len(self.emissions.steps)]
                for end in (0, LEVELS - 1):
                    moved = (stands_for == end) & (np.arange(LEVELS) != end)
                    own[:, :, end] += (own * moved).sum(axis=2)
                    own[np.broadcast_to(moved, own.shape)] = 0
        return marginals

    @cached_property
    def _kinds(self) -> Ints:
        """Number the states (S,) by the ends of channels that values of theirs stand for: mostly none, black, white."""
        if self.exact:
            return np.zeros(self.emissions.join.shape[1], np.int64)
        ends = [
            ((reading == end) & (np.arange(LEVELS) != end)).any(axis=1)
            for reading in self.emissions.reading
            for end in (0, LEVELS - 1)
        ]
        found: Ints = np.unique(np.stack(ends), axis=1, return_inverse=True)[1].ravel()
        return found

    def _partly(self, rows: UInt8, hidden: Mask, weight: Float64) -> Float64:
        """Give the means (m, size) for rows (m, V) of which something is known, with the posterior (m, S)."""
        means, kinds = np.zeros((len(rows), self.size)), self._kinds
        mass = weight @ np.eye(int(kinds.max()) + 1)[kinds]
        mass = np.where(mass >= _LEAST_KIND, mass, 0)
        mass /= mass.sum(axis=1, keepdims=True)
        row, kind = np.nonzero(mass)  # which ascend
        for part in shares(len(row), 4 * self.emissions.share_bytes + 8 * weight.shape[1]):
            of, states = row[part], np.where(kinds == kind[part, None], weight[row[part]], 0)
            joins, offsets = self.emissions.shares(rows[of], hidden[of], states)
            share = kept(joins)
            entry, join = np.nonzero(share)
            for piece in shares(len(entry), 8 * rows.shape[1] * LEVELS, _MARGINALS_BYTES):
                own, j = entry[piece], join[piece]
                marginals = given_joins(
                    self.emissions, rows[of[own]], hidden[of[own]], j, [offset[own, :, j] for offset in offsets], turned
                )
                marginals = self._read(marginals, states[own].argmax(axis=1))
                weights = mass[of[own], kind[part][own]] * share[own, j]
                added(means, of[own], weights[:, None] * self.summary(marginals))
        return means


def given_joins(
    emissions: Shapes, rows: UInt8, hidden: Mask, join: Ints, offsets: Sequence[Float32], turn: Turn
) -> Float64:
    """Give the marginals (m, V, LEVELS) of hidden values of rows under their joins (m,), with offsets' (m, D_c)."""
    channels = len(emissions.steps)
    out = np.zeros((len(rows), rows.shape[1], LEVELS))
    for circuits, joins in zip(emissions.shapes, emissions.joins, strict=True):
        here = (join >= joins.start) & (join < joins.stop)
        for c, circuit in enumerate(circuits):
            own = np.flatnonzero(here & hidden[:, c::channels].any(axis=1))
            values, masks, share = rows[own, c::channels], hidden[own, c::channels], kept(offsets[c][own])
            entry, d = np.nonzero(share)
            for piece in shares(len(entry), 8 * circuit.num_vars * LEVELS, _MARGINALS_BYTES):
                of, offset = entry[piece], emissions.steps[c] * d[piece] % LEVELS
                residual = values[of] - offset[:, None].astype(np.uint8)
                found = circuit.posterior_marginals(residual, masks[of], head=join[own[of]] - joins.start)
                added(out[:, c::channels], own[of], share[of, d[piece], None, None] * turn(found, offset, c))
    return out


def turned(marginals: Float64, offset: Ints, channel: int) -> Float64:
    """Move marginals of residuals (m, V, LEVELS) by offsets (m,), in levels, modulo 256."""
    source = (np.arange(LEVELS) - offset[:, None]) % LEVELS
    found: Float64 = np.take_along_axis(marginals, source[:, None], axis=2)
    return found


def kept(shares_of: Float32) -> Float64:
    """Scale the shares (m, K) of each row to sum to 1, without those that are negligible beside another one."""
    least = np.minimum(shares_of.max(axis=1, keepdims=True, initial=0), _LEAST_SHARE)
    kept = np.where(shares_of >= least, shares_of, 0).astype(np.float64)
    kept /= kept.sum(axis=1, keepdims=True)
    return kept


def added(out: Float64, rows: Ints, values: Float64) -> None:
    """Add values (m, ...) to rows of `out`, whose numbers (m,) ascend."""
    if len(rows):
        first = np.flatnonzero(np.diff(rows, prepend=-1))
        out[rows[first]] += np.add.reduceat(values, first, axis=0)
