"""Discretised mixtures of logistics on 8-bit pixels (Salimans et al., PixelCNN++, 2017, section 2.1-2.2).

A pixel's grey value, or its red value r, is x in {0, ..., 255}; with values scaled to [-1, 1] and half a bin h = 1/255,

    p(x) = sum_k pi_k [sigma((x + h - mu_k) / s_k) - sigma((x - h - mu_k) / s_k)],

where the first sigma is 1 at x = 255 and the second 0 at x = 0: the 256 probabilities sum to one exactly. In RGB the
three values share the component k, and the means of green and blue are linear in the channels before them:
mu_g + a_k r, and mu_b + b_k r + c_k g, with a, b, c in (-1, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_HALF_BIN = 1 / 255
_FAR = 1e6
# The sharpest logistic has all but 3 % of its mass in one bin, the broadest is flat over 0..255: beyond these nothing
# is gained and float32 ends.
_LOG_SCALES = (-7.0, 7.0)


def parameter_count(channels: int, mixtures: int) -> int:
    """Count the parameters of one pixel: weight, and by channel mean and scale, and in RGB the coefficients."""
    return mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


def log_likelihood(parameters: Tensor, values: Tensor) -> Tensor:
    """Compute log p of pixels, in nats.

    Parameters
    ----------
    parameters : (N, K, ...), float
        K = parameter_count(C, M): logits of the M components, then means, log-scales and coefficients.
    values : (N, C, ...), float
        Pixel values 0 to 255, C = 1 (grey) or 3 (RGB).

    Returns
    -------
    (N, ...), float

    """
    logits, means, log_scales, coefficients = _split(parameters, values.shape[1])
    levels = values.unsqueeze(2)  # an axis for the components
    scaled = levels / 127.5 - 1
    if coefficients is not None:
        a, b, c = coefficients.unbind(1)
        red, green = scaled[:, 0], scaled[:, 1]
        means = torch.stack((means[:, 0], means[:, 1] + a * red, means[:, 2] + b * red + c * green), 1)
    # From edge to edge of a pixel's bin; the outer edges of the bins of 0 and 255 are where no logistic has mass left.
    lower = torch.where(levels == 0, -_FAR, scaled - _HALF_BIN)
    upper = torch.where(levels == 255, _FAR, scaled + _HALF_BIN)
    sharpness = torch.exp(-log_scales)
    # sigma(u) - sigma(l) = sigma(u) sigma(-l) (1 - exp(-(u - l))): no difference of nearly equal numbers at any scale.
    log_p = (
        functional.logsigmoid(sharpness * (upper - means))
        + functional.logsigmoid(sharpness * (means - lower))
        + torch.log(-torch.expm1(-sharpness * (upper - lower)))
    )
    return torch.logsumexp(torch.log_softmax(logits, 1) + log_p.sum(1), 1)


def mean(parameters: Tensor, channels: int) -> Tensor:
    """Compute the mixtures' mean values, in 0 to 255: (N, K, ...) to (N, channels, ...).

    Each component stands at its mean, clipped to the range of values; green and blue follow the component's own red
    and green.
    """
    logits, means, _, coefficients = _split(parameters, channels)
    weights = torch.softmax(logits, 1)
    if coefficients is None:
        located = means.clamp(-1, 1)
    else:
        a, b, c = coefficients.unbind(1)
        red = means[:, 0].clamp(-1, 1)
        green = (means[:, 1] + a * red).clamp(-1, 1)
        located = torch.stack((red, green, (means[:, 2] + b * red + c * green).clamp(-1, 1)), 1)
    return (((located * weights.unsqueeze(1)).sum(2) + 1) * 127.5).clamp(0, 255)


def _split(parameters: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Split into logits (N, M, ...), means and log-scales (N, C, M, ...), and coefficients (N, 3, M, ...) for RGB."""
    mixtures = parameters.shape[1] // parameter_count(channels, 1)
    n, _, *sides = parameters.shape
    sizes = [mixtures, channels * mixtures, channels * mixtures]
    sizes.append(parameters.shape[1] - sum(sizes))
    logits, means, log_scales, coefficients = torch.split(parameters, sizes, 1)
    by_channel = (n, -1, mixtures, *sides)
    return (
        logits,
        means.reshape(by_channel),
        log_scales.clamp(*_LOG_SCALES).reshape(by_channel),
        torch.tanh(coefficients).reshape(by_channel) if channels == 3 else None,
    )
