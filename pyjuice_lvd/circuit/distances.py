"""Two circuits beside each other: the Kullback-Leibler divergence, inner products, and the L2 distance."""

from __future__ import annotations

import math
from typing import NamedTuple

from pyjuice_lvd import julia
from pyjuice_lvd.circuit.engine import Engine
from pyjuice_lvd.circuit.rows import given_heads


class Divergence(NamedTuple):
    """A Kullback-Leibler divergence, in nats.

    `exact`: it is that of the distributions over the variables; otherwise that of variables and choices together, which
    is an upper bound of it.
    """

    nats: float
    exact: bool


def kl_divergence(engine: Engine, other: Engine, head: int, other_head: int | None) -> Divergence:
    """See `Circuit.kl_divergence`."""
    nats, exact = julia.call("divergence", engine.circuit, other.circuit, *_heads(engine, other, head, other_head))
    return Divergence(float(nats), bool(exact))


def log_inner_product(engine: Engine, other: Engine, head: int, other_head: int | None) -> float:
    """See `Circuit.log_inner_product`."""
    return float(julia.call("log_overlap", engine.circuit, other.circuit, *_heads(engine, other, head, other_head)))


def l2_distance(engine: Engine, other: Engine, head: int, other_head: int | None) -> float:
    """See `Circuit.l2_distance`."""
    own, others = _heads(engine, other, head, other_head)
    both = log_inner_product(engine, other, own, others)  # first: it is what may be refused
    alone = (log_inner_product(engine, engine, own, own), log_inner_product(other, other, others, others))
    top = max(alone)  # which `both` is below: the squares of small numbers may be below all numbers
    square = sum(math.exp(norm - top) for norm in alone) - 2 * math.exp(both - top)
    return math.exp(top / 2) * math.sqrt(max(square, 0.0))


def _heads(engine: Engine, other: Engine, head: int, other_head: int | None) -> tuple[int, int]:
    """Check both heads; the other's is the same, unless it is given."""
    (own,) = given_heads(head, 1, engine.num_heads)
    (others,) = given_heads(head if other_head is None else other_head, 1, other.num_heads, "other_head")
    return int(own), int(others)
