"""EM on the joint model's p(x): over the prior alone, and end to end, prior and patch circuits together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import function, integer, integers, nonnegative, number, plain_array, step_sizes
from pyjuice_lvd.circuit import Evidence
from pyjuice_lvd.circuit.checkpoint import Checkpoint, digest_of
from pyjuice_lvd.circuit.history import History, Validation
from pyjuice_lvd.circuit.reduce import current, spread
from pyjuice_lvd.circuit.steps import Steps
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.large import by_blocks
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.patch import PatchModel, Schedule
from pyjuice_lvd.progress import SILENT, Progress

Images = npt.NDArray[np.uint8]


def fit_prior(
    model: JointModel,
    train: Images,
    valid: Images,
    *,
    epochs: int,
    step_size: tuple[float, float],
    batch_size: int = 256,
    pseudocount: float = 0.1,
    patience: int = 3,
    memory: float = 4.0,
    seed: int = 0,
    progress: Progress = SILENT,
) -> History:
    """EM on p(x) over the prior's parameters, in place; the patch circuits stay as they are.

    Ends after `patience` epochs without a better validation likelihood; the best parameters are kept (the starting
    ones included). Evidence of up to `memory` GiB is kept; where there is more, it is computed anew in each epoch,
    share by share: images are then shuffled across shares, and within each.

    Returns the mean log-likelihood of each epoch run, in nats, before each batch's step; in `.valid` that of the
    validation images after each.
    """
    epochs, seed = integer("epochs", epochs, least=0), integer("seed", seed, least=0)
    history, steps = History(), np.linspace(*step_sizes(step_size), epochs)
    nonnegative("memory", number("memory", memory))
    train, valid = model.checked(train, "train"), model.checked(valid, "valid")
    with progress.stage("p(z) on p(x)", total=epochs * len(train), unit="images") as stage:
        learned_from, held_out = (_Shares(model, images, int(memory * 2**30)) for images in (train, valid))
        watch = Validation(held_out.mean_score, model.prior.parameters(), patience)
        try:
            while len(history) < epochs and not watch.over(history):
                epoch, total = len(history), 0.0
                for evidence in learned_from.shuffled(seed + epoch):
                    (mean,) = model.prior.fit_em(
                        evidence,
                        epochs=1,
                        batch_size=batch_size,
                        step_size=float(steps[epoch]),
                        pseudocount=pseudocount,
                        seed=seed + epoch,
                    )
                    total += mean * len(evidence)
                    stage.advance(len(evidence), log_likelihood=mean)
                    del evidence  # before the next is made
                history.append(total / len(train))
                watch.look(history)
                stage.advance(0, valid=history.valid[-1])
        finally:
            watch.restore()
    return history


class _Shares:
    """The evidence of images for p(z), in shares of bounded memory: kept where there is but one, else computed anew."""

    def __init__(self, model: JointModel, images: Images, room: int) -> None:
        self.model, self.images, self.room = model, images, room
        fits = model.evidence_bytes(len(images)) <= room
        self.kept = self._evidence(np.arange(len(images))) if fits else None

    def _evidence(self, numbers: npt.NDArray[np.int64]) -> Evidence:
        size = 4 * self.images[:1].nbytes + self.model.evidence_bytes(1)  # with the images' patches, and masks of both
        scores = spread(len(numbers), lambda rows: self.model.patch_scores(self.images[numbers[rows]]), row=size)
        return Evidence(scores)

    def shuffled(self, seed: int) -> Iterator[Evidence]:
        """Give the shares of all images, in an order of the seed's."""
        if self.kept is not None:
            yield self.kept  # whoever takes it shuffles it
            return
        order = np.random.default_rng(seed).permutation(len(self.images))
        for rows in self.model.chunks(len(order), self.room):
            yield self._evidence(order[rows])

    def mean_score(self) -> float:
        """Mean log p(x), nats."""
        if self.kept is not None:
            return float(self.model.prior.log_likelihood(self.kept).mean())
        return float(spread(len(self.images), lambda rows: self.model.score_samples(self.images[rows])).mean())


