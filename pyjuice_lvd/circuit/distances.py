"""Two circuits beside each other: the Kullback-Leibler divergence, inner products, and the L2 distance."""

from __future__ import annotations

import math
from typing import NamedTuple

from pyjuice_lvd import julia
from pyjuice_lvd.circuit.engine import Engine
from pyjuice_lvd.circuit.rows import given_heads
from pyjuice_lvd.errors import InputError


class Divergence(NamedTuple):
    """A Kullback-Leibler divergence, in nats.

    `exact`: it is that of the distributions over the variables; otherwise that of variables and choices together, which
    is an upper bound of it.
    """

    nats: float
    exact: bool


class Comparisons:
    """The part of `Circuit` that compares it with another one."""

    engine: Engine

    def kl_divergence(self, other: Comparisons, *, head: int = 0, other_head: int | None = None) -> Divergence:
        """Give KL(p || q) of this circuit, p, and another one of the same units and edges, q, such as after more EM.

        It is that of the distributions over the variables and the choices of the sums together (`latent_entropy`), an
        upper bound of KL(p(x) || q(x)); and that itself, which `.exact` says, where the choices follow from the values:
        where both are deterministic in the same way (`is_deterministic`, of what is possible in either).

        `other_head`: default: the same as `head`. Returns Divergence: `.nats`, infinite where p has what q excludes,
        and `.exact`. Raises InputError, which names the first unit that differs, for a circuit of another structure.
        """
        nats, exact = julia.call("divergence", *self._beside(other, head, other_head))
        return Divergence(float(nats), bool(exact))

    def log_inner_product(self, other: Comparisons, *, head: int = 0, other_head: int | None = None) -> float:
        """Give the logarithm of the integral, or sum, over all x of p(x) q(x), exact; -inf where that is 0.

        For any two circuits that decompose alike: where products over the same variables meet, the factors of the one
        are unions of those of the other, as of HCLTs over one tree, of whatever sizes. Inputs of all kinds, in closed
        form or finite sums; those of a variable over categories may be of any kinds in both.

        `other_head`: default: the same as `head`. Raises InputError, which names units and variables, for circuits that
        do not decompose alike, this one with itself included, or have other kinds of values.
        """
        return float(julia.call("log_overlap", *self._beside(other, head, other_head)))

    def l2_distance(self, other: Comparisons, *, head: int = 0, other_head: int | None = None) -> float:
        """Give the L2 distance to another circuit: the root of the integral, or sum, over all x of (p(x) - q(x))^2.

        Exact, from three inner products: parameters and errors are those of `log_inner_product`. Distances below about
        1e-8 of the larger norm are lost to rounding; those of many variables may be below any number, where the three
        logarithms still tell.
        """
        _, _, own, others = self._beside(other, head, other_head)
        both = self.log_inner_product(other, head=own, other_head=others)  # first: it is what may be refused
        alone = self.log_inner_product(self, head=own), other.log_inner_product(other, head=others)
        top = max(alone)  # which `both` is below: the squares of small numbers may be below all numbers
        square = sum(math.exp(norm - top) for norm in alone) - 2 * math.exp(both - top)
        return math.exp(top / 2) * math.sqrt(max(square, 0.0))

    def _beside(
        self, other: Comparisons, head: int, other_head: int | None
    ) -> tuple[julia.Handle, julia.Handle, int, int]:
        """Check the other circuit, and both heads; the other's is the same, unless it is given."""
        if not isinstance(other, Comparisons):
            raise InputError(f"other: found {type(other).__name__}, wanted a Circuit")
        (own,) = given_heads(head, 1, self.engine.num_heads)
        wanted = head if other_head is None else other_head
        (others,) = given_heads(wanted, 1, other.engine.num_heads, "other_head")
        return self.engine.circuit, other.engine.circuit, int(own), int(others)
