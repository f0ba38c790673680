"""The baselines behind `fit --method hclt|sparse-hclt|rat-spn|einet`: one circuit over all variables, learned by EM."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.history import History
from pyjuice_lvd.circuit.leaves import standardised
from pyjuice_lvd.circuit.reduce import on_first
from pyjuice_lvd.circuit.rows import Mask, Table, mean_filled
from pyjuice_lvd.clustering import kmeans
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.data.columns import Column
from pyjuice_lvd.data.missing import missing_in
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.run import Record
from pyjuice_lvd.large import by_blocks, digest_of
from pyjuice_lvd.learn.pieces import Pieces
from pyjuice_lvd.learn.searching import choose, is_open
from pyjuice_lvd.learn.sizes import check_fit
from pyjuice_lvd.learn.sparse import prune_and_grow, unfinished
from pyjuice_lvd.models.base import ImageShape
from pyjuice_lvd.models.whole import CircuitModel
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.settings import EinetSettings, HCLTSettings, RatSpnSettings, Settings, WindowSettings

Array = npt.NDArray[Any]

# Each tree of a mixture first learns from its own share, so that EM on the whole starts from trees that differ.
_TREE_EPOCHS = 5

# Deep region graphs that start near the uniform distribution stay there: their sums are too alike for EM to tell apart.
_REGIONS_PERTURBATION = 0.95


def learn_circuit(
    train: Array,
    valid: Array,
    settings: Settings,
    *,
    num_cats: int,
    columns: Sequence[Column] | None = None,
    folder: Path | None = None,
    record: Record = lambda _: None,
    progress: Progress = SILENT,
) -> CircuitModel:
    """Learn one circuit over whole images or the rows of a table, by `settings.method`.

    Parameters
    ----------
    train, valid : uint8 (N, H, W, C), or integers (N, V)
        Images or a table to learn from, and to stop early by; -1 where a value of a table is missing. With `columns`,
        tables as `in_numbers` gives them.
    settings : Settings
        All of them.
    num_cats : int
        Categories of each variable.
    columns : sequence of Column, optional
        Of a table for an HCLT whose columns differ: what each is; `num_cats` is then the most that one has.
    folder : Path, optional
        Where the state is kept. An interrupted call goes on from what is there, with the same outcome.
    record : callable
        Gets one record (plain numbers and texts) for every piece of work.
    progress : Progress
        Where the work is shown.

    Raises
    ------
    InputError
        The model would take more memory than there is.

    """
    check_fit(train.shape, settings, num_cats)
    kind = "table" if train.ndim == 2 else "images"
    digests = {f"training_{kind}": digest_of(train), f"validation_{kind}": digest_of(valid)}
    pieces = Pieces(folder, settings, **digests, categories=num_cats)
    done = pieces.finished(names.DESCRIPTION)
    if done is not None:
        return CircuitModel.load(done.parent)
    image_shape = None if train.ndim == 2 else (train.shape[1], train.shape[2], train.shape[3])
    rows, held_out = (_rows(part, settings) for part in (train, valid))
    missing, missing_valid = missing_in(rows), missing_in(held_out)
    own = _own(settings)
    inputs = _inputs(own, num_cats, columns)
    if train.ndim == 2 and isinstance(own, HCLTSettings) and is_open(own):
        fits = _fitting(train.shape, settings, num_cats)
        own = choose(own, fits, _scorer(rows, held_out, inputs, settings.seed), pieces, record, progress)
    em = em_settings(own, len(rows), held_out, missing_valid, settings.seed)
    circuit, history = learn_by_em(
        lambda: _structure(rows, missing, inputs, image_shape, own, settings.seed, progress),
        rows, missing, em, pieces=pieces, record=record, progress=progress,
    )  # fmt: skip
    if settings.method == "sparse-hclt":
        circuit = prune_and_grow(
            circuit, rows, missing, settings.sparse_hclt, em, valid=max(history.valid), seed=settings.seed,
            pieces=pieces, record=record, progress=progress,
        )  # fmt: skip
    model = CircuitModel(circuit, num_cats=num_cats, image_shape=image_shape, color=settings.data.color)
    if pieces.folder is not None:
        model.save(pieces.folder)
    pieces.drop(names.SEARCH, names.UNTRAINED, names.EM, *unfinished(settings.sparse_hclt.rounds))
    return model


def learn_by_em(
    make: Callable[[], Circuit],
    rows: Table,
    missing: Mask | None,
    em: Mapping[str, Any],
    *,
    pieces: Pieces,
    record: Record,
    progress: Progress,
) -> tuple[Circuit, History]:
    """Make a circuit, or take up the one that was made, and learn it by EM from rows (n, V), of which some are missing.

    `em`: what else `Circuit.fit_em` is given, validation rows among it. Gives a record for the structure, and for each
    epoch. An interrupted call goes on from the pieces.
    """
    began = time.monotonic()
    if (untrained := pieces.finished(names.UNTRAINED)) is not None:
        circuit = Circuit.load(untrained)
    else:
        circuit = make()
        record({"stage": "structure", "params": circuit.num_params, "seconds": time.monotonic() - began})
        if (start := pieces.path(names.UNTRAINED)) is not None:
            circuit.save(start)
    began = time.monotonic()

    def on_epoch(history: History) -> None:
        nonlocal began
        now = time.monotonic()
        figures = {"train": history[-1], "valid": history.valid[-1], "seconds": now - began}
        record({"stage": "EM", "epoch": len(history), **figures})
        began = now

    history = circuit.fit_em(
        rows, mask=missing, **em, checkpoint=pieces.checkpoint(names.EM), on_epoch=on_epoch, progress=progress
    )
    return circuit, history


_Own = HCLTSettings | RatSpnSettings | EinetSettings


def _own(settings: Settings) -> _Own:
    """Give the method's own section."""
    sections: dict[str, _Own] = {"rat-spn": settings.rat_spn, "einet": settings.einet}
    return sections.get(settings.method, settings.hclt)