def fit_end_to_end(
    model: PatchModel,
    train: Images,
    valid: Images,
    *,
    epochs: int,
    step_size: tuple[float, float],
    batch_size: int = 256,
    candidates: npt.NDArray[np.integer[Any]] | None = None,
    pseudocount: float = 0.1,
    prior_pseudocount: float = 0.1,
    patience: int = 3,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[History], None] | None = None,
    progress: Progress = SILENT,
) -> History:
    """Mini-batch EM on p(x), in place: p(z) and the p(x_i | z_i) of all positions learn together.

    The flow of p(x) into a head at a position, p(z_i = k | x), is the weight of that patch in the statistics of the
    head's circuit; of a model with offsets, that of its shifted rows is p(h_i, j, d | x). Memory is bounded by the
    batch: 8 bytes for each of its images, positions and latent values.

    Parameters
    ----------
    model : PatchModel
        A joint model, or one with offsets. Starts from its parameters, and has the best in the end.
    train, valid : uint8 (N, H, W, C)
        Images to learn from, and to stop early by: the parameters with the best mean log-likelihood of `valid` are
        kept, those from before included.
    epochs, batch_size : int
        Batches are of images; the last, short one is used.
    candidates : integers (N, P, M), optional
        For each patch of the training images the circuits, or shapes, from 0, that it is tried under: the others
        count as impossible for it. The cost is then that of M for each patch, not of all of them, and EM raises the
        truncated likelihood, a lower bound of p(x) (truncated variational EM; Luecke and Eggert, JMLR 2010): the
        returned history is of that bound, but not its `.valid`.
    step_size : (float, float)
        In the first and the last epoch; linear in between. With offsets, in the first and the last batch of all epochs.
    pseudocount, prior_pseudocount : float
        Of the patch circuits and of the prior, in each step.
    patience : int
        Training ends after so many epochs in a row that did not improve the validation images'.
    seed : int
        Of the shuffling.
    checkpoint : path, optional
        A safetensors file, replaced from time to time and at the end. If it exists, training goes on from it and ends
        in the very parameters of undisturbed training at the same number of threads. It belongs to these images,
        candidates and parameters of training.
    on_epoch : callable, optional
        Gets the history after each epoch that is run here.
    progress : Progress
        Where the work is shown.

    Returns
    -------
    History
        Mean log-likelihoods of each epoch in nats, as `Circuit.fit_em` gives them. After Ctrl-C the model has the best
        parameters so far.

    Raises
    ------
    InputError
        Where images do not fit the model, a parameter is out of range, or the checkpoint is of other training.

    """
    epochs, batch_size, seed = integers(epochs=epochs, batch_size=batch_size, seed=seed)
    pseudocounts = number("pseudocount", pseudocount), number("prior_pseudocount", prior_pseudocount)
    first_step, last_step = step_sizes(step_size)
    train, valid = model.checked(train, "train"), model.checked(valid, "valid")
    n, patches = len(train), model.patches(train)
    if candidates is not None:
        candidates = _checked(candidates, patches.shape[:2], model.num_candidates)
    learned = model.learned()
    history, state, position, total, reducer = History(), None, 0, 0.0, current()
    function("on_epoch", on_epoch)
    if checkpoint is not None:
        about = {
            "structure": [circuit.engine.structure for circuit in model.learning],
            "images": n, "epochs": epochs, "batch_size": batch_size,
            "step_size": (first_step, last_step), "pseudocount": pseudocounts, "seed": seed,
            "candidates": 0 if candidates is None else candidates.shape[2],
        }  # fmt: skip
        data = {
            "training images": digest_of(patches), "valid": digest_of(model.patches(valid)),
            "candidates": None if candidates is None else digest_of(candidates),
        }  # fmt: skip
        state = Checkpoint(checkpoint, learned, about, data)
    if reducer.size > 1:
        structures = " ".join(circuit.engine.structure for circuit in model.learning)
        tried = "" if candidates is None else digest_of(candidates)
        reducer.check_same(circuits=structures, train=digest_of(patches), valid=digest_of(valid), candidates=tried)
        reducer.broadcast(*learned)

    def score() -> float:
        return float(spread(len(valid), lambda rows: model.score_samples(valid[rows])).mean())

    watch = Validation(score, learned, patience)
    if state:
        position, total = state.restore(history, watch)
        reducer.check_same(checkpoint=f"{len(history)} {position}")
    schedule = Schedule(epochs, batch_size, first_step, last_step, *pseudocounts, seed)
    job = model.em_job(patches, candidates, schedule)
    julia.call("continue_from!", job, len(history), position, total)
    steps = Steps(job)
    try:
        with progress.stage("p(x), end to end", total=epochs * n, unit="images") as stage:
            while len(history) < epochs and not watch.over(history):
                finished, position, mean = steps.advance()
                stage.update(completed=finished * n + position, log_likelihood=mean, **steps.shown)
                if finished > len(history):
                    history.append(mean)
                    reducer.broadcast(*learned)  # processors that round differently do not drift apart
                    watch.look(history)
                    stage.update(completed=finished * n, valid=history.valid[-1])
                    if on_epoch:
                        on_epoch(history)
                if state:
                    state.keep(history, watch, position, mean * position)
        if state:
            state.keep(history, watch, now=True)
    finally:
        watch.restore()
    return history


def _checked(candidates: npt.NDArray[np.integer[Any]], shape: tuple[int, ...], circuits: int) -> npt.NDArray[np.uint16]:
    array = plain_array("candidates", candidates)
    if array.ndim != 3 or array.shape[:2] != shape or not array.shape[2] or array.dtype.kind not in "iu":
        raise InputError(
            f"candidates: found {array.dtype} {array.shape}, wanted integers ({shape[0]}, {shape[1]}, M), M at least 1"
        )
    most = min(circuits, 2**16)  # the engine keeps them in 16 bits
    if array.size and not (array.min() >= 0 and array.max() < most):
        raise InputError(f"candidates: found {array.min()}..{array.max()}, wanted 0..{most - 1}")
    return by_blocks(len(array), lambda rows: np.ascontiguousarray(array[rows], np.uint16), max(1, array[:1].nbytes))
