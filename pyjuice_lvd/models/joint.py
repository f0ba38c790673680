"""The joint model of whole images: p(x) = sum_z p(z) prod_i p(x_i | z_i), a prior circuit over patch circuits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import integer
from pyjuice_lvd.circuit import Circuit, Evidence
from pyjuice_lvd.data.color import ColorTransform, color_transform
from pyjuice_lvd.data.images import as_images
from pyjuice_lvd.data.masks import Hidden, as_image_mask
from pyjuice_lvd.data.patches import from_patches, to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_json, write_json
from pyjuice_lvd.models.joint_queries import LEVELS, Summary, anomaly, complete, mixed
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.seeds import drawn_seed
from pyjuice_lvd.shares import shares
from pyjuice_lvd.units import bits_per_dimension

_DRAW_BYTES = 8
"""What a dimension of an image takes while it is drawn: its value, its mask, and both in the engine's form."""

_FORMAT = "lvd-juice joint model 1"


class JointModel:
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
        Where positions that are not tied have different numbers of heads.

    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        patch: tuple[int, int],
        color: str,
        circuits: Sequence[Circuit],
        prior: Circuit,
        tied: bool = True,
    ) -> None:
        self.image_shape = image_shape
        self.patch = patch
        self.color: ColorTransform = color_transform(color, image_shape[2])
        self.circuits = list(circuits)
        self.prior = prior
        self.tied = tied
        ends = np.cumsum([circuit.num_heads for circuit in self.circuits])
        wanted = self.num_latent_values * np.arange(1, prior.num_vars + 1)
        if not tied and not (np.isin(wanted, ends).all() and wanted[-1] == ends[-1]):
            raise InputError(f"circuits: found other numbers of heads at some of the {prior.num_vars} untied positions")

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
        any_hidden = masks.any()
        seen = ~np.all(masks, axis=2)
        for positions, circuits in self.groups():
            known, here = seen[:, positions], scores[:, positions]
            rows, hidden_rows = patches[:, positions][known], masks[:, positions][known] if any_hidden else None
            for circuit, values in circuits:
                here[known, values] = circuit.log_likelihood(rows, mask=hidden_rows, head="all")
        return scores

    def score_samples(
        self, images: npt.NDArray[np.uint8], *, mask: npt.ArrayLike | None = None, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """log p(x) of every image, or of the pixels that are not hidden, exact.

        Parameters
        ----------
        images : uint8 (N, H, W[, C])
            What is asked about.
        mask : bool (H, W), (N, H, W) or (N, H, W, C), optional
            True where a pixel is hidden: its value is not looked at, but summed out. Colour transforms that mix
            channels take whole pixels only.
        progress : Progress
            Where the work is shown.

        Returns
        -------
        float64 (N,)
            In nats. Memory stays bounded for any number of images.

        Raises
        ------
        InputError
            Where the images or the mask do not fit the model.

        """
        images, hidden = self._checked(images, mask)
        scores = np.empty(len(images))
        with progress.stage("log-likelihood", total=len(images), unit="images") as stage:
            for rows in self.chunks(len(images)):
                scores[rows] = self.prior.log_likelihood(Evidence(self.patch_scores(images[rows], hidden[rows])))
                stage.advance(rows.stop - rows.start)
        return scores

    def bpd(self, images: npt.NDArray[np.uint8]) -> float:
        """Bits per dimension: -mean log p(x) / (ln 2 x dims). It means something only with its colour transform."""
        return bits_per_dimension(float(self.score_samples(images).mean()), self.dims)

    def sample(
        self, n: int, *, seed: int = 0, biased_modes: bool = False, progress: Progress = SILENT
    ) -> npt.NDArray[np.uint8]:
        """Draw images, uint8 (n, H, W, C): z from p(z), then every patch from p(x_i | z_i).

        They are exact samples, of a lossy transform's nearest colours. With `biased_modes` they are NOT samples of the
        model: z is drawn as ever, but each patch is the most probable one of its head, found by max-product
        (`Circuit.mpe`). That leaves out the noise within patches, and with it the model's variety.
        """
        n, rng = integer("n", n, least=0), np.random.default_rng(integer("seed", seed, least=0))
        images = np.empty((n, *self.image_shape), np.uint8)
        with progress.stage("sampling", total=n, unit="images") as stage:
            z = self.prior.sample(n, seed=drawn_seed(rng))
            for part in shares(n, _DRAW_BYTES * self.dims):
                patches = np.zeros((part.stop - part.start, *self._grid), np.uint8)
                complete(self, patches, np.ones(patches.shape, bool), z[part], rng, modes=biased_modes)
                images[part] = self._images(patches)
                stage.advance(part.stop - part.start)
        return images

    def inpaint(
        self,
        images: npt.NDArray[np.uint8],
        mask: npt.ArrayLike,
        *,
        n_samples: int = 8,
        seed: int = 0,
        biased_modes: bool = False,
        progress: Progress = SILENT,
    ) -> npt.NDArray[np.uint8]:
        """Draw exact samples of what is hidden, given the rest: z from p(z | known), then every patch given its z.

        Parameters
        ----------
        images, mask
            As for `score_samples`.
        n_samples : int
            For each image.
        seed : int
            Of the sampling.
        biased_modes : bool
            As for `sample`: z is drawn, the hidden pixels of a patch are then its most probable ones. Not samples of
            the model.
        progress : Progress
            Where the work is shown.

        Returns
        -------
        uint8 (n_samples, N, H, W, C)
            What is known is as in the images, also with a lossy colour transform.

        Raises
        ------
        InputError
            Where the images or the mask do not fit the model, or p is 0 for what is known.

        """
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
                    complete(self, patches, masks[image], z[part], rng, modes=biased_modes)
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
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """Give each hidden channel's exact distribution, given all known pixels: float64 (N, H, W, C, 256).

        The channels are those that are modelled, the colour transform's. A known one has a 1 at its value. `images`,
        `mask`, errors: as for `inpaint`. The result takes 2 KiB for each channel of a pixel, 6 MiB for a colour image
        of 32x32; the work takes a few hundred MiB beside it, however many images there are.
        """
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
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """Give each hidden pixel's mean, given all known pixels: float64 (N, H, W, C), in levels of the image.

        It is exact for grey images and for `rgb`, mixed over the exact posterior of z. For `ycocg` the channels of a
        pixel count as independent of each other, given z and the known pixels of the patch: no matter where none of
        their likely combinations wraps around in the transform's arithmetic, an approximation elsewhere. `ycc709` is
        mapped as `ColorTransform.mean` says. Known pixels are as in the images. `images`, `mask`, errors: as for
        `inpaint`.
        """
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

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model to a folder of plain files: `model.json`, written last, and the circuits as safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for index, circuit in enumerate(self.circuits):
            circuit.save(circuit_path(folder, index))
        self.prior.save(folder / "prior.safetensors")
        write_json(
            folder / "model.json",
            {
                "format": _FORMAT,
                "image_shape": self.image_shape,
                "patch": self.patch,
                "color": self.color.name,
                "circuits": len(self.circuits),
                "tied": self.tied,
            },
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a model that `save` wrote; raises InputError where a file is missing or damaged."""
        folder = Path(folder)
        table = read_json(folder / "model.json")
        if not isinstance(table, dict) or table.get("format") != _FORMAT:
            raise InputError(f"{folder / 'model.json'}: wanted format {_FORMAT!r}")
        height, width, channels = table["image_shape"]
        ph, pw = table["patch"]
        return cls(
            image_shape=(height, width, channels),
            patch=(ph, pw),
            color=table["color"],
            circuits=[Circuit.load(circuit_path(folder, index)) for index in range(table["circuits"])],
            prior=Circuit.load(folder / "prior.safetensors"),
            tied=table.get("tied", True),  # older models do not say
        )

    @property
    def _grid(self) -> tuple[int, int]:
        """P positions, and the variables of a patch."""
        return self.prior.num_vars, self.dims // self.prior.num_vars

    def patches(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Cut images, uint8 (N, H, W[, C]), into what the patch circuits model: uint8 (N, P, V), colour transformed."""
        return to_patches(self.color.forward(self._checked(images)[0]), self.patch)

    def _checked(
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None
    ) -> tuple[npt.NDArray[np.uint8], Hidden]:
        """Check images (N, H, W[, C]) and the mask, if there is one; both (N, H, W, C)."""
        images = as_images(images)
        if images.shape[1:] != self.image_shape:
            raise InputError(f"images: found {images.shape[1:]}, wanted {self.image_shape} (height, width, channels)")
        if mask is None:
            return images, np.broadcast_to(np.False_, images.shape)
        return images, as_image_mask(mask, images.shape, self.color)

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
                yield rows, mixed(self, self.patches(images[rows]), masks, posterior, size, summary)
                stage.advance(rows.stop - rows.start)

    def chunks(self, n: int, room: int | None = None) -> Iterator[slice]:
        """Cut n images into shares whose evidence fits in `room` bytes."""
        return shares(n, self.evidence_bytes(1), room)

    def evidence_bytes(self, images: int) -> int:
        """Count the bytes of the scores of so many images."""
        return 4 * self.prior.num_vars * self.num_latent_values * images


def circuit_path(folder: Path, index: int) -> Path:
    """Where outer cluster `index` has its circuit in a model's folder."""
    return folder / f"circuit-{index:04d}.safetensors"
