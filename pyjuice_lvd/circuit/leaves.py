"""What the inputs of each variable are, where a circuit's structure is made: their kinds, and where they start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyjuice_lvd import julia
from pyjuice_lvd.checks import one_of
from pyjuice_lvd.circuit.rows import Table, some_rows
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.settings.choices import LEAVES

_ROWS = 2**16
"""So many rows say where inputs start."""

Leaves = str | Sequence[str]
"""One kind for all variables, or that of each."""


def kinds_of(leaves: Leaves, num_vars: int) -> list[str]:
    """Give the kind of all variables' inputs, or of each; raises InputError for others than there are, or too few."""
    kinds = [leaves] if isinstance(leaves, str) else list(leaves)
    if not isinstance(leaves, str) and len(kinds) != num_vars:
        raise InputError(f"leaves: found {len(kinds)} kinds, wanted one, or one for each of {num_vars} variables")
    for kind in kinds:
        one_of("leaves", kind, LEAVES)
    return kinds


def leaves_for(kinds: Sequence[str], num_cats: int, table: Table | None = None) -> julia.Handle:
    """Give Julia's `Leaf`, of all variables or of each, over `num_cats` categories; a table says where inputs start."""
    if table is None:
        centres, spreads = np.array([(num_cats - 1) / 2]), np.array([abs(num_cats - 1) / np.sqrt(12)])
    else:
        seen = table[some_rows(len(table), _ROWS, 0)]
        centres, spreads = seen.mean(axis=0, dtype=np.float64), seen.std(axis=0, dtype=np.float64)
    count = max(len(kinds), len(centres))
    names, categories = " ".join(np.broadcast_to(kinds, count)), np.full(count, num_cats, np.int64)
    starts = (np.broadcast_to(array, count).copy() for array in (centres, spreads))
    handle: julia.Handle = julia.call("leaves_of", names, categories, *starts)
    return handle
