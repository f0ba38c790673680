"""One circuit over whole images, or over the rows of a table: what the baselines HCLT and RAT-SPN learn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import integer
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.rows import Mask, Table, as_mask, as_table
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.data.images import as_images
from pyjuice_lvd.data.masks import as_image_mask
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_json, write_json
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.shares import shares
from pyjuice_lvd.units import bits_per_dimension

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

    def score_samples(
        self, X: npt.ArrayLike, *, mask: npt.ArrayLike | None = None, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """log p(x) of every image or row, or of what is not hidden of it: float64 (N,), in nats, exact.

        `X`, `mask`: as for `inpaint`. Raises InputError where they do not fit the model.
        """
        rows = self.rows(X)
        hidden = None if mask is None else self._hidden_rows(mask, len(rows))
        scores = np.empty(len(rows))
        with progress.stage("log-likelihood", total=len(rows)) as stage:
            for first in range(0, len(rows), _CHUNK):
                part = slice(first, first + _CHUNK)
                scores[part] = self.circuit.log_likelihood(rows[part], mask=None if hidden is None else hidden[part])
                stage.advance(len(scores[part]))
        return scores

    def bpd(self, X: npt.ArrayLike) -> float:
        """Bits per dimension: -mean log p(x) / (ln 2 x dims). It means something only with its colour transform."""
        return bits_per_dimension(float(self.score_samples(X).mean()), self.dims)

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
        uint8 (n_samples, N, H, W, C), or (n_samples, N, V)
            What is known is as in X.

        Raises
        ------
        InputError
            Where X or the mask does not fit the model, or p is 0 for what is known.

        """
        n_samples = integer("n_samples", n_samples, least=0)
        rows = self.rows(X)
        hidden = self._hidden_rows(mask, len(rows))
        drawn = self._pixels(self.circuit.sample(n_samples, X=rows, mask=hidden, seed=seed, progress=progress))
        if self.image_shape is None:
            return drawn
        images = self._images(X, "X")
        # A lossy transform does not give the known pixels back.
        return np.where(hidden.reshape(images.shape), drawn, images)

    def marginals(
        self, X: npt.ArrayLike, mask: npt.ArrayLike, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """Give each hidden value's exact distribution, given all that is known: float64 (N, H, W, C, 256).

        The channels are those that are modelled, the colour transform's; of a table it is (N, V, num_cats). What is
        known has a 1 at its value. `X`, `mask`, errors: as for `inpaint`. The result takes 2 KiB for each channel of a
        pixel.
        """
        rows = self.rows(X)
        found = np.empty((*rows.shape, self.num_cats))
        for part, marginals in self._marginals(rows, self._hidden_rows(mask, len(rows)), progress):
            found[part] = marginals
        return found if self.image_shape is None else found.reshape(-1, *self.image_shape, self.num_cats)

    def posterior_mean(
        self, X: npt.ArrayLike, mask: npt.ArrayLike, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """Give each hidden pixel's mean, given all known pixels: float64 (N, H, W, C), in levels of the image.

        It is exact for grey images and for `rgb`. For `ycocg` the channels of a pixel count as independent of each
        other, given all known pixels; `ycc709` is mapped as `ColorTransform.mean` says. Known pixels are as in the
        images. `X`, `mask`, errors: as for `inpaint`; InputError for a model of tables, too.
        """
        if self.image_shape is None:
            raise InputError("posterior_mean: found a model of tables, wanted one of images: categories have no mean")
        rows, images = self.rows(X), self._images(X, "X")
        hidden = self._hidden_rows(mask, len(rows))
        means = images.astype(np.float64)
        for part, marginals in self._marginals(rows, hidden, progress):
            found = marginals.reshape(-1, *self.image_shape, self.num_cats)
            found = found @ np.arange(self.num_cats) if self.color is None else self.color.mean(found)
            means[part] = np.where(hidden[part].reshape(found.shape), found, images[part])
        return means

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

    def _hidden_rows(self, mask: npt.ArrayLike, n: int) -> Mask:
        """Check the mask of `n` images or rows, and spread it to bool (n, dims)."""
        if self.image_shape is None:
            return as_mask(mask, (n, self.dims))
        return as_image_mask(mask, (n, *self.image_shape), self.color).reshape(n, -1)

    def _marginals(
        self, rows: Table, hidden: Mask, progress: Progress
    ) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
        """Give the marginals of rows in shares of bounded memory."""
        with progress.stage("marginals", total=len(rows)) as stage:
            for part in shares(len(rows), 16 * self.dims * self.num_cats):
                yield part, self.circuit.posterior_marginals(rows[part], hidden[part])
                stage.advance(part.stop - part.start)
