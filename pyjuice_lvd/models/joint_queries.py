"""What patch circuits say of hidden pixels: functions on shares of patches, behind the methods of the joint model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit import Circuit, Evidence
from pyjuice_lvd.circuit.rows import Mask, Table
from pyjuice_lvd.seeds import drawn_seed
from pyjuice_lvd.shares import shares

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]
LEVELS = 256
"""Values of a channel."""

Groups = Iterable[tuple[slice, Sequence[tuple[Circuit, slice]]]]
"""Positions that share circuits, with these, and the values of z that their heads are."""

Summary = Callable[[Float64], Float64]
"""Turns marginals (m, V, LEVELS) into what is wanted of them, (m, S)."""

_MARGINALS_BYTES = 2**25
"""How much of the marginals of single heads is in memory at once."""

NEGLIGIBLE = 1e-10
"""Values of z below this posterior probability are left out of mixtures: below the rounding of float32."""


def complete(
    groups: Groups,
    patches: UInt8,
    hidden: Mask,
    z: npt.NDArray[np.integer],
    rng: np.random.Generator,
    *,
    modes: bool,
) -> None:
    """Fill what is hidden of patches (n, P, V), in place, from the heads `z` (n, P).

    Samples of p(x_hidden | x_known, z), or, with `modes`, the most probable values by max-product (`Circuit.mpe`).
    """
    unknown = np.any(hidden, axis=2)
    for positions, circuits in groups:
        here, here_z = patches[:, positions], z[:, positions].astype(np.int64)
        for circuit, values in circuits:
            own = (here_z >= values.start) & (here_z < values.stop) & unknown[:, positions]
            if own.any():
                head = here_z[own] - values.start
                here[own] = filled(circuit, here[own], hidden[:, positions][own], head, rng, modes=modes)


def filled(
    circuit: Circuit, rows: UInt8, hidden: Mask, head: npt.NDArray[np.int64], rng: np.random.Generator, *, modes: bool
) -> UInt8:
    """Fill what is hidden of rows (m, V), something of each, from the head of each (`complete`)."""
    found, wholly = rows.copy(), hidden.all(axis=1)
    if wholly.any():
        found[wholly] = _whole(circuit, head[wholly], rng, modes=modes)
    if not wholly.all():
        rows, hidden, head = rows[~wholly], hidden[~wholly], head[~wholly]
        if modes:
            found[~wholly] = circuit.mpe(rows, hidden, head=head)
        else:
            found[~wholly] = circuit.sample(1, X=rows, mask=hidden, head=head, seed=drawn_seed(rng))[0]
    return found


def _whole(circuit: Circuit, head: npt.NDArray[np.int64], rng: np.random.Generator, *, modes: bool) -> Table:
    """Draw whole patches (m, V) from the heads (m,): no evidence to go by."""
    if not modes:
        drawn: Table = circuit.sample(1, head=head, seed=drawn_seed(rng))[0]
        return drawn
    distinct, place = np.unique(head, return_inverse=True)
    nothing = np.zeros((len(distinct), circuit.num_vars), np.uint8)
    found: Table = circuit.mpe(nothing, nothing == 0, head=distinct)[place]
    return found


def mixed(groups: Groups, patches: UInt8, hidden: Mask, posterior: Float64, size: int, summary: Summary) -> Float64:
    """Average a summary of p(x_v | known pixels of the patch, z_i = k) over the posterior (n, P, K) of z_i.

    Returns float64 (n, P, size); zeros where nothing of a patch is hidden.
    """
    weight = np.where(posterior > NEGLIGIBLE, posterior, 0)
    weight /= weight.sum(2, keepdims=True)
    out = np.zeros((*weight.shape[:2], size))
    wholly = np.all(hidden, axis=2)
    partly = np.any(hidden, axis=2) & ~wholly
    for positions, circuits in groups:
        whole, part_known, here = wholly[:, positions], partly[:, positions], out[:, positions]
        rows, masks = patches[:, positions][part_known], hidden[:, positions][part_known]
        means = np.zeros((len(rows), size))
        for circuit, values in circuits:
            shares_of = weight[:, positions, values]
            if whole.any():  # of a head, all such patches have the same marginals
                nothing = np.zeros((circuit.num_heads, patches.shape[2]), np.uint8)
                share = shares_of[whole]
                for part, found in _summaries(circuit, nothing, nothing == 0, np.arange(circuit.num_heads), summary):
                    here[whole] += share[:, part] @ found
            share = shares_of[part_known]
            row, head = np.nonzero(share)
            for part, found in _summaries(circuit, rows[row], masks[row], head, summary):
                touched, place = np.unique(row[part], return_inverse=True)
                matrix = np.zeros((len(touched), len(place)))
                matrix[place, np.arange(len(place))] = share[row[part], head[part]]
                means[touched] += matrix @ found
        here[part_known] = means
    return out


def _summaries(
    circuit: Circuit, rows: UInt8, hidden: Mask, heads: npt.NDArray[np.integer], summary: Summary
) -> Iterator[tuple[slice, Float64]]:
    """Summarise the marginals of rows, each under its head, in pieces of bounded memory."""
    for part in shares(len(rows), 8 * rows.shape[1] * LEVELS, _MARGINALS_BYTES):
        marginals = circuit.posterior_marginals(rows[part], hidden[part], head=heads[part])
        if marginals.shape[2] < LEVELS:
            marginals = np.pad(marginals, ((0, 0), (0, 0), (0, LEVELS - marginals.shape[2])))
        yield part, summary(marginals)


def anomaly(prior: Circuit, scores: npt.NDArray[np.float32]) -> Float64:
    """-log p(x_i | all other patches) in nats, float64 (n, P), from patch scores (n, P, K), which are used up."""
    rest = np.empty(scores.shape[:2])
    for position in range(scores.shape[1]):
        others = scores.copy()
        others[:, position] = 0
        rest[:, position] = prior.log_likelihood(Evidence(others))
    with np.errstate(invalid="ignore"):  # of an impossible patch beside another one, nothing can be said: NaN
        found: Float64 = rest - prior.log_likelihood(Evidence(scores))[:, None]
    return found
