"""Where a model with offsets starts: nearest offsets, shapes of what is left, their circuits, and states of positions.

Everything is distilled from labels, as the latents of the joint model are; EM on p(x) end to end goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.exchange import exchanged
from pyjuice_lvd.circuit.hclt import chow_liu_parents, hidden_states, rows_for_states
from pyjuice_lvd.circuit.reduce import alone, current, on_first, owners
from pyjuice_lvd.circuit.rows import some_rows
from pyjuice_lvd.clustering import kmeans, means_of
from pyjuice_lvd.data.patches import position_grid
from pyjuice_lvd.large import blocks, by_blocks, contiguous, counts, empty, places, take
from pyjuice_lvd.learn.field import starting_field, starting_prior
from pyjuice_lvd.models.base import ImageShape
from pyjuice_lvd.models.field import FieldModel
from pyjuice_lvd.models.offsets import OffsetModel
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.seeds import derived_seed
from pyjuice_lvd.settings import FIELD, Settings

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int32]

_LEVELS = 256
_TREE_PSEUDOCOUNT = 0.1
_PERTURBATION = 0.4
_BESIDE = 0.1
"""Weight of the residuals beside the anchor, in the clusters that heads start as, next to the anchor's own."""
_SLOPE, _CONTRAST = 0.25, 8.0
"""Weights of a patch's slopes, and of its contrast's logarithm, beside its mean, in the clusters that states are."""
_STATES_SEE = 200
"""K-means finds the states from so many patches for each."""
_IMAGES_SEEN = 100_000
"""p(h), or the field, starts from the states of so many images, at most."""
_ADDED_JOINS, _ADDED_OFFSETS = 2.0, 2.0
"""Counts that are added to those of a state's joins, and offsets, spread over all of them."""


