"""The teacher's settings (`[teacher]` in a run's settings)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyjuice_lvd.errors import InputError

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
        sides = tuple(self.patch) if isinstance(self.patch, list | tuple) else ()
        if len(sides) != 2 or not all(_is_int(side) and side >= 1 for side in sides):
            raise InputError(f"teacher.patch: found {self.patch!r}, wanted height and width, integers of at least 1")
        object.__setattr__(self, "patch", sides)  # TOML and JSON know lists only
        if self.decoder not in DECODERS:
            raise InputError(f"teacher.decoder: found {self.decoder!r}, wanted {' or '.join(DECODERS)}")
        for name, least in (
            ("channels", 1),
            ("blocks", 0),
            ("code_dim", 2),
            ("codes", 2),
            ("mixtures", 1),
            ("epochs", 1),
            ("batch_size", 1),
        ):
            value = getattr(self, name)
            if not _is_int(value) or value < least:
                raise InputError(f"teacher.{name}: found {value!r}, wanted an integer of at least {least}")
        for name, wanted in (("learning_rate", "above 0"), ("commitment", "of at least 0")):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (name == "learning_rate" and value == 0):
                raise InputError(f"teacher.{name}: found {value!r}, wanted a finite number {wanted}")
        if not isinstance(self.flip, bool):
            raise InputError(f"teacher.flip: found {self.flip!r}, wanted true or false")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
