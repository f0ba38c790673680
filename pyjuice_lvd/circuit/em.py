"""Mini-batch EM on a circuit (docs/circuits.md): Julia's job, epoch by epoch, with early stopping and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.checks import function, integers, number, step_sizes, typed
from pyjuice_lvd.circuit.checkpoint import Checkpoint, digest_of
from pyjuice_lvd.circuit.engine import PIECE, Engine, Rows, for_julia
from pyjuice_lvd.circuit.history import History, Validation
from pyjuice_lvd.progress import Progress


def train(
    engine: Engine,
    rows: Rows,
    heads: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    *,
    epochs: int,
    batch_size: int,
    step_size: tuple[float, float] | float,
    pseudocount: float,
    shuffle: bool,
    seed: int,
    valid: tuple[Rows, npt.NDArray[np.int32]] | None,
    score: Callable[[], float],
    patience: int,
    checkpoint: str | os.PathLike[str] | None,
    on_epoch: Callable[[History], None] | None,
    progress: Progress,
) -> History:
    """See `Circuit.fit_em`; `valid` are rows and heads, `score` gives their mean log-likelihood in nats."""
    epochs, batch_size, seed = integers(epochs=epochs, batch_size=batch_size, seed=seed)
    steps, pseudocount = step_sizes(step_size), number("pseudocount", pseudocount)
    shuffle = typed("shuffle", shuffle, bool)
    function("on_epoch", on_epoch)
    n, learned, borrowed = len(rows), engine.learned(), for_julia(rows)
    history, state = History(), None
    if checkpoint is not None:
        about = {
            "structure": engine.structure, "rows": n, "epochs": epochs, "batch_size": batch_size,
            "step_size": steps, "pseudocount": pseudocount, "shuffle": shuffle, "seed": seed,
        }  # fmt: skip
        data = {
            "rows": digest_of(rows), "heads": digest_of(heads), "weights": digest_of(weights),
            "valid": None if valid is None else " ".join(map(digest_of, valid)),
        }  # fmt: skip
        state = Checkpoint(checkpoint, learned, about, data, probabilities=engine.probabilities)
    watch = None if valid is None else Validation(score, learned, patience)
    if state:
        state.restore(history, watch)
    job = julia.call(
        "em_job", engine.circuit, borrowed, heads, weights, epochs, batch_size, *steps, pseudocount, shuffle, seed,
        len(history),
    )  # fmt: skip
    try:
        with progress.stage("EM", total=epochs * n, unit="samples") as stage:
            while len(history) < epochs and not (watch and watch.over(history)):
                finished, position, mean = julia.call("advance!", job, PIECE)
                stage.update(completed=finished * n + position, log_likelihood=mean)
                if finished > len(history):
                    history.append(mean)
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
