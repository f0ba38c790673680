"""Colour transforms between 8-bit RGB and the 8-bit channels that are modelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.errors import InputError

UInt8 = npt.NDArray[np.uint8]
Int16 = npt.NDArray[np.int16]
Float64 = npt.NDArray[np.float64]

# BT.709 luma weights of R, G, B (ITU-R BT.709-6, item 3.2); chroma is scaled to the full 8-bit range around 128.
_KR, _KG, _KB = 0.2126, 0.7152, 0.0722
_YCC709 = np.array(
    [
        [_KR, _KG, _KB],
        [-_KR / (2 * (1 - _KB)), -_KG / (2 * (1 - _KB)), 0.5],
        [0.5, -_KG / (2 * (1 - _KR)), -_KB / (2 * (1 - _KR))],
    ]
)
_YCC709_INVERSE = np.linalg.inv(_YCC709)
_YCC709_OFFSET = np.array([0.0, 128.0, 128.0])
_BLOCK = 1 << 18  # pixels converted at once in wider numbers: memory stays a few MB however many images there are


class Nearest(Protocol):
    """`ColorTransform.nearest`."""

    def __call__(self, images: UInt8, like: Int16 | None = None, /) -> UInt8:
        """Bring colours (..., C) into the RGB cube, those that are open as `like` (..., C) is."""


@dataclass(frozen=True)
class ColorTransform:
    """One colour transform: maps uint8 (..., C) -> uint8 (..., C), and means.

    If `lossless`, `forward` is one-to-one and `inverse` undoes it exactly: the bpd of the transformed channels is the
    bpd of the pixels. Otherwise `inverse` is approximate, and such a bpd compares with no lossless one.

    `nearest` takes colours that `inverse` gave: where it has wrapped around a colour outside the RGB cube, it gives the
    nearest one inside. Only `ycocg` wraps around, and `_ycocg_nearest` says what counts as outside; elsewhere, and for
    any colour twice, `nearest` changes nothing. Colours close by, `like`, int16 of the same shape with -1 where there
    are none, say more of what was meant.

    `exact_mean` takes distributions of the transformed channels, float64 (..., C, 256), to the mean colour of the
    image, float64 (..., C): for `rgb` and grey the channels' means; for `ycocg` the mean of what `inverse` gives of
    independent channels, the wrap-around included (`means_by_reading` has those of `nearest`); for `ycc709` the linear
    map of the means, clamped to 0..255.
    """

    name: str
    lossless: bool
    forward: Callable[[UInt8], UInt8]
    inverse: Callable[[UInt8], UInt8]
    nearest: Nearest
    exact_mean: Callable[[Float64], Float64]

    @property
    def wraps_around(self) -> bool:
        """Whether there are colours outside the RGB cube, for `nearest` to change."""
        return self.nearest is not _identity

    def outside(self, images: UInt8) -> npt.NDArray[np.bool_]:
        """Which of the colours (..., C) that `inverse` gave are of outside the RGB cube: those `nearest` changes."""
        changed: npt.NDArray[np.bool_] = (self.nearest(images) != images).any(axis=-1)
        return changed


READINGS = 3
"""How many means `means_by_reading` gives."""


def chosen(means: Float64, like: Int16) -> Float64:
    """Choose of `means_by_reading` (..., 3, C) by the colours close by, `like` (..., C), as `nearest` does."""
    alone, dark, bright = np.moveaxis(means, -2, 0)
    found: Float64 = np.where(like < 0, alone, np.where(like < _MIDDLE, dark, bright))
    return found


def color_transform(name: str, channels: int) -> ColorTransform:
    """Look up a colour transform by name for images of 1 (grey) or 3 (RGB) channels.

    Grey images have no colour to transform: every name gives the identity, which is lossless. Raises InputError for an
    unknown name and for any other number of channels.
    """
    if name not in COLORS:
        raise InputError(f"color: found {name!r}, wanted one of {', '.join(COLORS)}")
    if channels not in (1, 3):
        raise InputError(f"color: found images of {channels} channels, wanted 1 (grey) or 3 (RGB)")
    return COLORS[name] if channels == 3 else replace(COLORS["rgb"], name=name)


def _identity(images: UInt8, like: Int16 | None = None, /) -> UInt8:
    return images


_LEVELS = np.arange(256)
_CHROMA = _LEVELS - 128  # what a stored chroma stands for
_HALF = _CHROMA >> 1  # floor(x / 2)
_NEAR = 32  # a colour outside the cube has its Cg in -32..31 (`_ycocg_nearest`)
_NEAR_CG = (-_NEAR <= _CHROMA) & (_CHROMA < _NEAR)
_MIDDLE = 128  # what is close by is dark below it, and bright from it on


def _mean_levels(distributions: Float64) -> Float64:
    return distributions @ _LEVELS


def _halved(stored: UInt8) -> UInt8:
    """Return floor(x / 2), mod 256, of the signed chroma x that is stored as x + 128."""
    # floor((s - 128) / 2) = (s >> 1) - 64 holds for each s in 0..255, so no signed copy is needed. The ufunc, because
    # the `-` of numpy's scalars (a single colour's channel) would warn of the intended wrap-around.
    half: UInt8 = np.subtract(stored >> 1, np.uint8(64))
    return half


def _rgb_to_ycocg(images: UInt8) -> UInt8:
    """Lifting steps of YCoCg-R (Malvar and Sullivan 2003) in arithmetic mod 256: channels Y, Co + 128, Cg + 128.

    Each step adds a function of the other channels to one channel and so can be undone by subtraction: one-to-one on
    all 2^24 colours. The differences Co = R - B and Cg = G - t wrap around mod 256; before they are halved, their
    residues are read as signed numbers in -128..127. They are stored with 128 added (mod 256): natural images have
    them around 0, and the stored channel then has one mode, at 128, instead of one at each end of the range.
    """
    out = np.empty_like(images)
    r, g, b = (images[..., c] for c in range(3))
    y, co, cg = (out[..., c] for c in range(3))
    np.subtract(r, b, out=co)
    co += 128
    t = np.add(b, _halved(co))
    np.subtract(g, t, out=cg)
    cg += 128
    np.add(t, _halved(cg), out=y)
    return out


def _ycocg_to_rgb(images: UInt8) -> UInt8:
    """Undo the lifting steps of `_rgb_to_ycocg` in reverse order."""
    out = np.empty_like(images)
    y, co, cg = (images[..., c] for c in range(3))
    r, g, b = (out[..., c] for c in range(3))
    t = np.subtract(y, _halved(cg))
    np.add(cg, t, out=g)
    g += 128  # takes away the stored 128: -128 = +128 mod 256
    np.subtract(t, _halved(co), out=b)
    np.add(co, b, out=r)
    r += 128
    return out


def _plain(block: UInt8) -> tuple[Int16, npt.NDArray[np.bool_]]:
    """What colours (n, 3) are without wrap-around, int16 (n, 3), and whether their Cg is in -32..31, (n, 1)."""
    y, co, cg = np.moveaxis(_rgb_to_ycocg(block).astype(np.int16), -1, 0)
    near = _NEAR_CG[cg][:, None]
    co -= 128
    cg -= 128
    t = y - (cg >> 1)
    b = t - (co >> 1)
    return np.stack([co + b, cg + t, b], axis=-1), near


def beyond(images: UInt8) -> Int16:
    """How far the channels of colours of `ycocg`, uint8 (..., 3), are beyond 0..255, where Cg is not in -32..31.

    Returns int16 (..., 3), in levels; 0 where Cg says that the colour is outside.
    """
    pixels = images.reshape(-1, 3)
    out = np.zeros(pixels.shape, np.int16)
    for start in range(0, len(pixels), _BLOCK):
        plain, near = _plain(pixels[start : start + _BLOCK])
        out[start : start + _BLOCK] = np.where(near, 0, np.abs(plain - plain.clip(0, 255)))
    return out.reshape(images.shape)


def _ycocg_nearest(images: UInt8, like: Int16 | None = None, /) -> UInt8:
    """Undo the lifting steps in whole numbers, without wrap-around, where Cg is in -32..31; clamp R, G, B to 0..255.

    Elsewhere a channel is clamped to 0 where `like`, if given, is dark there, and to 255 where it is bright.

    A stored colour has two readings: the colour that wraps around to it, and what Y, Co and Cg say as they stand, which
    may be outside the RGB cube. Where that is inside, the two are the same. Where it is outside, either a saturated
    colour (R - B, or G less the mean of R and B, outside -128..127) is meant, or one close by the cube, such as a white
    that is too bright by 1, which shares its triple with pure red. Cg tells: a wrapped Co moves it by 128, so that
    those saturated colours that images have, whose G is near the mean of R and B, have Cg near -128; only pure ones
    (red, yellow, green, cyan, blue, magenta) come close to 0. Colours outside that a model draws have it near 0, as
    most colours have.
    """
    pixels = images.reshape(-1, 3)
    out = np.empty_like(pixels)
    for start in range(0, len(pixels), _BLOCK):
        block = pixels[start : start + _BLOCK]
        plain, near = _plain(block)
        clamped = np.broadcast_to(near, block.shape)
        if like is not None:
            known = like.reshape(-1, 3)[start : start + _BLOCK]
            clamped = clamped | (known >= 0) & ((plain < 0) == (known < _MIDDLE))
        out[start : start + _BLOCK] = np.where(clamped, plain.clip(0, 255), block)
    return out.reshape(images.shape)


def means_by_reading(distributions: Float64) -> Float64:
    """Means of `nearest` of the colours of `ycocg` where Y, Co and Cg, float64 (..., 3, 256), are independent.

    Returns float64 (..., 3, 3): R, G, B where no colour is close by, where dark ones are, and where bright ones are.
    Cg alone says of which colours the channels are clamped, and of which it matters what is close by.
    """
    y, co, cg = (distributions[..., c, :] for c in range(3))
    return _means_of_sums(y, co, [(cg * _NEAR_CG, _CLAMPED), (cg * ~_NEAR_CG, _BESIDE)])


def _ycocg_exact_mean(distributions: Float64) -> Float64:
    """Mean colour where Y, Co and Cg are independent, wrap-around included."""
    y, co, cg = (distributions[..., c, :] for c in range(3))
    mean: Float64 = _means_of_sums(y, co, [(cg, _WRAPPED)])[..., 0, :]
    return mean


_SUMS = 512  # whole numbers -128..383, which hold all sums of `_means_of_sums`, are told apart by their residues
_RESIDUES = np.arange(_SUMS)


def _averaging(levels: npt.NDArray[np.intp]) -> npt.NDArray[np.complex128]:
    """What the spectrum of a distribution over `_RESIDUES` is multiplied by, its real part then summed: mean level."""
    twice = np.where((_RESIDUES == 0) | (_RESIDUES == _SUMS // 2), 1, 2)[: _SUMS // 2 + 1]  # real: half a spectrum
    weights: npt.NDArray[np.complex128] = np.fft.rfft(levels).conj() * twice / _SUMS
    return weights[:, None]


_WRAPPED = _averaging(_RESIDUES % 256)
_PLAIN = (_RESIDUES + 128) % _SUMS - 128  # what a residue stands for
_CLAMPED = _averaging(_PLAIN.clip(0, 255))
_BESIDE = np.hstack(
    [
        _WRAPPED,
        _averaging(np.where(_PLAIN < 0, 0, _RESIDUES % 256)),
        _averaging(np.where(_PLAIN > 255, 255, _RESIDUES % 256)),
    ]
)


def _means_of_sums(y: Float64, co: Float64, parts: Sequence[tuple[Float64, npt.NDArray[np.complex128]]]) -> Float64:
    """Mean R, G, B of independent Y, Co and Cg, (..., readings, 3).

    `parts` share the distribution of Cg out, each with its averaging, (257, readings), or (257, 1) for all readings.
    `_ycocg_to_rgb` has R = Y + (co - half co) - half cg, G = Y + (cg - half cg) and B = Y - half co - half cg, for the
    signed co, cg. The distribution of a sum of independent numbers is a convolution, here one mod 512.
    """
    luma = np.fft.rfft(y, _SUMS)
    red, blue = luma * _spectrum(co, _CHROMA - _HALF), luma * _spectrum(co, -_HALF)
    out = np.zeros((*y.shape[:-1], max(averaging.shape[1] for _, averaging in parts), 3))
    for cg, averaging in parts:
        less, more = _spectrum(cg, -_HALF), _spectrum(cg, _CHROMA - _HALF)
        for channel, spectrum in enumerate((red * less, luma * more, blue * less)):
            out[..., channel] += (spectrum @ averaging).real
    return out


def _spectrum(distributions: Float64, values: npt.NDArray[np.intp]) -> npt.NDArray[np.complex128]:
    """Fourier transform of the distribution of `values[level]`; no two levels of one parity share a value."""
    moved = np.zeros((*distributions.shape[:-1], _SUMS))
    for parity in (0, 1):
        moved[..., values[parity::2] % _SUMS] += distributions[..., parity::2]
    return np.fft.rfft(moved)


def _rgb_to_ycc709(images: UInt8) -> UInt8:
    """Full-range BT.709 Y'CbCr, channels Y', Cb + 128, Cr + 128, rounded and clamped to 0..255: loses information."""
    return _in_blocks(images, lambda rgb: rgb @ _YCC709.T + _YCC709_OFFSET)


def _ycc709_to_rgb(images: UInt8) -> UInt8:
    """RGB nearest to the real-valued inverse of BT.709 Y'CbCr, clamped to 0..255: within 2 levels of the original."""
    return _in_blocks(images, lambda ycc: (ycc - _YCC709_OFFSET) @ _YCC709_INVERSE.T)


