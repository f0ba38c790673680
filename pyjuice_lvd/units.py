"""Nats and bits per dimension (bpd): the one formula between them, which makes no -0.0."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Values = TypeVar("Values", float, npt.NDArray[np.float64])


def bits_per_dimension(log_likelihood: Values, dims: float) -> Values:
    """Turn log-densities in nats, of entries of so many dimensions, into bpd: -log p(x) / (ln 2 x dims)."""
    return (0.0 - log_likelihood) / (math.log(2) * dims)


def bits_per_dimension_of_bytes(size: int, count: int, dims: int) -> float:
    """Turn the size of a file that codes so many entries, of so many dimensions, into bpd."""
    return 8 * size / (count * dims)


def log_likelihood_of(bpd: Values, dims: int) -> Values:
    """Turn bpd back into nats."""
    return (0.0 - bpd) * (math.log(2) * dims)
