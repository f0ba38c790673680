"""Vector quantisation (van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning, 2017, sec. 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# A code that is idle for so many training steps is dead: with even use a step of 64 small images uses each of 256
# codes several times.
IDLE_STEPS = 50


class Quantized(NamedTuple):
    """What quantisation of features (..., code_dim) gives in training."""

    vectors: Tensor
    """The codes' vectors, (..., code_dim); their gradient passes straight through to the features."""
    codes: Tensor
    """int64 (...)."""
    codebook_loss: Tensor
    """Mean square of (code - feature), which moves the codes only."""
    commitment_loss: Tensor
    """The same value, which moves the encoder only."""


class VectorQuantizer(nn.Module):
    """A codebook (codes, code_dim) that stands for features by their nearest code (Euclidean)."""

    idle: Tensor

    def __init__(self, codes: int, code_dim: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.zeros(codes, code_dim))
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))  # training steps since last used

    def nearest(self, features: Tensor) -> Tensor:
        """Find the nearest codes: features (..., code_dim) to int64 (...)."""
        with torch.no_grad():  # |h - e|^2 less |h|^2, which is the same for all codes
            return (self.codebook.square().sum(1) - 2 * features @ self.codebook.T).argmin(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Give the vectors of codes: int64 (...) to (..., code_dim)."""
        return functional.embedding(codes, self.codebook)

    def forward(self, features: Tensor) -> Quantized:
        """Quantise features (..., code_dim)."""
        codes = self.nearest(features)
        vectors = self.lookup(codes)
        return Quantized(
            features + (vectors - features).detach(),
            codes,
            functional.mse_loss(vectors, features.detach()),
            functional.mse_loss(features, vectors.detach()),
        )

    @torch.no_grad()
    def seed_codes(self, dead: Tensor, features: Tensor, generator: torch.Generator) -> None:
        """Move the codes `dead` (int64 indices) to random ones of the features (n, code_dim), distinct if n allows."""
        order = torch.randperm(len(features), generator=generator)
        rows = order.repeat(math.ceil(len(dead) / len(order)))[: len(dead)]
        self.codebook[dead] = features[rows.to(features.device)].to(self.codebook.device)
        self.idle[dead] = 0

    def revive(self, features: Tensor | Callable[[], Tensor], codes: Tensor, generator: torch.Generator) -> int:
        """Count a training step in which features (..., code_dim) had these codes (...); move dead codes among them.

        What gives the features is called only where there are dead codes. Returns the number of codes moved.
        """
        self.idle += 1
        self.idle[codes] = 0
        dead = torch.nonzero(self.idle >= IDLE_STEPS)[:, 0]
        if len(dead):
            rows = features() if callable(features) else features
            self.seed_codes(dead, rows.detach().flatten(0, -2), generator)
        return len(dead)


def perplexity(codes: Tensor, size: int) -> float:
    """Compute exp(entropy) of the frequencies of codes 0 to size-1: how many are in even use."""
    return perplexity_of(counts_of(codes, size))


def counts_of(codes: Tensor, size: int) -> Tensor:
    """Count the codes 0 to size-1: float64 (size,)."""
    return torch.bincount(codes.flatten(), minlength=size).double()


def perplexity_of(counts: Tensor) -> float:
    """Compute `perplexity` from how often there is each code."""
    return float(torch.exp(torch.special.entr(counts / counts.sum()).sum()))
