"""One circuit over windows: p(x) pixel by pixel, each given those before it that are near (docs/windows.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import integer
from pyjuice_lvd.circuit import Circuit, Moments
from pyjuice_lvd.data.color import ColorTransform, color_transform
from pyjuice_lvd.data.masks import known_first
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import read_arrays, write_arrays
from pyjuice_lvd.machine import check_result
from pyjuice_lvd.models.base import Array, DensityModel, ImageShape, Part, check_draws, check_possible
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.shares import shares

Int64 = npt.NDArray[np.int64]

LEVELS = 256
"""Categories of all of a window's values."""

CENTRE = 128
"""A difference of 0, as it is kept."""

WEIGHT_UNIT = 4096
"""A weight of 1, as it is kept: weights are integers."""

_DRAWN_AT_ONCE = 64
"""Images that are drawn side by side."""

_WEIGHTS = "weights"
"""The array in the file of the reference levels."""

_ROW_BYTES = 64
"""What a value of a window takes while windows are scored."""


def neighbours(reach: int) -> int:
    """Count the pixels of a window before its last."""
    return 2 * reach * (reach + 1)


def given_values(channels: int, reach: int, *, whole: bool = False) -> int:
    """Count the values of a window that are known before the pixel's own."""
    seen = channels * neighbours(reach) if whole else channels * neighbours(1) + (2 if reach > 1 else 0)
    return seen + channels + 2


