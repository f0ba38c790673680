"""One circuit over whole images, or over the rows of a table: what the baselines HCLT and RAT-SPN learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import flags, integer
from pyjuice_lvd.circuit import Circuit, Moments
from pyjuice_lvd.circuit.rows import Mask, Table, as_mask, as_numbers, as_table
from pyjuice_lvd.data.color import chosen, color_transform, means_by_reading
from pyjuice_lvd.data.missing import MISSING, missing_in
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.machine import check_result
from pyjuice_lvd.models.base import Array, DensityModel, ImageShape, Part, check_draws
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.shares import shares


class CircuitModel(DensityModel):
    """p(x) as one circuit, every channel of every pixel, or every column of a table, a variable.

    A row of a table may have `MISSING`, -1, in the place of values, or NaN where some are real numbers: they count as
    hidden wherever rows are asked about.

    Parameters
    ----------
    circuit : Circuit
        With one head. The variables of an image are its channels, pixel by pixel, row by row.
    num_cats : int
        Categories of each variable, or the most that one has.
    image_shape : (H, W, C), optional
        Of images; None: a table.
    color : str, optional
        Of images: the colour transform; p(x) is the density of its output (for a lossless one, of the image).

    Raises
    ------
    InputError
        Where the circuit has other variables than the images.

    """

    format: ClassVar[str] = "lvd-juice circuit model 1"
    _kept: ClassVar[Mapping[str, Any]] = {"num_cats": int, "image_shape": ImageShape, "color": str}
    _optional: ClassVar[frozenset[str]] = frozenset({"image_shape", "color"})

    def __init__(
        self,
        circuit: Circuit,
        *,
        num_cats: int,
        image_shape: ImageShape | None = None,
        color: str | None = None,
    ) -> None:
        self.circuit = circuit
        self.num_cats = num_cats
        self.image_shape = image_shape
        self.color = None if image_shape is None or color is None else color_transform(color, image_shape[2])
        if image_shape is not None and circuit.num_vars != np.prod(image_shape):
            raise InputError(f"circuit: found {circuit.num_vars} variables, wanted those of images {image_shape}")
        if image_shape is not None and circuit.engine.categories != num_cats:
            raise InputError(f"circuit: found {circuit.engine.categories} categories, wanted {num_cats}")

    @property
    def num_params(self) -> int:
        """All parameters."""
        return self.circuit.num_params

    @property
    def dims(self) -> int:
        """Dimensions of an image, H W C, or of a row, V."""
        return self.circuit.num_vars

    def checked(self, X: npt.ArrayLike, name: str = "X") -> Array:
        """Check X, as the base class does; of a table the categories too."""
        if self.image_shape is not None:
            return super().checked(X, name)
        table = as_numbers(X, name=name) if self.circuit.has_reals else as_table(X, name=name)
        if table.shape[1] != self.dims:
            raise InputError(f"{name}: found {table.shape[1]} variables, wanted the model's {self.dims}")
        if self.circuit.has_counts or self.circuit.has_reals:
            return table  # which the circuit itself checks, column by column
        if table.size and (table.min() < MISSING or table.max() >= self.num_cats):
            row, variable = np.argwhere((table < MISSING) | (table >= self.num_cats))[0]
            raise InputError(
                f"{name}: found {table[row, variable]} in row {row}, variable {variable}; "
                f"wanted the categories that the model was fitted with, 0..{self.num_cats - 1}"
            )
        return table

    def score_samples(
        self, X: npt.ArrayLike, /, *, mask: npt.ArrayLike | None = None, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """log p(x) of every image or row, or of what is not hidden of it (`DensityModel.score_samples`)."""
        X = self.checked(X)
        hidden = self._missing(X) if mask is None else self._hidden_rows(mask, X)
        return self.circuit.log_likelihood(self._rows(X), mask=hidden, progress=progress)

    def compress_to(
        self, file: BinaryIO, X: npt.ArrayLike, /, *, names: Sequence[str] = (), progress: Progress = SILENT
    ) -> None:
        """Write what `compress` gives; InputError where there are real numbers, counts without end, or holes."""
        if self.circuit.has_counts or self.circuit.has_reals:
            what = "real numbers" if self.circuit.has_reals else "counts without end"
            raise InputError(f"compress: found a model of {what}, wanted categories or levels in all columns")
        if self.image_shape is None and (hidden := self._missing(self.checked(X))) is not None:
            row, column = np.argwhere(hidden)[0]
            raise InputError(f"X: found a missing value in row {row}, column {column + 1}, wanted complete rows")
        super().compress_to(file, X, names=names, progress=progress)

    def bpd(self, X: Array, /) -> float:
        """Bits per dimension (`DensityModel.bpd`); InputError where some are real numbers: a density has no bits."""
        if self.circuit.has_reals:
            raise InputError("bpd: found a model with real numbers, wanted categories, levels or counts: score_samples")
        return super().bpd(X)

    def num_seen(self, X: Array, /) -> npt.NDArray[np.int64]:
        """Count the values that are there (`DensityModel.num_seen`)."""
        missing = self._missing(X)
        return super().num_seen(X) if missing is None else (~missing).sum(axis=1)

    def sample(
        self, n: int, *, seed: int = 0, exact: bool = False, biased_modes: bool = False, progress: Progress = SILENT
    ) -> Array:
        """Draw images, or rows (`DensityModel.sample`)."""
        check_draws(exact, biased_modes)
        return self._pixels(self.circuit.sample(n, seed=seed, progress=progress), exact)

    def inpaint(
        self,
        X: npt.ArrayLike,
        mask: npt.ArrayLike | None,
        /,
        *,
        n_samples: int = 8,
        seed: int = 0,
        exact: bool = False,
        biased_modes: bool = False,
        progress: Progress = SILENT,
    ) -> Array:
        """Draw what is hidden, given the rest (`DensityModel.inpaint`)."""
        check_draws(exact, biased_modes)
        n_samples = integer("n_samples", n_samples, least=0)
        X = self.checked(X)
        hidden = self._hidden_rows(mask, X)
        check_result("n_samples", n_samples, n_samples * X.size)
        drawn = self.circuit.sample(n_samples, X=self._rows(X), mask=hidden, seed=seed, progress=progress)
        if self.image_shape is None:
            return drawn
        masks = hidden.reshape(X.shape)
        # Neither a lossy transform nor `nearest` gives the known pixels back.
        return np.where(masks, self._pixels(drawn, exact, self._like(X, masks, exact)), X)

    def marginals(
        self, X: npt.ArrayLike, mask: npt.ArrayLike | None, /, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """Give the distributions of hidden values (`DensityModel.marginals`)."""
        X = self.checked(X)
        check_result("X", f"{len(X)} of them", 8 * X.size * self.num_cats)
        found = np.empty((*X.shape, self.num_cats))
        for part, marginals in self._marginals(X, self._hidden_rows(mask, X), progress):
            found[part] = marginals.reshape(-1, *found.shape[1:])
        return found

    def moments(self, X: npt.ArrayLike, mask: npt.ArrayLike | None, /, *, progress: Progress = SILENT) -> Moments:
        """Give the means and variances of hidden values (`DensityModel.moments`), of a table float64 (N, V)."""
        X = self.checked(X)
        found = self.circuit.posterior_moments(self._rows(X), self._hidden_rows(mask, X), progress=progress)
        return Moments(*(each.reshape(X.shape) for each in found))

    def posterior_mean(
        self, X: npt.ArrayLike, mask: npt.ArrayLike, /, *, exact: bool = False, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """Give the means of hidden pixels (`DensityModel.posterior_mean`)."""
        if self.image_shape is None:
            raise InputError("posterior_mean: found a model of tables, wanted one of images: categories have no mean")
        flags(exact=exact)
        X = self.checked(X)
        hidden = self._hidden_rows(mask, X)
        means = X.astype(np.float64)
        for part, marginals in self._marginals(X, hidden, progress):
            found = marginals.reshape(-1, *self.image_shape, self.num_cats)
            if self.color is None:
                found = found @ np.arange(self.num_cats)
            elif (like := self._like(X[part], hidden[part].reshape(X[part].shape), exact)) is not None:
                found = chosen(means_by_reading(found), like)
            else:
                found = self.color.exact_mean(found)
            means[part] = np.where(hidden[part].reshape(found.shape), found, X[part])
        return means

    def written_out(self) -> Circuit:
        """The circuit itself."""
        return self.circuit

    def exported(self, part: str) -> list[Part]:
        """Give the circuit, and what it is (`DensityModel.exported`)."""
        if self.image_shape is not None:
            return super().exported(part)
        return [Part(self.circuit, f"p(x) of rows of a table\nvariable 1 + column, values 0..{self.num_cats - 1}")]

    def _coder(self) -> julia.Handle:
        coder: julia.Handle = julia.call("circuit_coder", self.circuit.engine.circuit)
        return coder

    def _to_coder(self, X: Array) -> Array:
        return self._rows(X)

    def _from_coder(self, rows: Array) -> Array:
        if self.image_shape is None:
            return rows
        return self._pixels(rows.astype(np.uint8), exact=True)

    def _parameters(self) -> Iterator[npt.NDArray[Any]]:
        yield from self.circuit.engine.arrays().values()

    def _description(self) -> dict[str, Any]:
        color = self.color and self.color.name
        return {"num_cats": self.num_cats, "image_shape": self.image_shape, "color": color}

    def _save_circuits(self, folder: Path) -> None:
        self.circuit.save(folder / names.CIRCUIT)

    @classmethod
    def _restored(cls, folder: Path, kept: Mapping[str, Any]) -> Self:
        return cls(Circuit.load(folder / names.CIRCUIT), **kept)

    def _rows(self, X: Array) -> Table:
        """Turn checked images or rows into rows of the circuit's variables."""
        return self.modelled(X).reshape(len(X), self.dims)

    def _pixels(self, rows: Table, exact: bool, like: npt.NDArray[np.int16] | None = None) -> Array:
        """Turn drawn rows (..., dims) into images (..., H, W, C); `DensityModel.sample` says what `exact` is.

        `like`, (N, H, W, C): what is known close by.
        """
        if self.image_shape is None:
            return rows
        images = rows.reshape(*rows.shape[:-1], *self.image_shape)
        images = images if self.color is None else self.color.inverse(images)
        return self._shown(images, exact, None if like is None else np.broadcast_to(like, images.shape))

    def _missing(self, X: Array) -> Mask | None:
        """Say which values of checked rows are missing."""
        return None if self.image_shape is not None else missing_in(X)

    def _hidden_rows(self, mask: npt.ArrayLike | None, X: Array) -> Mask:
        """Check the mask of checked images or rows, and spread it to bool (n, dims); what is missing is hidden, too."""
        if self.image_shape is None:
            missing = missing_in(X)
            if mask is None and missing is not None:
                return missing
            hidden = as_mask(mask, X.shape)
            return hidden if missing is None else hidden | missing
        if mask is None:
            raise InputError("mask: found None, wanted bool, True where a pixel is hidden")
        return self._hidden(mask, X).reshape(len(X), -1)

    def _marginals(self, X: Array, hidden: Mask, progress: Progress) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
        """Give the marginals of rows in shares of bounded memory."""
        rows = self._rows(X)
        with progress.stage("marginals", total=len(rows)) as stage:
            for part in shares(len(rows), 16 * self.dims * self.num_cats):
                yield part, self.circuit.posterior_marginals(rows[part], hidden[part])
                stage.advance(part.stop - part.start)
