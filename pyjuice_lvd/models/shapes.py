"""Models of images whose patches are shapes under offsets of each channel, whatever says which offsets come where."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import plain_array
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import read_arrays
from pyjuice_lvd.models.base import ImageShape, Part
from pyjuice_lvd.models.joint_queries import LEVELS
from pyjuice_lvd.models.offset_queries import Float32, Float64, OffsetLabels, Shapes, UInt8
from pyjuice_lvd.models.patch import PATCHES, PatchModel
from pyjuice_lvd.progress import SILENT, Progress

JOIN = "join"
"""The table p(j | .) in the file of the emissions."""

_TOLERANCE = 1e-3
"""Of what probabilities sum to, less 1: that of circuits' parameters."""


class ShapeModel(PatchModel):
    """p(x) over images whose patches are shapes under offsets (docs/offsets.md): `emissions` has the shapes."""

    _kept: ClassVar[Mapping[str, Any]] = {
        "image_shape": ImageShape, "patch": tuple[int, int], "color": str, "steps": tuple[int, ...], "shapes": int,
    }  # fmt: skip

    emissions: Shapes

    @abstractmethod
    def labels(self, images: UInt8, *, progress: Progress = SILENT) -> OffsetLabels:
        """Label images, uint8 (N, H, W[, C]), with probable values of all latents."""

    @abstractmethod
    def log_joint(self, images: UInt8, labels: OffsetLabels, *, progress: Progress = SILENT) -> Float64:
        """log p(x, h, j, d) of images, uint8 (N, H, W[, C]), with these values of all latents: (N,), in nats."""

    @property
    def steps(self) -> tuple[int, ...]:
        """The grid of each channel's offsets."""
        return self.emissions.steps

    @property
    def shapes(self) -> tuple[tuple[Circuit, ...], ...]:
        """For each shape the circuit of each channel."""
        return self.emissions.shapes

    @property
    def join(self) -> Float32:
        """p(j | h), by state, float32 (J, S): the model's own memory."""
        return self.emissions.join

    @property
    def wraps_around(self) -> bool:
        """Whether draws count modulo 256: where there are offsets, whatever the colours."""
        return super().wraps_around or any(step < LEVELS for step in self.steps)

    @property
    def num_candidates(self) -> int:
        """How many shapes a patch can be tried under."""
        return len(self.shapes)

    def exported(self, part: str) -> list[Part]:
        """Give p(x) as one circuit, or the channel circuits as they are."""
        if part != PATCHES:
            return super().exported(part)
        height, width = self.patch
        return [
            Part(
                circuit,
                f"p(x | join) of channel {c} of patches under shape {k}, offset 0, a head for each of the joins "
                f"{joins.start}..{joins.stop - 1}\n{height}x{width} (height, width), channel {c} of "
                f"{len(self.steps)} of colours {self.color.name}\nvariable 1 + row * {width} + column, "
                f"values 0..{LEVELS - 1}: the channel's less {self.steps[c]} times the offset, modulo {LEVELS}",
            )
            for k, (channels, joins) in enumerate(zip(self.shapes, self.emissions.joins, strict=True))
            for c, circuit in enumerate(channels)
        ]

    def _checked_shapes(self, steps: Sequence[int], shapes: Sequence[Sequence[Circuit]]) -> int:
        """Check that there is a step for each channel, and a circuit for each shape and channel; returns the joins."""
        channels = self.image_shape[2]
        size = self._grid[1] // channels
        if len(steps) != channels:
            raise InputError(f"steps: found {len(steps)}, wanted {channels}: one for each channel")
        for c, step in enumerate(steps):
            if not 1 <= step <= LEVELS or LEVELS % step:
                raise InputError(f"steps: found {step} for channel {c}, wanted a divisor of {LEVELS}")
        if not len(shapes):
            raise InputError("shapes: found none, wanted at least one")
        for k, circuits in enumerate(shapes):
            if len(circuits) != channels:
                raise InputError(f"shapes: found {len(circuits)} circuits in shape {k}, wanted one for each channel")
            for c, circuit in enumerate(circuits):
                for what, found, wanted in (
                    ("variables", circuit.num_vars, size),
                    ("categories", circuit.engine.categories, LEVELS),
                    ("heads", circuit.num_heads, circuits[0].num_heads),
                ):
                    if found != wanted:
                        raise InputError(f"shapes: found {found} {what} in shape {k}, channel {c}, wanted {wanted}")
        return sum(channels_of[0].num_heads for channels_of in shapes)

    def _checked_labels(self, labels: OffsetLabels, n: int, states: int) -> OffsetLabels:
        """Check labels of n images, with so many states."""
        shape = n, self._grid[0]
        offset = plain_array("labels: offset", labels.offset)
        if offset.shape != (*shape, len(self.steps)):
            raise InputError(f"labels: offset: found {offset.shape}, wanted {(*shape, len(self.steps))}")
        offsets = [
            _numbers(f"labels: offset of channel {c}", offset[:, :, c], shape, LEVELS // step)
            for c, step in enumerate(self.steps)
        ]
        h = _numbers("labels: h", labels.h, shape, states)
        return OffsetLabels(h, _numbers("labels: join", labels.join, shape, len(self.join)), np.stack(offsets, axis=2))

    def _description(self) -> dict[str, Any]:
        return {
            "image_shape": self.image_shape,
            "patch": self.patch,
            "color": self.color.name,
            "steps": self.steps,
            "shapes": len(self.shapes),
        }

    def _save_circuits(self, folder: Path) -> None:
        for k, channels in enumerate(self.shapes):
            for c, circuit in enumerate(channels):
                circuit.save(folder / names.channel_circuit_of(k, c))

    @staticmethod
    def _read_shapes(folder: Path, kept: Mapping[str, Any]) -> list[list[Circuit]]:
        channels = range(kept["image_shape"][2])
        return [
            [Circuit.load(folder / names.channel_circuit_of(k, c)) for c in channels] for k in range(kept["shapes"])
        ]

    @staticmethod
    def _read_tables(
        folder: Path, wanted: Collection[str], optional: Collection[str] = ()
    ) -> dict[str, npt.NDArray[Any]]:
        """Read p(j | .) and the tables `wanted` beside it, with those of `optional` that are there."""
        path = folder / names.EMISSIONS
        arrays, _ = read_arrays(path)
        if arrays.keys() - set(optional) != {JOIN, *wanted}:
            raise InputError(f"{path}: found {', '.join(sorted(arrays))}, wanted {', '.join([JOIN, *wanted])}")
        return arrays


def checked_table(name: str, table: npt.ArrayLike, shape: tuple[int, int]) -> Float32:
    """Check that columns of a table are distributions, and take it over as float32 of its own order."""
    array = plain_array(name, table)
    if array.shape != shape or array.dtype.kind != "f":
        raise InputError(f"{name}: found {array.dtype} {array.shape}, wanted float32 {shape}")
    found: Float32 = np.require(array, np.float32, ["C", "A", "W"])
    if not ((found >= 0).all() and np.allclose(found.sum(axis=0, dtype=np.float64), 1, rtol=0, atol=_TOLERANCE)):
        raise InputError(f"{name}: found a column that is no distribution, wanted numbers of at least 0 that sum to 1")
    return found


def _numbers(name: str, values: npt.ArrayLike, shape: tuple[int, int], below: int) -> npt.NDArray[np.int64]:
    """Check that values are integers of 0 to `below` - 1, of this shape."""
    array = plain_array(name, values)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise InputError(f"{name}: found {array.dtype} {array.shape}, wanted integers {shape}")
    if array.size and not (array.min() >= 0 and array.max() < below):
        raise InputError(f"{name}: found {array.min()}..{array.max()}, wanted 0..{below - 1}")
    found: npt.NDArray[np.int64] = array.astype(np.int64)
    return found
