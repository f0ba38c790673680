"""The joint model written out: one circuit over all variables of an image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit import Circuit


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
    _, probabilities = prior.parameters()
    own = prior.num_params - np.count_nonzero(probabilities == 0)
    return int(own) + (prior.num_vars if tied else 1) * sum(circuit.num_params for circuit in circuits)
