"""What stands behind a `Circuit`: the circuit in Julia, its plans, and long calls cut into pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit.devices import CPU, backend, current
from pyjuice_lvd.circuit.rows import Mask, Table, as_heads, as_mask, as_numbers, as_table, as_weights, for_engine
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.progress import Progress
from pyjuice_lvd.shares import paced

PIECE = 0.1
"""Seconds that one call of a long job takes: between calls, progress is shown and Ctrl-C is heard."""

TILE = 64
"""Rows that the CPU works on together (julia/src/cpu/)."""

ARRAYS = (
    "kind", "variable", "categories", "param_start", "param_stride", "success", "child_start", "child",
    "weight", "leaf", "heads", "head_weight",
)  # fmt: skip
"""A circuit's arrays, in the order in which Julia gives and takes them."""

_FIELDS = (*ARRAYS[:7], "list", *ARRAYS[7:])
"""As Julia keeps them, with one list of children for units that share theirs."""

KINDS = {
    "product": 1, "sum": 2, "categorical": 3, "indicator": 4, "literal": 5, "binomial": 6, "logistic": 7, "poisson": 8,
    "gaussian": 9,
}  # fmt: skip
"""The kinds of units, inputs last, and Julia's numbers for them (circuits/circuit.jl)."""

_LEARNED = ("weight", "leaf", "success")

ON_DEVICES = frozenset({"flow_job"})
"""The jobs that every device does; others run on the CPU."""


class Evidence:
    """Soft evidence on every variable of a circuit, as that of a joint model's latents.

    `scores`: float32 (N, V, C), the log-likelihood of the evidence on variable v given each of its C categories, in
    nats; -inf excludes a category. An array that can be written to is taken over: its contents are replaced.
    """

    def __init__(self, scores: npt.NDArray[np.float32]) -> None:
        if scores.ndim != 3 or scores.dtype.newbyteorder("=") != np.float32:
            raise InputError(f"evidence: found {scores.dtype} {scores.shape}, wanted float32 (N, V, C)")
        ours = julia.lendable(scores)
        self.scores = ours if ours.flags.writeable else ours.copy()  # as the engine has them: scaled, and no logarithms
        self.handle: julia.Handle = julia.call("SoftEvidence", self.scores)

    def __len__(self) -> int:
        return len(self.scores)


Rows = Table | Evidence


