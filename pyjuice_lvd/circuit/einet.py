"""EiNets: the region graph, by chance or over the pixels of an image, and the circuit over it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyjuice_lvd import julia
from pyjuice_lvd.checks import integer, integers, number, typed
from pyjuice_lvd.circuit.leaves import Leaves, kinds_of, leaves_for
from pyjuice_lvd.errors import InputError


def einet(
    num_sums: int,
    num_cats: int,
    num_vars: int | None,
    depth: int | None,
    replicas: int | None,
    shape: tuple[int, int, int] | None,
    steps: Sequence[int] | int | None,
    leaves: Leaves,
    heads: int,
    perturbation: float,
    seed: int,
) -> julia.Handle:
    """See `Circuit.einet`."""
    kinds = kinds_of(leaves)
    graph = _random(num_vars, depth, replicas) if shape is None else _grid(shape, steps)
    for name, value in {"num_vars": num_vars, "depth": depth, "replicas": replicas, "steps": steps}.items():
        if value is not None and (shape is None) == (name == "steps"):
            raise InputError(
                f"{name}: found with shape = {shape}, wanted num_vars, depth and replicas, or shape and steps"
            )
    num_sums, num_cats, heads, seed = integers(num_sums=num_sums, num_cats=num_cats, heads=heads, seed=seed)
    spread = number("perturbation", perturbation)
    circuit: julia.Handle = julia.call(
        "einet_circuit", *graph, num_sums, num_cats, leaves_for(kinds, num_cats), heads, spread, seed
    )
    return circuit


def _random(num_vars: object, depth: object, replicas: object) -> tuple[object, ...]:
    """Give the parameters of a random region graph, as Julia takes them: those of a grid are empty."""
    num_vars, depth, replicas = integers(num_vars=num_vars, depth=depth, replicas=replicas)
    return num_vars, np.empty(0, np.int64), np.empty(0, np.int64), depth, replicas


def _grid(shape: object, steps: object) -> tuple[object, ...]:
    """Give the parameters of the region graph of an image."""
    sides = typed("shape", shape, tuple[int, int, int])
    listed = np.atleast_1d(np.asarray(steps)).tolist()
    cuts = [integer("steps", step, least=1) for step in listed]
    return 0, np.array(sides, np.int64), np.array(cuts, np.int64), 0, 0
