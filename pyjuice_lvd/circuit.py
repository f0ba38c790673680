"""Probabilistic circuits: the Python face of the Julia package LVDJuice, which holds them and does the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.errors import InputError, JuliaError
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.runs import read_arrays, write_arrays

_PIECE = 0.3
"""Seconds that one call of a long job takes: between calls, progress is shown and Ctrl-C is heard."""

_ARRAYS = (
    "kind", "variable", "categories", "param_start", "param_stride", "success", "child_start", "child",
    "weight", "leaf", "heads",
)  # fmt: skip
_FORMAT = "lvd-juice circuit 1"


class Evidence:
    """Soft evidence on every variable of a circuit (DESIGN 4, the joint model).

    `scores`: float32 (N, V, C), the log-likelihood of the evidence on variable v given each of its C categories, in
    nats; -inf excludes a category. The array is taken over: its contents are replaced.
    """

    def __init__(self, scores: npt.NDArray[np.float32]) -> None:
        if scores.ndim != 3 or scores.dtype != np.float32:
            raise InputError(f"evidence: found {scores.dtype} {scores.shape}, wanted float32 (N, V, C)")
        self._scores = np.ascontiguousarray(scores)  # kept: Julia borrows its memory
        self._handle = julia.call("SoftEvidence", self._scores)

    def __len__(self) -> int:
        return len(self._scores)


class Circuit:
    """A smooth, decomposable circuit with one or more heads, over integer variables.

    Made by `Circuit.hclt` or `Circuit.load`. `num_nodes` counts units, `num_edges` all edges, `num_params` the weights
    of sum edges and the category probabilities.
    """

    def __init__(self, handle: julia.Handle) -> None:
        self._handle = handle
        self._plans: dict[bool, julia.Handle] = {}
        self.num_vars, self.num_heads, self.num_nodes, self.num_edges, self.num_params = map(
            int, julia.call("circuit_size", handle)
        )

    def __repr__(self) -> str:
        return (
            f"Circuit(num_vars={self.num_vars}, num_heads={self.num_heads}, num_nodes={self.num_nodes}, "
            f"num_edges={self.num_edges}, num_params={self.num_params})"
        )

    @classmethod
    def hclt(
        cls,
        X: npt.ArrayLike,
        *,
        num_latents: int = 16,
        num_cats: int | None = None,
        heads: int = 1,
        perturbation: float = 0.4,
        pseudocount: float = 0.1,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> Self:
        """Make a hidden Chow-Liu tree (Liu and Van den Broeck 2021), untrained, over the dependencies found in `X`.

        Parameters
        ----------
        X : integers (N, V)
            Data whose pairwise mutual information gives the tree.
        num_latents : int
            Hidden states of each variable.
        num_cats : int, optional
            Categories of each variable; default: the largest value of `X`, plus 1.
        heads : int
            Sums in the last layer.
        perturbation : float
            Parameters start in proportion to U(1 - perturbation, 1 + perturbation).
        pseudocount : float
            Of the mutual information (DESIGN 4).
        seed : int
            Of the perturbation.
        progress : Progress
            Where the work is shown.

        Raises InputError where the data or a parameter is out of range.

        """
        data = as_table(X)
        if not len(data):
            raise InputError("X: found no rows, wanted at least 1")
        cats = int(data.max(initial=0)) + 1 if num_cats is None else num_cats
        job = julia.call("mutual_information_job", data, cats, float(pseudocount))
        with progress.stage("mutual information", total=data.shape[1], unit="variables") as stage:
            done = False
            while not done:
                done, finished, _ = julia.call("advance!", job, _PIECE)
                stage.update(completed=finished)
        mi = julia.call("mutual_information", job)
        return cls(julia.call("hclt_circuit", mi, num_latents, cats, heads, float(perturbation), seed))

    def log_likelihood(self, X: npt.ArrayLike | Evidence, *, head: int | Literal["all"] = 0) -> npt.NDArray[np.float64]:
        """Evaluate log p(x | head), in nats.

        Parameters
        ----------
        X : integers (N, num_vars), or Evidence
            Categories from 0.
        head : int or "all"
            Which head, from 0.

        Returns
        -------
        float64 (N,), or (N, num_heads) for "all". -inf where p(x) is 0.

        """
        if head != "all" and not (isinstance(head, int | np.integer) and 0 <= head < self.num_heads):
            raise InputError(f"head: found {head!r}, wanted 'all' or 0..{self.num_heads - 1}")
        which = -1 if head == "all" else int(head)
        data = X if isinstance(X, Evidence) else as_table(X, self.num_vars)
        out = np.empty((len(data), self.num_heads if which < 0 else 1))
        plan = self._plan(soft=isinstance(data, Evidence))
        if isinstance(data, Evidence):
            julia.call("log_likelihoods!", out, plan, data._handle, which)
        else:
            for rows in self._pieces(len(data)):
                julia.call("log_likelihoods!", out[rows], plan, data[rows], which)
        return out if which < 0 else out[:, 0]

    def fit_em(
        self,
        X: npt.ArrayLike | Evidence,
        *,
        heads: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
        epochs: int = 50,
        batch_size: int = 256,
        step_size: tuple[float, float] | float = (0.1, 0.01),
        pseudocount: float = 0.1,
        shuffle: bool = True,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> list[float]:
        """Train by mini-batch EM (DESIGN 4), in place.

        Parameters
        ----------
        X : integers (N, num_vars), or Evidence
            Categories from 0.
        heads : integers (N,), optional
            The head of every row, from 0; default: head 0.
        weights : floats (N,), optional
            What each row counts for, at least 0; default: 1.
        epochs, batch_size : int
            The last, short batch of an epoch is used.
        step_size : (float, float) or float
            In the first and the last epoch; linear in between.
        pseudocount : float
            Shared by the children of a sum, and by the categories of an input.
        shuffle : bool
            Take the rows in another order in each epoch.
        seed : int
            Of the shuffling.
        progress : Progress
            Where the work is shown.

        Returns
        -------
        The weighted mean log-likelihood of each epoch, in nats, every row before its batch's step.

        Raises InputError where the data or a parameter is out of range. After Ctrl-C the circuit has the parameters of
        the last finished batch.

        """
        data = X if isinstance(X, Evidence) else as_table(X, self.num_vars)
        n = len(data)
        head_of = np.zeros(n, np.int32) if heads is None else _as_heads(heads, n)
        row_weights = np.ones(n, np.float32) if weights is None else np.ascontiguousarray(weights, np.float32)
        first, last = (step_size, step_size) if isinstance(step_size, float | int) else step_size
        job = julia.call(
            "em_job", self._handle, data._handle if isinstance(data, Evidence) else data, head_of, row_weights,
            epochs, batch_size,
            float(first), float(last), float(pseudocount), shuffle, seed,
        )  # fmt: skip
        history: list[float] = []
        with progress.stage("EM", total=epochs * n, unit="samples") as stage:
            while len(history) < epochs:
                finished, position, mean = julia.call("advance!", job, _PIECE)
                stage.update(completed=finished * n + position, log_likelihood=mean)
                if finished > len(history):
                    history.append(mean)
        return history

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the circuit to a `.safetensors` file, aside and renamed."""
        _check_suffix(path)
        num_vars, *arrays = julia.call("circuit_arrays", self._handle)
        write_arrays(
            path, dict(zip(_ARRAYS, arrays, strict=True)), {"format": _FORMAT, "num_vars": str(num_vars)}
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a `.safetensors` file that `save` wrote; raises InputError if it is missing, damaged or no circuit."""
        _check_suffix(path)
        arrays, metadata = read_arrays(path)
        if metadata.get("format") != _FORMAT:
            raise InputError(f"{path}: found format {metadata.get('format')!r}, wanted {_FORMAT!r}")
        try:
            return cls(julia.call("circuit_of", int(metadata["num_vars"]), *(arrays[name] for name in _ARRAYS)))
        except (KeyError, ValueError, JuliaError) as error:
            raise InputError(f"{path}: {error}") from error

    def parameters(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """View the parameters: the weights of all edges (1 on those of products), and the inputs' probabilities.

        Both float32; they are the circuit's own memory. Assigning to them changes the circuit.
        """
        arrays: dict[str, Any] = dict(zip(_ARRAYS, julia.call("circuit_arrays", self._handle)[1:], strict=True))
        return arrays["weight"], arrays["leaf"]

    def _plan(self, *, soft: bool) -> julia.Handle:
        if soft not in self._plans:
            self._plans[soft] = julia.call("plan_of", self._handle, soft)
        return self._plans[soft]

    def _pieces(self, n: int) -> Iterator[slice]:
        """Cut rows into calls well below a second, so that Ctrl-C is heard between them."""
        step = max(1024, int(2e9 / max(self.num_edges, 1)) // 64 * 64)
        return (slice(first, min(first + step, n)) for first in range(0, n, step))


def as_table(X: npt.ArrayLike, num_vars: int | None = None) -> npt.NDArray[Any]:
    """Check that `X` is a table of integers (N, V), V = `num_vars` where given; C-contiguous, not copied if it can be.

    Raises InputError that says what was found. The values are checked where they are used.
    """
    array = np.asarray(X)
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(f"X: found NaN in {array.dtype} {array.shape}, wanted integers (N, V)")
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise InputError(f"X: found {array.dtype} {array.shape}, wanted integers (N, V)")
    if num_vars is not None and array.shape[1] != num_vars:
        raise InputError(f"X: found {array.shape[1]} variables, wanted the circuit's {num_vars}")
    return np.ascontiguousarray(array)


def _as_heads(heads: npt.ArrayLike, n: int) -> npt.NDArray[np.int32]:
    array = np.asarray(heads)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise InputError(f"heads: found {array.dtype} {array.shape}, wanted integers ({n},)")
    return np.ascontiguousarray(array, np.int32)


def _check_suffix(path: str | os.PathLike[str]) -> None:
    if Path(path).suffix != ".safetensors":
        raise InputError(f"{path}: wanted a file that ends in .safetensors")
