"""Probabilistic circuits: the Python face of the Julia package LVDJuice, which holds them and does the work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Literal, Self, overload

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import flags, integer, integers, number, one_of
from pyjuice_lvd.circuit import juice
from pyjuice_lvd.circuit.answers import Answers, Moments
from pyjuice_lvd.circuit.distances import Comparisons, Divergence
from pyjuice_lvd.circuit.einet import einet
from pyjuice_lvd.circuit.em import HeldOut, train
from pyjuice_lvd.circuit.engine import Engine, Evidence
from pyjuice_lvd.circuit.files import read_circuit, write_circuit
from pyjuice_lvd.circuit.graph import draw, to_networkx
from pyjuice_lvd.circuit.hclt import hclt, hclt_over
from pyjuice_lvd.circuit.history import Flows, History, Statistics
from pyjuice_lvd.circuit.leaves import Leaves, check_number, kinds_of, leaves_for
from pyjuice_lvd.circuit.reduce import spread
from pyjuice_lvd.circuit.rows import (
    MIXTURE,
    Mask,
    Table,
    as_heads,
    as_shares,
    as_weights,
    for_engine,
    given_heads,
    mixed,
    which_head,
)
from pyjuice_lvd.circuit.structure import grow, prune, with_copies
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.machine import check_result
from pyjuice_lvd.progress import SILENT, Progress

if TYPE_CHECKING:
    import networkx

__all__ = ["Circuit", "Divergence", "Evidence", "Flows", "History", "Moments", "Statistics"]


class Circuit(Answers, Comparisons):
    """A smooth, decomposable circuit with one or more heads, over categories, counts and real numbers.

    Made by `Circuit.hclt`, `rat_spn`, `einet`, `fully_factorized`, `from_tree`, `mixture`, `side_by_side` or `load`,
    or from another circuit by `prune`, `grow` or `with_heads`. `num_nodes` counts units.
    """

    def __init__(self, handle: julia.Handle) -> None:
        self.engine = engine = Engine(handle)
        self.num_vars, self.num_heads, self.num_nodes = engine.num_vars, engine.num_heads, engine.num_nodes

    @property
    def num_edges(self) -> int:
        """All edges, those of products included; an edge that learning gave weight 0 is none."""
        return self.engine.num_edges

    @property
    def num_params(self) -> int:
        """The weights of the sums' edges, and the inputs' parameters."""
        return self.engine.num_params

    @property
    def has_own_leaves(self) -> bool:
        """Whether it has inputs that Juice.jl has none of: logistic, Poisson or Gaussian ones."""
        return not self.engine.probabilities

    @property
    def has_counts(self) -> bool:
        """Whether variables have counts without end: Poisson inputs."""
        return self.engine.has_counts

    @property
    def has_reals(self) -> bool:
        """Whether variables have real numbers: Gaussian inputs."""
        return self.engine.has_reals

    @property
    def is_deterministic(self) -> bool:
        """Whether at most one child of each sum is possible at a time, by the supports of single variables.

        Each two children of a sum must have a variable that cannot have a value of both; edges of weight 0 and units
        that no head reaches do not count. True is certain; a circuit whose children are disjoint only by several
        variables together is found False, too. It is of the parameters as they are.
        """
        return bool(julia.call("is_deterministic", self.engine.circuit))

    @property
    def head_weights(self) -> npt.NDArray[np.float64]:
        """Prior weights of the heads, float64 (num_heads,), which sum to 1; equal, unless set or read.

        They are those of the sum over the heads that a `.jpc` file ends in. No likelihood depends on them. What is
        assigned, numbers of at least 0, is scaled to sum to 1.
        """
        return self.engine.head_weights().astype(np.float64)

    @head_weights.setter
    def head_weights(self, weights: npt.ArrayLike) -> None:
        self.engine.head_weights()[:] = as_shares(weights, self.num_heads, "head_weights")

    def __copy__(self) -> Self:
        other = type(self).__new__(type(self))
        vars(other).update(vars(self), engine=copy(self.engine))
        return other

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
        mask: npt.ArrayLike | None = None,
        num_latents: int = 16,
        num_cats: int | npt.ArrayLike | None = None,
        leaves: Leaves = "categorical",
        heads: int = 1,
        start: str = "random",
        labels: npt.ArrayLike | None = None,
        perturbation: float = 0.4,
        pseudocount: float = 0.1,
        root: int | None = None,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> Self:
        """Make a hidden Chow-Liu tree (Liu and Van den Broeck 2021), untrained, over the dependencies found in `X`.

        Parameters
        ----------
        X : integers (N, V), or numbers for "gaussian" leaves
            Data whose pairwise mutual information gives the tree.
        mask : bool (N, V) or (V,), optional
            True where a value is missing: it is not looked at. The mutual information of a pair is then that of the
            rows in which both are seen.
        num_latents : int
            Hidden states of each variable.
        num_cats : int or integers (V,), optional
            Categories of all variables, or of each; default: the largest value seen in `X`, plus 1, or that of the
            variable where `leaves` are of several kinds.
        leaves : str or sequence of str
            The kind of inputs, or that of each variable: "categorical", a probability for each category; "binomial";
            "logistic", a discretised logistic over ordered categories; "poisson", over counts; "gaussian", over real
            numbers, where X is of floats (docs/leaves.md).
        heads : int
            Sums in the last layer.
        start : "random" or "clusters"
            Where parameters start: at random, or, for ordered categories such as grey levels, at the counts of hidden
            states that K-means finds in the data (`circuit.hclt.hidden_states`): EM then goes faster and further.
        labels : integers (N,), optional
            The head of each row, for `start="clusters"` only; default: 0.
        perturbation : float
            Random parameters are in proportion to U(1 - perturbation, 1 + perturbation).
        pseudocount : float
            Of the mutual information.
        root : int, optional
            The variable at the tree's root; default: the tree's centre. What is asked near the root costs the codec
            least; the distributions that there are hardly depend on it.
        seed : int
            Of the perturbation, and of K-means.
        progress : Progress
            Where the work is shown.

        Raises
        ------
        InputError
            Where the data or a parameter is out of range.

        """
        sizes = num_latents, num_cats, leaves, heads
        return cls(hclt(X, mask, *sizes, start, labels, perturbation, pseudocount, root, seed, progress))

    @classmethod
    def rat_spn(
        cls,
        *,
        num_vars: int,
        depth: int,
        replicas: int,
        num_sums: int,
        num_inputs: int,
        num_cats: int,
        leaves: Leaves = "categorical",
        heads: int = 1,
        perturbation: float = 0.4,
        seed: int = 0,
    ) -> Self:
        """Make a RAT-SPN (Peharz et al. 2019), untrained.

        `replicas` times, the variables are cut into random halves, `depth` times over. Each region has `num_sums` sums,
        one that is not cut `num_inputs` factorised distributions; the whole has `heads` sums. Parameters start in
        proportion to U(1 - perturbation, 1 + perturbation). `leaves`: as for `hclt`. Raises InputError where a
        parameter is out of range.
        """
        *sizes, seed = integers(
            num_vars=num_vars, depth=depth, replicas=replicas, num_sums=num_sums, num_inputs=num_inputs,
            num_cats=num_cats, heads=heads, seed=seed,
        )  # fmt: skip
        kinds, spread = kinds_of(leaves), number("perturbation", perturbation)
        check_number(kinds, sizes[0])
        return cls(julia.call("rat_spn_circuit", *sizes, spread, seed, leaves_for(kinds, sizes[5])))

    @classmethod
    def einet(
        cls,
        *,
        num_sums: int,
        num_cats: int,
        num_vars: int | None = None,
        depth: int | None = None,
        replicas: int | None = None,
        shape: tuple[int, int, int] | None = None,
        steps: Sequence[int] | int | None = None,
        leaves: Leaves = "categorical",
        heads: int = 1,
        perturbation: float = 0.4,
        seed: int = 0,
    ) -> Self:
        """Make an EiNet, an einsum network (Peharz et al. 2020a), untrained.

        A region that is not cut has `num_sums` factorised distributions. Each partition of another region into two has
        `num_sums` sums over all products of a unit of the one part and one of the other; where a region has several
        partitions, its units mix theirs, one by one. The engine evaluates such sums without the products.

        Parameters
        ----------
        num_sums : int
            Units of each region and each partition; the whole has `heads`.
        num_cats : int
            Categories of each variable.
        num_vars, depth, replicas : int, optional
            A random region graph, as `rat_spn` has it: `replicas` times, the variables are cut into random halves,
            `depth` times over.
        shape : (H, W, C), optional
            Instead: the region graph of Poon and Domingos (2011) over the pixels of an image, whose channels are the
            variables, pixel by pixel, row by row: rectangles, cut in two in every way at multiples of `steps`.
        steps : int or integers, optional
            Of `shape`, in pixels; where the first has no multiple inside a rectangle, the next one cuts it.
        leaves : str or sequence of str
            The inputs' kind, or that of each variable, as for `hclt`; not "poisson", of whose rates nothing is known.
        heads : int
            Units of the whole.
        perturbation : float
            Parameters start in proportion to U(1 - perturbation, 1 + perturbation).
        seed : int
            Of the random region graph and of where parameters start.

        Raises
        ------
        InputError
            Where a parameter is out of range, or both region graphs, or none, are asked for.

        """
        return cls(
            einet(num_sums, num_cats, num_vars, depth, replicas, shape, steps, leaves, heads, perturbation, seed)
        )

    @classmethod
    def fully_factorized(cls, *, num_vars: int, num_cats: int, heads: int = 1) -> Self:
        """Make the product of independent variables, each uniform; one for each head."""
        return cls(julia.call("factorized_circuit", *integers(num_vars=num_vars, num_cats=num_cats, heads=heads)))

    @classmethod
    def from_tree(
        cls,
        parent: npt.ArrayLike,
        *,
        num_latents: int = 16,
        num_cats: int,
        leaves: Leaves = "categorical",
        heads: int = 1,
        perturbation: float = 0.4,
        seed: int = 0,
    ) -> Self:
        """Make an HCLT over a given tree: `parent`, integers (V,), is the parent of each variable, -1 for the root.

        The other parameters are those of `hclt`. Raises InputError where `parent` is no tree.
        """
        return cls(hclt_over(parent, num_latents, num_cats, leaves, heads, perturbation, seed))

    @classmethod
    def mixture(cls, circuits: Sequence[Circuit], *, weights: npt.ArrayLike | None = None) -> Self:
        """Make one circuit of several: each head is a sum over that head of all of them; their parameters are copied.

        `weights`, numbers (len(circuits),), are those of the sums, up to a factor; default: equal. Raises InputError
        where the circuits differ in their numbers of variables or heads, or the weights do not fit.
        """
        if not len(circuits):
            raise InputError("mixture: found no circuits, wanted at least 1")
        shares = as_shares(weights, len(circuits), "weights")
        return cls(julia.call("mixture_circuit", shares, *(circuit.engine.circuit for circuit in circuits)))

    @classmethod
    def side_by_side(cls, circuits: Sequence[Circuit]) -> Self:
        """Make one circuit with the heads of all, one after another; their parameters are copied.

        Raises InputError where the circuits differ in their numbers of variables.
        """
        return cls(julia.call("side_by_side_circuit", *(circuit.engine.circuit for circuit in circuits)))

    def with_heads(self, heads: npt.ArrayLike) -> Self:
        """Make a new circuit with some of the heads, integers (m,) from 0, in this order, and what they reach.

        Raises InputError where a head is not one of the circuit's.
        """
        chosen = given_heads(heads, np.size(heads), self.num_heads, "heads")
        return type(self)(julia.call("circuit_with_heads", self.engine.circuit, chosen))

    def with_copies(self, copies: int) -> Self:
        """Make a new circuit with `copies` copies of each head, whose sums and products are their own.

        The inputs are shared. Copy c of head h is head c * num_heads + h, of the same distribution, until EM gives each
        other rows. Raises InputError where `copies` is below 1.
        """
        return type(self)(with_copies(self.engine, copies))

    def log_likelihood(
        self,
        X: npt.ArrayLike | Evidence,
        *,
        mask: npt.ArrayLike | None = None,
        head: int | Literal["all", "mixture"] = 0,
        engine: str = "lvdjuice",
        progress: Progress = SILENT,
    ) -> npt.NDArray[np.float64]:
        """Evaluate log p(x | head), in nats.

        Parameters
        ----------
        X : integers (N, num_vars), or Evidence
            Categories from 0.
        mask : bool (N, num_vars) or (num_vars,), optional
            True where a variable is marginalised; its value is not looked at.
        head : int, "all" or "mixture"
            Which head, from 0; or the mixture of all heads by `head_weights`, which is the sum that a `.jpc` file of
            the circuit ends in.
        engine : "lvdjuice" or "juice"
            What computes it: "juice" is Juice.jl on the CPU, in single precision, to compare with (docs/juice.md).
        progress : Progress
            Where the work is shown.

        Returns
        -------
        float64 (N,), or (N, num_heads) for "all"
            In nats; -inf where p(x) is 0.

        """
        one_of("engine", engine, juice.ENGINES)
        if isinstance(head, str) and head == MIXTURE:
            scores = self.log_likelihood(X, mask=mask, head="all", engine=engine, progress=progress)
            return mixed(scores, self.head_weights)
        which = which_head(head, self.num_heads)
        rows, hidden = self.engine.rows(X, mask)
        if engine == juice.JUICE:
            return juice.log_likelihood(self.engine, rows, hidden, which)
        evaluator = self.engine.evaluator(soft=isinstance(rows, Evidence))
        out = np.empty((len(rows), self.num_heads if which < 0 else 1))
        with progress.stage("log-likelihood", total=len(rows)) as stage:
            for piece in self.engine.pieces(len(rows), evaluator):
                if isinstance(rows, Evidence):
                    julia.call("log_likelihoods!", out[piece], evaluator, rows.handle, piece.start, which)
                else:
                    part = for_engine(rows[piece], masked=hidden is not None)
                    mine = None if hidden is None else hidden[piece]
                    julia.call("log_likelihoods!", out[piece], evaluator, part, mine, which)
                stage.advance(piece.stop - piece.start)
        return out if which < 0 else out[:, 0]

    def fit_em(
        self,
        X: npt.ArrayLike | Evidence,
        *,
        mask: npt.ArrayLike | None = None,
        heads: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
        epochs: int = 50,
        batch_size: int = 256,
        step_size: tuple[float, float] | float = (0.1, 0.01),
        pseudocount: float = 0.1,
        shuffle: bool = True,
        seed: int = 0,
        valid: npt.ArrayLike | Evidence | None = None,
        valid_mask: npt.ArrayLike | None = None,
        valid_heads: npt.ArrayLike | Literal["mixture"] | None = None,
        patience: int = 5,
        checkpoint: str | os.PathLike[str] | None = None,
        on_epoch: Callable[[History], None] | None = None,
        progress: Progress = SILENT,
    ) -> History:
        """Train by mini-batch EM, in place (docs/circuits.md).

        Parameters
        ----------
        X : integers (N, num_vars), or Evidence
            Categories from 0.
        mask : bool (N, num_vars) or (num_vars,), optional
            True where a value is missing: it is not looked at, and the row is learned from what is seen of it, exactly,
            if values are missing at random.
        heads : integers (N,), optional
            The head of every row, from 0; default: head 0.
        weights : floats (N,), optional
            What each row counts for, 0 or 1e-30 to 1e30; default: 1.
        epochs, batch_size : int
            The last, short batch of an epoch is used.
        step_size : (float, float) or float
            In the first and the last epoch; linear in between.
        pseudocount : float
            Shared by the children of a sum, and by the categories of an input: 0, or 1e-30 to 1e20.
        shuffle : bool
            Take the rows in another order in each epoch.
        seed : int
            Of the shuffling.
        valid, valid_mask, valid_heads : as X, mask and heads, optional
            A validation set, what is missing in it, and the heads of its rows: "mixture" where they are not known, so
            that a row counts as one of the heads' mixture, with their prior weights. The parameters with its best
            mean log-likelihood are kept, those from before included.
        patience : int
            With a validation set, training ends after so many epochs in a row that did not improve its likelihood.
        checkpoint : path, optional
            A `.safetensors` file, replaced after an epoch every few seconds. If it exists, training goes on from it,
            whatever the circuit's parameters are now, and ends in the very parameters of undisturbed training at the
            same number of threads. It belongs to these data, mask, heads, weights, validation set and parameters of EM.
        on_epoch : callable, optional
            Gets the history after each epoch that is run here, before the checkpoint is written.
        progress : Progress
            Where the work is shown.

        Returns
        -------
        History
            A list of the weighted mean log-likelihood of each epoch, in nats, every row before its batch's step, of
            what is seen of it; with a validation set, its scores in `.valid` and the epoch kept in `.best`.

        Raises
        ------
        InputError
            Where the data or a parameter is out of range, or the checkpoint is of other training.

        Notes
        -----
        After Ctrl-C the circuit has the parameters of the last finished batch, or with a validation set the best.

        """
        for name, given in (("valid_mask", valid_mask), ("valid_heads", valid_heads)):
            if valid is None and given is not None:
                raise InputError(f"{name}: found without valid, wanted together with it")
        rows, hidden = self.engine.rows(X, mask)
        held_out = None if valid is None else self._held_out(valid, valid_mask, valid_heads)

        def score() -> float:
            """Mean log-likelihood of validation rows, each under its head."""
            assert held_out is not None
            own, missing, own_heads = held_out
            if isinstance(own, Evidence):
                scores = self.log_likelihood(own, head="all")
            else:
                scores = spread(len(own), partial(self._scores_of_part, own, missing))
            if own_heads is None:
                return float(mixed(scores, self.head_weights).mean())
            return float(scores[np.arange(len(scores)), own_heads].mean())

        return train(
            self.engine, rows, hidden, as_heads(heads, len(rows), self.num_heads), as_weights(weights, len(rows)),
            epochs=epochs, batch_size=batch_size, step_size=step_size, pseudocount=pseudocount, shuffle=shuffle,
            seed=seed, valid=held_out, score=score, patience=patience, checkpoint=checkpoint, on_epoch=on_epoch,
            progress=progress,
        )  # fmt: skip

    def _scores_of_part(self, rows: Table, missing: Mask | None, part: slice) -> npt.NDArray[np.float64]:
        return self.log_likelihood(rows[part], mask=None if missing is None else missing[part], head="all")

    def _held_out(
        self, valid: npt.ArrayLike | Evidence, mask: npt.ArrayLike | None, heads: npt.ArrayLike | str | None
    ) -> HeldOut:
        """Check validation rows, their mask and their heads."""
        rows, hidden = self.engine.rows(valid, mask, name="valid", mask_name="valid_mask")
        if not len(rows):
            raise InputError("valid: found no rows, wanted at least 1")
        if isinstance(heads, str):
            one_of("valid_heads", heads, (MIXTURE,))
            return rows, hidden, None
        return rows, hidden, as_heads(heads, len(rows), self.num_heads, "valid_heads")

    def flows(
        self,
        X: npt.ArrayLike | Evidence,
        *,
        mask: npt.ArrayLike | None = None,
        heads: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
        progress: Progress = SILENT,
    ) -> Flows:
        """Add up the flows of all rows: how much of the data passes through each unit and edge.

        X, mask, heads, weights: as for `fit_em`. Returns Flows: `.nodes` float64 (num_nodes,), `.edges` float64
        (num_edges,). Inputs of missing values have flow as other units do; a row of probability 0 has none. Raises
        InputError where the data are out of range.
        """
        nodes, edges = julia.call("file_flows", self.engine.flow_job(X, mask, heads, weights, progress))
        return Flows(nodes, edges)

    def accumulate(
        self,
        X: npt.ArrayLike | Evidence,
        *,
        mask: npt.ArrayLike | None = None,
        heads: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
        progress: Progress = SILENT,
    ) -> Statistics:
        """Take the expected counts of EM over all rows: the first half of a step, which `apply` completes.

        X, mask, heads, weights: as for `fit_em`. A missing value is in no counts of inputs. The statistics of shares of
        the data, taken in any process, add up.
        Raises InputError where the data are out of range.
        """
        edges, inputs, total, weight = julia.call("statistics", self.engine.flow_job(X, mask, heads, weights, progress))
        return Statistics(edges, inputs, total, weight, self.engine.structure)

    def apply(self, stats: Statistics, *, step_size: float = 1.0, pseudocount: float = 0.1) -> None:
        """Take one EM step on what `accumulate` returned for this circuit or one of the same structure.

        Raises InputError where the statistics belong to another circuit, are no counts, or a parameter is out of range.
        """
        if stats.structure != self.engine.structure:
            raise InputError("statistics: found those of another circuit, wanted this one's")
        weight, leaf = self.parameters()
        stats.check(len(weight), len(leaf))
        edges, inputs = (np.ascontiguousarray(counts, np.float64) for counts in (stats.edges, stats.inputs))
        step, added = number("step_size", step_size), number("pseudocount", pseudocount)
        julia.call("apply_statistics!", self.engine.plan(soft=False), edges, inputs, step, added)

    def prune(
        self,
        X: npt.ArrayLike | Evidence,
        *,
        mask: npt.ArrayLike | None = None,
        heads: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
        min_flow: float | None = None,
        keep: float | None = None,
        progress: Progress = SILENT,
    ) -> Self:
        """Make a new circuit without the sum edges that carry little of the data's flow.

        X, mask, heads, weights, progress: as for `fit_em`. Edges with a flow of at most `min_flow` times the rows'
        weight are dropped (default: 1e-4; with 0, exactly those without any flow, and no row becomes less likely); or
        all but the fraction `keep`, in (0, 1], with the largest flows. A sum keeps its largest edge in any case, and
        its weights are scaled to 1; units that no head reaches go. Raises InputError where the data or a parameter is
        out of range.
        """
        return type(self)(prune(self.engine, X, mask, heads, weights, min_flow, keep, progress))

    def grow(
        self,
        X: npt.ArrayLike | Evidence,
        *,
        heads: npt.ArrayLike,
        select: npt.ArrayLike,
        threshold: float,
        noise: float = 0.2,
        seed: int = 0,
        mask: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
        progress: Progress = SILENT,
    ) -> Self:
        """Make a new circuit with a new head for each of `select`: Algorithm 1 copies what they use most.

        Parameters
        ----------
        X, mask, heads, weights, progress
            As for `fit_em`. Only the rows whose heads are selected count.
        select : integers (m,)
            Heads, from 0, each at most once. The new heads follow the old ones, in this order.
        threshold : float
            Copy units below the selected heads whose flow is at least so many rows; in (0, 1), this fraction of them.
        noise : float
            Parameters are multiplied by N(1, noise), clamped to 1 +- 2 noise and at least 0.1, and scaled to sum to 1.
            With 0, old heads keep their distributions, and a new one has that of the head it comes from.
        seed : int
            Of the noise.

        Raises
        ------
        InputError
            Where the data or a parameter is out of range.

        """
        return type(self)(grow(self.engine, X, mask, heads, weights, select, threshold, noise, seed, progress))

    def sample(
        self,
        n: int,
        *,
        X: npt.ArrayLike | Evidence | None = None,
        mask: npt.ArrayLike | None = None,
        head: int | npt.ArrayLike = 0,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> Table:
        """Draw `n` exact samples from a head or each of several, or, with `X`, for each row given what is known of it.

        Parameters
        ----------
        n : int
            How many, at least 0.
        X : integers (N, num_vars) with `mask`, or Evidence, optional
            What is known.
        mask : bool (N, num_vars) or (num_vars,)
            True where the value is hidden, and to be drawn.
        head : int or integers (N,)
            Which head, from 0; of every row its own.
        seed : int
            A sample depends on it, its row and its number alone, not on the number of threads.
        progress : Progress
            Where the work is shown.

        Returns
        -------
        uint8; int32 where a variable has more than 256 categories, or counts; float64 where one has real values
            (n, num_vars), or with X or N heads (n, N, num_vars), the known values included.

        Raises
        ------
        InputError
            Where the data are out of range, and where the evidence of a row has probability 0.

        """
        n, seed = integer("n", n, least=0), integer("seed", seed)
        if X is None and mask is not None:
            raise InputError("mask: found without X, wanted together with it")
        engine = self.engine
        rows, hidden = (None, None) if X is None else engine.rows(X, mask, hides=True)
        count = np.size(head) if rows is None else len(rows)
        check_result("n", n, count * n * self.num_vars * np.dtype(engine.value_type).itemsize)
        out = np.empty((count, n, self.num_vars), engine.value_type)
        heads = given_heads(head, count, self.num_heads)
        engine.run("sample_job", rows, hidden, heads, out, seed, stage="sampling", total=count * n, progress=progress)
        return out[0] if rows is None and np.ndim(head) == 0 else out.swapaxes(0, 1)

    def posterior_marginals(
        self,
        X: npt.ArrayLike | Evidence,
        mask: npt.ArrayLike | None = None,
        *,
        head: int | npt.ArrayLike = 0,
        progress: Progress = SILENT,
    ) -> npt.NDArray[np.float64]:
        """Give each hidden variable's exact distribution, given what is known of its row.

        Parameters
        ----------
        X : integers (N, num_vars) with `mask`, or Evidence
            What is known.
        mask : bool (N, num_vars) or (num_vars,)
            True where the value is hidden.
        head : int or integers (N,)
            Which head, from 0; of every row its own.
        progress : Progress
            Where the work is shown.

        Returns
        -------
        float64 (N, num_vars, C)
            C is the largest number of categories of a variable; sums to 1 over them. An observed variable has a 1 at
            its category. Variables over numbers, which have none, have zeros.

        Raises
        ------
        InputError
            Where the data are out of range, and where the evidence of a row has probability 0.

        """
        rows, hidden = self.engine.rows(X, mask, hides=True)
        n, heads = len(rows), given_heads(head, len(rows), self.num_heads)
        check_result("X", f"{n} rows", 8 * n * self.num_vars * self.engine.categories)
        out = np.zeros((n, self.num_vars, self.engine.categories))
        self.engine.run("marginals_job", rows, hidden, heads, out, stage="marginals", total=n, progress=progress)
        return out

    @overload
    def mpe(
        self,
        X: npt.ArrayLike | Evidence,
        mask: npt.ArrayLike | None = None,
        *,
        head: int | npt.ArrayLike = 0,
        return_exact: Literal[False] = False,
        progress: Progress = SILENT,
    ) -> Table: ...

    @overload
    def mpe(
        self,
        X: npt.ArrayLike | Evidence,
        mask: npt.ArrayLike | None = None,
        *,
        head: int | npt.ArrayLike = 0,
        return_exact: Literal[True],
        progress: Progress = SILENT,
    ) -> tuple[Table, bool]: ...

    def mpe(
        self,
        X: npt.ArrayLike | Evidence,
        mask: npt.ArrayLike | None = None,
        *,
        head: int | npt.ArrayLike = 0,
        return_exact: bool = False,
        progress: Progress = SILENT,
    ) -> Table | tuple[Table, bool]:
        """Complete each row by the most probable values of its hidden variables, found by max-product.

        Exact where at most one child of each sum is possible at a time (`is_deterministic`); elsewhere the usual
        approximation: a sum counts as its best weighted child. Of equals, the first is taken.

        X, mask, head, progress: as for `posterior_marginals`. Returns (N, num_vars), the known values included, of the
        type that `sample` returns; with `return_exact` also whether they are known to be the most probable ones. Raises
        InputError where the data are out of range, and where the evidence of a row has probability 0.
        """
        flags(return_exact=return_exact)
        rows, hidden = self.engine.rows(X, mask, hides=True)
        n, heads = len(rows), given_heads(head, len(rows), self.num_heads)
        out = np.empty((n, self.num_vars), self.engine.value_type)
        self.engine.run("completion_job", rows, hidden, heads, out, stage="completion", total=n, progress=progress)
        return (out, self.is_deterministic) if return_exact else out

    def save(self, path: str | os.PathLike[str], *, about: str = "", progress: Progress = SILENT) -> None:
        """Write the circuit to a `.safetensors`, `.jpc` or `.jpc.gz` file, aside and renamed.

        `about`: lines about it for people, which go to the file's header.
        """
        write_circuit(path, self.engine.circuit, about=about, progress=progress)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a `.safetensors`, `.jpc` or `.jpc.gz` file.

        Raises InputError, with the line where there are lines, if it is missing, damaged or no valid circuit: one that
        is not smooth or not decomposable included.
        """
        circuit = cls(read_circuit(path))
        try:
            circuit.engine.plan(soft=False)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return circuit

    @classmethod
    def from_juice(cls, circuit: julia.Handle) -> Self:
        """Take a circuit of Juice.jl's (a `ProbCircuit` in Julia) over, exactly: its root is head 0.

        Raises InputError where it is none, or not smooth or not decomposable, and where Juice.jl is not installed.
        """
        ours = cls(juice.taken_over(circuit))
        ours.engine.plan(soft=False)
        return ours

    def to_juice(self, *, head: int | None = None) -> julia.Handle:
        """Hand the circuit over to Juice.jl, exactly: one head of it, or the sum over all by `head_weights`.

        `julia.call("ProbabilisticCircuits.NAME", ...)` calls any of its functions on it. Raises InputError where
        Juice.jl is not installed.
        """
        return juice.handed_over(self.engine.circuit, None if head is None else which_head(head, self.num_heads))

    def to_networkx(self) -> networkx.DiGraph[int]:
        """Give the circuit as a graph of networkx, parents to children; units are numbered as in the `.jpc`.

        Every unit has its `kind`; inputs have `variable`, from 0, and `probabilities`, float32 (C,); a sum's edges have
        `weight`, those of weight 0 are left out; what is a head has `heads`, their numbers. Raises InputError where
        networkx is not installed.
        """
        return to_networkx(self.engine)

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw a small circuit, heads above and inputs below, into a `.svg`, `.png` or `.pdf` file.

        Raises InputError for more than 300 units, a file of another kind, and where networkx is not installed.
        """
        draw(self.engine, path)

    def parameters(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """View the parameters: the weights of all edges (1 on those of products), and the inputs' tables or parameters.

        Both float32; they are the circuit's own memory. Assigning to them changes the circuit.
        """
        weight, leaf, _ = self.engine.learned()
        return weight, leaf