class Rows(NamedTuple):
    """Windows of pixels as rows of a circuit: uint8 (n, V), and which neighbours are outside the image: bool (n, V)."""

    values: npt.NDArray[np.uint8]
    outside: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of images (H, W, C): each pixel, and those before it that are at most `reach` rows and columns away.

    Before it are the pixels of the rows above and those to its left: reading order. A window's V values are those of
    the nearest neighbours, or of all if `whole`, as differences from the pixel's reference levels; these; row and
    column; and the pixel's own channels, as differences too (docs/windows.md). The reference levels go by `weights`,
    int32 (C, neighbours' values), in units of 1 / `WEIGHT_UNIT`.

    Raises InputError where the weights have another type or shape.
    """

    image_shape: ImageShape
    reach: int
    weights: npt.NDArray[np.int32]
    whole: bool = False

    def __post_init__(self) -> None:
        if min(self.image_shape) < 1:
            raise InputError(f"image_shape: found {self.image_shape}, wanted sides of at least 1")
        wanted = (self.image_shape[2], neighbours(self.reach) * self.image_shape[2])
        if self.weights.dtype != np.int32 or self.weights.shape != wanted:
            raise InputError(f"weights: found {self.weights.dtype} {self.weights.shape}, wanted int32 {wanted}")

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.image_shape[0] * self.image_shape[1]

    @property
    def given(self) -> int:
        """How many of a window's values are known before the pixel's own."""
        return given_values(self.image_shape[2], self.reach, whole=self.whole)

    @property
    def values(self) -> int:
        """V, the values of a window."""
        return self.given + self.image_shape[2]

    @cached_property
    def handle(self) -> julia.Handle:
        """What Julia calls windows."""
        handle: julia.Handle = julia.call("Windows", *self.image_shape, self.reach, self.weights, self.whole)
        return handle

    def rows(self, images: npt.NDArray[np.uint8], pixels: Int64) -> Rows:
        """Give the windows of `pixels`, int64 (n,), that count through images (N, H, W, C), modelled channels."""
        flat = np.ascontiguousarray(images).reshape(len(images), -1)
        rows = Rows(np.empty((len(pixels), self.values), np.uint8), np.zeros((len(pixels), self.values), bool))
        julia.call("window_rows!", *rows, self.handle, flat, pixels)
        return rows


class WindowModel(DensityModel):
    """p(x) as a product over an image's pixels, in reading order: of each given what its window has before it.

    Each factor is exact: a circuit's conditional probability of a window's last values given the others, those outside
    the image summed out; where these have probability 0, which no pseudocount lets be, all values are equally likely.
    So p(x) sums to 1, and draws in reading order are exact; but it is no circuit itself, and what is asked must be in
    that order: known pixels, then hidden ones. `marginals`, `moments`, `posterior_mean` and `written_out` are refused.

    Parameters
    ----------
    circuit : Circuit
        With one head, over the values of a window.
    windows : Windows
        Those of the images.
    color : str
        The colour transform; p(x) is the density of its output (for a lossless one, of the image).

    Raises
    ------
    InputError
        Where the circuit has other variables than a window, other values than 0..255, or several heads.

    """

    format: ClassVar[str] = "lvd-juice window model 1"
    parts: ClassVar[tuple[str, ...]] = ("window",)
    in_order: ClassVar[bool] = True
    _kept: ClassVar[Mapping[str, Any]] = {"image_shape": ImageShape, "reach": int, "color": str}

    image_shape: ImageShape

    def __init__(self, circuit: Circuit, *, windows: Windows, color: str) -> None:
        self.circuit = circuit
        self.windows = windows
        self.image_shape = windows.image_shape
        self.color: ColorTransform = color_transform(color, self.image_shape[2])
        arrays = circuit.engine.arrays()
        levels = np.unique(arrays["categories"][arrays["variable"] > 0])
        for what, found, wanted in (
            ("variables", circuit.num_vars, self.windows.values),
            ("heads", circuit.num_heads, 1),
            ("categories", levels[0] if levels[-1] == LEVELS else levels[-1], LEVELS),
        ):
            if found != wanted:
                raise InputError(f"circuit: found {found} {what}, wanted {wanted}: one circuit of a window's values")

    @property
    def num_params(self) -> int:
        """All parameters."""
        return self.circuit.num_params

    @property
    def dims(self) -> int:
        """Dimensions of an image, H W C."""
        return int(np.prod(self.image_shape))

    def score_samples(
        self, X: npt.ArrayLike, /, *, mask: npt.ArrayLike | None = None, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """log p(x) of every image, or of its known pixels (`DensityModel.score_samples`).

        What `mask` hides of an image must come after all that is known, in reading order; InputError where it does not.
        """
        X = self.checked(X)
        known = np.full(len(X), self.windows.pixels) if mask is None else self._known(mask, X)
        scores = np.zeros(len(X))
        with progress.stage("scoring", total=len(X), unit="images") as stage:
            for part in shares(len(X), _ROW_BYTES * self.windows.values * self.windows.pixels):
                images = self.modelled(X[part])
                first = np.arange(self.windows.pixels) < known[part, None]
                pixels = np.flatnonzero(first)
                if len(pixels):
                    found = self._pixel_scores(images, pixels)
                    scores[part] = np.bincount(pixels // self.windows.pixels, found, len(images))
                stage.advance(len(images))
        return scores

    def pixel_scores(self, X: npt.ArrayLike, /) -> npt.NDArray[np.float64]:
        """log p of each pixel given those before it: float64 (N, H, W), in nats, which add up to `score_samples`."""
        X = self.checked(X)
        scores = np.empty((len(X), self.windows.pixels))
        for part in shares(len(X), _ROW_BYTES * self.windows.values * self.windows.pixels):
            pixels = np.arange(scores[part].size)
            scores[part] = self._pixel_scores(self.modelled(X[part]), pixels).reshape(scores[part].shape)
        return scores.reshape(X.shape[:3])

    def sample(
        self, n: int, *, seed: int = 0, exact: bool = False, biased_modes: bool = False, progress: Progress = SILENT
    ) -> Array:
        """Draw images (`DensityModel.sample`)."""
        check_draws(exact, biased_modes)
        n = integer("n", n, least=0)
        check_result("n", n, n * self.dims)
        nothing, hidden = np.zeros((n, self.dims), np.int32), np.ones((n, self.windows.pixels), bool)
        return self._shown(self._drawn(nothing, hidden, seed, progress), exact, None)

    def inpaint(
        self,
        X: npt.ArrayLike,
        mask: npt.ArrayLike,
        /,
        *,
        n_samples: int = 8,
        seed: int = 0,
        exact: bool = False,
        biased_modes: bool = False,
        progress: Progress = SILENT,
    ) -> Array:
        """Draw what is hidden, given the rest (`DensityModel.inpaint`).

        What `mask` hides of an image must come after all that is known, in reading order; InputError where it does not.
        """
        check_draws(exact, biased_modes)
        n_samples = integer("n_samples", n_samples, least=0)
        X = self.checked(X)
        hidden = np.arange(self.windows.pixels) >= self._known(mask, X)[:, None]
        check_result("n_samples", n_samples, n_samples * X.size)
        check_possible(self.score_samples(X, mask=mask), "X")
        rows = np.tile(self.modelled(X).reshape(len(X), -1).astype(np.int32), (n_samples, 1))
        drawn = self._drawn(rows, np.tile(hidden, (n_samples, 1)), seed, progress)
        masks = np.broadcast_to(hidden.reshape(*X.shape[:3], 1), X.shape)
        like, shape = self._like(X, masks, exact), (n_samples, *X.shape)
        beside = None if like is None else np.broadcast_to(like, shape)
        # Neither a lossy transform nor `nearest` gives the known pixels back.
        return np.where(masks, self._shown(drawn.reshape(shape), exact, beside), X)

    def marginals(self, X: Array, mask: npt.ArrayLike, /, *, progress: Progress = SILENT) -> NoReturn:
        """Refuse: nobody can sum over all that may be between (InputError)."""
        _refuse("marginals")

    def moments(self, X: Array, mask: npt.ArrayLike, /, *, progress: Progress = SILENT) -> Moments:
        """Refuse: nobody can sum over all that may be between (InputError)."""
        _refuse("moments")

    def posterior_mean(
        self, X: Array, mask: npt.ArrayLike, /, *, exact: bool = False, progress: Progress = SILENT
    ) -> NoReturn:
        """Refuse: nobody can sum over all that may be between (InputError)."""
        _refuse("posterior_mean")

    def written_out(self) -> NoReturn:
        """Refuse: p(x) is no circuit (InputError)."""
        raise InputError("written_out: found a model of windows, whose p(x) is no circuit; `circuit` is a window's")

    def exported(self, part: str) -> list[Part]:
        """Give the circuit over windows."""
        assert part == "window"
        height, width, channels = self.image_shape
        about = (
            f"p(window) of images {height}x{width}x{channels} (height, width, channels), colours {self.color.name}\n"
            f"{self.windows.given} values that are known before a pixel, reach {self.windows.reach}, then its own"
        )
        return [Part(self.circuit, about)]

    def _pixel_scores(self, images: npt.NDArray[np.uint8], pixels: Int64) -> npt.NDArray[np.float64]:
        """log p of pixels given those before them; where these have probability 0, all values are equally likely."""
        rows, outside = self.windows.rows(images, pixels)
        both = self.circuit.log_likelihood(rows, mask=outside)
        outside[:, self.windows.given :] = True
        given = self.circuit.log_likelihood(rows, mask=outside)
        unknown = np.isneginf(given)
        return np.where(unknown, -self.image_shape[2] * np.log(LEVELS), both - np.where(unknown, 0.0, given))

    def _drawn(
        self, rows: npt.NDArray[np.int32], hidden: npt.NDArray[np.bool_], seed: int, progress: Progress
    ) -> npt.NDArray[np.uint8]:
        """Draw the hidden pixels (n, pixels) of modelled rows (n, values): images (n, H, W, C)."""
        coder, seed = self._coder(), integer("seed", seed)
        with progress.stage("sampling", total=len(rows), unit="images") as stage:
            for start in range(0, len(rows), _DRAWN_AT_ONCE):
                part = slice(start, start + _DRAWN_AT_ONCE)
                julia.call("draw_pixels!", rows[part], hidden[part], coder, seed, start)
                stage.advance(len(rows[part]))
        return self.color.inverse(rows.astype(np.uint8).reshape(-1, *self.image_shape))

    def _known(self, mask: npt.ArrayLike, X: Array) -> Int64:
        """Say how many pixels of each image are known, where they come before all that the mask hides."""
        channels = self._hidden(mask, X)
        if (channels != channels[..., :1]).any():
            raise InputError("mask: found channels of one pixel hidden apart, wanted whole pixels: of windows")
        return known_first(channels[..., 0])

    def _coder(self) -> julia.Handle:
        coder: julia.Handle = julia.call("WindowCoder", self.circuit.engine.circuit, self.windows.handle)
        return coder

    def _to_coder(self, X: Array) -> Array:
        return self.modelled(X).reshape(len(X), self.dims)

    def _from_coder(self, rows: Array) -> Array:
        return self.color.inverse(rows.astype(np.uint8).reshape(-1, *self.image_shape))

    def _parameters(self) -> Iterator[npt.NDArray[Any]]:
        yield self.windows.weights
        yield from self.circuit.engine.arrays().values()

    def _description(self) -> dict[str, Any]:
        return {"image_shape": self.image_shape, "reach": self.windows.reach, "color": self.color.name}

    def _save_circuits(self, folder: Path) -> None:
        self.circuit.save(folder / names.CIRCUIT)
        write_arrays(folder / names.REFERENCE, {_WEIGHTS: self.windows.weights})

    @classmethod
    def _restored(cls, folder: Path, kept: Mapping[str, Any]) -> Self:
        path = folder / names.REFERENCE
        found, _ = read_arrays(path)
        if found.keys() != {_WEIGHTS}:
            raise InputError(f"{path}: found {', '.join(sorted(found))}, wanted {_WEIGHTS!r}")
        windows = Windows(kept["image_shape"], integer("reach", kept["reach"], least=1), found[_WEIGHTS])
        return cls(Circuit.load(folder / names.CIRCUIT), windows=windows, color=kept["color"])


def _refuse(what: str) -> NoReturn:
    raise InputError(f"{what}: found a model of windows, which draws only (`inpaint`); wanted one of another method")
