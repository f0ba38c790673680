"""Models of images as grids of patches: what is common to them, whatever joins the patches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import flags
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.data.color import READINGS, ColorTransform, chosen, means_by_reading
from pyjuice_lvd.data.masks import Hidden
from pyjuice_lvd.data.patches import from_patches, position_grid, to_patches
from pyjuice_lvd.large import by_blocks
from pyjuice_lvd.machine import check_result
from pyjuice_lvd.models.base import DensityModel, ImageShape
from pyjuice_lvd.models.joint_queries import LEVELS, Summary
from pyjuice_lvd.progress import SILENT, Progress

PATCHES, PRIOR = "patches", "prior"
"""Parts that can be exported."""


class Schedule(NamedTuple):
    """How EM on p(x) goes: `fit_end_to_end` describes each; `prior_pseudocount` is all but the circuits'."""

    epochs: int
    batch_size: int
    first_step: float
    last_step: float
    pseudocount: float
    prior_pseudocount: float
    seed: int


class PatchModel(DensityModel):
    """p(x) over images, each a grid of patches: P positions, row by row, of V values each, colour transformed."""

    parts: ClassVar[tuple[str, ...]] = (*DensityModel.parts, PATCHES)
    latents: ClassVar[bool] = True

    image_shape: ImageShape
    patch: tuple[int, int]
    color: ColorTransform

    @property
    @abstractmethod
    def learning(self) -> list[Circuit]:
        """The circuits whose parameters EM on p(x) changes: the prior's, if it is one, then those of the patches."""

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
    def posterior(
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """p(k_i = k | what is known of the image) of each position's latent, or shape, exact: float64 (N, P, K)."""

    @abstractmethod
    def patch_anomaly(self, images: npt.NDArray[np.uint8], *, progress: Progress = SILENT) -> npt.NDArray[np.float64]:
        """-log p(x_i | all other patches) of every patch i, exact: float64 (N, P), in nats."""

    @abstractmethod
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
        """Give the means (n, P, size) of a summary of hidden patches' marginals, share by share of the images.

        The summary turns marginals (m, V, LEVELS) into (m, size). `exact`: as for `sample`.
        """

    @property
    def dims(self) -> int:
        """Dimensions of an image, H W C."""
        return int(np.prod(self.image_shape))

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
        """Give the means of hidden pixels, mixed over the posterior of all latents (`DensityModel.posterior_mean`)."""
        flags(exact=exact)
        images, hidden = self._checked(images, mask)
        out = np.empty(images.shape)
        height, width, channels = self.image_shape
        beside = self.color.wraps_around and not exact
        means, readings = (means_by_reading, READINGS) if beside else (self.color.exact_mean, 1)

        def mean_colors(marginals: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return means(marginals.reshape(len(marginals), -1, channels, LEVELS)).reshape(len(marginals), -1)

        size = self._grid[1] * readings
        for rows, found in self._mixed(images, hidden, size, mean_colors, "posterior mean", progress, exact=exact):
            mean = from_patches(found, (height, width, readings * channels), self.patch)
            if (like := self._like(images[rows], hidden[rows], exact)) is not None:
                mean = chosen(mean.reshape(-1, height, width, readings, channels), like)
            out[rows] = np.where(hidden[rows], mean, images[rows])
        return out

    def patches(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Cut images, uint8 (N, H, W[, C]), into what the patch circuits model: uint8 (N, P, V), colour transformed."""
        own = self.checked(images, "images")
        return by_blocks(len(own), lambda rows: to_patches(self.modelled(own[rows]), self.patch), self.dims)

    def _checked(
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None
    ) -> tuple[npt.NDArray[np.uint8], Hidden]:
        """Check images (N, H, W[, C]) and the mask, if there is one; both (N, H, W, C)."""
        images = self.checked(images, "images")
        if mask is None:
            return images, np.broadcast_to(np.False_, images.shape)
        return images, self._hidden(mask, images)

    def _images(
        self, patches: npt.NDArray[np.uint8], exact: bool, like: npt.NDArray[np.int16] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Put drawn patches together to images (`DensityModel.sample` says what `exact` is); `like`: what is known."""
        images = self.color.inverse(from_patches(patches, self.image_shape, self.patch))
        return self._shown(images, exact, like)

    @property
    def _grid(self) -> tuple[int, int]:
        """P positions, and the V variables of a patch."""
        rows, columns = position_grid(*self.image_shape[:2], self.patch)
        return rows * columns, self.dims // (rows * columns)

    def _to_coder(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return self.patches(X).reshape(len(X), self.dims)

    def _from_coder(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return self._images(rows.astype(np.uint8).reshape(len(rows), *self._grid), exact=True)
