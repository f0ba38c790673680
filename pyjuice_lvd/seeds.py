"""Seeds of the parts of some work, made from the seed of the whole."""

from __future__ import annotations

import numpy as np


def derived_seed(seed: int, *numbers: int, bits: int = 32) -> int:
    """Derive the seed of a numbered part, of 32 or 64 bits; it has nothing to do with another part's or seed's."""
    words = np.uint64 if bits == 64 else np.uint32
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1, words)[0])


def drawn_seed(rng: np.random.Generator) -> int:
    """Draw the seed of one call: calls that follow one another need random numbers of their own."""
    return int(rng.integers(2**63))
