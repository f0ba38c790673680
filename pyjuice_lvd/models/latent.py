"""Models of images with a latent for each patch, and a prior over these: what such models share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import integer
from pyjuice_lvd.circuit import Circuit, Evidence
from pyjuice_lvd.circuit.rows import Mask
from pyjuice_lvd.data.color import ColorTransform
from pyjuice_lvd.data.masks import Hidden
from pyjuice_lvd.data.patches import from_patches, position_grid, to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.memory import check_result
from pyjuice_lvd.models.base import DensityModel, ImageShape, Part
from pyjuice_lvd.models.joint_queries import LEVELS, Summary, anomaly
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.seeds import drawn_seed
from pyjuice_lvd.shares import shares

Mixing = Callable[[npt.NDArray[np.uint8], Mask, npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""Averages a summary of the hidden values of patches (n, P, V), masked, over the latents' posterior (n, P, S)."""

PATCHES, PRIOR = "patches", "prior"
"""Parts that can be exported."""

_DRAW_BYTES = 8
"""What a dimension of an image takes while it is drawn: its value, its mask, and both in the engine's form."""


class Schedule(NamedTuple):
    """How EM on p(x) goes: `fit_end_to_end` describes each; `prior_pseudocount` is all but the circuits'."""

    epochs: int
    batch_size: int
    first_step: float
    last_step: float
    pseudocount: float
    prior_pseudocount: float
    seed: int


