"""The joint model of whole images: p(x) = sum_z p(z) prod_i p(x_i | z_i), a prior circuit over patch circuits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import integer
from pyjuice_lvd.circuit import Circuit, Evidence
from pyjuice_lvd.data.color import ColorTransform, color_transform
from pyjuice_lvd.data.masks import Hidden
from pyjuice_lvd.data.patches import from_patches, position_grid, to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.models.base import DensityModel, ImageShape, Part
from pyjuice_lvd.models.joint_queries import LEVELS, Summary, anomaly, complete, mixed
from pyjuice_lvd.models.written_out import num_params_written_out, written_out
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.seeds import drawn_seed
from pyjuice_lvd.shares import shares

_DRAW_BYTES = 8
"""What a dimension of an image takes while it is drawn: its value, its mask, and both in the engine's form."""

_PATCHES, _PRIOR = "patches", "prior"


class JointModel(DensityModel):
    """p(x) = sum_z p(z) prod_i p(x_i | z_i) over images (docs/joint.md).

    Parameters
    ----------
    image_shape : (H, W, C)
    patch : (height, width)
        Positions are the patches of an image, row by row.
    color : str
        Colour transform; p(x) is the density of its output (for a lossless one, of the image).
    circuits : sequence of Circuit
        p(x_i | z_i), one for each outer cluster; its heads are values of z. All positions share them.
    prior : Circuit
        p(z), over the positions, with as many categories as the circuits have heads in all.
    tied : bool
        False: each position has circuits of its own. `circuits` are then those of the first position, of the second and
        so on; their heads are values of that position's z, as many at each.

    Raises
    ------
    InputError
        Where the circuits are not those of such images, or positions that are not tied have different numbers of heads.

    """

    format: ClassVar[str] = "lvd-juice joint model 1"
    parts: ClassVar[tuple[str, ...]] = (*DensityModel.parts, _PATCHES, _PRIOR)
    latents: ClassVar[bool] = True
    _kept: ClassVar[Mapping[str, Any]] = {
        "image_shape": ImageShape, "patch": tuple[int, int], "color": str, "circuits": int, "tied": bool,
    }  # fmt: skip
    _optional: ClassVar[frozenset[str]] = frozenset({"tied"})  # older models do not say

    image_shape: ImageShape
    color: ColorTransform

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        patch: tuple[int, int],
        color: str,
        circuits: Sequence[Circuit],
        prior: Circuit,
        tied: bool = True,
    ) -> None:
        self.image_shape = image_shape
        self.patch = patch
        self.color = color_transform(color, image_shape[2])
        self.circuits = list(circuits)
        self.prior = prior
        self.tied = tied
        self._check()

    def _check(self) -> None:
        """Check that the circuits fit each other and the images."""
        rows, columns = position_grid(*self.image_shape[:2], self.patch)
        if self.prior.num_vars != rows * columns:
            raise InputError(f"prior: found {self.prior.num_vars} positions, wanted {rows * columns}")
        if not self.circuits:
            raise InputError("circuits: found none, wanted at least one")
        size = self.dims // (rows * columns)
        for index, circuit in enumerate(self.circuits):
            if circuit.num_vars != size:
                raise InputError(f"circuits: found {circuit.num_vars} variables in circuit {index}, wanted {size}")
        ends = np.cumsum([circuit.num_heads for circuit in self.circuits])
        wanted = self.num_latent_values * np.arange(1, self.prior.num_vars + 1)
        if not self.tied and not (np.isin(wanted, ends).all() and wanted[-1] == ends[-1]):
            raise InputError(
                f"circuits: found other numbers of heads at some of the {self.prior.num_vars} untied positions"
            )
        if (values := self.prior.engine.categories) != self.num_latent_values:
            raise InputError(f"prior: found {values} values of z, wanted {self.num_latent_values}, the circuits' heads")

    @property
    def num_latent_values(self) -> int:
        """K, the number of values of each z_i."""
        return sum(circuit.num_heads for circuit in self.circuits) // (1 if self.tied else self.prior.num_vars)

    @property
    def num_params(self) -> int:
        """All parameters: those of the patch circuits, counted once, and of the prior."""
        return self.prior.num_params + sum(circuit.num_params for circuit in self.circuits)

    @property
    def dims(self) -> int:
        """Dimensions of an image, H W C."""
        return int(np.prod(self.image_shape))

    def groups(self) -> Iterator[tuple[slice, list[tuple[Circuit, slice]]]]:
        """Give the positions that share circuits, with these circuits, and the values of z that their heads are.

        All positions are one group; where they are not tied, each is a group of its own.
        """
        positions, circuits, first = slice(0, self.prior.num_vars if self.tied else 1), [], 0
        for circuit in self.circuits:
            circuits.append((circuit, slice(first, first + circuit.num_heads)))
            first += circuit.num_heads
            if first == self.num_latent_values:
                yield positions, circuits
                positions, circuits, first = slice(positions.stop, positions.stop + 1), [], 0

    def patch_scores(self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """log p(x_i | z_i = k) of every patch and value, float32 (N, P, K), in nats.

        `images`, `mask`: as for `score_samples`. What is hidden is summed out: 0 for a patch of which nothing is known.
        """
        images, hidden = self._checked(images, mask)
        patches, masks = self.patches(images), to_patches(hidden, self.patch)
        scores = np.zeros((*patches.shape[:2], self.num_latent_values), np.float32)
        plans = (circuit.engine.plan(soft=False) for circuit in self.circuits)
        julia.call("patch_scores!", scores, patches, masks if masks.any() else None, self.tied, *plans)
        return scores

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
        self, n: int, *, seed: int = 0, biased_modes: bool = False, progress: Progress = SILENT
    ) -> npt.NDArray[np.uint8]:
        """Draw images: z from p(z), then every patch from p(x_i | z_i) (`DensityModel.sample`)."""
        n, rng = integer("n", n, least=0), np.random.default_rng(integer("seed", seed, least=0))
        images = np.empty((n, *self.image_shape), np.uint8)
        with progress.stage("sampling", total=n, unit="images") as stage:
            z = self.prior.sample(n, seed=drawn_seed(rng))
            for part in shares(n, _DRAW_BYTES * self.dims):
                patches = np.zeros((part.stop - part.start, *self._grid), np.uint8)
                complete(self.groups(), patches, np.ones(patches.shape, bool), z[part], rng, modes=biased_modes)
                images[part] = self._images(patches)
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
        biased_modes: bool = False,
        progress: Progress = SILENT,
    ) -> npt.NDArray[np.uint8]:
        """Draw what is hidden: z from p(z | known), then every patch given its z (`DensityModel.inpaint`)."""
        n_samples, seed = integer("n_samples", n_samples, least=0), integer("seed", seed, least=0)
        images, hidden = self._checked(images, mask)
        rng = np.random.default_rng(seed)
        drawn = np.empty((n_samples, *images.shape), np.uint8)
        with progress.stage("in-painting", total=drawn.size // self.dims, unit="images") as stage:
            for rows in self.chunks(len(images)):
                known, masks = self.patches(images[rows]), to_patches(hidden[rows], self.patch)
                z = self.prior.sample(n_samples, X=self._evidence(images, hidden, rows), seed=drawn_seed(rng))
                z = z.reshape(-1, z.shape[2])
                for part in shares(len(z), _DRAW_BYTES * self.dims):
                    draw, image = np.divmod(np.arange(part.start, part.stop), len(known))
                    patches = known[image]
                    complete(self.groups(), patches, masks[image], z[part], rng, modes=biased_modes)
                    image += rows.start
                    drawn[draw, image] = np.where(hidden[image], self._images(patches), images[image])
                    stage.advance(part.stop - part.start)
        return drawn

    def posterior(
        self, images: npt.NDArray[np.uint8], *, mask: npt.ArrayLike | None = None, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """p(z_i = k | what is known of the image), exact: float64 (N, P, K), over all positions.

        `images`, `mask`, errors: as for `inpaint`; without a mask, all is known. The values of z are the circuits'
        heads, in order. The result takes 8 P K bytes for each image: ask for that of large data in shares.
        """
        images, hidden = self._checked(images, mask)
        found = np.empty((len(images), self.prior.num_vars, self.num_latent_values))
        with progress.stage("posterior", total=len(images), unit="images") as stage:
            for rows in self.chunks(len(images)):
                found[rows] = self.prior.posterior_marginals(self._evidence(images, hidden, rows))
                stage.advance(rows.stop - rows.start)
        return found

    def marginals(
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike, /, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """Give the distributions of hidden channels (`DensityModel.marginals`)."""
        images, hidden = self._checked(images, mask)
        out = np.empty((*images.shape, LEVELS))
        height, width, channels = self.image_shape

        def every_level(marginals: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return marginals.reshape(len(marginals), -1)

        for rows, found in self._mixed(images, hidden, self._grid[1] * LEVELS, every_level, "marginals", progress):
            whole = from_patches(found, (height, width, channels * LEVELS), self.patch).reshape(out[rows].shape)
            stored = self.color.forward(images[rows])[..., None] == np.arange(LEVELS)
            out[rows] = np.where(hidden[rows][..., None], whole, stored)
        return out

    def posterior_mean(
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike, /, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """Give the means of hidden pixels, mixed over the exact posterior of z (`DensityModel.posterior_mean`)."""
        images, hidden = self._checked(images, mask)
        out = np.empty(images.shape)
        variables = self._grid[1]

        def mean_colors(marginals: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            pixels = marginals.reshape(len(marginals), -1, self.image_shape[2], LEVELS)
            return self.color.mean(pixels).reshape(len(marginals), -1)

        for rows, found in self._mixed(images, hidden, variables, mean_colors, "posterior mean", progress):
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

    def written_out(self) -> Circuit:
        """p(x) as one circuit, with copies of the patch circuits for each position (`models.written_out`)."""
        indices = np.arange(self.dims, dtype=np.int64).reshape(1, *self.image_shape)
        return written_out(self.prior, self.circuits, to_patches(indices, self.patch)[0], tied=self.tied)

    @property
    def num_params_written_out(self) -> int:
        """Count the parameters of `written_out()`: those of the circuits once for each of their copies."""
        return num_params_written_out(self.prior, self.circuits, tied=self.tied)

    def exported(self, part: str) -> list[Part]:
        """Give p(x) as one circuit, or p(x_i | z_i) or p(z) as they are."""
        if part == _PRIOR:
            rows, columns = position_grid(*self.image_shape[:2], self.patch)
            about = (
                f"p(z) of a grid of {rows}x{columns} positions\nvariable 1 + row * {columns} + column, "
                f"values 0..{self.num_latent_values - 1}: the heads of its patch circuits, one circuit after another"
            )
            return [Part(self.prior, about)]
        if part == _PATCHES:
            variables = self.variables(self.patch)
            return [
                Part(circuit, f"p(x | z) {of}, a head for each of z = {values.start}..{values.stop - 1}\n{variables}")
                for positions, circuits in self.groups()
                for of in ("of patches" if self.tied else f"of the patch at position {positions.start}",)
                for circuit, values in circuits
            ]
        return super().exported(part)

    def _description(self) -> dict[str, Any]:
        return {
            "image_shape": self.image_shape,
            "patch": self.patch,
            "color": self.color.name,
            "circuits": len(self.circuits),
            "tied": self.tied,
        }

    def _save_circuits(self, folder: Path) -> None:
        for index, circuit in enumerate(self.circuits):
            circuit.save(folder / names.circuit_of(index))
        self.prior.save(folder / names.PRIOR)

    @classmethod
    def _restored(cls, folder: Path, kept: Mapping[str, Any]) -> Self:
        circuits = [Circuit.load(folder / names.circuit_of(index)) for index in range(kept["circuits"])]
        return cls(**{**kept, "circuits": circuits}, prior=Circuit.load(folder / names.PRIOR))

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

    def _images(self, patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return self.color.inverse(from_patches(patches, self.image_shape, self.patch))

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
        self, images: npt.NDArray[np.uint8], hidden: Hidden, size: int, summary: Summary, name: str, progress: Progress
    ) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
        """Give the means of a summary of the hidden patches' marginals (`queries.mixed`), share by share."""
        positions = self._grid[0]
        with progress.stage(name, total=len(images), unit="images") as stage:
            for rows in shares(len(images), 8 * positions * (4 * self.num_latent_values + 3 * size)):
                posterior = self.prior.posterior_marginals(self._evidence(images, hidden, rows))
                masks = to_patches(hidden[rows], self.patch)
                yield rows, mixed(self.groups(), self.patches(images[rows]), masks, posterior, size, summary)
                stage.advance(rows.stop - rows.start)

    def chunks(self, n: int, room: int | None = None) -> Iterator[slice]:
        """Cut n images into shares whose evidence fits in `room` bytes."""
        return shares(n, self.evidence_bytes(1), room)

    def evidence_bytes(self, images: int) -> int:
        """Count the bytes of the scores of so many images."""
        return 4 * self.prior.num_vars * self.num_latent_values * images
