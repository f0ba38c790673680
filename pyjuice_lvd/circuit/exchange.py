"""Circuits that processes make for one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pyjuice_lvd import julia
from pyjuice_lvd.circuit.circuit import Circuit
from pyjuice_lvd.circuit.reduce import current


def exchanged(own: Mapping[int, Circuit]) -> dict[int, Circuit]:
    """Give the numbered circuits of all processes, each of which one process has made, in the order of their numbers.

    They come bit for bit, in one transfer.
    """
    reducer = current()
    if reducer.size == 1:
        return dict(sorted(own.items()))
    arrays = {}
    for number, circuit in own.items():
        num_vars, *fields = julia.call("circuit_fields", circuit.engine.circuit)
        arrays[f"{number}"] = np.array([num_vars, len(fields)])
        arrays |= {f"{number}/{place}": field for place, field in enumerate(fields)}
    found = reducer.merged(arrays)
    made = dict(own)
    for number in sorted(int(name) for name in found if "/" not in name and int(name) not in own):
        num_vars, count = (int(value) for value in found[f"{number}"])
        fields = [found[f"{number}/{place}"] for place in range(count)]
        made[number] = Circuit(julia.call("circuit_of_fields", num_vars, *fields))
    return dict(sorted(made.items()))


def take_over(circuits: Sequence[Circuit], owner: Sequence[int]) -> None:
    """Give every process the parameters that the owner of each circuit, a process, has for it."""
    reducer = current()
    if reducer.size == 1:
        return
    learned = {
        f"{number}/{place}": (array, owner[number])
        for number, circuit in enumerate(circuits)
        for place, array in enumerate(circuit.engine.learned())
    }
    found = reducer.merged({name: array for name, (array, rank) in learned.items() if rank == reducer.rank})
    for name, (array, _) in learned.items():
        array[:] = found[name]
