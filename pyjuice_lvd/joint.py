"""The joint model of whole images: p(x) = sum_z p(z) prod_i p(x_i | z_i), a prior circuit over tied patch circuits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit import Circuit, Evidence
from pyjuice_lvd.color import ColorTransform, color_transform
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.images import as_images
from pyjuice_lvd.patches import to_patches
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.runs import read_json, write_json

_EVIDENCE_BYTES = 2**27
"""How much evidence is in memory at once while images are scored."""

_FORMAT = "lvd-juice joint model 1"


class JointModel:
    """p(x) = sum_z p(z) prod_i p(x_i | z_i) over images (DESIGN 4).

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

    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        patch: tuple[int, int],
        color: str,
        circuits: Sequence[Circuit],
        prior: Circuit,
    ) -> None:
        self.image_shape = image_shape
        self.patch = patch
        self.color: ColorTransform = color_transform(color, image_shape[2])
        self.circuits = list(circuits)
        self.prior = prior

    @property
    def num_latent_values(self) -> int:
        """K, the number of values of each z_i."""
        return sum(circuit.num_heads for circuit in self.circuits)

    @property
    def num_params(self) -> int:
        """All parameters: those of the patch circuits, counted once, and of the prior."""
        return self.prior.num_params + sum(circuit.num_params for circuit in self.circuits)

    @property
    def dims(self) -> int:
        """Dimensions of an image, H W C."""
        return int(np.prod(self.image_shape))

    def patch_scores(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """log p(x_i | z_i = k) of every patch and value, float32 (N, P, K), in nats; `images`: uint8 (N, H, W, C)."""
        patches = self.patches(images)
        n, positions, variables = patches.shape
        scores = np.empty((n, positions, self.num_latent_values), np.float32)
        first = 0
        for circuit in self.circuits:
            values = slice(first, first + circuit.num_heads)
            scores[:, :, values] = circuit.log_likelihood(patches.reshape(-1, variables), head="all").reshape(
                n, positions, circuit.num_heads
            )
            first = values.stop
        return scores

    def score_samples(self, images: npt.NDArray[np.uint8], *, progress: Progress = SILENT) -> npt.NDArray[np.float64]:
        """log p(x) of every image, float64 (N,), in nats; `images`: uint8 (N, H, W[, C]).

        Memory stays bounded for any number of images. Raises InputError where the images do not fit the model.
        """
        images = self._checked(images)
        scores = np.empty(len(images))
        with progress.stage("log-likelihood", total=len(images), unit="images") as stage:
            for rows in self.chunks(len(images)):
                scores[rows] = self.prior.log_likelihood(Evidence(self.patch_scores(images[rows])))
                stage.advance(rows.stop - rows.start)
        return scores

    def bpd(self, images: npt.NDArray[np.uint8]) -> float:
        """Bits per dimension: -mean log p(x) / (ln 2 x dims). It means something only with its colour transform."""
        return float(-self.score_samples(images).mean() / (np.log(2) * self.dims))

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
        )

    def patches(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Cut images, uint8 (N, H, W, C), into what the patch circuits model: uint8 (N, P, V), colour transformed."""
        return to_patches(self.color.forward(self._checked(images)), self.patch)

    def _checked(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        images = as_images(images)
        if images.shape[1:] != self.image_shape:
            raise InputError(f"images: found {images.shape[1:]}, wanted {self.image_shape} (height, width, channels)")
        return images

    def chunks(self, n: int, room: int | None = None) -> Iterator[slice]:
        """Cut n images into shares whose evidence fits in `room` bytes."""
        step = max(1, (_EVIDENCE_BYTES if room is None else room) // self.evidence_bytes(1))
        return (slice(first, min(first + step, n)) for first in range(0, n, step))

    def evidence_bytes(self, images: int) -> int:
        """Count the bytes of the scores of so many images."""
        return 4 * self.prior.num_vars * self.num_latent_values * images


def circuit_path(folder: Path, index: int) -> Path:
    """Where outer cluster `index` has its circuit in a model's folder."""
    return folder / f"circuit-{index:04d}.safetensors"