def _inputs(own: _Own, num_cats: int, columns: Sequence[Column] | None) -> dict[str, Any]:
    """Give the kinds of inputs, and their categories, of all variables or of each."""
    if columns is None:
        return {"leaves": own.leaves, "num_cats": num_cats}
    return {"leaves": [column.leaves for column in columns], "num_cats": [column.num_cats for column in columns]}


def _rows(data: Array, settings: Settings) -> Table:
    if data.ndim == 2:
        return data
    forward = color_transform(settings.data.color, data.shape[3]).forward
    return by_blocks(len(data), lambda rows: forward(data[rows]), data[0].nbytes).reshape(len(data), -1)


def _structure(
    rows: Table,
    missing: Mask | None,
    inputs: dict[str, Any],
    image_shape: ImageShape | None,
    own: _Own,
    seed: int,
    progress: Progress,
) -> Circuit:
    if isinstance(own, HCLTSettings):
        return mixture_of_trees(rows, missing, inputs, own, seed, progress)
    if isinstance(own, EinetSettings):
        random = own.regions == "random" or image_shape is None
        graph: dict[str, Any] = {"num_vars": rows.shape[1], "depth": own.depth, "replicas": own.replicas}
        return Circuit.einet(
            **(graph if random else {"shape": image_shape, "steps": own.steps}), num_sums=own.sums, **inputs,
            perturbation=_REGIONS_PERTURBATION, seed=seed,
        )  # fmt: skip
    return Circuit.rat_spn(
        num_vars=rows.shape[1], depth=own.depth, replicas=own.replicas, num_sums=own.sums, num_inputs=own.inputs,
        **inputs, perturbation=_REGIONS_PERTURBATION, seed=seed,
    )  # fmt: skip


def _fitting(shape: tuple[int, ...], settings: Settings, num_cats: int) -> Callable[[HCLTSettings], bool]:
    """Give what says whether `check_fit` lets an HCLT of such data be."""

    def fits(own: HCLTSettings) -> bool:
        try:
            check_fit(shape, replace(settings, hclt=own), num_cats)
        except InputError:
            return False
        return True

    return fits


def _scorer(rows: Table, held_out: Table, inputs: dict[str, Any], seed: int) -> Callable[[HCLTSettings], float]:
    """Give what learns a mixture of trees by some settings, and scores it on the validation rows: mean nats."""
    missing, missing_valid = missing_in(rows), missing_in(held_out)

    def score(own: HCLTSettings) -> float:
        circuit = mixture_of_trees(rows, missing, inputs, own, seed, SILENT)
        history = circuit.fit_em(rows, mask=missing, **em_settings(own, len(rows), held_out, missing_valid, seed))
        return max(history.valid)

    return score


def mixture_of_trees(
    rows: Table,
    missing: Mask | None,
    inputs: dict[str, Any],
    own: HCLTSettings | WindowSettings,
    seed: int,
    progress: Progress,
) -> Circuit:
    """Make one HCLT, or a mixture of several: one for each cluster of rows, trained on it a little."""
    make = {**inputs, "num_latents": own.latents, "start": own.start}
    if own.trees == 1:
        return Circuit.hclt(rows, mask=missing, **make, seed=seed, progress=progress)
    near = mean_filled(rows, missing)
    if not isinstance(inputs["leaves"], str):  # distances are between columns of one size
        near = standardised(near)
    clusters = on_first(lambda: kmeans(near, own.trees, seed))
    shares = np.bincount(clusters)
    trees = []
    with progress.stage("trees", total=len(rows), unit="rows") as stage:
        for number, share in enumerate(shares):
            members, mask = rows[clusters == number], None if missing is None else missing[clusters == number]
            tree = Circuit.hclt(members, mask=mask, **make, seed=seed + number)
            em = _batches(own, len(members))
            tree.fit_em(members, mask=mask, **em, epochs=_TREE_EPOCHS, step_size=own.step_size, seed=seed)
            trees.append(tree)
            stage.advance(float(share))
    return Circuit.mixture(trees, weights=shares)


def em_settings(own: _Own | WindowSettings, n: int, held_out: Table, missing: Mask | None, seed: int) -> dict[str, Any]:
    """Give what `Circuit.fit_em` is told for n rows, with validation rows, of which some are missing."""
    return {
        **_batches(own, n), "seed": seed, "epochs": own.epochs, "step_size": own.step_size,
        "valid": held_out, "valid_mask": missing, "patience": own.patience,
    }  # fmt: skip


def _batches(own: _Own | WindowSettings, n: int) -> dict[str, Any]:
    # Batches as even as can be: with large steps, a last batch of a few rows would leave its mark on all parameters.
    batches = math.ceil(n / own.batch_size)
    return {"batch_size": math.ceil(n / batches), "pseudocount": own.pseudocount}
