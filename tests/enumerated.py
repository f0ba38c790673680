"""Models with two latents, all their images and the images' probabilities, found without the models' own sums."""

from collections.abc import Sequence

import numpy as np
from models import OffsetParts

from pyjuice_lvd.data.patches import from_patches
from pyjuice_lvd.models.latent import LatentModel
from pyjuice_lvd.models.offsets import OffsetModel


class Enumerated:
    """A model of two positions, all its images and their probabilities.

    `tiles`, (T, V), are all patches that it can have; `given`, for each position (T, S), p(tile | z) by value of z.
    """

    def __init__(self, model: LatentModel, tiles: np.ndarray, given: Sequence[np.ndarray]) -> None:
        self.model = model
        states = given[0].shape[1]
        z = np.indices((states, states)).reshape(2, -1).T
        self.pz = np.exp(model.prior.log_likelihood(z)).reshape(states, states)
        self.tiles = np.stack(np.divmod(np.arange(len(tiles) ** 2), len(tiles)), axis=1)  # (M, 2): of both positions
        self.patches = tiles[self.tiles]
        self.joint = np.einsum(
            "kl,mk,ml->mkl", self.pz, *(of[own] for of, own in zip(given, self.tiles.T, strict=True))
        )
        self.p = self.joint.sum((1, 2))
        self.stored = from_patches(self.patches, model.image_shape, model.patch)
        self.images = model.color.inverse(self.stored)

    def agree(self, image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """Which images are as this one where it is known."""
        return (hidden | (self.images == image)).reshape(len(self.images), -1).all(1)

    def conditional(self, image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        p = self.p * self.agree(image, hidden)
        return p / p.sum()


class EnumeratedOffsets(Enumerated):
    """An offsets model, and of all its patches p(tile, j, d_0, ... | h): `emitted` (T, S, J, D_0, ...)."""

    model: OffsetModel

    def __init__(self, model: OffsetModel, values: Sequence[Sequence[int]]) -> None:
        """`values`: those that each variable of a patch can have."""
        tiles = np.array(np.meshgrid(*values, indexing="ij"), np.uint8).reshape(len(values), -1).T
        parts = OffsetParts(model.steps, model.shapes, model.join, model.shifts, model.prior)
        self.emitted = parts.emissions(tiles)
        given = self.emitted.reshape(*self.emitted.shape[:2], -1).sum(2)
        super().__init__(model, tiles, [given, given])

    def posterior(self, image: np.ndarray, hidden: np.ndarray, position: int) -> np.ndarray:
        """p(j, d_0, ... | what is known) at a position, (J, D_0, ...)."""
        agree, states = self.agree(image, hidden), self.emitted.shape[1]
        given = self.joint[agree].sum(2 - position)  # p(image, h of the position)
        own = self.tiles[agree, position]
        each = self.emitted.reshape(*self.emitted.shape[:2], -1)[own]  # p(tile, j, d | h)
        found: np.ndarray = np.einsum("ms,msz->z", given / np.maximum(each.sum(2), 1e-300), each)
        assert given.shape == (len(own), states)
        return (found / found.sum()).reshape(self.emitted.shape[2:])


def questions(known: Enumerated, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images that the model can have, and masks of whole pixels, nothing and everything among them."""
    rng = np.random.default_rng(seed)
    images = known.images[rng.choice(len(known.p), n, p=known.p / known.p.sum())]
    masks = rng.random((n, *known.model.image_shape[:2])) < 0.5
    masks[0], masks[1] = False, True
    masks[2, 0], masks[2, 1] = True, False  # one patch of two
    return images, masks


def asked(known: Enumerated, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, and masks of channels of pixels where these can be hidden apart."""
    images, masks = questions(known, n, seed)
    hidden = np.repeat(masks[..., None], images.shape[3], axis=3)
    if known.model.color.name == "rgb":
        hidden[3:] = np.random.default_rng(seed).random(hidden[3:].shape) < 0.5
        hidden[3], hidden[4] = [True, False, False], [False, True, True]
    return images, hidden


def frequencies_fit(drawn: np.ndarray, known: Enumerated, p: np.ndarray) -> None:
    """No image is drawn much more or less often than p says, and all together as chi-square has it."""
    rows = known.model.color.forward(drawn).reshape(len(drawn), -1)
    order = {row.tobytes(): index for index, row in enumerate(known.stored.reshape(len(p), -1))}
    counts = np.bincount([order[row.tobytes()] for row in rows], minlength=len(p))
    expected = len(drawn) * p
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected) + 1.5).all()
    likely = np.argsort(-p)
    group = (np.cumsum(expected[likely]) / 20).astype(int)  # about 20 draws in each
    wanted, found = (np.bincount(group, weights=x[likely])[:-1] for x in (expected, counts))
    wanted, found = wanted[wanted > 0], found[wanted > 0]
    assert ((found - wanted) ** 2 / wanted).sum() < len(wanted) + 5 * np.sqrt(2 * len(wanted)) + 5
