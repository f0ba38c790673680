"""The field model of whole images: shapes of patches below a field of states and offsets (docs/offsets.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import flags, integer
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.rows import Mask
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.data.masks import Hidden
from pyjuice_lvd.data.patches import position_grid, to_patches
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import write_arrays
from pyjuice_lvd.machine import check_result
from pyjuice_lvd.models.base import ImageShape, check_possible
from pyjuice_lvd.models.field_queries import Field, FieldEmissions
from pyjuice_lvd.models.joint_queries import LEVELS, Summary
from pyjuice_lvd.models.offset_queries import Float32, Float64, OffsetLabels, UInt8
from pyjuice_lvd.models.offsets import OffsetModel
from pyjuice_lvd.models.patch import Schedule
from pyjuice_lvd.models.shapes import JOIN, ShapeModel, checked_table
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.seeds import drawn_seed
from pyjuice_lvd.shares import ROOM, shares

_AT_ONCE = 128
"""Images that go to the engine in one call, at most."""
_LEFT_OUT = 2**14
"""Counts for as many bytes a position, so that progress shows where each patch is left out in turn."""
_MOST_STATES = 4096
"""Values of (state, offsets) that a model that is written out may have."""


class FieldModel(ShapeModel):
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
    emissions: FieldEmissions

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
        joins = self._checked_shapes(steps, shapes)
        field.check(position_grid(*image_shape[:2], patch), [LEVELS // step for step in steps])
        self.emissions = FieldEmissions(
            steps=tuple(steps), shapes=tuple(map(tuple, shapes)),
            join=checked_table("join", join, (joins, len(field.group))), shifts=field.first_offsets, field=field,
        )  # fmt: skip

    @property
    def field(self) -> Field:
        """p(s, d) over the positions: its tables are the model's own memory."""
        return self.emissions.field

    @property
    def num_params(self) -> int:
        """All parameters: of the channel circuits, p(j | s) and the field; channels without offsets have none of it."""
        circuits = sum(circuit.num_params for circuit in self.emissions.circuits)
        return circuits + self.join.size + self.field.num_params

    @property
    def learning(self) -> list[Circuit]:
        """The shapes' circuits."""
        return list(self.emissions.circuits)

    def learned(self) -> list[Float32]:
        """Give all that EM on p(x) changes: the model's own memory."""
        return [*super().learned(), self.join, *self.field.tables]

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
        for rows in self._shares("log-likelihood", len(images), progress):
            scores[rows] = self.emissions.log_likelihood(*self._cut(images, hidden, rows))
        return scores

    def sample(
        self, n: int, *, seed: int = 0, exact: bool = False, biased_modes: bool = False, progress: Progress = SILENT
    ) -> UInt8:
        """Draw images: states and offsets from the field, then every patch given its own (`DensityModel.sample`)."""
        flags(exact=exact, biased_modes=biased_modes)
        n, rng = integer("n", n, least=0), np.random.default_rng(integer("seed", seed, least=0))
        check_result("n", n, n * self.dims)
        images = np.empty((n, *self.image_shape), np.uint8)
        for rows in self._shares("sampling", n, progress, 12 * (1 + len(self.steps))):
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
        flags(exact=exact, biased_modes=biased_modes)
        n_samples, seed = integer("n_samples", n_samples, least=0), integer("seed", seed, least=0)
        images, hidden = self._checked(images, mask)
        rng = np.random.default_rng(seed)
        check_result("n_samples", n_samples, n_samples * images.size)
        drawn = np.empty((n_samples, *images.shape), np.uint8)
        for rows in self._shares("in-painting", len(images), progress, 12 * n_samples * (1 + len(self.steps))):
            known, masks = self._cut(images, hidden, rows)
            totals, state, offset = self.emissions.draws(known, masks, n_samples, drawn_seed(rng))
            check_possible(totals, "images", rows.start)
            like = self._like(images[rows], hidden[rows], exact)
            for part in shares(n_samples, len(known) * self._grid[0] * (4 * self._grid[1] + 24 * len(self.join))):
                many = part.stop - part.start
                own, of = (np.moveaxis(each[:, part], 1, 0) for each in (state, offset))
                patches, hides = np.tile(known, (many, 1, 1)), np.tile(masks, (many, 1, 1))
                self.emissions.fill(
                    patches, hides, own.reshape(-1, *own.shape[2:]), of.reshape(-1, *of.shape[2:]), rng,
                    modes=biased_modes, exact=exact,
                )  # fmt: skip
                painted = self._images(patches, exact, None if like is None else np.tile(like, (many, 1, 1, 1)))
                drawn[part, rows] = np.where(hidden[rows], painted.reshape(many, *hidden[rows].shape), images[rows])
        return drawn

    def patch_anomaly(self, images: UInt8, *, progress: Progress = SILENT) -> Float64:
        """-log p(x_i | all other patches) of every patch i: float64 (N, P), in nats (`LatentModel.patch_anomaly`).

        By P + 1 likelihoods of each image, with each patch left out in turn..
        """
        images, _ = self._checked(images)
        found = np.empty((len(images), self._grid[0]))
        for rows in self._shares("anomaly", len(images), progress, _LEFT_OUT * self._grid[0]):
            found[rows] = self.emissions.anomalies(self.patches(images[rows]))
        return found

    def posterior(self, images: UInt8, mask: npt.ArrayLike | None = None, *, progress: Progress = SILENT) -> Float64:
        """p(k_i = k | what is known of the image) of each position's shape: float64 (N, P, K) (`OffsetModel`)."""
        images, hidden = self._checked(images, mask)
        found = np.empty((len(images), self._grid[0], len(self.shapes)))
        for rows in self._shares("posterior", len(images), progress, self.emissions.marginal_bytes):
            totals, joins, _ = self.emissions.marginals(*self._cut(images, hidden, rows), joins=True)
            check_possible(totals, "images", rows.start)
            shapes = np.stack([joins[:, :, of].sum(axis=2, dtype=np.float64) for of in self.emissions.joins], axis=2)
            found[rows] = shapes / shapes.sum(axis=2, keepdims=True)
        return found

    def offset_posterior(
        self, images: UInt8, mask: npt.ArrayLike | None = None, *, progress: Progress = SILENT
    ) -> list[Float64]:
        """p(d_ic = d | what is known of the image) of each position: for each channel float64 (N, P, D_c)."""
        images, hidden = self._checked(images, mask)
        found = [np.empty((len(images), self._grid[0], len(table))) for table in self.field.first_offsets]
        for rows in self._shares("posterior", len(images), progress, self.emissions.marginal_bytes):
            totals, _, marginals = self.emissions.marginals(*self._cut(images, hidden, rows))
            check_possible(totals, "images", rows.start)
            for out, own in zip(found, marginals, strict=True):
                out[rows] = own.sum(axis=3)
        return found

    def labels(self, images: UInt8, *, progress: Progress = SILENT) -> OffsetLabels:
        """Label images, uint8 (N, H, W[, C]), with probable values of all latents; `h` are the states.

        State and offsets of a patch are the most probable ones given the image, patch by patch; the join is the most
        probable one given these, exactly. All are 0 for an image of probability 0.
        """
        images, _ = self._checked(images)
        shape = len(images), self._grid[0]
        found = OffsetLabels(
            np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros((*shape, len(self.steps)), np.int64)
        )
        for rows in self._shares("labels", len(images), progress):
            for out, own in zip(found, self.emissions.labels(self.patches(images[rows])), strict=True):
                out[rows] = own
        return found

    def log_joint(self, images: UInt8, labels: OffsetLabels, *, progress: Progress = SILENT) -> Float64:
        """log p(x, s, j, d) of images with these values of all latents: float64 (N,), in nats (`OffsetModel`)."""
        images, _ = self._checked(images)
        labels = self._checked_labels(labels, len(images), len(self.field.group))
        found = np.empty(len(images))
        for rows in self._shares("labelled", len(images), progress):
            own = OffsetLabels(*(part[rows] for part in labels))
            found[rows] = self.emissions.log_joint_of(self.patches(images[rows]), own)
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

    def _cut(self, images: UInt8, hidden: Hidden, rows: slice) -> tuple[UInt8, Mask]:
        """Cut some checked images and their masks into patches."""
        return self.patches(images[rows]), np.ascontiguousarray(to_patches(hidden[rows], self.patch))

    def _shares(self, what: str, n: int, progress: Progress, size: int = 0) -> Iterator[slice]:
        """Go over n images in shares that fit in memory, with `size` bytes a position, and show how far that is."""
        size = self._grid[0] * (2 * self._grid[1] + size)
        with progress.stage(what, total=n, unit="images") as stage:
            for rows in shares(n, max(size, ROOM // _AT_ONCE)):
                yield rows
                stage.advance(rows.stop - rows.start)

    def _mixed(
        self,
        images: UInt8,
        hidden: Hidden,
        size: int,
        summary: Summary,
        name: str,
        progress: Progress,
        *,
        exact: bool,
    ) -> Iterator[tuple[slice, Float64]]:
        for rows in self._shares(name, len(images), progress, self.emissions.marginal_bytes + 8 * size):
            totals, found = self.emissions.mixed(*self._cut(images, hidden, rows), size, summary, exact=exact)
            check_possible(totals, "images", rows.start)
            yield rows, found

    def _coder(self) -> julia.Handle:
        circuits = (circuit.engine.circuit for circuit in self.emissions.circuits)
        coder: julia.Handle = julia.call(
            "field_coder", self.field.handle(), np.array(self.steps, np.int64), self.join, *circuits
        )
        return coder

    def _parameters(self) -> Iterator[npt.NDArray[Any]]:
        for circuit in self.emissions.circuits:
            yield from circuit.engine.arrays().values()
        yield from (self.join, *self.field.arrays().values())

    def _save_circuits(self, folder: Path) -> None:
        super()._save_circuits(folder)
        write_arrays(folder / names.EMISSIONS, {JOIN: self.join, **self.field.arrays()})

    @classmethod
    def _restored(cls, folder: Path, kept: Mapping[str, Any]) -> Self:
        height, width, channels = kept["image_shape"]
        arrays = cls._read_tables(folder, Field.names(channels))
        field = Field.of_arrays(position_grid(height, width, kept["patch"]), arrays, channels)
        return cls(**{**kept, "shapes": cls._read_shapes(folder, kept)}, join=arrays[JOIN], field=field)
