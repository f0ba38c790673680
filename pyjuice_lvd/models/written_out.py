"""The joint model written out: one circuit over all variables of an image."""

from __future__ import annotations

import numpy as np

from pyjuice_lvd import julia
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.models.joint import JointModel


def written_out(model: JointModel) -> Circuit:
    """Make one circuit, with one head, of p(x) = sum_z p(z) prod_i p(x_i | z_i) (Liu et al., ICML 2023, Sec. 3).

    Its H W C variables are an image's channels, pixel by pixel, row by row, as the colour transform gives them. Each
    position has copies of its patch circuits, with parameters of their own; for an input unit of the prior stands a sum
    over the copies' heads, weighted by its probabilities, without those of 0.

    The copies come first, position after position and circuit after circuit, each as its circuit lies, then the prior:
    the parameters of the copies are the first of `Circuit.parameters`, of tied circuits P times those of all of them.
    """
    indices = np.arange(model.dims, dtype=np.int64).reshape(1, *model.image_shape)
    variables = to_patches(indices, model.patch)[0]
    circuits = (circuit.engine.circuit for circuit in model.circuits)
    return Circuit(julia.call("joint_circuit_of", model.prior.engine.circuit, variables, model.tied, *circuits))


def num_params_written_out(model: JointModel) -> int:
    """Count the parameters of `written_out(model)` without making it."""
    _, probabilities = model.prior.parameters()
    own = model.prior.num_params - np.count_nonzero(probabilities == 0)
    copies = model.prior.num_vars if model.tied else 1
    return int(own) + copies * sum(circuit.num_params for circuit in model.circuits)
