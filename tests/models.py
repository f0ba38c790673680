"""Small models that several tests look at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pyjuice_lvd import Circuit
from pyjuice_lvd.models.field import FieldModel
from pyjuice_lvd.models.field_queries import Field
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.offsets import OffsetModel
from pyjuice_lvd.models.windows import WEIGHT_UNIT, WindowModel, Windows, neighbours


def tiny_model(cats: int = 256, *, tied: bool = True) -> JointModel:
    """Grey 2x2 images with patches of 1x2: two positions, three values of each latent, two patch circuits.

    Untied, the first position has these, the second one of three heads.
    """
    rng = np.random.default_rng(0)
    patches = rng.integers(0, cats, (300, 2))
    circuits = [
        Circuit.hclt(patches, num_latents=2, num_cats=cats, heads=heads, seed=heads, perturbation=0.9)
        for heads in ((2, 1) if tied else (2, 1, 3))
    ]
    prior = Circuit.hclt(rng.integers(0, 3, (50, 2)), num_latents=2, num_cats=3, perturbation=0.9)
    return JointModel(image_shape=(2, 2, 1), patch=(1, 2), color="ycocg", circuits=circuits, prior=prior, tied=tied)


def window_model(
    shape: tuple[int, int, int], *, reach: int = 1, color: str = "ycocg", seed: int = 0, pseudocount: float = 0.1
) -> WindowModel:
    """A model of windows with random weights, whose circuit has seen some windows of smooth images with noise."""
    rng = np.random.default_rng(seed)
    C = shape[2]
    weights = rng.normal(0, 0.1, (C, C * neighbours(reach)))
    windows = Windows(shape, reach, np.rint(weights * WEIGHT_UNIT).astype(np.int32))
    smooth = 100 + 30 * np.sin(np.arange(shape[0])[:, None, None] + np.arange(shape[1])[:, None] + np.arange(C))
    images = np.rint(smooth + rng.normal(0, 12, (40, *shape))).astype(np.uint8)
    values, outside = windows.rows(images, np.arange(40 * windows.pixels))
    circuit = Circuit.hclt(values, mask=outside, num_latents=3, num_cats=256, seed=seed)
    circuit.fit_em(values, mask=outside, epochs=3, batch_size=64, pseudocount=pseudocount, seed=seed)
    return WindowModel(circuit, windows=windows, color=color)


class OffsetParts(NamedTuple):
    """What an offsets model is made of, of any number of categories: see `pyjuice_lvd.models.offsets`."""

    steps: tuple[int, ...]
    shapes: Sequence[Sequence[Circuit]]
    join: np.ndarray
    shifts: Sequence[np.ndarray]
    prior: Circuit

    def emissions(self, patches: np.ndarray, hidden: np.ndarray | None = None) -> np.ndarray:
        """p(x_known, j, d_0, ..., d_C | h) of patches (n, V), float64 (n, S, J, D_0, ..., D_C): as it is defined."""
        C = len(self.steps)
        hidden = np.zeros(patches.shape, bool) if hidden is None else hidden
        factors = []  # of each channel (n, D, J)
        for c, step in enumerate(self.steps):
            own, cats = patches[:, c::C].astype(int), step * len(self.shifts[c])
            factors.append(
                np.stack(
                    [
                        np.concatenate(
                            [
                                channels[c].log_likelihood((own - step * d) % cats, mask=hidden[:, c::C], head="all")
                                for channels in self.shapes
                            ],
                            axis=1,
                        )
                        for d in range(len(self.shifts[c]))
                    ],
                    axis=1,
                )
            )
        letters = "abc"[:C]
        terms = ",".join(f"n{d}j,{d}s" for d in letters)
        tables = [table for f, shift in zip(factors, self.shifts, strict=True) for table in (np.exp(f), shift)]
        found: np.ndarray = np.einsum(f"js,{terms}->nsj{letters}", self.join, *tables)
        return found


def offset_parts(
    steps: tuple[int, ...], *, cats: int = 8, variables: int = 2, states: int = 3, positions: int = 2, seed: int = 0
) -> OffsetParts:
    """Random parts: two shapes of 2 and 1 heads, `variables` of each channel in a patch."""
    rng = np.random.default_rng(seed)
    shapes = [
        [
            Circuit.from_tree(
                np.arange(-1, variables - 1),
                num_latents=2,
                num_cats=cats,
                heads=heads,
                perturbation=0.9,
                seed=10 * heads + c,
            )
            for c in range(len(steps))
        ]
        for heads in (2, 1)
    ]
    join = np.ascontiguousarray(rng.dirichlet(np.ones(3), states).T, np.float32)
    shifts = [np.ascontiguousarray(rng.dirichlet(np.ones(cats // step), states).T, np.float32) for step in steps]
    prior = Circuit.from_tree(np.arange(-1, positions - 1), num_latents=3, num_cats=states, perturbation=0.9, seed=5)
    return OffsetParts(steps, shapes, join, shifts, prior)


def limited_parts(
    image_shape: tuple[int, int, int], patch: tuple[int, int], steps: tuple[int, ...], residuals: list[list[int]]
) -> tuple[OffsetParts, list[list[int]]]:
    """Parts for such images, and the values of a patch's variables: a channel's, less the offset, are `residuals`."""
    pixels, (height, width, channels) = patch[0] * patch[1], image_shape
    assert len(residuals) == channels
    parts = offset_parts(steps, cats=256, variables=pixels, positions=height * width // pixels)
    for circuits in parts.shapes:
        for circuit, possible in zip(circuits, residuals, strict=True):
            table = circuit.parameters()[1].reshape(pixels, 256, 2)  # variable, category, latent
            table[:, np.setdiff1d(np.arange(256), possible)] = 0
            table /= table.sum(axis=1, keepdims=True)
    values = [
        sorted({(x + step * d) % 256 for x in own for d in range(256 // step)})
        for own, step in zip(residuals, steps, strict=True)
    ]
    return parts, values * pixels


def offset_model(
    image_shape: tuple[int, int, int], patch: tuple[int, int], color: str, steps: tuple[int, ...],
    residuals: list[list[int]],
) -> tuple[OffsetModel, list[list[int]]]:  # fmt: skip
    """Two shapes of two joins and one, three states; a channel's values less the offset are those `residuals`.

    Returns the values that each variable of a patch can have, too.
    """
    parts, values = limited_parts(image_shape, patch, steps, residuals)
    model = OffsetModel(
        image_shape=image_shape, patch=patch, color=color, steps=steps, shapes=parts.shapes, join=parts.join,
        shifts=parts.shifts, prior=parts.prior,
    )  # fmt: skip
    return model, values


def random_field(grid: tuple[int, int], group: list[int], offsets: list[int], seed: int = 3) -> Field:
    rng = np.random.default_rng(seed)
    states, groups = len(group), max(group) + 1

    def shares(*sizes: int, axis: int) -> np.ndarray:
        table = rng.random(sizes) ** 2 + 0.02
        return np.ascontiguousarray(table / table.sum(axis=axis, keepdims=True), np.float32)

    return Field(
        grid, np.array(group), shares(states, axis=0), tuple(shares(d, states, axis=0) for d in offsets),
        shares(2, states, states, axis=1), tuple(shares(2, groups, groups, d, d, axis=3) for d in offsets),
    )  # fmt: skip


def field_model(
    image_shape: tuple[int, int, int], patch: tuple[int, int], color: str, steps: tuple[int, ...],
    residuals: list[list[int]],
) -> tuple[FieldModel, list[list[int]]]:  # fmt: skip
    """Two shapes of two joins and one, three states in two groups; as `models.offset_model` otherwise."""
    grid = image_shape[0] // patch[0], image_shape[1] // patch[1]
    parts, values = limited_parts(image_shape, patch, steps, residuals)
    model = FieldModel(
        image_shape=image_shape, patch=patch, color=color, steps=steps, shapes=parts.shapes, join=parts.join,
        field=random_field(grid, [0, 0, 1], [256 // step for step in steps]),
    )  # fmt: skip
    return model, values
