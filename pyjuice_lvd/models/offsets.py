"""The offsets model of whole images: shapes of patches under offsets of each channel, below a prior over states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit import Circuit, Evidence
from pyjuice_lvd.circuit.devices import backend
from pyjuice_lvd.circuit.rows import Mask
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import write_arrays
from pyjuice_lvd.models.base import ImageShape, Part
from pyjuice_lvd.models.joint_queries import LEVELS, Summary
from pyjuice_lvd.models.latent import LatentModel, Mixing
from pyjuice_lvd.models.offset_queries import Emissions, Float32, Mixer, OffsetLabels
from pyjuice_lvd.models.patch import PRIOR, Schedule
from pyjuice_lvd.models.shapes import JOIN, ShapeModel, checked_table
from pyjuice_lvd.models.written_out import num_params_with_offsets, written_out_with_offsets
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.shares import shares


class OffsetModel(ShapeModel, LatentModel):
    """p(x) = sum_h p(h) prod_i p(x_i | h_i) over images, where each patch is a shape under offsets (docs/offsets.md).

    p(x_i | h) = sum_j p(j | h) prod_c sum_d p_c(d | h) p_jc(x_ic - step_c d mod 256): a join j = (k, r) is head r of
    shape k, x_ic the values of channel c in patch i. All positions share everything but their state h_i.

    Parameters
    ----------
    image_shape : (H, W, C)
    patch : (height, width)
        Positions are the patches of an image, row by row.
    color : str
        Colour transform; p(x) is the density of its output (for a lossless one, of the image).
    steps : C integers
        The grid of each channel's offsets, divisors of 256: D_c = 256 / step_c of them. 256: no offset but 0.
    shapes : sequences of C Circuits
        For each shape and channel p_kc, over the channel's values in a patch, of 256 categories. Those of one shape
        have as many heads as one another: its joins.
    join : float32 (J, S)
        p(j | h), over the joins of all shapes, one shape after another; columns sum to 1. Not copied, if it can be.
    shifts : C times float32 (D_c, S)
        p_c(d | h); columns sum to 1. Not copied, if it can be.
    prior : Circuit
        p(h), over the positions, with S categories.
    ties : int32 (edges of the prior), optional
        For EM, which keeps the probabilities of edges with one number above 0 equal. It enters nothing else.

    Raises
    ------
    InputError
        Where the parts do not fit together, or are not those of such images.

    """

    format: ClassVar[str] = "lvd-juice offset model 1"
    parts: ClassVar[tuple[str, ...]] = LatentModel.parts

    emissions: Emissions

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        patch: tuple[int, int],
        color: str,
        steps: Sequence[int],
        shapes: Sequence[Sequence[Circuit]],
        join: npt.ArrayLike,
        shifts: Sequence[npt.ArrayLike],
        prior: Circuit,
        ties: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self.image_shape = image_shape
        self.patch = patch
        self.color = color_transform(color, image_shape[2])
        self.prior = prior
        self.ties = ties
        if ties is not None and ties.shape != (prior.num_edges,):
            raise InputError(f"ties: found {ties.shape}, wanted ({prior.num_edges},): one for each edge of the prior")
        self._check_positions()
        joins, states = self._checked_shapes(steps, shapes), prior.engine.categories
        if len(shifts) != len(steps):
            raise InputError(f"shifts: found {len(shifts)}, wanted {len(steps)}: one for each channel")
        self.emissions = Emissions(
            steps=tuple(steps),
            shapes=tuple(map(tuple, shapes)),
            join=checked_table("join", join, (joins, states)),
            shifts=tuple(
                checked_table(f"shifts of channel {c}", shift, (LEVELS // step, states))
                for c, (step, shift) in enumerate(zip(steps, shifts, strict=True))
            ),
        )

    @property
    def shifts(self) -> tuple[Float32, ...]:
        """p_c(d | h) of each channel, float32 (D_c, S): the model's own memory."""
        return self.emissions.shifts

    @property
    def num_params(self) -> int:
        """All parameters: of the prior, the channel circuits, p(j | h), and p_c(d | h) of channels with offsets.

        Parameters that `ties` keep equal count once.
        """
        circuits = sum(circuit.num_params for circuit in self.emissions.circuits)
        tables = self.join.size + sum(shift.size for shift in self.shifts if len(shift) > 1)
        tied = 0 if self.ties is None else int((self.ties > 0).sum()) - len(np.unique(self.ties[self.ties > 0]))
        return self.prior.num_params - tied + circuits + tables

    @property
    def learning(self) -> list[Circuit]:
        """The prior, then the shapes' circuits."""
        return [self.prior, *self.emissions.circuits]

    def learned(self) -> list[Float32]:
        """Give all that EM on p(x) changes: the model's own memory."""
        return [*super().learned(), self.join, *self.shifts]

    def em_job(
        self, patches: npt.NDArray[np.uint8], candidates: npt.NDArray[np.uint16] | None, schedule: Schedule
    ) -> julia.Handle:
        """Make the job of EM on p(x) (`LatentModel.em_job`)."""
        job: julia.Handle = julia.call(
            "offset_em_job", patches, candidates, *schedule, self.prior.engine.circuit, self.emissions.handle(),
            self.ties, *backend(),
        )  # fmt: skip
        return job

    def patch_scores(self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """log p(x_i | h_i) of every patch and state, float32 (N, P, S), in nats.

        `images`, `mask`: as for `score_samples`. What is hidden is summed out: 0 for a patch of which nothing is known.
        """
        images, hidden = self._checked(images, mask)
        return self.emissions.scores(self.patches(images), to_patches(hidden, self.patch))

    def posterior(
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """p(k_i = k | what is known of the image) of each position's shape, exact: float64 (N, P, K).

        `images`, `mask`, errors: as for `inpaint`; without a mask, all is known. The result takes 8 P K bytes for each
        image: ask for that of large data in shares.
        """
        images, hidden = self._checked(images, mask)
        found = np.empty((len(images), self.prior.num_vars, len(self.shapes)))
        for rows, patches, masks, weights in self._posteriors(images, hidden, 4 * len(self.join), progress):
            joins = self.emissions.join_shares(patches, masks, weights)
            shapes = np.stack([joins[:, of].sum(axis=1, dtype=np.float64) for of in self.emissions.joins], axis=1)
            found[rows] = _scaled(shapes).reshape(found[rows].shape)
        return found

    def offset_posterior(
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None, *, progress: Progress = SILENT
    ) -> list[npt.NDArray[np.float64]]:
        """p(d_ic = d | what is known of the image) of each position, exact: for each channel float64 (N, P, D_c).

        Offset d of channel c adds step_c d to its values, modulo 256. All else is as for `posterior`.
        """
        images, hidden = self._checked(images, mask)
        found = [np.empty((len(images), self.prior.num_vars, len(shift))) for shift in self.shifts]
        for rows, patches, masks, weights in self._posteriors(images, hidden, self.emissions.share_bytes, progress):
            _, offsets = self.emissions.shares(patches, masks, weights)
            for out, offset in zip(found, offsets, strict=True):
                out[rows] = _scaled(offset.sum(axis=2, dtype=np.float64)).reshape(out[rows].shape)
        return found

    def labels(self, images: npt.NDArray[np.uint8], *, progress: Progress = SILENT) -> OffsetLabels:
        """Label images, uint8 (N, H, W[, C]), with probable values of all latents.

        The states of an image are the most probable ones given it, by max-product on the prior (`Circuit.mpe`); the
        join and the offsets of a patch are the most probable given its state, exactly. All are 0 for an image of
        probability 0.

        Raises InputError where the images do not fit the model.
        """
        images, _ = self._checked(images)
        shape, channels = (len(images), self.prior.num_vars), len(self.steps)
        found = OffsetLabels(np.zeros(shape, int), np.zeros(shape, int), np.zeros((*shape, channels), int))
        size = self.prior.num_vars * (12 * self.prior.engine.categories + 2 * self.emissions.share_bytes)
        with progress.stage("labels", total=len(images), unit="images") as stage:
            for rows in shares(len(images), size):
                scores = self.patch_scores(images[rows])
                possible = np.isfinite(self.prior.log_likelihood(Evidence(scores.copy())))
                h = self.prior.mpe(Evidence(scores[possible])).astype(int)
                patches = self.patches(images[rows])[possible].reshape(-1, self._grid[1])
                join, offset = self.emissions.most_probable(patches, h.ravel())
                for part, values in zip(found, (h, join, offset), strict=True):
                    part[rows][possible] = values.reshape(*h.shape, *part.shape[2:])
                stage.advance(rows.stop - rows.start)
        return found

    def log_joint(
        self, images: npt.NDArray[np.uint8], labels: OffsetLabels, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """log p(x, h, j, d) of images, uint8 (N, H, W[, C]), with these values of all latents.

        A lower bound of log p(x): one term of its sum.

        Returns float64 (N,), in nats; -inf where it is 0. Raises InputError where the images or the labels do not fit
        the model.
        """
        images, _ = self._checked(images)
        h, join, offset = self._checked_labels(labels, len(images), self.prior.engine.categories)
        found = np.empty(len(images))
        with progress.stage("labelled", total=len(images), unit="images") as stage:
            for rows in shares(len(images), self.prior.num_vars * (4 * self._grid[1] + 16 * len(self.join))):
                patches = self.patches(images[rows]).reshape(-1, self._grid[1])
                given = self.emissions.log_joint(
                    patches, h[rows].ravel(), join[rows].ravel(), offset[rows].reshape(len(patches), -1)
                )
                given = given.reshape(-1, self.prior.num_vars).sum(axis=1)
                found[rows] = self.prior.log_likelihood(h[rows]) + given
                stage.advance(rows.stop - rows.start)
        return found

    def _posteriors(
        self, images: npt.NDArray[np.uint8], hidden: Mask, size: int, progress: Progress
    ) -> Iterator[tuple[slice, npt.NDArray[np.uint8], Mask, npt.NDArray[np.float64]]]:
        """Give patches (n, V), their masks and the posterior (n, S) of their states, image after image, in shares.

        `size`: bytes that are made of each patch.
        """
        positions, variables = self._grid
        with progress.stage("posterior", total=len(images), unit="images") as stage:
            for rows in shares(len(images), positions * (16 * self.prior.engine.categories + size)):
                weights = self.prior.posterior_marginals(self._evidence(images, hidden, rows))
                masks = to_patches(hidden[rows], self.patch).reshape(-1, variables)
                patches = self.patches(images[rows]).reshape(-1, variables)
                yield rows, patches, masks, weights.reshape(len(patches), -1)
                stage.advance(rows.stop - rows.start)

    def _complete(
        self,
        patches: npt.NDArray[np.uint8],
        hidden: Mask,
        z: npt.NDArray[np.integer],
        rng: np.random.Generator,
        *,
        modes: bool,
        exact: bool,
    ) -> None:
        self.emissions.complete(patches, hidden, z, rng, modes=modes, exact=exact)

    def _mixing(self, size: int, summary: Summary, *, exact: bool) -> Mixing:
        return Mixer(self.emissions, size, summary, exact=exact)

    def written_out(self) -> Circuit:
        """p(x) as one circuit, with copies of the channel circuits for each position and offset (`written_out.py`)."""
        indices = np.arange(self.dims, dtype=np.int64).reshape(1, *self.image_shape)
        return written_out_with_offsets(self.prior, self.emissions, to_patches(indices, self.patch)[0])

    @property
    def num_params_written_out(self) -> int:
        """Count the parameters of `written_out()`: those of the circuits once for each of their copies."""
        return num_params_with_offsets(self.prior, self.emissions)

    def exported(self, part: str) -> list[Part]:
        """Give p(x) as one circuit, or the channel circuits or p(h) as they are."""
        if part == PRIOR:
            return [self._prior_part("h", "the states of a position")]
        return super().exported(part)

    def _coder(self) -> julia.Handle:
        circuits = (circuit.engine.circuit for circuit in self.emissions.circuits)
        coder: julia.Handle = julia.call(
            "offset_coder",
            self.prior.engine.circuit,
            np.array(self.steps, np.int64),
            self.join,
            *self.shifts,
            *circuits,
        )
        return coder

    def _parameters(self) -> Iterator[npt.NDArray[Any]]:
        for circuit in self.learning:
            yield from circuit.engine.arrays().values()
        yield from (self.join, *self.shifts)

    def _save_circuits(self, folder: Path) -> None:
        super()._save_circuits(folder)
        self.prior.save(folder / names.PRIOR)
        shifts = {_shift_of(c): shift for c, shift in enumerate(self.shifts)}
        ties = {} if self.ties is None else {_TIES: self.ties}
        write_arrays(folder / names.EMISSIONS, {JOIN: self.join, **shifts, **ties})

    @classmethod
    def _restored(cls, folder: Path, kept: Mapping[str, Any]) -> Self:
        shifts_of = [_shift_of(c) for c in range(kept["image_shape"][2])]
        arrays = cls._read_tables(folder, shifts_of, {_TIES})
        return cls(
            **{**kept, "shapes": cls._read_shapes(folder, kept)}, join=arrays[JOIN],
            shifts=[arrays[name] for name in shifts_of], prior=Circuit.load(folder / names.PRIOR),
            ties=arrays.get(_TIES),
        )  # fmt: skip


_TIES = "ties"


def _shift_of(channel: int) -> str:
    """Name the table of a channel's offsets in the file of the emissions."""
    return f"shifts/{channel}"


def _scaled(shares_of: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scale rows to sum to 1."""
    scaled: npt.NDArray[np.float64] = shares_of / shares_of.sum(axis=1, keepdims=True)
    return scaled
