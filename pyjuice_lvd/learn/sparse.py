"""Sparse circuits: pruning and growing by turns (Dang, Liu and Van den Broeck 2022)."""

from __future__ import annotations

import time
from typing import Any

from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.exchange import exchanged
from pyjuice_lvd.circuit.history import History
from pyjuice_lvd.circuit.reduce import current
from pyjuice_lvd.circuit.rows import Mask, Table
from pyjuice_lvd.files import names
from pyjuice_lvd.files.run import Record
from pyjuice_lvd.learn.pieces import Pieces
from pyjuice_lvd.progress import Progress
from pyjuice_lvd.settings import SparseHCLTSettings


def prune_and_grow(
    circuit: Circuit,
    rows: Table,
    missing: Mask | None,
    own: SparseHCLTSettings,
    em: dict[str, Any],
    *,
    valid: float,
    seed: int,
    pieces: Pieces,
    record: Record,
    progress: Progress,
) -> Circuit:
    """Prune a trained circuit, grow what is left, and train it, round after round.

    Pruning drops the sums' edges through which the data flow least; growing gives each unit a copy, and each sum the
    children of both (Algorithm 1 at threshold 0). So latents double where there is something to tell apart, and edges
    stay about as many. The rounds end with the first that does not improve the validation likelihood.

    Parameters
    ----------
    circuit : Circuit
        With one head.
    rows, missing
        The training data, as `Circuit.fit_em` takes them.
    own : SparseHCLTSettings
        How far to prune, and to grow, and EM's epochs and steps.
    em : dict
        What else `fit_em` is given, validation data among it.
    valid : float
        The circuit's mean validation log-likelihood, in nats.
    seed : int
        Of growing.
    pieces : Pieces
        Keeps the rounds that are done; an interrupted call goes on from the last.
    record : callable
        Gets one record for each epoch and each round.
    progress : Progress
        Where the work is shown.

    Returns
    -------
    Circuit
        The best on the validation data.

    """
    for number in range(1, own.rounds + 1):
        grown_name, em_name, name = (form(number) for form in (names.grown_of, names.em_of, names.round_of))
        if (done := pieces.finished(name)) is not None:
            circuit = Circuit.load(done)
            valid = float(circuit.log_likelihood(em["valid"], mask=em["valid_mask"]).mean())
            continue
        started = time.monotonic()
        if (kept := pieces.finished(grown_name)) is not None:
            grown = Circuit.load(kept)
        else:
            made = {}
            if current().rank == 0:
                pruned = circuit.prune(rows, mask=missing, keep=own.keep, progress=progress)
                made[0] = _grown(pruned, rows, missing, own.noise, seed + number)
            grown = exchanged(made)[0]
            if (path := pieces.path(grown_name)) is not None:
                grown.save(path)

        def on_epoch(history: History, number: int = number) -> None:
            figures = {"train": history[-1], "valid": history.valid[-1]}
            record({"stage": "EM", "round": number, "epoch": len(history), **figures})

        history = grown.fit_em(
            rows, mask=missing, **{**em, "epochs": own.epochs, "step_size": own.step_size},
            checkpoint=pieces.checkpoint(em_name), on_epoch=on_epoch, progress=progress,
        )  # fmt: skip
        found = max(history.valid)
        sizes = {"params": grown.num_params, "edges": grown.num_edges}
        record(
            {"stage": "prune and grow", "round": number, **sizes, "valid": found, "seconds": time.monotonic() - started}
        )
        if found <= valid:
            break
        circuit, valid = grown, found
        if (path := pieces.path(name)) is not None:
            circuit.save(path)
        pieces.drop(names.round_of(number - 1), grown_name, em_name)
    return circuit


def _grown(circuit: Circuit, rows: Table, missing: Mask | None, noise: float, seed: int) -> Circuit:
    """Give every unit a copy; the head, whose own copy nobody needs, is a sum over both of what was below it."""
    hidden = None if missing is None else missing[:1]  # at threshold 0 the flows, and so the rows, do not matter
    both = circuit.grow(rows[:1], mask=hidden, heads=[0], select=[0], threshold=0, noise=noise, seed=seed)
    return both.with_heads([0])


def unfinished(rounds: int) -> list[str]:
    """Name the pieces that are left when the rounds are over."""
    forms = names.grown_of, names.em_of, names.round_of
    return [form(number) for number in range(rounds + 1) for form in forms]