class LatentModel(DensityModel):
    """p(x) = sum_z p(z) prod_i p(x_i | z_i) over images: `prior` is p(z), over the positions of a grid of patches.

    A position's latent has `prior.engine.categories` values. Given it, its patch depends on no other.
    """

    parts: ClassVar[tuple[str, ...]] = (*DensityModel.parts, PATCHES, PRIOR)
    latents: ClassVar[bool] = True

    image_shape: ImageShape
    patch: tuple[int, int]
    color: ColorTransform
    prior: Circuit

    @abstractmethod
    def patch_scores(self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """log p(x_i | z_i) of every patch and value of its latent, float32 (N, P, S), in nats.

        `images`, `mask`: as for `score_samples`. What is hidden is summed out: 0 for a patch of which nothing is known.
        """

    @property
    @abstractmethod
    def learning(self) -> list[Circuit]:
        """The circuits whose parameters EM on p(x) changes: the prior, then those of the patches."""

    @property
    @abstractmethod
    def num_candidates(self) -> int:
        """How many circuits, or shapes, a patch can be tried under."""

    def learned(self) -> list[npt.NDArray[np.float32]]:
        """Give all that EM on p(x) changes: the model's own memory."""
        return [array for circuit in self.learning for array in circuit.engine.learned()]

    @abstractmethod
    def em_job(
        self, patches: npt.NDArray[np.uint8], candidates: npt.NDArray[np.uint16] | None, schedule: Schedule
    ) -> julia.Handle:
        """Make the job of EM on p(x) (`fit_end_to_end`), on patches (N, P, V) and their candidates (N, P, M)."""

    @abstractmethod
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
        """Fill what is hidden of patches (n, P, V), in place, given the values z (n, P) of the latents.

        Samples of p(x_hidden | x_known, z), or, with `modes`, the most probable values of their heads.
        """

    @abstractmethod
    def _mixing(self, size: int, summary: Summary, *, exact: bool) -> Mixing:
        """Give what averages a summary of hidden values, (m, V, LEVELS) to (m, size), over all that is not known.

        Without `exact`, values are read as `_complete` does.
        """

    def _check_positions(self) -> int:
        """Check that the prior is over the images' positions; returns the variables of a patch."""
        rows, columns = position_grid(*self.image_shape[:2], self.patch)
        if self.prior.num_vars != rows * columns:
            raise InputError(f"prior: found {self.prior.num_vars} positions, wanted {rows * columns}")
        return self.dims // (rows * columns)

    @property
    def dims(self) -> int:
        """Dimensions of an image, H W C."""
        return int(np.prod(self.image_shape))

    def score_samples(
        self, images: npt.NDArray[np.uint8], /, *, mask: npt.ArrayLike | None = None, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """log p(x) of every image, or of the pixels that are not hidden (`DensityModel.score_samples`)."""
        images, hidden = self._checked(images, mask)
        scores = np.empty(len(images))
        with progress.stage("log-likelihood", total=len(images), unit="images") as stage:
            for rows in self.chunks(len(images)):
                scores[rows] = self.prior.log_likelihood(Evidence(self.patch_scores(images[rows], hidden[rows])))
                stage.advance(rows.stop - rows.start)
        return scores

    def sample(
        self, n: int, *, seed: int = 0, exact: bool = False, biased_modes: bool = False, progress: Progress = SILENT
    ) -> npt.NDArray[np.uint8]:
        """Draw images: z from p(z), then every patch from p(x_i | z_i) (`DensityModel.sample`)."""
        n, rng = integer("n", n, least=0), np.random.default_rng(integer("seed", seed, least=0))
        check_result("n", n, n * self.dims)
        images = np.empty((n, *self.image_shape), np.uint8)
        with progress.stage("sampling", total=n, unit="images") as stage:
            z = self.prior.sample(n, seed=drawn_seed(rng))
            for part in shares(n, _DRAW_BYTES * self.dims):
                patches = np.zeros((part.stop - part.start, *self._grid), np.uint8)
                self._complete(patches, np.ones(patches.shape, bool), z[part], rng, modes=biased_modes, exact=exact)
                images[part] = self._images(patches, exact)
                stage.advance(part.stop - part.start)
        return images

    def inpaint(
        self,
        images: npt.NDArray[np.uint8],
        mask: npt.ArrayLike,
        /,
        *,
        n_samples: int = 8,
        seed: int = 0,
        exact: bool = False,
        biased_modes: bool = False,
        progress: Progress = SILENT,
    ) -> npt.NDArray[np.uint8]:
        """Draw what is hidden: z from p(z | known), then every patch given its z (`DensityModel.inpaint`)."""
        n_samples, seed = integer("n_samples", n_samples, least=0), integer("seed", seed, least=0)
        images, hidden = self._checked(images, mask)
        rng = np.random.default_rng(seed)
        check_result("n_samples", n_samples, n_samples * images.size)
        drawn = np.empty((n_samples, *images.shape), np.uint8)
        with progress.stage("in-painting", total=drawn.size // self.dims, unit="images") as stage:
            for rows in self.chunks(len(images)):
                known, masks = self.patches(images[rows]), to_patches(hidden[rows], self.patch)
                z = self.prior.sample(n_samples, X=self._evidence(images, hidden, rows), seed=drawn_seed(rng))
                z = z.reshape(-1, z.shape[2])
                for part in shares(len(z), _DRAW_BYTES * self.dims):
                    draw, image = np.divmod(np.arange(part.start, part.stop), len(known))
                    patches = known[image]
                    self._complete(patches, masks[image], z[part], rng, modes=biased_modes, exact=exact)
                    image += rows.start
                    drawn[draw, image] = np.where(hidden[image], self._images(patches, exact), images[image])
                    stage.advance(part.stop - part.start)
        return drawn

    def marginals(
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike, /, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """Give the distributions of hidden channels (`DensityModel.marginals`)."""
        images, hidden = self._checked(images, mask)
        check_result("images", f"{len(images)} of them", 8 * images.size * LEVELS)
        out = np.empty((*images.shape, LEVELS))
        height, width, channels = self.image_shape

        def every_level(marginals: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return marginals.reshape(len(marginals), -1)

        for rows, found in self._mixed(
            images, hidden, self._grid[1] * LEVELS, every_level, "marginals", progress, exact=True
        ):
            whole = from_patches(found, (height, width, channels * LEVELS), self.patch).reshape(out[rows].shape)
            stored = self.color.forward(images[rows])[..., None] == np.arange(LEVELS)
            out[rows] = np.where(hidden[rows][..., None], whole, stored)
        return out

    def posterior_mean(
        self,
        images: npt.NDArray[np.uint8],
        mask: npt.ArrayLike,
        /,
        *,
        exact: bool = False,
        progress: Progress = SILENT,
    ) -> npt.NDArray[np.float64]:
        """Give the means of hidden pixels, mixed over the exact posterior of z (`DensityModel.posterior_mean`)."""
        images, hidden = self._checked(images, mask)
        out = np.empty(images.shape)
        variables, mean = self._grid[1], self.color.exact_mean if exact else self.color.mean

        def mean_colors(marginals: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            pixels = marginals.reshape(len(marginals), -1, self.image_shape[2], LEVELS)
            return mean(pixels).reshape(len(marginals), -1)

        for rows, found in self._mixed(images, hidden, variables, mean_colors, "posterior mean", progress, exact=exact):
            out[rows] = np.where(hidden[rows], from_patches(found, self.image_shape, self.patch), images[rows])
        return out

    def patch_anomaly(self, images: npt.NDArray[np.uint8], *, progress: Progress = SILENT) -> npt.NDArray[np.float64]:
        """-log p(x_i | all other patches) of every patch i, exact: float64 (N, P), in nats.

        It is log p(all other patches) - log p(x), with each patch summed out in turn: the circuits are evaluated once,
        p(z) P + 1 times. Infinite where p(x) is 0, NaN where that of the others is too. `images`, errors: as for
        `score_samples`.
        """
        images, _ = self._checked(images)
        found = np.empty((len(images), self.prior.num_vars))
        with progress.stage("anomaly", total=len(images), unit="images") as stage:
            for rows in self.chunks(len(images)):
                found[rows] = anomaly(self.prior, self.patch_scores(images[rows]))
                stage.advance(rows.stop - rows.start)
        return found

    def _prior_part(self, latent: str, values: str) -> Part:
        """Give the prior, called p(`latent`), with what its values are."""
        rows, columns = position_grid(*self.image_shape[:2], self.patch)
        about = (
            f"p({latent}) of a grid of {rows}x{columns} positions\nvariable 1 + row * {columns} + column, "
            f"values 0..{self.prior.engine.categories - 1}: {values}"
        )
        return Part(self.prior, about)

    @property
    def _grid(self) -> tuple[int, int]:
        """P positions, and the variables of a patch."""
        return self.prior.num_vars, self.dims // self.prior.num_vars

    def patches(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Cut images, uint8 (N, H, W[, C]), into what the patch circuits model: uint8 (N, P, V), colour transformed."""
        return to_patches(self.modelled(self.checked(images, "images")), self.patch)

    def _checked(
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None
    ) -> tuple[npt.NDArray[np.uint8], Hidden]:
        """Check images (N, H, W[, C]) and the mask, if there is one; both (N, H, W, C)."""
        images = self.checked(images, "images")
        if mask is None:
            return images, np.broadcast_to(np.False_, images.shape)
        return images, self._hidden(mask, images)

    def _images(self, patches: npt.NDArray[np.uint8], exact: bool) -> npt.NDArray[np.uint8]:
        """Put drawn patches together to images (`DensityModel.sample` says what `exact` is)."""
        images = self.color.inverse(from_patches(patches, self.image_shape, self.patch))
        return images if exact else self.color.nearest(images)

    def _evidence(self, images: npt.NDArray[np.uint8], hidden: Hidden, rows: slice) -> Evidence:
        """Turn what is known of some images into evidence of z; refuse an image of which it has probability 0."""
        evidence = Evidence(self.patch_scores(images[rows], hidden[rows]))
        possible = np.isfinite(self.prior.log_likelihood(evidence))
        if not possible.all():
            raise InputError(
                f"images: image {rows.start + int(np.argmin(possible))}: "
                "what is known of it has probability 0 under the model: nothing follows from it"
            )
        return evidence

    def _mixed(
        self,
        images: npt.NDArray[np.uint8],
        hidden: Hidden,
        size: int,
        summary: Summary,
        name: str,
        progress: Progress,
        *,
        exact: bool,
    ) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
        """Give the means of a summary of the hidden patches' marginals, share by share."""
        positions, mix = self._grid[0], self._mixing(size, summary, exact=exact)
        with progress.stage(name, total=len(images), unit="images") as stage:
            for rows in shares(len(images), 8 * positions * (4 * self.prior.engine.categories + 3 * size)):
                posterior = self.prior.posterior_marginals(self._evidence(images, hidden, rows))
                masks = to_patches(hidden[rows], self.patch)
                yield rows, mix(self.patches(images[rows]), masks, posterior)
                stage.advance(rows.stop - rows.start)

    def chunks(self, n: int, room: int | None = None) -> Iterator[slice]:
        """Cut n images into shares whose evidence fits in `room` bytes."""
        return shares(n, self.evidence_bytes(1), room)

    def evidence_bytes(self, images: int) -> int:
        """Count the bytes of the scores of so many images."""
        return 4 * self.prior.num_vars * self.prior.engine.categories * images
