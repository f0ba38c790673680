"""The VQ-VAE's networks: images to features on the grid of patches, and codes to the distributions of pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyjuice_lvd.settings import TeacherSettings
from pyjuice_lvd.teacher import mixture
from pyjuice_lvd.teacher.quantizer import VectorQuantizer

UInt8 = npt.NDArray[np.uint8]


class VQVAE(nn.Module):
    """Encoder, codebook and decoder for images of `channels` channels (1 or 3) and any whole number of patches.

    The weights are drawn with `seed`; PyTorch's global random state is left as it was. `mean` and `std`, of each
    channel of the training images in [-1, 1], set the scale: the encoder sees standardised pixels, and the decoder's
    distributions start around the data, whatever part of 0..255 they fill.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: TeacherSettings, mean: Tensor, std: Tensor, *, seed: int = 0) -> None:
        super().__init__()
        self.patch = settings.patch
        self.channels = len(mean)
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))
        width, code_dim, pixels = settings.channels, settings.code_dim, math.prod(settings.patch)
        outputs = mixture.parameter_count(self.channels, settings.mixtures) * pixels
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.encoder = nn.Sequential(
                nn.Conv2d(self.channels, width, settings.patch, stride=settings.patch),
                *(ResidualBlock(width) for _ in range(settings.blocks)),
                nn.ReLU(),
                nn.Conv2d(width, code_dim, 1),
            )
            # The independent decoder is shallow on purpose: where few layers lie between codes and pixels, features
            # that are close mean patches that are alike, and K-means on the features gives better clusters.
            blocks = settings.blocks if settings.decoder == "convolutional" else 0
            self.decoder = nn.Sequential(
                nn.Conv2d(code_dim, width, 1),
                *(ResidualBlock(width) for _ in range(blocks)),
                nn.ReLU(),
                nn.Conv2d(width, outputs, 1),
            )
        self.quantizer = VectorQuantizer(settings.codes, code_dim)
        self._start_around_data(settings.mixtures)

    def _start_around_data(self, mixtures: int) -> None:
        """Spread the components' means over two standard deviations a side, each half as wide as the data."""
        bias = self.decoder[-1].bias
        assert isinstance(bias, Tensor)
        count = self.channels * mixtures
        spread = torch.linspace(-2, 2, mixtures) if mixtures > 1 else torch.zeros(1)
        with torch.no_grad():
            by_parameter = bias.zero_().view(-1, math.prod(self.patch))
            by_parameter[mixtures : mixtures + count] = (self.mean + self.std * spread).reshape(-1, 1)
            by_parameter[mixtures + count : mixtures + 2 * count] = (
                (self.std / 2).log().repeat(1, 1, mixtures).view(-1, 1)
            )

    def features(self, images: Tensor) -> Tensor:
        """Compute features before quantisation: (N, C, H, W) in 0..255 to (N, P, code_dim), positions row-major.

        Features lie on the sphere of radius sqrt(code_dim): with their scale fixed, the encoder can neither outrun the
        codebook nor please the commitment loss by shrinking.
        """
        grid: Tensor = self.encoder((images / 127.5 - 1 - self.mean) / self.std)
        vectors = grid.flatten(2).transpose(1, 2)
        return functional.normalize(vectors, dim=2) * math.sqrt(vectors.shape[2])

    def codes(self, images: Tensor) -> Tensor:
        """Find the codes nearest to the features: (N, C, H, W) to int64 (N, P)."""
        return self.quantizer.nearest(self.features(images))

    def decode(self, vectors: Tensor, rows: int) -> Tensor:
        """Compute the pixels' distributions from codes' vectors (N, P, code_dim) on a grid of so many rows.

        Returns parameters (N, K, ph*pw, P), K = mixture.parameter_count(C, mixtures); pixels ordered as in `to_pixels`.
        """
        images, positions, code_dim = vectors.shape
        parameters: Tensor = self.decoder(vectors.transpose(1, 2).reshape(images, code_dim, rows, -1))
        return parameters.reshape(images, -1, math.prod(self.patch), positions)

    def decode_codes(self, codes: Tensor, rows: int) -> Tensor:
        """Compute the pixels' distributions from codes int64 (N, P); see `decode`."""
        return self.decode(self.quantizer.lookup(codes), rows)

    def log_likelihood(self, images: Tensor) -> Tensor:
        """Compute log p(x | z(x)): (N, C, H, W) to float64 (N,), nats."""
        parameters = self.decode_codes(self.codes(images), self.rows(images))
        return mixture.log_likelihood(parameters, self.to_pixels(images)).double().sum((1, 2))

    def reconstruct(self, images: Tensor) -> Tensor:
        """Compute the means of p(x | z(x)): (N, C, H, W) to float (N, C, H, W) in 0..255."""
        rows = self.rows(images)
        return self.from_pixels(mixture.mean(self.decode_codes(self.codes(images), rows), self.channels), rows)

    def rows(self, images: Tensor) -> int:
        """Count the rows of patches of images (N, C, H, W)."""
        return images.shape[2] // self.patch[0]

    def to_pixels(self, images: Tensor) -> Tensor:
        """Order pixels by place in the patch and position: (N, C, H, W) to (N, C, ph*pw, P), row-major both."""
        (n, channels, height, width), (ph, pw) = images.shape, self.patch
        tiles = images.reshape(n, channels, height // ph, ph, width // pw, pw)
        return tiles.permute(0, 1, 3, 5, 2, 4).reshape(n, channels, ph * pw, -1)

    def from_pixels(self, pixels: Tensor, rows: int) -> Tensor:
        """Undo `to_pixels` for images of so many rows of patches."""
        (n, channels, _, positions), (ph, pw) = pixels.shape, self.patch
        tiles = pixels.reshape(n, channels, ph, pw, rows, positions // rows)
        return tiles.permute(0, 1, 4, 2, 5, 3).reshape(n, channels, rows * ph, -1)

    def put(self, images: Tensor) -> Tensor:
        """Bring images uint8 (N, H, W, C) to the network's device: float (N, C, H, W)."""
        return images.to(self.mean.device).permute(0, 3, 1, 2).contiguous().float()

    def over(self, images: UInt8, function: Callable[[Tensor], Tensor], batch_size: int = 128) -> Tensor:
        """Apply one of these functions to uint8 (N, H, W, C), C order and writable, in batches; return a CPU tensor."""
        with torch.inference_mode():
            out, first = None, 0
            for batch in torch.split(torch.from_numpy(images), batch_size):
                found = function(self.put(batch))
                if out is None:  # no list of parts: between what comes and goes, these would leave memory in pieces
                    out = torch.empty((len(images), *found.shape[1:]), dtype=found.dtype)
                out[first : first + len(batch)] = found
                first += len(batch)
            assert out is not None
            return out


class ResidualBlock(nn.Module):
    """x + f(x), where f is a 3x3 and a 1x1 convolution on the grid of patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, width, rows, cols)."""
        y: Tensor = x + self.layers(x)
        return y
