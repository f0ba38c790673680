"""Circuits by hand: units one by one, children before parents, each checked as it is added."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import integer, number, plain_array
from pyjuice_lvd.circuit.circuit import Circuit
from pyjuice_lvd.circuit.engine import KINDS
from pyjuice_lvd.circuit.rows import as_shares
from pyjuice_lvd.errors import InputError

_TOLERANCE = 1e-3
"""Of what probabilities sum to, less 1: as for circuits that are read."""


@dataclass(frozen=True)
class _Unit:
    """A unit; `scope` has a bit for each variable, `theta` are weights or an input's parameters."""

    kind: str
    scope: int
    children: tuple[int, ...] = ()
    theta: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    variable: int = 0


class CircuitBuilder:
    """Makes a `Circuit` unit by unit (docs/by-hand.md).

    Each call adds a unit and returns its number, from 0, by which other units take it as a child, any number of them.
    A sum is over units with one scope, a product over units without a variable in common; what does not fit is refused
    at once, with the unit's number.

    Parameters
    ----------
    num_vars : int
        Variables, numbered from 0.
    num_cats : int, optional
        Categories of every variable. Default: of each variable those of its categorical and binomial inputs, or the
        largest value that an indicator has, plus 1, and at least 2.

    Examples
    --------
    >>> b = CircuitBuilder(num_vars=2)
    >>> rain = b.product([b.categorical(0, [0.2, 0.8]), b.indicator(1, 1)])
    >>> dry = b.product([b.categorical(0, [0.9, 0.1]), b.indicator(1, 0)])
    >>> pc = b.build(heads=[b.sum([rain, dry], [0.3, 0.7])])

    """

    def __init__(self, num_vars: int, *, num_cats: int | None = None) -> None:
        self.num_vars = integer("num_vars", num_vars, least=1)
        self._cats: dict[int, tuple[int, str]] = {}  # of a variable, where they are known: how many, and who says so
        if num_cats is not None:
            cats = integer("num_cats", num_cats, least=1), "num_cats"
            self._cats = dict.fromkeys(range(self.num_vars), cats)
        self._indicated: dict[int, int] = {}  # of a variable, the largest value that an indicator has
        self._units: list[_Unit] = []

    def __len__(self) -> int:
        return len(self._units)

    def categorical(self, variable: int, probabilities: npt.ArrayLike) -> int:
        """Add an input: a probability for each category, numbers (C,) that sum to 1. EM learns them."""
        own = self._variable("categorical", variable)
        shares = self._shares("categorical", "probabilities", probabilities)
        self._agree("categorical", own, len(shares))
        return self._input("categorical", own, shares)

    def indicator(self, variable: int, value: int) -> int:
        """Add an input: 1 for one category, from 0, and 0 for all others. There is nothing to learn."""
        own = self._variable("indicator", variable)
        category = self._named("indicator", lambda: integer("value", value, least=0))
        cats, who = self._cats.get(own, (category + 1, ""))
        if category >= cats:
            raise self._wrong("indicator", f"value: found {category}, wanted 0..{cats - 1} as in {who}")
        self._indicated[own] = max(category, self._indicated.get(own, 0))
        return self._input("indicator", own, np.array([float(category)]))

    def binomial(self, variable: int, trials: int, success: float) -> int:
        """Add an input: 0..trials successes, each with probability `success`, which EM learns."""
        own = self._variable("binomial", variable)
        count = self._named("binomial", lambda: integer("trials", trials, least=1))
        share = self._named("binomial", lambda: number("success", success))
        if not 0 <= share <= 1:
            raise self._wrong("binomial", f"success: found {share:g}, wanted 0 to 1")
        self._agree("binomial", own, count + 1)
        return self._input("binomial", own, np.array([share]))

    def product(self, children: Iterable[int]) -> int:
        """Add a product of units without a variable in common."""
        own = self._children("product", children)
        scope = 0
        for child in own:
            if both := scope & self._units[child].scope:
                first = (both & -both).bit_length() - 1
                other = next(unit for unit in own if self._units[unit].scope >> first & 1)
                raise self._wrong("product", f"its children {other} and {child} both look at variable {first}")
            scope |= self._units[child].scope
        return self._add(_Unit("product", scope, own))

    def sum(self, children: Iterable[int], weights: npt.ArrayLike | None = None) -> int:
        """Add a sum of units with one scope, weighted by numbers that sum to 1; default: equal. EM learns them."""
        own = self._children("sum", children)
        if len(set(own)) < len(own):
            twice = next(child for child in own if own.count(child) > 1)
            raise self._wrong("sum", f"its child {twice} is there {own.count(twice)} times, wanted once")
        for child in own[1:]:
            if self._units[child].scope != self._units[own[0]].scope:
                found = " and ".join(f"child {unit} looks at {self._looks_at(unit)}" for unit in (own[0], child))
                raise self._wrong("sum", f"{found}; wanted the same variables")
        shares = np.full(len(own), 1 / len(own)) if weights is None else self._shares("sum", "weights", weights)
        if len(shares) != len(own):
            raise self._wrong("sum", f"weights: found {len(shares)}, wanted one for each of its {len(own)} children")
        return self._add(_Unit("sum", self._units[own[0]].scope, own, shares))

    def build(self, heads: Sequence[int], *, head_weights: npt.ArrayLike | None = None) -> Circuit:
        """Make the circuit with these heads, units with one scope; what none of them reaches is left out.

        The units keep their order, so that where all are reached, their numbers are the ids in the `.jpc` that
        `Circuit.save` writes. `head_weights`: prior weights of the heads (`Circuit.head_weights`); default: equal. The
        builder can go on, and build others. Raises InputError where the heads are no units, or have several scopes.
        """
        if not isinstance(heads, Iterable):
            raise InputError(f"heads: found {heads!r}, wanted a list of units")
        if not len(heads):
            raise InputError("heads: found none, wanted at least 1")
        tops = [self._known("heads", head) for head in heads]
        for head in tops:
            if self._units[head].scope != self._units[tops[0]].scope:
                found = " and ".join(f"unit {unit} looks at {self._looks_at(unit)}" for unit in (tops[0], head))
                raise InputError(f"heads: {found}; wanted the same variables")
        weights = as_shares(head_weights, len(tops), "head_weights")
        circuit: julia.Handle = julia.call("circuit_of", self.num_vars, *self._arrays(tops), weights.astype(np.float32))
        return Circuit(circuit)

    def _add(self, unit: _Unit) -> int:
        self._units.append(unit)
        return len(self._units) - 1

    def _input(self, kind: str, variable: int, theta: npt.NDArray[np.float64]) -> int:
        return self._add(_Unit(kind, 1 << variable, theta=theta, variable=variable))

    def _variable(self, kind: str, variable: int) -> int:
        own: int = self._named(kind, lambda: integer("variable", variable))
        if not 0 <= own < self.num_vars:
            raise self._wrong(kind, f"variable: found {own}, wanted 0..{self.num_vars - 1}")
        return own

    def _agree(self, kind: str, variable: int, cats: int) -> None:
        """Check that a variable has so many categories, and note it."""
        known, who = self._cats.get(variable, (cats, ""))
        if known != cats:
            raise self._wrong(kind, f"found {cats} categories of variable {variable}, wanted {known} as in {who}")
        most = self._indicated.get(variable, 0)
        if most >= cats:
            raise self._wrong(kind, f"found {cats} categories of variable {variable}, of which an indicator has {most}")
        self._cats.setdefault(variable, (cats, f"unit {len(self)}"))

    def _children(self, kind: str, children: Iterable[int]) -> tuple[int, ...]:
        if not isinstance(children, Iterable):
            raise self._wrong(kind, f"children: found {children!r}, wanted a list of units")
        own = tuple(self._known(f"unit {len(self)} ({kind}): child {n}", child) for n, child in enumerate(children))
        if not own:
            raise self._wrong(kind, "found no children, wanted at least 1")
        return own

    def _known(self, name: str, unit: object) -> int:
        found = integer(name, unit)
        if not 0 <= found < len(self):
            raise InputError(f"{name}: found unit {found}, wanted one of the {len(self)} so far")
        return found

    def _shares(self, kind: str, name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Check that values are probabilities that sum to 1, and make the last digits of that so."""
        array = self._named(kind, lambda: plain_array(name, values))
        if array.ndim != 1 or not array.size or array.dtype.kind not in "fiu":
            raise self._wrong(kind, f"{name}: found {array.dtype} {array.shape}, wanted numbers (n,)")
        shares = array.astype(np.float64)
        if not (np.isfinite(shares) & (shares >= 0)).all():
            place = int(np.argmin(np.isfinite(shares) & (shares >= 0)))
            raise self._wrong(kind, f"{name}: found {shares[place]:g} at {place}, wanted probabilities")
        if abs(shares.sum() - 1) > _TOLERANCE:
            raise self._wrong(kind, f"{name}: they sum to {shares.sum():g}, wanted 1")
        return np.asarray(shares / shares.sum())

    def _named(self, kind: str, check: Any) -> Any:
        """Run a check whose error is to name the unit that was to be added."""
        try:
            return check()
        except InputError as error:
            raise self._wrong(kind, str(error)) from None

    def _wrong(self, kind: str, what: str) -> InputError:
        return InputError(f"unit {len(self)} ({kind}): {what}")

    def _looks_at(self, unit: int) -> str:
        variables = [str(v) for v in range(self.num_vars) if self._units[unit].scope >> v & 1]
        some = ", ".join(variables[:6]) + (", ..." if len(variables) > 6 else "")
        return f"variable{'s' if len(variables) > 1 else ''} {some}"

    def _categories(self, variable: int) -> int:
        if variable in self._cats:
            return self._cats[variable][0]
        return max(2, self._indicated[variable] + 1)

    def _arrays(self, heads: Sequence[int]) -> list[npt.NDArray[Any]]:
        """Give the arrays of what the heads reach (`engine.ARRAYS`, but for the heads' weights).

        The tables of a variable's inputs of one kind lie side by side, one category after another: they are evaluated
        together then.
        """
        reached = np.zeros(len(self), bool)
        reached[list(heads)] = True
        for unit in reversed(range(len(self))):
            if reached[unit]:
                reached[list(self._units[unit].children)] = True
        units = [unit for unit, there in zip(self._units, reached, strict=True) if there]
        place_of = np.cumsum(reached)  # from 1, as Julia counts
        n = len(units)
        variable, categories = np.zeros(n, np.int32), np.zeros(n, np.int32)
        start, stride, success = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.float32)
        tables: dict[tuple[str, int], list[int]] = {}
        for place, own in enumerate(units):
            if not own.children:
                variable[place] = own.variable + 1
                tables.setdefault((own.kind, own.variable), []).append(place)
        leaf: list[npt.NDArray[np.float32]] = []
        entries = 1
        for (kind, looked_at), places in tables.items():
            cats = self._categories(looked_at)
            table = np.array([_distribution(units[place], cats) for place in places])
            categories[places], stride[places] = cats, len(places)
            start[places] = entries + np.arange(len(places))
            if kind == "binomial":
                success[places] = [units[place].theta[0] for place in places]
            leaf.append(table.T.ravel().astype(np.float32))
            entries += table.size
        child = [place_of[c] for unit in units for c in unit.children]
        weight = [unit.theta if unit.kind == "sum" else np.ones(len(unit.children)) for unit in units if unit.children]
        ends = np.cumsum([0, *(len(unit.children) for unit in units)])
        return [
            np.array([KINDS[unit.kind] for unit in units], np.uint8), variable, categories, start, stride, success,
            (1 + ends).astype(np.int64), np.array(child, np.int32),
            np.concatenate([*weight, np.empty(0)]).astype(np.float32), np.concatenate(leaf),
            place_of[list(heads)].astype(np.int32),
        ]  # fmt: skip


def _distribution(unit: _Unit, cats: int) -> npt.NDArray[np.float64]:
    """Give an input's probability of each category, (cats,): what it needs to be evaluated, whatever its kind."""
    if unit.kind == "categorical":
        return unit.theta
    if unit.kind == "indicator":
        return np.asarray(np.arange(cats) == unit.theta[0], np.float64)
    from scipy.stats import binom  # where used: it takes a while to load

    return np.asarray(binom.pmf(np.arange(cats), cats - 1, unit.theta[0]), np.float64)
