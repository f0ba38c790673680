"""Mini-batch EM on a circuit (docs/circuits.md): Julia's job, epoch by epoch, with early stopping and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import function, integers, number, step_sizes, typed
from pyjuice_lvd.circuit.checkpoint import Checkpoint, digest_of
from pyjuice_lvd.circuit.devices import backend
from pyjuice_lvd.circuit.engine import Engine, Evidence, Rows, for_julia
from pyjuice_lvd.circuit.history import History, Validation
from pyjuice_lvd.circuit.reduce import current
from pyjuice_lvd.circuit.rows import Mask
from pyjuice_lvd.circuit.steps import Steps
from pyjuice_lvd.progress import Progress

HeldOut = tuple[Rows, Mask | None, npt.NDArray[np.int32] | None]
"""Validation rows, what is missing of them, and their heads, where these are known."""


def train(
    engine: Engine,
    rows: Rows,
    hidden: Mask | None,
    heads: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    *,
    epochs: int,
    batch_size: int,
    step_size: tuple[float, float] | float,
    pseudocount: float,
    shuffle: bool,
    seed: int,
    valid: HeldOut | None,
    score: Callable[[], float],
    patience: int,
    checkpoint: str | os.PathLike[str] | None,
    on_epoch: Callable[[History], None] | None,
    progress: Progress,
) -> History:
    """See `Circuit.fit_em`; `score` gives their mean log-likelihood in nats."""
    epochs, batch_size, seed = integers(epochs=epochs, batch_size=batch_size, seed=seed)
    steps, pseudocount = step_sizes(step_size), number("pseudocount", pseudocount)
    shuffle = typed("shuffle", shuffle, bool)
    function("on_epoch", on_epoch)
    n, learned, borrowed = len(rows), engine.learned(), for_julia(rows, masked=hidden is not None)
    history, state, reducer = History(), None, current()
    if checkpoint is not None:
        about = {
            "structure": engine.structure, "rows": n, "epochs": epochs, "batch_size": batch_size,
            "step_size": steps, "pseudocount": pseudocount, "shuffle": shuffle, "seed": seed,
        }  # fmt: skip
        data = {
            "rows": digest_of(rows), "heads": digest_of(heads), "weights": digest_of(weights),
            "valid": None if valid is None else " ".join(digest_of(part) for part in valid if part is not None),
            **({} if hidden is None else {"mask": digest_of(hidden)}),
        }  # fmt: skip
        state = Checkpoint(checkpoint, learned, about, data, probabilities=engine.probabilities)
    if reducer.size > 1:
        # Evidence is large, and computed from what was compared before.
        given = {"X": None if isinstance(rows, Evidence) else rows, "mask": hidden, "heads": heads}
        digests = {name: digest_of(array) for name, array in given.items() if array is not None}
        reducer.check_same(circuit=engine.structure, **digests)
        reducer.broadcast(*learned)
    watch = None if valid is None else Validation(score, learned, patience)
    if state:
        state.restore(history, watch)
        reducer.check_same(checkpoint=str(len(history)))
    job = julia.call(
        "em_job", engine.circuit, borrowed, hidden, heads, weights, epochs, batch_size, *steps, pseudocount, shuffle,
        seed, len(history), *backend(),
    )  # fmt: skip
    under_way = Steps(job)
    try:
        with progress.stage("EM", total=epochs * n, unit="samples") as stage:
            while len(history) < epochs and not (watch and watch.over(history)):
                finished, position, mean = under_way.advance()
                stage.update(completed=finished * n + position, log_likelihood=mean, **under_way.shown)
                if finished > len(history):
                    history.append(mean)
                    reducer.broadcast(*learned)  # processors that round differently do not drift apart
                    if watch:
                        watch.look(history)
                        stage.update(completed=finished * n, valid=history.valid[-1])
                    if on_epoch:
                        on_epoch(history)
                    if state:
                        state.keep(history, watch)
    finally:
        if watch:
            watch.restore()
    return history
