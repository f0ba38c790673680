"""The field model of whole images: shapes of patches below a field of states and offsets (docs/offsets.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import integer
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.rows import Mask
from pyjuice_lvd.data.color import ColorTransform, color_transform
from pyjuice_lvd.data.masks import Hidden
from pyjuice_lvd.data.patches import from_patches, position_grid, to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import read_arrays, write_arrays
from pyjuice_lvd.memory import check_result
from pyjuice_lvd.models.base import DensityModel, ImageShape, Part
from pyjuice_lvd.models.field_queries import Field, FieldEmissions
from pyjuice_lvd.models.joint_queries import LEVELS, Summary
from pyjuice_lvd.models.latent import PATCHES, Schedule
from pyjuice_lvd.models.offset_queries import OffsetLabels
from pyjuice_lvd.models.offsets import OffsetModel, checked_shapes, checked_table, patch_parts
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.seeds import drawn_seed
from pyjuice_lvd.shares import shares

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

_AT_ONCE = 128
"""Images that go to the engine in one call."""
_MOST_STATES = 4096
"""Values of (state, offsets) that a model that is written out may have."""


class FieldModel(DensityModel):
    """p(x) = sum over h of p(h) prod_i p(x_i | h_i) over images, where h_i is a state and the offsets of patch i.

    p(x_i | s, d) = sum_j p(j | s) prod_c p_jc(x_ic - step_c d_c mod 256): a join j = (k, r) is head r of shape k, x_ic
    the values of channel c in patch i. p(h) is a `Field`: neighbours know of each other's offsets to the step, where in
    `OffsetModel` they know of each other's states alone.

    Parameters
    ----------
    image_shape, patch, color, steps, shapes
        As for `OffsetModel`.
    join : float32 (J, S)
        p(j | s), over the joins of all shapes, one shape after another; columns sum to 1. Not copied, if it can be.
    field : Field
        p(s, d) over the positions.

    Raises
    ------
    InputError
        Where the parts do not fit together, or are not those of such images.

    """

    format: ClassVar[str] = "lvd-juice field model 1"
    parts: ClassVar[tuple[str, ...]] = (*DensityModel.parts, PATCHES)
    latents: ClassVar[bool] = True
    _kept: ClassVar[Mapping[str, Any]] = {
        "image_shape": ImageShape, "patch": tuple[int, int], "color": str, "steps": tuple[int, ...], "shapes": int,
    }  # fmt: skip

    image_shape: ImageShape
    color: ColorTransform

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        patch: tuple[int, int],
        color: str,
        steps: Sequence[int],
        shapes: Sequence[Sequence[Circuit]],
        join: npt.ArrayLike,
        field: Field,
    ) -> None:
        self.image_shape = image_shape
        self.patch = patch
        self.color = color_transform(color, image_shape[2])
        rows, columns = position_grid(*image_shape[:2], patch)
        checked_shapes(steps, shapes, image_shape[2], self.dims // (rows * columns) // image_shape[2])
        joins = sum(channels[0].num_heads for channels in shapes)
        field.check((rows, columns), [LEVELS // step for step in steps])
        self.field = field
        self.emissions = FieldEmissions(
            steps=tuple(steps), shapes=tuple(map(tuple, shapes)),
            join=checked_table("join", join, (joins, len(field.group))), shifts=field.first_offsets, field=field,
        )  # fmt: skip

    @property
    def dims(self) -> int:
        """Dimensions of an image, H W C."""
        return int(np.prod(self.image_shape))

    @property
    def steps(self) -> tuple[int, ...]:
        """The grid of each channel's offsets."""
        return self.emissions.steps

    @property
    def shapes(self) -> tuple[tuple[Circuit, ...], ...]:
        """For each shape the circuit of each channel."""
        return self.emissions.shapes

    @property
    def join(self) -> Float32:
        """p(j | s), float32 (J, S): the model's own memory."""
        return self.emissions.join

    @property
    def num_params(self) -> int:
        """All parameters: of the channel circuits, p(j | s) and the field; channels without offsets have none of it."""
        circuits = sum(circuit.num_params for channels in self.shapes for circuit in channels)
        return circuits + self.join.size + self.field.num_params

    @property
    def wraps_around(self) -> bool:
        """Whether draws count modulo 256: where there are offsets, whatever the colours."""
        return super().wraps_around or any(step < LEVELS for step in self.steps)

    @property
    def learning(self) -> list[Circuit]:
        """The circuits whose parameters EM on p(x) changes."""
        return [circuit for channels in self.shapes for circuit in channels]

    @property
    def num_candidates(self) -> int:
        """How many shapes a patch can be tried under."""
        return len(self.shapes)

    def learned(self) -> list[Float32]:
        """Give all that EM on p(x) changes: the model's own memory."""
        circuits = [array for circuit in self.learning for array in circuit.engine.learned()]
        return [*circuits, self.join, *self.field.tables]

    def em_job(self, patches: UInt8, candidates: npt.NDArray[np.uint16] | None, schedule: Schedule) -> julia.Handle:
        """Make the job of EM on p(x) (`fit_end_to_end`), on patches (N, P, V) and their candidates (N, P, M)."""
        job: julia.Handle = julia.call(
            "field_em_job", patches, candidates, *schedule, self.field.handle(), self.emissions.handle()
        )
        return job

    def score_samples(
        self, images: UInt8, /, *, mask: npt.ArrayLike | None = None, progress: Progress = SILENT
    ) -> Float64:
        """log p(x) of every image, or of the pixels that are not hidden (`DensityModel.score_samples`)."""
        images, hidden = self._checked(images, mask)
        scores = np.zeros(len(images))
        for rows in self._in_shares("log-likelihood", len(images), progress):
            scores[rows] = self.emissions.log_likelihood(*self._cut(images, hidden, rows))
        return scores

    def sample(
        self, n: int, *, seed: int = 0, exact: bool = False, biased_modes: bool = False, progress: Progress = SILENT
    ) -> UInt8:
        """Draw images: states and offsets from the field, then every patch given its own (`DensityModel.sample`)."""
        n, rng = integer("n", n, least=0), np.random.default_rng(integer("seed", seed, least=0))
        check_result("n", n, n * self.dims)
        images = np.empty((n, *self.image_shape), np.uint8)
        for rows in self._in_shares("sampling", n, progress, name="sampling"):
            patches = np.zeros((rows.stop - rows.start, *self._grid), np.uint8)
            hidden = np.ones(patches.shape, bool)
            _, state, offset = self.emissions.draws(patches[:1], hidden[:1], len(patches), drawn_seed(rng))
            self.emissions.fill(patches, hidden, state[0], offset[0], rng, modes=biased_modes, exact=exact)
            images[rows] = self._images(patches, exact)
        return images

    def inpaint(
        self,
        images: UInt8,
        mask: npt.ArrayLike,
        /,
        *,
        n_samples: int = 8,
        seed: int = 0,
        exact: bool = False,
        biased_modes: bool = False,
        progress: Progress = SILENT,
    ) -> UInt8:
        """Draw what is hidden: states and offsets given what is known, then every patch (`DensityModel.inpaint`)."""
        n_samples, seed = integer("n_samples", n_samples, least=0), integer("seed", seed, least=0)
        images, hidden = self._checked(images, mask)
        rng = np.random.default_rng(seed)
        check_result("n_samples", n_samples, n_samples * images.size)
        drawn = np.empty((n_samples, *images.shape), np.uint8)
        for rows in self._in_shares("in-painting", len(images), progress, n_samples):
            known, masks = self._cut(images, hidden, rows)
            totals, state, offset = self.emissions.draws(known, masks, n_samples, drawn_seed(rng))
            self._check_possible(totals, rows)
            for draw in range(n_samples):
                patches = known.copy()
                self.emissions.fill(
                    patches, masks, state[:, draw], offset[:, draw], rng, modes=biased_modes, exact=exact
                )
                drawn[draw, rows] = np.where(hidden[rows], self._images(patches, exact), images[rows])
        return drawn

    def marginals(self, images: UInt8, mask: npt.ArrayLike, /, *, progress: Progress = SILENT) -> Float64:
        """Give the distributions of hidden channels (`DensityModel.marginals`)."""
        images, hidden = self._checked(images, mask)
        check_result("images", f"{len(images)} of them", 8 * images.size * LEVELS)
        out = np.empty((*images.shape, LEVELS))
        height, width, channels = self.image_shape

        def every_level(marginals: Float64) -> Float64:
            return marginals.reshape(len(marginals), -1)

        for rows, found in self._mixed(images, hidden, LEVELS, every_level, "marginals", progress, exact=True):
            whole = from_patches(found, (height, width, channels * LEVELS), self.patch).reshape(out[rows].shape)
            stored = self.color.forward(images[rows])[..., None] == np.arange(LEVELS)
            out[rows] = np.where(hidden[rows][..., None], whole, stored)
        return out

    def posterior_mean(
        self, images: UInt8, mask: npt.ArrayLike, /, *, exact: bool = False, progress: Progress = SILENT
    ) -> Float64:
        """Give the means of hidden pixels (`DensityModel.posterior_mean`)."""
        images, hidden = self._checked(images, mask)
        out = np.empty(images.shape)
        mean = self.color.exact_mean if exact else self.color.mean

        def mean_colors(marginals: Float64) -> Float64:
            pixels = marginals.reshape(len(marginals), -1, self.image_shape[2], LEVELS)
            return mean(pixels).reshape(len(marginals), -1)

        for rows, found in self._mixed(images, hidden, 1, mean_colors, "posterior mean", progress, exact=exact):
            out[rows] = np.where(hidden[rows], from_patches(found, self.image_shape, self.patch), images[rows])
        return out

    def patch_anomaly(self, images: UInt8, *, progress: Progress = SILENT) -> Float64:
        """-log p(x_i | all other patches) of every patch i: float64 (N, P), in nats (`LatentModel.patch_anomaly`)."""
        images, hidden = self._checked(images)
        found = np.empty((len(images), self._grid[0]))
        for rows in self._in_shares("anomaly", len(images), progress, self._grid[0]):
            found[rows] = self.emissions.anomalies(self._cut(images, hidden, rows)[0])
        return found

    def posterior(self, images: UInt8, *, mask: npt.ArrayLike | None = None, progress: Progress = SILENT) -> Float64:
        """p(k_i = k | what is known of the image) of each position's shape: float64 (N, P, K) (`OffsetModel`)."""
        images, hidden = self._checked(images, mask)
        found = np.empty((len(images), self._grid[0], len(self.shapes)))
        for rows in self._in_shares("posterior", len(images), progress):
            totals, joins, _ = self.emissions.marginals(*self._cut(images, hidden, rows), joins=True)
            self._check_possible(totals, rows)
            shapes = np.stack([joins[:, :, of].sum(axis=2, dtype=np.float64) for of in self.emissions.joins], axis=2)
            found[rows] = shapes / shapes.sum(axis=2, keepdims=True)
        return found

    def offset_posterior(
        self, images: UInt8, *, mask: npt.ArrayLike | None = None, progress: Progress = SILENT
    ) -> list[Float64]:
        """p(d_ic = d | what is known of the image) of each position: for each channel float64 (N, P, D_c)."""
        images, hidden = self._checked(images, mask)
        found = [np.empty((len(images), self._grid[0], len(table))) for table in self.field.first_offsets]
        for rows in self._in_shares("posterior", len(images), progress):
            totals, _, marginals = self.emissions.marginals(*self._cut(images, hidden, rows))
            self._check_possible(totals, rows)
            for out, own in zip(found, marginals, strict=True):
                out[rows] = own.sum(axis=3)
        return found

    def labels(self, images: UInt8, *, progress: Progress = SILENT) -> OffsetLabels:
        """Label images, uint8 (N, H, W[, C]), with probable values of all latents; `h` are the states.

        State and offsets of a patch are the most probable ones given the image, patch by patch; the join is the most
        probable one given these, exactly. All are 0 for an image of probability 0.
        """
        images, hidden = self._checked(images)
        shape = len(images), self._grid[0]
        found = OffsetLabels(
            np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros((*shape, len(self.steps)), np.int64)
        )
        for rows in self._in_shares("labels", len(images), progress):
            for out, own in zip(found, self.emissions.labels(self._cut(images, hidden, rows)[0]), strict=True):
                out[rows] = own
        return found

    def log_joint(self, images: UInt8, labels: OffsetLabels, *, progress: Progress = SILENT) -> Float64:
        """log p(x, s, j, d) of images with these values of all latents: float64 (N,), in nats (`OffsetModel`)."""
        images, hidden = self._checked(images)
        found = np.empty(len(images))
        for rows in self._in_shares("labelled", len(images), progress):
            patches, own = self._cut(images, hidden, rows)[0], OffsetLabels(*(part[rows] for part in labels))
            found[rows] = self.emissions.log_joint_of(patches, own)
        return found

    def as_states(self) -> OffsetModel:
        """Give the same p(x) as a model whose states are all values of state and offsets: of small models alone.

        Raises InputError where these are more than 4096.
        """
        prior, join, shifts = self.field.as_states(self.join, _MOST_STATES)
        return OffsetModel(
            image_shape=self.image_shape, patch=self.patch, color=self.color.name, steps=self.steps,
            shapes=self.shapes, join=join, shifts=shifts, prior=prior,
        )  # fmt: skip

    def written_out(self) -> Circuit:
        """p(x) as one circuit: of small models alone (`as_states`)."""
        return self.as_states().written_out()

    @property
    def num_params_written_out(self) -> int:
        """Count the parameters of `written_out()`."""
        return self.as_states().num_params_written_out

    def exported(self, part: str) -> list[Part]:
        """Give p(x) as one circuit, or the channel circuits as they are."""
        return patch_parts(self) if part == PATCHES else super().exported(part)

    def patches(self, images: UInt8) -> UInt8:
        """Cut images, uint8 (N, H, W[, C]), into what the circuits model: uint8 (N, P, V), colour transformed."""
        found: UInt8 = to_patches(self.modelled(self.checked(images, "images")), self.patch)
        return found

    @property
    def _grid(self) -> tuple[int, int]:
        """P positions, and the variables of a patch."""
        positions = self.field.grid[0] * self.field.grid[1]
        return positions, self.dims // positions

    def _checked(self, images: UInt8, mask: npt.ArrayLike | None = None) -> tuple[UInt8, Hidden]:
        """Check images (N, H, W[, C]) and the mask, if there is one; both (N, H, W, C)."""
        images = self.checked(images, "images")
        if mask is None:
            return images, np.broadcast_to(np.False_, images.shape)
        return images, self._hidden(mask, images)

    def _cut(self, images: UInt8, hidden: Hidden, rows: slice) -> tuple[UInt8, Mask]:
        """Cut some checked images and their masks into patches."""
        return self.patches(images[rows]), np.ascontiguousarray(to_patches(hidden[rows], self.patch))

    def _images(self, patches: UInt8, exact: bool) -> UInt8:
        """Put drawn patches together to images (`DensityModel.sample` says what `exact` is)."""
        images: UInt8 = self.color.inverse(from_patches(patches, self.image_shape, self.patch))
        return images if exact else self.color.nearest(images)

    def _in_shares(self, what: str, n: int, progress: Progress, weight: int = 1, name: str = "") -> Iterator[slice]:
        """Go over n images, some at once, and show how far that is."""
        with progress.stage(name or what, total=n, unit="images") as stage:
            for rows in shares(n, max(1, weight), _AT_ONCE):
                yield rows
                stage.advance(rows.stop - rows.start)

    def _check_possible(self, totals: Float64, rows: slice) -> None:
        if not np.isfinite(totals).all():
            raise InputError(
                f"images: image {rows.start + int(np.argmin(np.isfinite(totals)))}: "
                "what is known of it has probability 0 under the model: nothing follows from it"
            )

    def _mixed(
        self, images: UInt8, hidden: Hidden, size: int, summary: Summary, name: str, progress: Progress, *, exact: bool
    ) -> Iterator[tuple[slice, Float64]]:
        """Give a summary of the marginals of hidden patches, (n, P, V size), 0 elsewhere, share by share."""
        for rows in self._in_shares(name, len(images), progress, max(8, size)):
            patches, masks = self._cut(images, hidden, rows)
            totals, found = self.emissions.mixed(patches, masks, size * patches.shape[2], summary, exact=exact)
            self._check_possible(totals, rows)
            yield rows, found

    def _description(self) -> dict[str, Any]:
        return {
            "image_shape": self.image_shape, "patch": self.patch, "color": self.color.name, "steps": self.steps,
            "shapes": len(self.shapes),
        }  # fmt: skip

    def _save_circuits(self, folder: Path) -> None:
        for k, channels in enumerate(self.shapes):
            for c, circuit in enumerate(channels):
                circuit.save(folder / names.channel_circuit_of(k, c))
        write_arrays(folder / names.EMISSIONS, {_JOIN: self.join, **self.field.arrays()})

    @classmethod
    def _restored(cls, folder: Path, kept: Mapping[str, Any]) -> Self:
        channels = range(kept["image_shape"][2])
        shapes = [
            [Circuit.load(folder / names.channel_circuit_of(k, c)) for c in channels] for k in range(kept["shapes"])
        ]
        path = folder / names.EMISSIONS
        arrays, _ = read_arrays(path)
        wanted = [_JOIN, *Field.names(len(channels))]
        if arrays.keys() != set(wanted):
            raise InputError(f"{path}: found {', '.join(sorted(arrays))}, wanted {', '.join(wanted)}")
        height, width, _ = kept["image_shape"]
        join, grid = arrays.pop(_JOIN), position_grid(height, width, kept["patch"])
        return cls(**{**kept, "shapes": shapes}, join=join, field=Field.of_arrays(grid, arrays, len(channels)))


_JOIN = "join"
