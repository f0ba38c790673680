"""Around EM: its history, early stopping, flows, and statistics that add up over shares of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.checks import integer
from pyjuice_lvd.circuit.reduce import current
from pyjuice_lvd.errors import InputError


class History(list[float]):
    """The weighted mean log-likelihood of each epoch, in nats, every row before its batch's step.

    With a validation set, `valid` are its mean log-likelihoods after each epoch, and `best` is the epoch whose
    parameters were kept (from 1; 0 for those from before the fit).
    """

    def __init__(self) -> None:
        super().__init__()
        self.valid: list[float] = []
        self.best = 0


class Validation:
    """Early stopping: keeps the parameters with the best `score`, which is asked for after each epoch.

    `learned` are the circuit's parameters, its own memory; `kept` are those to go back to, and `best` is their score.
    """

    def __init__(self, score: Callable[[], float], learned: Sequence[npt.NDArray[np.float32]], patience: int) -> None:
        self._score = score
        self._learned = learned
        self._patience = integer("patience", patience, least=1)
        self._keep(self._told())

    def _told(self) -> float:
        """Score the circuit; of processes that share the work, all go by the first one's digits."""
        score = np.array([self._score()])
        current().broadcast(score)
        return float(score[0])

    def _keep(self, score: float) -> None:
        self.best = score
        self.kept = [array.copy() for array in self._learned]

    def look(self, history: History) -> None:
        """Score the circuit after an epoch."""
        history.valid.append(self._told())
        if history.valid[-1] > self.best:
            self._keep(history.valid[-1])
            history.best = len(history)

    def over(self, history: History) -> bool:
        """Whether the last `patience` epochs did not improve."""
        return len(history) - history.best >= self._patience

    def restore(self) -> None:
        """Give the circuit its best parameters."""
        for array, values in zip(self._learned, self.kept, strict=True):
            array[:] = values


@dataclass(frozen=True, eq=False)
class Flows:
    """Flows summed over a data set, in the order of the `.jpc` file that `Circuit.save` writes.

    `nodes`: float64 (num_nodes,), by a unit's id. `edges`: float64 (num_edges,), those of sums and of products, unit by
    unit; a product's edge carries the product's flow. Edges of weight 0 are in neither.
    """

    nodes: npt.NDArray[np.float64]
    edges: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """The expected counts of EM on some rows. Those of two shares of the data add up to the whole's: `a + b`.

    `edges`: float64, the flow of each edge of a sum, 0 for products; `inputs`: float64, the flow of each category of
    each input; both as `Circuit.parameters` lays them out. `log_likelihood` is the weighted sum over the rows, in nats,
    and `weight` what they weigh. `structure` says which circuit they belong to, and is the same in every process;
    parameters do not count for it.
    """

    edges: npt.NDArray[np.float64]
    inputs: npt.NDArray[np.float64]
    log_likelihood: float
    weight: float
    structure: str = field(repr=False)

    def check(self, edges: int, inputs: int) -> None:
        """Raise InputError unless these are counts of so many edges and categories of inputs, finite and at least 0."""
        for name, counts, wanted in (("edges", self.edges, edges), ("inputs", self.inputs, inputs)):
            array = np.asarray(counts)
            if array.shape != (wanted,) or array.dtype.kind not in "fiu":
                raise InputError(f"statistics: found {name} {array.dtype} {array.shape}, wanted numbers ({wanted},)")
            if array.size and not (array.min() >= 0 and array.max() < np.inf):
                place = int(np.argmin((array >= 0) & (array < np.inf)))
                raise InputError(
                    f"statistics: found {array[place]} in {name}, at {place}; wanted finite counts, at least 0"
                )

    def __add__(self, other: Statistics) -> Statistics:
        if not isinstance(other, Statistics):
            return NotImplemented
        if other.structure != self.structure:
            raise InputError("statistics: found those of two circuits, wanted those of one to add up")
        other.check(*map(len, (self.edges, self.inputs)))
        return Statistics(
            self.edges + other.edges,
            self.inputs + other.inputs,
            self.log_likelihood + other.log_likelihood,
            self.weight + other.weight,
            self.structure,
        )