@dataclass(frozen=True)
class Patches:
    """Patches (N, P, V) of images, with the grid of each channel's offsets, and the nearest offsets (N, P, C)."""

    x: UInt8
    steps: tuple[int, ...]
    offsets: Integers

    @classmethod
    def of(cls, x: UInt8, steps: tuple[int, ...]) -> Patches:
        """Choose the offsets nearest to the mean of each channel.

        None is taken beyond the last one: modulo 256 it would be 0, and the brightest patches would be as the darkest.
        """
        grid = np.array(steps)

        def nearest(rows: slice) -> Integers:
            means = x[rows].reshape(-1, x.shape[1], x.shape[2] // len(steps), len(steps)).mean(axis=2)
            found: Integers = np.minimum(np.rint(means / grid), _LEVELS // grid - 1).astype(np.int32)
            return found

        return cls(x, steps, by_blocks(len(x), nearest, 8 * x[:1].size))

    def means(self, rows: npt.NDArray[np.int64] | slice) -> Float32:
        """Give the mean of each channel, of some images: float32 (n, P, C)."""
        x = self.x[rows]
        found: Float32 = x.reshape(*x.shape[:2], -1, len(self.steps)).mean(axis=2, dtype=np.float32)
        return found

    @cached_property
    def residuals(self) -> UInt8:
        """What is left without the offsets, modulo 256: uint8 (N, P, V)."""
        grid = np.array(self.steps)

        def left(rows: slice) -> UInt8:
            x, shift = self.x[rows], (self.offsets[rows] * grid).astype(np.uint8)[:, :, None]
            found: UInt8 = (x.reshape(*x.shape[:2], -1, len(grid)) - shift).reshape(x.shape)
            return found

        return by_blocks(len(self.x), left, 2 * self.x[:1].size)

    def less_means(self, h: Float32) -> Float32:
        """Take out of features (N, P, D) what their patches' means say of them, by least squares."""
        size, channels = h[0].nbytes * 4, len(self.steps)

        def known(rows: slice) -> Float64:
            means = self.means(rows).reshape(-1, channels)
            return np.hstack([means / _LEVELS, np.ones((len(means), 1))])

        # The normal equations add up over blocks.
        of_known, of_both = np.zeros((channels + 1, channels + 1)), np.zeros((channels + 1, h.shape[2]))
        for rows in blocks(len(h), size):
            own = known(rows)
            of_known += own.T @ own
            of_both += own.T @ h[rows].reshape(-1, h.shape[2])
        said = np.linalg.lstsq(of_known, of_both, rcond=None)[0]

        def left(rows: slice) -> Float32:
            return (h[rows] - (known(rows) @ said).reshape(h[rows].shape)).astype(np.float32)

        return by_blocks(len(h), left, size)


def starting_model(
    patches: Patches,
    shapes: Integers,
    settings: Settings,
    image_shape: ImageShape,
    *,
    progress: Progress = SILENT,
) -> OffsetModel | FieldModel:
    """Make the model that EM starts from, of patches and the shapes that they are labelled with, int32 (N, P).

    p(j | h) and p_c(d | h) are counts of the labels, p(h) of those of neighbours (`starting_prior`, `starting_field`).
    """
    own, seed, grid = settings.offsets, settings.seed, position_grid(*image_shape[:2], settings.teacher.patch)
    windows = own.of_channels(len(patches.steps))[1]
    residuals, shape_of = patches.residuals.reshape(-1, patches.x.shape[2]), shapes.reshape(-1)
    below_field = own.trees == FIELD
    if below_field:
        states, group = texture_states(patches, settings.teacher.patch, own.states, own.groups, seed)
    else:
        states = position_states(patches, settings.teacher.patch, own.states, seed)
    join_of, first, circuits = empty(len(shape_of), np.int32), 0, []
    made: dict[int, Circuit] = {}
    heads: dict[str, Integers] = {}
    sizes, reducer = counts(shape_of), current()
    owner = owners(sizes.tolist())
    with progress.stage("shapes", total=len(shape_of), unit="patches") as stage, alone():
        for shape, size in enumerate(sizes):
            if owner[shape] == reducer.rank:
                channels, heads[str(shape)] = shape_circuits(
                    take(residuals, places(shape_of, shape)), patches.steps, windows, latents=settings.circuit.latents,
                    joins=own.joins, side=settings.teacher.patch[1], seed=derived_seed(seed, shape), progress=progress,
                )  # fmt: skip
                made |= {shape * len(channels) + c: circuit for c, circuit in enumerate(channels)}
            stage.advance(float(size))
    made, heads, channels_of = exchanged(made), reducer.merged(heads), len(patches.steps)
    for shape in range(len(sizes)):
        channels = [made[shape * channels_of + c] for c in range(channels_of)]
        circuits.append(channels)
        join_of[places(shape_of, shape)] = first + heads[str(shape)]
        first += channels[0].num_heads
    num_states = int(states.max()) + 1
    join = _shares(join_of, states.reshape(-1), first, num_states, _ADDED_JOINS)
    seen = some_rows(len(states), _IMAGES_SEEN, seed)
    if below_field:
        return FieldModel(
            image_shape=image_shape, patch=settings.teacher.patch, color=settings.data.color, steps=patches.steps,
            shapes=circuits, join=join,
            field=starting_field(states[seen], group, patches.offsets[seen], patches.steps, grid),
        )  # fmt: skip
    prior, ties = starting_prior(states[seen], patches.means(seen), grid, num_states, settings)
    offsets = patches.offsets.reshape(-1, len(patches.steps))
    return OffsetModel(
        image_shape=image_shape, patch=settings.teacher.patch, color=settings.data.color, steps=patches.steps,
        shapes=circuits, join=join,
        shifts=[
            _shares(offsets[:, c], states.reshape(-1), _LEVELS // step, num_states, _ADDED_OFFSETS)
            for c, step in enumerate(patches.steps)
        ],
        prior=prior, ties=ties,
    )  # fmt: skip


def _shares(
    values: npt.NDArray[np.integer], states: npt.NDArray[np.integer], num_values: int, num_states: int, added: float
) -> Float32:
    """Count how often each value comes with each state, and scale that to probabilities (values, states)."""
    found = np.full(num_values * num_states, added / num_values)
    for part in blocks(len(values), 16):
        found += np.bincount(values[part].astype(np.int64) * num_states + states[part], minlength=found.size)
    table = found.reshape(num_values, num_states)
    shares: Float32 = (table / table.sum(axis=0)).astype(np.float32)
    return shares


def position_states(patches: Patches, sides: tuple[int, int], states: int, seed: int) -> Integers:
    """Cluster patches by what neighbours share, int32 (N, P): the channels' means, the first's slopes and contrast."""

    def features(rows: slice) -> Float32:
        x = patches.x[rows].reshape(-1, *sides, len(patches.steps)).astype(np.float32)
        means, first = x.mean(axis=(1, 2)), x[..., 0] - x[..., 0].mean(axis=(1, 2), keepdims=True)
        slopes = [_rise(first, axis) for axis in (1, 2) if first.shape[axis] > 1]
        contrast = np.log1p(first.std(axis=(1, 2)))
        seen = np.stack([*means.T, *(_SLOPE * slope for slope in slopes), _CONTRAST * contrast], axis=1)
        return np.ascontiguousarray(seen.reshape(-1, patches.x.shape[1], seen.shape[1]), np.float32)

    seen = _of_patches(patches, features)
    found = on_first(lambda: kmeans(seen, states, seed, seen=_STATES_SEE * states))
    return found.reshape(patches.x.shape[:2])


def texture_states(
    patches: Patches, sides: tuple[int, int], states: int, groups: int, seed: int
) -> tuple[Integers, npt.NDArray[np.int64]]:
    """Cluster patches by what their means do not say: the first channel's slopes and contrast, the others' contrast.

    Returns the state of each, (N, P), and of each state its group, (S,), a cluster of states, in ascending order.
    """

    def features(rows: slice) -> Float32:
        x = patches.x[rows].reshape(-1, *sides, len(patches.steps)).astype(np.float32)
        first = x[..., 0] - x[..., 0].mean(axis=(1, 2), keepdims=True)
        slopes = [_SLOPE * _rise(first, axis) for axis in (1, 2) if first.shape[axis] > 1]
        contrasts = [_CONTRAST * np.log1p(first.std(axis=(1, 2)))]
        if x.shape[3] > 1:
            contrasts.append(_CONTRAST / 2 * np.log1p(x[..., 1:].std(axis=(1, 2)).mean(axis=1)))
        seen = np.stack([*slopes, *contrasts], axis=1).astype(np.float32)
        return seen.reshape(-1, patches.x.shape[1], seen.shape[1])

    seen = _of_patches(patches, features)
    found = on_first(lambda: kmeans(seen, states, seed, seen=_STATES_SEE * states))
    count = int(found.max()) + 1
    centres = means_of(seen, found, np.arange(count)).astype(np.float32)
    group = on_first(lambda: kmeans(centres, min(groups, count), seed))
    order = np.argsort(group, kind="stable")
    place = np.empty(count, np.int32)
    place[order] = np.arange(count)
    placed = by_blocks(len(found), lambda rows: place[found[rows]], 8)
    return placed.reshape(patches.x.shape[:2]), np.unique(group[order], return_inverse=True)[1].astype(np.int64)


def _of_patches(patches: Patches, features: Callable[[slice], Float32]) -> Float32:
    """Give features of all patches, (n, F), that are (images, P, F) of a block of images."""
    found = by_blocks(len(patches.x), features, 12 * patches.x[:1].size)
    return found.reshape(-1, found.shape[2])


def _rise(values: Float32, axis: int) -> Float32:
    """Say how much higher the second half of patches (n, H, W) is than the first."""
    half = values.shape[axis] // 2
    first, second = np.split(values, [half], axis) if values.shape[axis] % 2 == 0 else (
        np.take(values, range(half), axis), np.take(values, range(half + 1, values.shape[axis]), axis)
    )  # fmt: skip
    rise: Float32 = second.mean(axis=(1, 2)) - first.mean(axis=(1, 2))
    return rise


def shape_circuits(
    x: UInt8, steps: tuple[int, ...], windows: tuple[int, ...], *, latents: int, joins: int, side: int, seed: int,
    progress: Progress = SILENT,
) -> tuple[list[Circuit], Integers]:  # fmt: skip
    """Start a shape's circuits, one for each channel, at the residuals (n, V) of its patches; and their heads, (n,).

    Each is an HCLT whose root is the patch's middle pixel, the anchor, with residuals of at most `windows` levels
    there, where a channel has offsets: most offsets are then impossible for a patch, and cost nothing. The heads start
    as clusters of the anchor's residuals in all channels, and of those beside it. `side`: a patch's width.
    """
    by_channel = [contiguous(x[:, c :: len(steps)]) for c in range(len(steps))]
    pixels = by_channel[0].shape[1]
    anchor = (pixels // side - 1) // 2 * side + (side - 1) // 2
    parents = [_rooted(chow_liu_parents(own, _LEVELS, _TREE_PSEUDOCOUNT, progress), anchor) for own in by_channel]

    def beside_anchor(rows: slice) -> Float32:
        return np.hstack(
            [
                part
                for own, parent in zip(by_channel, parents, strict=True)
                for part in (_signed(own[rows][:, [anchor]]), _BESIDE * _signed(own[rows][:, parent == anchor]))
            ]
        )

    head = kmeans(by_blocks(len(x), beside_anchor, 8 * x.shape[1]), joins, seed)
    heads, seen, circuits = int(head.max()) + 1, rows_for_states(len(x), latents, seed), []
    for c, (own, parent) in enumerate(zip(by_channel, parents, strict=True)):
        rows, own_seed = np.ascontiguousarray(own[seen]), derived_seed(seed, c)
        states = hidden_states(rows ^ np.uint8(128), parent, latents, own_seed, progress)  # -1 lies beside 0
        circuit = julia.call(
            "hclt_from_states", parent, latents, _LEVELS, heads, _PERTURBATION, own_seed, rows, None, states,
            np.ascontiguousarray(head[seen]),
        )  # fmt: skip
        if steps[c] < _LEVELS:
            allowed = np.ones((pixels, _LEVELS), bool)
            allowed[anchor] = np.abs(_signed(np.arange(_LEVELS, dtype=np.uint8))) <= windows[c]
            julia.call("limit_inputs!", circuit, allowed)
        circuits.append(Circuit(circuit))
    return circuits, head


def _rooted(parent: npt.NDArray[np.int64], root: int) -> npt.NDArray[np.int64]:
    """Give the same tree, a parent for each variable and -1 for the root, another root."""
    parent, child, above = parent.copy(), root, int(parent[root])
    parent[root] = -1
    while above >= 0:
        following, parent[above] = int(parent[above]), child
        child, above = above, following
    return parent


def _signed(residual: UInt8) -> Float32:
    """Read residuals modulo 256 as -128..127."""
    return residual.view(np.int8).astype(np.float32)
