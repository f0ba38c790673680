"""What every model of images, or of the rows of a table, answers, and how it is kept in a folder."""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import flags, typed
from pyjuice_lvd.circuit import Circuit, Moments
from pyjuice_lvd.codec.codec import Codec
from pyjuice_lvd.codec.names import check_names
from pyjuice_lvd.codec.streams import Coder
from pyjuice_lvd.data.beside import nearest_inside, nearest_known
from pyjuice_lvd.data.color import COLORS, ColorTransform
from pyjuice_lvd.data.images import as_images
from pyjuice_lvd.data.masks import Hidden, as_image_mask
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.atomic import given_path, make_folder
from pyjuice_lvd.files.formats import json_text, read_table, write_json
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.shares import shares
from pyjuice_lvd.units import bits_per_dimension

Array = npt.NDArray[Any]
ImageShape = tuple[int, int, int]


_MARGINALS_BYTES = 3 * 8 * 256
"""What a value takes while the moments of its marginal are found."""
_OUTSIDE_BYTES = 4
"""What a drawn value takes while it is compared with the nearest inside the RGB cube."""


class Part(NamedTuple):
    """A circuit of a model, and lines that say what its variables and values are, for the header of its file."""

    circuit: Circuit
    about: str


class DensityModel(ABC):
    """p(x) over images, uint8 (N, H, W[, C]), or over the rows of a table, integers (N, V), from 0.

    `image_shape` is the (H, W, C) of images; None: a table. `color` is the colour transform of images: p(x) is the
    density of its output, which for a lossless one is that of the image; None: values are modelled as they are.
    """

    format: ClassVar[str]
    """What `model.json` says."""
    parts: ClassVar[tuple[str, ...]] = ("joint",)
    """What can be exported: p(x), and what it is made of."""
    latents: ClassVar[bool] = False
    """Whether it is made of latents, one for each patch of an image."""
    in_order: ClassVar[bool] = False
    """Whether it knows images in reading order alone: hidden pixels must come last, and it has no means of them."""
    _kept: ClassVar[Mapping[str, Any]]
    """What `model.json` holds beside the format, and the types."""
    _optional: ClassVar[frozenset[str]] = frozenset()
    """What of it may be missing, or null."""

    image_shape: ImageShape | None
    color: ColorTransform | None

    @property
    @abstractmethod
    def num_params(self) -> int:
        """All parameters; those that parts of the model share count once."""

    @property
    @abstractmethod
    def dims(self) -> int:
        """Dimensions of an image, H W C, or of a row, V."""

    @abstractmethod
    def score_samples(
        self, X: Array, /, *, mask: npt.ArrayLike | None = None, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """log p(x) of every image or row, or of what is not hidden of it, exact.

        Parameters
        ----------
        X : uint8 (N, H, W[, C]), or integers (N, V)
            Images, or rows of a table.
        mask : bool (H, W), (N, H, W) or (N, H, W, C), or (V,) or (N, V), optional
            True where a value is hidden: it is not looked at, but summed out. Colour transforms that mix channels take
            whole pixels only.
        progress : Progress
            Where the work is shown.

        Returns
        -------
        float64 (N,)
            In nats; -inf where p(x) is 0. Memory stays bounded for any N.

        Raises
        ------
        InputError
            Where X or the mask does not fit the model.

        """

    def bpd(self, X: Array, /) -> float:
        """Bits per dimension: -mean log p(x) / (ln 2 x dims). It means something only with its `protocol`.

        Of a table with missing values, it is bits per value that is seen: -sum log p / (ln 2 x values seen).
        """
        scores = self.score_samples(X)
        if not len(scores):
            raise InputError("X: found no rows, wanted at least 1")
        seen = float(self.num_seen(X).mean())
        if not seen:
            raise InputError("X: found missing values only, wanted at least one that is seen")
        return bits_per_dimension(float(scores.mean()), seen)

    def num_seen(self, X: Array, /) -> npt.NDArray[np.int64]:
        """Count the values of each image or row that are there: int64 (N,), `dims` but for tables with missing ones."""
        return np.full(len(X), self.dims)

    @abstractmethod
    def sample(
        self, n: int, *, seed: int = 0, exact: bool = False, biased_modes: bool = False, progress: Progress = SILENT
    ) -> npt.NDArray[Any]:
        """Draw samples: uint8 (n, H, W, C), of a lossy transform's nearest colours; or (n, V) of a table.

        A colour outside the RGB cube goes to the nearest one inside (docs/queries.md). With `exact` it does not:
        they are the same draws, and samples of the model as they are.

        With `biased_modes`, which a model without `latents` refuses, they are NOT samples of the model: the latents are
        drawn as ever, but each patch is the most probable one of its head, found by max-product (`Circuit.mpe`). That
        leaves out the noise within patches, and with it the model's variety.
        """

    @abstractmethod
    def inpaint(
        self,
        X: Array,
        mask: npt.ArrayLike,
        /,
        *,
        n_samples: int = 8,
        seed: int = 0,
        exact: bool = False,
        biased_modes: bool = False,
        progress: Progress = SILENT,
    ) -> Array:
        """Draw samples of what is hidden, given the rest.

        Parameters
        ----------
        X, mask
            As for `score_samples`.
        n_samples : int
            For each image or row.
        seed : int
            Of the sampling.
        exact : bool
            As for `sample`: leave colours outside the RGB cube as the model has them.
        biased_modes : bool
            As for `sample`: the hidden pixels of a patch are its most probable ones. Not samples of the model.
        progress : Progress
            Where the work is shown.

        Returns
        -------
        uint8 (n_samples, N, H, W, C), or (n_samples, N, V)
            What is known is as in X, also with a lossy transform.

        Raises
        ------
        InputError
            Where X or the mask does not fit the model, or p is 0 for what is known.

        """

    @abstractmethod
    def marginals(self, X: Array, mask: npt.ArrayLike, /, *, progress: Progress = SILENT) -> npt.NDArray[np.float64]:
        """Give each hidden value's exact distribution, given all that is known: float64 (N, H, W, C, 256).

        The channels are those that are modelled, the colour transform's; of a table it is (N, V, categories). What is
        known has a 1 at its value. `X`, `mask`, errors: as for `inpaint`. The result takes 2 KiB for each channel of a
        pixel, 6 MiB for a colour image of 32x32; the work takes a few hundred MiB beside it, however many there are.
        """

    def moments(self, X: Array, mask: npt.ArrayLike, /, *, progress: Progress = SILENT) -> Moments:
        """Give each hidden value's exact mean and variance, given all that is known: float64 (N, H, W, C).

        The channels are those that are modelled, as in `marginals`, whose values count as numbers, a table's categories
        too. What is known has its value, and variance 0. `X`, `mask`, errors: as for `inpaint`.
        """
        X = self.checked(X)
        hidden, found = self._hidden(mask, X), Moments(np.empty(X.shape), np.empty(X.shape))
        for part in shares(len(X), _MARGINALS_BYTES * self.dims):
            marginals = self.marginals(X[part], hidden[part], progress=progress)
            levels = np.arange(marginals.shape[-1])
            found.mean[part] = marginals @ levels
            found.variance[part] = ((levels - found.mean[part][..., None]) ** 2 * marginals).sum(axis=-1)
        return found

    @abstractmethod
    def posterior_mean(
        self, X: Array, mask: npt.ArrayLike, /, *, exact: bool = False, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """Give each hidden pixel's mean, given all known pixels: float64 (N, H, W, C), in levels of the image.

        It is exact for grey images and for `rgb`. For `ycocg` it is the mean of what `inpaint` draws, with the same
        `exact`, but for this: the channels of a pixel count as independent of each other, given what is known and the
        latents, which is no matter where all their likely combinations are inside the RGB cube, an approximation
        elsewhere. `ycc709` is mapped as `ColorTransform.exact_mean` says. Known pixels are as in the images. `X`,
        `mask`, errors: as for `inpaint`; InputError for a model of tables, too.
        """

    def compress(self, X: npt.ArrayLike, /, *, progress: Progress = SILENT) -> bytes:
        """Code images, or rows, without loss: the bytes of an `.lvdz` file (docs/compression.md).

        It takes about as many bits as -log2 p(x), and gives every image back, also one that the model has no
        probability for.

        Parameters
        ----------
        X : uint8 (N, H, W[, C]), or integers (N, V)
            As for `score_samples`; at least 1.
        progress : Progress
            Where the work is shown.

        Raises
        ------
        InputError
            Where X does not fit the model, or the model cannot code: its colour transform loses information.

        """
        file = io.BytesIO()
        self.compress_to(file, X, progress=progress)
        return file.getvalue()

    def compress_to(
        self, file: BinaryIO, X: npt.ArrayLike, /, *, names: Sequence[str] = (), progress: Progress = SILENT
    ) -> None:
        """Write what `compress` gives to a file, block by block.

        `names`: of the .png files that the images were, (N,), which the file keeps; or none. Raises InputError as
        `compress` does, and where `names` are not N different ones that files of one folder may have.
        """
        self.check_codec(None if self.color is None else self.color.name)
        images = self.checked(X)
        if not len(images):
            raise InputError("X: found no rows, wanted at least 1")
        if names and len(names) != len(images):
            raise InputError(f"names: found {len(names)} of them for {len(images)} images")
        check_names(names, "names")
        self._codec().compress(images, file, progress, names)

    def decompress(
        self,
        data: bytes,
        /,
        *,
        start: int = 0,
        stop: int | None = None,
        lost: list[range] | None = None,
        name: str = "data",
        progress: Progress = SILENT,
    ) -> Array:
        """Give back what `compress` coded with this very model.

        Parameters
        ----------
        data : bytes
            Of an `.lvdz` file.
        start, stop : int
            Which images, or rows; only their blocks are decoded. Default: all.
        lost : list, optional
            Where given, damaged blocks are left out of the result, and the numbers of their images added here.
        name : str
            Of the data, in errors.
        progress : Progress
            Where the work is shown.

        Returns
        -------
        uint8 (N, H, W, C), or integers (N, V)
            Of the type that they had. All of a block are as its checksum says.

        Raises
        ------
        InputError
            Where the data are of no such file, of another model, or damaged, which is known before work begins but for
            blocks whose checksums were changed too.

        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InputError(f"{name}: found {type(data).__name__}, wanted the bytes of an .lvdz file")
        self.check_codec(None if self.color is None else self.color.name)
        return self._codec().decompress(bytes(data), name, start, stop, lost, progress)

    @classmethod
    def check_codec(cls, color: str | None) -> None:
        """Raise InputError where models of this kind, and of this colour transform, cannot compress."""
        if color in COLORS and not COLORS[color].lossless:
            raise InputError(f"compress: found colours {color}, which lose information; wanted ycocg or rgb")

    @property
    def wraps_around(self) -> bool:
        """Whether draws count modulo 256, so that those of `exact` can differ from the others."""
        return self.color is not None and self.color.wraps_around

    def _like(self, images: Array, hidden: Hidden, exact: bool) -> npt.NDArray[np.int16] | None:
        """Give each pixel of images (N, H, W, C) the nearest known one; None where draws are not read beside it."""
        if exact or self.color is None or not self.color.wraps_around:
            return None
        return nearest_known(images, hidden)

    def _shown(self, images: Array, exact: bool, like: npt.NDArray[np.int16] | None) -> Array:
        """Bring drawn images (..., H, W, C) into the RGB cube, unless `exact`, read beside what is known, or drawn."""
        if exact or self.color is None or not self.color.wraps_around:
            return images
        if like is None:
            images = self.color.nearest(images)  # what is clamped anyhow is inside as it will be shown
            like = nearest_inside(images.reshape(-1, *images.shape[-3:])).reshape(images.shape)
        return self.color.nearest(images, like)

    def share_outside_rgb(self, exact: Array, inside: Array, mask: npt.ArrayLike | None = None, /) -> float | None:
        """Share of the pixels of draws, of those that `mask` hides, whose colour is outside the RGB cube.

        `exact`: draws, uint8 (N, H, W, C) or (n_samples, N, H, W, C), with `exact=True`; `inside`: those without.
        `mask`: as for `inpaint`. 0 where nothing wraps around, or no pixel is hidden; None for tables, and for lossy
        transforms: what was outside is clamped already, and can no longer be told. InputError where they do not fit.
        """
        if self.image_shape is None or (self.color is not None and not self.color.lossless):
            return None
        right = exact.ndim in (4, 5) and exact.shape[-3:] == self.image_shape and inside.shape == exact.shape
        if not right or exact.dtype != np.uint8 or inside.dtype != np.uint8:
            raise InputError(
                f"drawn: found {exact.dtype} {exact.shape} and {inside.dtype} {inside.shape}, wanted both uint8 "
                f"(N, H, W, C) or (n_samples, N, H, W, C), images of {self.image_shape} (height, width, channels)"
            )
        every = np.ones(exact.shape[-4:], bool) if mask is None else as_image_mask(mask, exact.shape[-4:], self.color)
        hidden = np.asarray(np.broadcast_to(every, exact.shape).any(axis=-1))
        outside, many = 0, max(1, int(np.count_nonzero(hidden)))
        for part in shares(len(exact), max(1, _OUTSIDE_BYTES * exact[:1].size)):
            outside += int(np.count_nonzero((exact[part] != inside[part]).any(axis=-1) & hidden[part]))
        return outside / many

    @abstractmethod
    def written_out(self) -> Circuit:
        """p(x) as one circuit with one head, over an image's channels, pixel by pixel and row by row, or over a row."""

    @property
    def num_params_written_out(self) -> int:
        """Count the parameters of `written_out()` without making it."""
        return self.num_params

    def exported(self, part: str) -> list[Part]:
        """Give the circuits of one of the `parts`."""
        assert part == "joint"
        return [Part(self.written_out(), f"p(x) of images\n{self.variables()}")]

    def variables(self, sides: tuple[int, int] | None = None) -> str:
        """Say which variable of a circuit over images, or over patches with such sides, is which channel."""
        assert self.image_shape is not None
        height, width = sides or self.image_shape[:2]
        channels, color = self.image_shape[2], self.color
        loss = "lossless" if color is None or color.lossless else "LOSSY"
        return (
            f"{height}x{width}x{channels} (height, width, channels), "
            f"colours {'rgb' if color is None else color.name} ({loss})\n"
            f"variable 1 + (row * {width} + column) * {channels} + channel, values 0..255"
        )

    def protocol(self, crop: str = "") -> dict[str, Any]:
        """Say what a bpd of the model is a bpd of, where images were cropped like this (docs/data.md).

        Bpds of different protocols do not compare.
        """
        if self.image_shape is None:
            return {"color": None, "crop": None, "lossless": True}
        color = self.color
        return {
            "color": "rgb" if color is None else color.name,
            "crop": crop or None,
            "lossless": color is None or color.lossless,
        }

    def checked(self, X: npt.ArrayLike, name: str = "X") -> Array:
        """Check that X are images, or rows, of the model: uint8 (N, H, W, C), or integers (N, V).

        Raises InputError, whose line begins with `name`, where they are not.
        """
        images = as_images(X, name)
        if images.shape[1:] != self.image_shape:
            found = f"images of {images.shape[1:]}"
            raise InputError(f"{name}: found {found}, wanted {self.image_shape} (height, width, channels)")
        return images

    def modelled(self, X: Array) -> Array:
        """Turn checked images or rows into the values whose density p(x) is: of images, the transformed channels."""
        return X if self.color is None else self.color.forward(X)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model to a folder of plain files: the circuits as safetensors, and `model.json`, written last."""
        folder = make_folder(folder)
        self._save_circuits(folder)
        write_json(folder / names.DESCRIPTION, {"format": self.format, **self._description()})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read a model that `save` wrote; raises InputError where a file is missing, damaged or of another model."""
        folder = given_path(folder)
        path, table = folder / names.DESCRIPTION, described(folder)
        if table.pop("format") != cls.format:
            raise InputError(f"{path}: wanted format {cls.format!r}")
        if unknown := table.keys() - cls._kept.keys():
            raise InputError(f"{path}: found {min(unknown)!r}, wanted {', '.join(cls._kept)}")
        found = {}
        for name, kind in cls._kept.items():
            if name in cls._optional and table.get(name) is None:
                continue
            found[name] = typed(f"{path}: {name}", table[name], kind)
            if kind is ImageShape and min(found[name]) < 1:
                raise InputError(f"{path}: {name}: found {found[name]}, wanted sides of at least 1")
        try:
            return cls._restored(folder, found)
        except InputError as error:
            if str(error).startswith(str(folder)):  # of a circuit's file
                raise
            raise InputError(f"{path}: {error}") from error

    def _codec(self) -> Codec:
        """Give the model as a codec, with the parameters that it has now."""
        return Codec(
            Coder(self._coder()), self._digest(), self.protocol(), self.image_shape or (self.dims,),
            self._to_coder, self._from_coder,
        )  # fmt: skip

    @abstractmethod
    def _coder(self) -> julia.Handle:
        """Give the engine's codec of the model."""

    @abstractmethod
    def _to_coder(self, X: Array) -> Array:
        """Turn checked images or rows into integers (N, dims), in the order of the codec's variables."""

    @abstractmethod
    def _from_coder(self, rows: Array) -> Array:
        """Turn integers (N, dims) back into images or rows."""

    @abstractmethod
    def _parameters(self) -> Iterator[npt.NDArray[Any]]:
        """Give the arrays that p(x) is made of."""

    def _digest(self) -> str:
        """Digest the model: equal for models that say the same of every image, to the last bit."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json_text({"format": self.format, **self._description()}).encode())
        for array in self._parameters():
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """Give what `_kept` names."""

    @abstractmethod
    def _save_circuits(self, folder: Path) -> None:
        """Write the circuits."""

    @classmethod
    @abstractmethod
    def _restored(cls, folder: Path, kept: Mapping[str, Any]) -> Self:
        """Make the model of its description and the circuits in the folder."""

    def _hidden(self, mask: npt.ArrayLike, X: Array) -> npt.NDArray[np.bool_]:
        """Check the mask of checked images, and spread it to their shape."""
        return as_image_mask(mask, X.shape, self.color)


def check_possible(log_known: npt.NDArray[np.float64], name: str, first: int = 0) -> None:
    """Raise InputError where images, from number `first` on, have log p(what is known) = -inf, float64 (n,)."""
    possible = np.isfinite(log_known)
    if not possible.all():
        raise InputError(
            f"{name}: image {first + int(np.argmin(possible))}: "
            "what is known of it has probability 0 under the model: nothing follows from it"
        )


def check_draws(exact: bool, biased_modes: bool) -> None:
    """Raise InputError where a model of one circuit is asked for the modes of patches, or for neither yes nor no."""
    flags(exact=exact, biased_modes=biased_modes)
    if biased_modes:
        raise InputError("biased_modes: found a model of one circuit, wanted one with latents of patches")


def described(folder: Path) -> dict[str, Any]:
    """Read `model.json`, the description of the model in a folder; it names its format."""
    table = read_table(folder / names.DESCRIPTION)
    typed(f"{folder / names.DESCRIPTION}: format", table["format"], str)
    return table
