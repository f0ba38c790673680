"""Models of images with a latent for each patch, and a prior over these: what such models share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import flags, integer
from pyjuice_lvd.circuit import Circuit, Evidence
from pyjuice_lvd.circuit.rows import Mask
from pyjuice_lvd.data.masks import Hidden
from pyjuice_lvd.data.patches import position_grid, to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.machine import check_result
from pyjuice_lvd.models.base import Part, check_possible
from pyjuice_lvd.models.joint_queries import Summary, anomaly
from pyjuice_lvd.models.patch import PRIOR, PatchModel
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.seeds import drawn_seed
from pyjuice_lvd.shares import shares

Mixing = Callable[[npt.NDArray[np.uint8], Mask, npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""Averages a summary of the hidden values of patches (n, P, V), masked, over the latents' posterior (n, P, S)."""

_DRAW_BYTES = 8
"""What a dimension of an image takes while it is drawn: its value, its mask, and both in the engine's form."""


class LatentModel(PatchModel):
    """p(x) = sum_z p(z) prod_i p(x_i | z_i) over images: `prior` is p(z), over the positions of a grid of patches.

    A position's latent has `prior.engine.categories` values. Given it, its patch depends on no other.
    """

    parts: ClassVar[tuple[str, ...]] = (*PatchModel.parts, PRIOR)

    prior: Circuit

    @abstractmethod
    def patch_scores(self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """log p(x_i | z_i) of every patch and value of its latent, float32 (N, P, S), in nats.

        `images`, `mask`: as for `score_samples`. What is hidden is summed out: 0 for a patch of which nothing is known.
        """

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
        positions, variables = self._grid
        if self.prior.num_vars != positions:
            raise InputError(f"prior: found {self.prior.num_vars} positions, wanted {positions}")
        return variables

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
        flags(exact=exact, biased_modes=biased_modes)
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
        flags(exact=exact, biased_modes=biased_modes)
        n_samples, seed = integer("n_samples", n_samples, least=0), integer("seed", seed, least=0)
        images, hidden = self._checked(images, mask)
        rng = np.random.default_rng(seed)
        check_result("n_samples", n_samples, n_samples * images.size)
        drawn = np.empty((n_samples, *images.shape), np.uint8)
        with progress.stage("in-painting", total=drawn.size // self.dims, unit="images") as stage:
            for rows in self.chunks(len(images)):
                known, masks = self.patches(images[rows]), to_patches(hidden[rows], self.patch)
                like = self._like(images[rows], hidden[rows], exact)
                z = self.prior.sample(n_samples, X=self._evidence(images, hidden, rows), seed=drawn_seed(rng))
                z = z.reshape(-1, z.shape[2])
                for part in shares(len(z), _DRAW_BYTES * self.dims):
                    draw, image = np.divmod(np.arange(part.start, part.stop), len(known))
                    patches = known[image]
                    self._complete(patches, masks[image], z[part], rng, modes=biased_modes, exact=exact)
                    painted = self._images(patches, exact, None if like is None else like[image])
                    image += rows.start
                    drawn[draw, image] = np.where(hidden[image], painted, images[image])
                    stage.advance(part.stop - part.start)
        return drawn

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

    def _evidence(self, images: npt.NDArray[np.uint8], hidden: Hidden, rows: slice) -> Evidence:
        """Turn what is known of some images into evidence of z; refuse an image of which it has probability 0."""
        evidence = Evidence(self.patch_scores(images[rows], hidden[rows]))
        check_possible(self.prior.log_likelihood(evidence), "images", rows.start)
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
