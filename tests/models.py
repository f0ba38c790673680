"""Small models that several tests look at."""

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
