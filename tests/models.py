"""Small models that several tests look at."""

from typing import NamedTuple

import numpy as np

from pyjuice_lvd import Circuit
from pyjuice_lvd.models.joint import JointModel


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


class OffsetParts(NamedTuple):
    """What an offsets model is made of, of any number of categories: see `pyjuice_lvd.models.offsets`."""

    steps: tuple[int, ...]
    shapes: list[list[Circuit]]
    join: np.ndarray
    shifts: list[np.ndarray]
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
    join = rng.dirichlet(np.ones(3), states).T.astype(np.float32)
    shifts = [rng.dirichlet(np.ones(cats // step), states).T.astype(np.float32) for step in steps]
    prior = Circuit.from_tree(np.arange(-1, positions - 1), num_latents=3, num_cats=states, perturbation=0.9, seed=5)
    return OffsetParts(steps, shapes, join, shifts, prior)
