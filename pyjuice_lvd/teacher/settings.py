"""The teacher's settings (`[teacher]` in a run's settings)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyjuice_lvd.checks import at_least, nonnegative, one_of, require, type_fields

DECODERS = ("independent", "convolutional")


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """Settings of the VQ-VAE teacher and of its training. A value of the wrong type or range is an InputError."""

    patch: tuple[int, int] = (4, 4)
    """Height and width of a patch, in pixels; images must be a whole number of patches."""
    decoder: str = "independent"
    """`independent`: each patch is decoded from its own code alone; `convolutional`: from its neighbours' codes too."""
    channels: int = 64
    """Width of the hidden layers."""
    blocks: int = 2
    """Residual blocks of the encoder, and of the convolutional decoder; each widens its view by one patch a side."""
    code_dim: int = 16
    """Dimension of the features h and of the codes."""
    codes: int = 256
    """Size of the codebook."""
    mixtures: int = 5
    """Logistic components of each pixel's distribution."""
    epochs: int = 20
    batch_size: int = 64
    """Images in one training step."""
    learning_rate: float = 1e-3
    """Adam's largest step size: reached after a linear warm-up, then lowered to zero along a cosine."""
    commitment: float = 0.25
    """Weight (beta) of the commitment loss."""
    flip: bool = False
    """Whether training images are mirrored left to right at random."""

    def __post_init__(self) -> None:
        type_fields(self, "teacher.")
        require(min(self.patch) >= 1, "teacher.patch", self.patch, "height and width, integers of at least 1")
        one_of("teacher.decoder", self.decoder, DECODERS)
        for name, least in (
            ("channels", 1),
            ("blocks", 0),
            ("code_dim", 2),
            ("codes", 2),
            ("mixtures", 1),
            ("epochs", 1),
            ("batch_size", 1),
        ):
            at_least(f"teacher.{name}", getattr(self, name), least)
        rate = self.learning_rate
        require(0 < rate < math.inf, "teacher.learning_rate", rate, "a finite number above 0")
        nonnegative("teacher.commitment", self.commitment)