class Engine:
    """A circuit in Julia, and the plans by which it is evaluated.

    Its arrays are in sight without Julia: it can be copied, or sent to another process, by any thread, as pools of
    processes do it. What arrives is arrays, and goes to Julia when it is first needed there.
    """

    def __init__(self, circuit: julia.Handle) -> None:
        self._settle(circuit)
        self._edges, self._params = map(int, julia.call("circuit_size", circuit)[3:])
        self._plans: dict[bool, julia.Handle] = {}
        self._on_device: dict[bool, tuple[str, julia.Handle]] = {}

    def _settle(self, circuit: julia.Handle) -> None:
        """Take a circuit that is in Julia."""
        self._circuit: julia.Handle | None = circuit
        num_vars, *arrays = julia.call("circuit_fields", circuit)
        self._fields: dict[str, npt.NDArray[Any]] = dict(zip(_FIELDS, arrays, strict=True))
        self.num_vars, self.num_heads = int(num_vars), len(self._fields["heads"])
        self.num_nodes = len(self._fields["kind"])

    @property
    def circuit(self) -> julia.Handle:
        """The circuit in Julia."""
        if self._circuit is None:
            self._settle(julia.call("circuit_of_fields", self.num_vars, *self._fields.values()))
        assert self._circuit is not None
        return self._circuit

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_circuit": None, "_plans": {}, "_on_device": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy in this process is given the very arrays of the other, which may go on changing.
        vars(self).update(state, _fields={name: array.copy() for name, array in state["_fields"].items()})

    @property
    def num_edges(self) -> int:
        """All edges but those of weight 0, which EM leaves behind and files leave out."""
        return int(np.count_nonzero(self._fields["weight"]))

    @property
    def num_params(self) -> int:
        """Weights of such edges of sums, and the inputs' parameters."""
        return self._params - self._edges + self.num_edges

    def plan(self, *, soft: bool) -> julia.Handle:
        """The order of work; `soft`: for Evidence."""
        if soft not in self._plans:
            self._plans[soft] = julia.call("plan_of", self.circuit, soft)
        return self._plans[soft]

    def evaluator(self, *, soft: bool) -> julia.Handle:
        """What evaluates the circuit on the device in use: its plan, on the CPU."""
        device = current()
        if device == CPU:
            return self.plan(soft=soft)
        if self._on_device.get(soft, ("", None))[0] != device:
            self._on_device[soft] = device, julia.call("engine_on", self.circuit, soft, *backend())
        return self._on_device[soft][1]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """View the circuit's arrays; those that are learned are its own memory."""
        return dict(zip(ARRAYS, julia.call("circuit_arrays", self.circuit)[1:], strict=True))

    def learned(self) -> list[npt.NDArray[np.float32]]:
        """View what EM changes: weights of the edges, the inputs' tables and parameters, binomials' probabilities."""
        _ = self.circuit  # whose arrays they are
        return [self._fields[name] for name in _LEARNED]

    @property
    def probabilities(self) -> bool:
        """Whether the parameters are probabilities, all of them."""
        return bool(julia.call("has_only_probabilities", self.circuit))

    def head_weights(self) -> npt.NDArray[np.float32]:
        """View the heads' prior weights."""
        return self._fields["head_weight"]

    @cached_property
    def structure(self) -> str:
        """A digest of everything but the parameters."""
        digest = hashlib.blake2b(digest_size=16)
        for name, array in self.arrays().items():
            if name not in (*_LEARNED, "head_weight"):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def categories(self) -> int:
        """The largest number of categories of a variable."""
        return max(1, int(self._fields["categories"].max()))

    @cached_property
    def has_counts(self) -> bool:
        """Whether variables have counts without end: Poisson inputs."""
        return bool((self._fields["kind"] == KINDS["poisson"]).any())

    @property
    def has_reals(self) -> bool:
        """Whether variables have real numbers: Gaussian inputs."""
        return bool(self.real_variables.any())

    @cached_property
    def real_variables(self) -> npt.NDArray[np.bool_]:
        """Which variables have real numbers: bool (num_vars,)."""
        variables = self._fields["variable"][self._fields["kind"] == KINDS["gaussian"]]
        return np.isin(np.arange(1, self.num_vars + 1), variables)

    @property
    def value_type(self) -> type[np.uint8] | type[np.int32] | type[np.float64]:
        """The type of the values that queries find."""
        if self.has_reals:
            return np.float64
        return np.uint8 if self.categories <= 256 and not self.has_counts else np.int32

    def rows(
        self,
        X: npt.ArrayLike | Evidence,
        mask: npt.ArrayLike | None = None,
        *,
        hides: bool = False,
        name: str = "X",
        mask_name: str = "mask",
    ) -> tuple[Rows, Mask | None]:
        """Check rows, called `name`, and their mask, which a table needs where `hides`, and Evidence must not have."""
        if isinstance(X, Evidence):
            if mask is not None:
                found = "found together with Evidence, which hides all variables itself"
                raise InputError(f"{mask_name}: {found}; wanted None")
            return X, None
        table = as_numbers(X, self.num_vars, name) if self.has_reals else as_table(X, self.num_vars, name)
        hidden = as_mask(mask, table.shape, mask_name) if hides or mask is not None else None
        try:
            julia.call("check_table", self.circuit, table, hidden)
        except InputError as error:
            raise InputError(f"{name}{str(error).removeprefix('X')}") from error
        return table, hidden

    def run(
        self,
        function: str,
        rows: Rows | None,
        hidden: Mask | None,
        *rest: object,
        stage: str,
        total: int,
        progress: Progress,
    ) -> julia.Handle:
        """Start a job on rows, and finish it."""
        soft = isinstance(rows, Evidence)
        evaluator = self.evaluator(soft=soft) if function in ON_DEVICES else self.plan(soft=soft)
        borrowed = rows if rows is None else for_julia(rows, masked=hidden is not None)
        job: julia.Handle = julia.call(function, evaluator, borrowed, hidden, *rest)
        with progress.stage(stage, total=total) as shown:
            done = 0
            while done < total:
                done = julia.call("advance!", job, PIECE)
                shown.update(completed=done)
        return job

    def flow_job(
        self,
        X: npt.ArrayLike | Evidence,
        mask: npt.ArrayLike | None,
        heads: npt.ArrayLike | None,
        weights: npt.ArrayLike | None,
        progress: Progress,
    ) -> julia.Handle:
        """Add up the flows of all rows, each from its head and times its weight."""
        rows, hidden = self.rows(X, mask)
        n = len(rows)
        sources = as_heads(heads, n, self.num_heads), as_weights(weights, n)
        return self.run("flow_job", rows, hidden, *sources, stage="flows", total=n, progress=progress)

    def pieces(self, n: int, evaluator: julia.Handle | None = None) -> Iterator[slice]:
        """Cut rows into pieces of about `PIECE`, of whole passes of an evaluator: between them, Ctrl-C is heard."""
        unit = TILE if current() == CPU or evaluator is None else int(julia.call("samples_at_once", evaluator))
        return paced(n, TILE * max(1, min(16, 10**7 // max(self._edges, 1))), PIECE, unit)


def for_julia(rows: Rows, *, masked: bool = False) -> Table | julia.Handle:
    """Give rows in the form that Julia takes."""
    return rows.handle if isinstance(rows, Evidence) else for_engine(rows, masked=masked)
