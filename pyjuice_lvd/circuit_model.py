"""One circuit over whole images, or over the rows of a table: what the baselines HCLT and RAT-SPN learn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.color import color_transform
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.images import as_images
from pyjuice_lvd.masks import as_image_mask
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.runs import read_json, write_json
from pyjuice_lvd.tables import Table, as_table

Array = npt.NDArray[Any]

_CHUNK = 4096
"""Rows that are scored together."""

_FORMAT = "lvd-juice circuit model 1"


class CircuitModel:
    """p(x) as one circuit, every channel of every pixel, or every column of a table, a variable.

    Parameters
    ----------
    circuit : Circuit
        With one head. The variables of an image are its channels, pixel by pixel, row by row.
    num_cats : int
        Categories of each variable.
    image_shape : (H, W, C), optional
        Of images; None: a table.
    color : str, optional
        Of images: the colour transform; p(x) is the density of its output (for a lossless one, of the image).

    """

    def __init__(
        self,
        circuit: Circuit,
        *,
        num_cats: int,
        image_shape: tuple[int, int, int] | None = None,
        color: str | None = None,
    ) -> None:
        self.circuit = circuit
        self.num_cats = num_cats
        self.image_shape = image_shape
        self.color = None if image_shape is None or color is None else color_transform(color, image_shape[2])

    @property
    def num_params(self) -> int:
        """All parameters."""
        return self.circuit.num_params

    @property
    def dims(self) -> int:
        """Dimensions of an image, H W C, or of a row, V."""
        return self.circuit.num_vars

    def rows(self, X: npt.ArrayLike, name: str = "X") -> Table:
        """Turn images, uint8 (N, H, W[, C]), or the integers (N, V) of a table into rows of the circuit's variables.

        Raises InputError, whose line begins with `name`, where they do not fit the model.
        """
        if self.image_shape is not None:
            return self._modelled(self._images(X, name)).reshape(-1, self.dims)
        table = as_table(X, name=name)
        if table.shape[1] != self.dims:
            raise InputError(f"{name}: found {table.shape[1]} variables, wanted the model's {self.dims}")
        if table.size and (table.min() < 0 or table.max() >= self.num_cats):
            row, variable = np.argwhere((table < 0) | (table >= self.num_cats))[0]
            raise InputError(
                f"{name}: found {table[row, variable]} in row {row}, variable {variable}; "
                f"wanted the categories that the model was fitted with, 0..{self.num_cats - 1}"
            )
        return table

    def score_samples(self, X: npt.ArrayLike, *, progress: Progress = SILENT) -> npt.NDArray[np.float64]:
        """log p(x) of every image or row, float64 (N,), in nats. Raises InputError where X does not fit the model."""
        rows = self.rows(X)
        scores = np.empty(len(rows))
        with progress.stage("log-likelihood", total=len(rows)) as stage:
            for first in range(0, len(rows), _CHUNK):
                part = slice(first, first + _CHUNK)
                scores[part] = self.circuit.log_likelihood(rows[part])
                stage.advance(len(scores[part]))
        return scores

    def bpd(self, X: npt.ArrayLike) -> float:
        """Bits per dimension: -mean log p(x) / (ln 2 x dims). It means something only with its colour transform."""
        return float(-self.score_samples(X).mean() / (np.log(2) * self.dims))

    def sample(self, n: int, *, seed: int = 0, progress: Progress = SILENT) -> Array:
        """Draw exact samples: uint8 (n, H, W, C), or (n, V) of a table."""
        return self._pixels(self.circuit.sample(n, seed=seed, progress=progress))

    def inpaint(
        self, X: npt.ArrayLike, mask: npt.ArrayLike, *, n_samples: int = 8, seed: int = 0, progress: Progress = SILENT
    ) -> Array:
        """Draw exact samples of what is hidden, given the rest.

        Parameters
        ----------
        X : uint8 (N, H, W[, C]), or integers (N, V)
            Images, or rows of a table.
        mask : bool (H, W), (N, H, W) or (N, H, W, C), or (V,) or (N, V)
            True where a value is hidden. With a colour transform, which mixes channels, whole pixels only.
        n_samples : int
            For each image or row.
        seed : int
            Of the sampling.
        progress : Progress
            Where the work is shown.

        Returns
        -------
        uint8 (n_samples, N, H, W, C), or (n_samples, N, V): what is known is as in X.

        Raises InputError where X or the mask does not fit the model, or p is 0 for what is known.

        """
        rows = self.rows(X)
        if self.image_shape is None:
            return self.circuit.sample(n_samples, X=rows, mask=mask, seed=seed, progress=progress)
        images = self._images(X, "X")
        hidden = as_image_mask(mask, images.shape, self.color)
        drawn = self.circuit.sample(
            n_samples, X=rows, mask=hidden.reshape(len(images), -1), seed=seed, progress=progress
        )
        # A lossy transform does not give the known pixels back.
        return np.where(hidden, self._pixels(drawn), images)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model to a folder: `circuit.safetensors`, and `model.json`, written last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.circuit.save(folder / "circuit.safetensors")
        write_json(
            folder / "model.json",
            {
                "format": _FORMAT,
                "num_cats": self.num_cats,
                "image_shape": self.image_shape,
                "color": self.color and self.color.name,
            },
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a model that `save` wrote; raises InputError where a file is missing or damaged."""
        folder = Path(folder)
        table = read_json(folder / "model.json")
        if not isinstance(table, dict) or table.get("format") != _FORMAT:
            raise InputError(f"{folder / 'model.json'}: wanted format {_FORMAT!r}")
        shape = table["image_shape"]
        return cls(
            Circuit.load(folder / "circuit.safetensors"),
            num_cats=table["num_cats"],
            image_shape=None if shape is None else (shape[0], shape[1], shape[2]),
            color=table["color"],
        )

    def _images(self, X: npt.ArrayLike, name: str) -> npt.NDArray[np.uint8]:
        images = as_images(X, name)
        if images.shape[1:] != self.image_shape:
            raise InputError(f"{name}: found {images.shape[1:]}, wanted {self.image_shape} (height, width, channels)")
        return images

    def _modelled(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return images if self.color is None else self.color.forward(images)

    def _pixels(self, rows: Table) -> Array:
        """Turn rows (..., dims) into images (..., H, W, C)."""
        if self.image_shape is None:
            return rows
        images = rows.reshape(*rows.shape[:-1], *self.image_shape)
        return images if self.color is None else self.color.inverse(images)
