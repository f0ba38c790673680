"""Models of images with latents written out: one circuit over all variables of an image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.models.offset_queries import Emissions


def written_out(
    prior: Circuit, circuits: Iterable[Circuit], variables: npt.NDArray[np.int64], *, tied: bool
) -> Circuit:
    """Make one circuit, with one head, of p(x) = sum_z p(z) prod_i p(x_i | z_i) (Liu et al., ICML 2023, Sec. 3).

    `variables`, int64 (P, V), are those of each position's patch. Each position has copies of its patch circuits, with
    parameters of their own; for an input unit of the prior stands a sum over the copies' heads, weighted by its
    probabilities, without those of 0.

    The copies come first, position after position and circuit after circuit, each as its circuit lies, then the prior:
    the parameters of the copies are the first of `Circuit.parameters`, of tied circuits P times those of all of them.
    """
    handles = (circuit.engine.circuit for circuit in circuits)
    return Circuit(julia.call("joint_circuit_of", prior.engine.circuit, variables, tied, *handles))


def num_params_written_out(prior: Circuit, circuits: Iterable[Circuit], *, tied: bool) -> int:
    """Count the parameters of `written_out(...)` without making it."""
    return _num_params(prior) + (prior.num_vars if tied else 1) * sum(circuit.num_params for circuit in circuits)


def written_out_with_offsets(prior: Circuit, emissions: Emissions, variables: npt.NDArray[np.int64]) -> Circuit:
    """Make one circuit, with one head, of p(x) = sum_h p(h) prod_i e(h_i) (docs/offsets.md).

    `variables`, int64 (P, V), are those of each position's patch. Each position has copies of the channel circuits for
    each offset that some state has, with parameters of their own: the inputs' tables turned round by the offset. Sums
    over offsets and over joins stand above them, without edges of weight 0, and the prior above these.
    """
    circuits = (circuit.engine.circuit for channels in emissions.shapes for circuit in channels)
    steps, handle = np.array(emissions.steps, np.int64), prior.engine.circuit
    return Circuit(
        julia.call("offset_circuit_of", handle, variables, steps, emissions.join, *emissions.shifts, *circuits)
    )


def num_params_with_offsets(prior: Circuit, emissions: Emissions) -> int:
    """Count the parameters of `written_out_with_offsets(...)` without making it."""
    joins = np.count_nonzero(emissions.join, axis=0)  # of each state
    position = int(joins.sum())
    for c, shift in enumerate(emissions.shifts):
        copies = np.count_nonzero(shift.any(axis=1))
        position += int(copies) * sum(channels[c].num_params for channels in emissions.shapes)
        if len(shift) > 1:
            position += int(joins @ np.count_nonzero(shift, axis=0))
    return _num_params(prior) + prior.num_vars * position


def _num_params(prior: Circuit) -> int:
    """Count the parameters of the prior whose inputs are sums, without edges of weight 0."""
    _, probabilities = prior.parameters()
    return int(prior.num_params - np.count_nonzero(probabilities == 0))