def _ycc709_mean(distributions: Float64) -> Float64:
    rgb: Float64 = np.clip((_mean_levels(distributions) - _YCC709_OFFSET) @ _YCC709_INVERSE.T, 0, 255)
    return rgb


def _in_blocks(images: UInt8, function: Callable[[Float64], Float64]) -> UInt8:
    pixels = images.reshape(-1, 3)
    out = np.empty_like(pixels)
    for start in range(0, len(pixels), _BLOCK):
        values = function(pixels[start : start + _BLOCK].astype(np.float64))
        out[start : start + _BLOCK] = np.clip(np.rint(values), 0, 255)
    return out.reshape(images.shape)


COLORS: dict[str, ColorTransform] = {
    "ycocg": ColorTransform(
        "ycocg",
        lossless=True,
        forward=_rgb_to_ycocg,
        inverse=_ycocg_to_rgb,
        nearest=_ycocg_nearest,
        exact_mean=_ycocg_exact_mean,
    ),
    "rgb": ColorTransform(
        "rgb",
        lossless=True,
        forward=_identity,
        inverse=_identity,
        nearest=_identity,
        exact_mean=_mean_levels,
    ),
    "ycc709": ColorTransform(
        "ycc709",
        lossless=False,
        forward=_rgb_to_ycc709,
        inverse=_ycc709_to_rgb,
        nearest=_identity,
        exact_mean=_ycc709_mean,
    ),
}
