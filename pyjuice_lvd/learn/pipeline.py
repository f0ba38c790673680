"""Latent variable distillation: teacher, features, clusters, patch circuits, prior; the pipeline behind `fit`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.history import History
from pyjuice_lvd.clustering import Labels, kmeans
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.data.images import mirrored
from pyjuice_lvd.data.patches import position_grid, to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import read_arrays, write_arrays
from pyjuice_lvd.files.run import Record
from pyjuice_lvd.learn.growing import Grown, one_shot, progressive_growing
from pyjuice_lvd.learn.refining import refine
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.joint_em import fit_end_to_end, fit_prior
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.seeds import derived_seed
from pyjuice_lvd.settings import Settings
from pyjuice_lvd.teacher import Teacher

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Distilled:
    """What `distill` learns: the teacher and the joint model."""

    teacher: Teacher
    model: JointModel


def distill(
    train: Images,
    valid: Images,
    settings: Settings,
    *,
    folder: Path | None = None,
    record: Record = lambda _: None,
    progress: Progress = SILENT,
) -> Distilled:
    """Learn the joint model of images by latent variable distillation (Liu et al., ICML 2023).

    Parameters
    ----------
    train, valid : uint8 (N, H, W, C)
        Images to learn from, and to stop early by.
    settings : Settings
        All of them.
    folder : Path, optional
        Where every finished piece is kept. Pieces that are there already are taken up, so that an interrupted call goes
        on where it stopped, with the same outcome.
    record : callable
        Gets one record (plain numbers and texts) for every piece of work.
    progress : Progress
        Where the work is shown.

    Raises
    ------
    InputError
        Where the images do not fit the settings.

    """
    check_images(train, settings)
    pieces = _Pieces(folder)
    teacher = _teach(train, valid, settings, pieces, record, progress)
    if settings.data.flip:
        train = np.concatenate([train, mirrored(train)])
    circuits, labels = _patch_circuits(teacher, train, settings, pieces, record, progress)
    model = _join(circuits, labels, train, valid, settings, pieces, record, progress)
    return Distilled(teacher, model)


def check_images(train: Images, settings: Settings) -> None:
    """Raise InputError where training images, uint8 (N, H, W, C), do not fit the settings, before any work is done."""
    position_grid(train.shape[1], train.shape[2], settings.teacher.patch)
    if len(train) < settings.clusters.outer:
        raise InputError(
            f"found {len(train)} training images for clusters.outer = {settings.clusters.outer}, "
            "wanted at least as many images as clusters"
        )


class _Pieces:
    """The files of finished pieces of work, if they are to be kept at all."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name

    def finished(self, name: str) -> Path | None:
        """The path of a finished piece, or None."""
        path = self.path(name)
        return path if path is not None and path.exists() else None


def _teach(
    train: Images, valid: Images, settings: Settings, pieces: _Pieces, record: Record, progress: Progress
) -> Teacher:
    done = pieces.finished(names.TEACHER)
    if done is not None:
        return Teacher.load(done, device=settings.device)
    started = time.monotonic()
    checkpoint = pieces.path(names.TEACHER_IN_TRAINING)
    teacher = Teacher(settings.teacher, color=settings.data.color).fit(
        train, valid=valid, seed=settings.seed, device=settings.device, checkpoint=checkpoint, progress=progress
    )
    for entry in teacher.history:
        record({"stage": "teacher", **entry})
    record({"stage": "teacher", "seconds": time.monotonic() - started})
    path = pieces.path(names.TEACHER)
    if path is not None:
        teacher.save(path)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    return teacher


def _outer_clusters(
    x: Images, h: npt.NDArray[np.float32], settings: Settings, pieces: _Pieces, record: Record, progress: Progress
) -> npt.NDArray[np.int32]:
    """Cluster the features of all patches once, as they are, and refine the clusters: int32 (N, P, M).

    The first of the M is a patch's outer cluster, the others are the next most probable; without refining, M is 1.
    Positions that are not tied have clusters of their own, which follow one another. `x`: patches (N, P, V), `h`:
    features (N, P, D).
    """
    done = pieces.finished(names.OUTER)
    if done is not None:
        return read_arrays(done)[0]["candidates"]
    clusters, wanted, first, ranks = settings.clusters, max(settings.finetuning.candidates, 1), 0, []
    for position in (None,) if clusters.tied else range(h.shape[1]):
        positions = slice(None) if position is None else slice(position, position + 1)
        own = kmeans(h[:, positions].reshape(-1, h.shape[2]), clusters.outer, settings.seed)[:, None]
        if settings.refining.rounds:
            own = refine(
                np.ascontiguousarray(x[:, positions]).reshape(-1, x.shape[2]), own[:, 0], settings.refining,
                candidates=wanted, seed=settings.seed, record=_at_position(record, position), progress=progress,
                name="outer clusters" if position is None else f"outer clusters of position {position}",
            )  # fmt: skip
        ranks.append(first + own.reshape(len(h), -1, own.shape[1]))
        first += int(own.max()) + 1
    widest = max(own.shape[2] for own in ranks)  # positions with fewer clusters name their last candidate again
    ranks = [np.pad(own, ((0, 0), (0, 0), (0, widest - own.shape[2])), mode="edge") for own in ranks]
    candidates = np.concatenate(ranks, axis=1)
    path = pieces.path(names.OUTER)
    if path is not None:
        write_arrays(path, {"candidates": candidates})
    return candidates


def _at_position(record: Record, position: int | None) -> Record:
    return record if position is None else lambda entry: record({**entry, "position": position})


def _patch_circuits(
    teacher: Teacher, train: Images, settings: Settings, pieces: _Pieces, record: Record, progress: Progress
) -> tuple[list[Circuit], Labels]:
    """Learn p(x | z) and z, one multi-headed circuit for each outer cluster."""
    done = pieces.finished(names.LABELS)
    if done is not None and pieces.folder is not None:
        arrays, _ = read_arrays(done)
        labels = Labels(arrays["outer"], arrays["head"], arrays["heads"], arrays.get("candidates"))
        return [Circuit.load(pieces.folder / names.circuit_of(index)) for index in range(len(labels.heads))], labels
    x = to_patches(color_transform(settings.data.color, train.shape[3]).forward(train), settings.teacher.patch)
    h = teacher.features(train)
    candidates = _outer_clusters(x, h, settings, pieces, record, progress)
    outer = np.ascontiguousarray(candidates[:, :, 0])
    if settings.growing.quantized and settings.method == "lvd-pg":
        h = teacher.features(train, quantized=True)
    x, h = x.reshape(-1, x.shape[2]), h.reshape(-1, h.shape[2])
    circuits: list[Circuit] = []
    head = np.zeros(outer.size, np.int32)
    clusters = int(outer.max()) + 1
    with progress.stage("patch circuits", total=len(x), unit="patches") as stage:
        for cluster in range(clusters):
            members = np.flatnonzero(outer == cluster)
            grown = _patch_circuit(x[members], h[members], cluster, settings, pieces, record, progress)
            circuits.append(grown.circuit)
            head[members] = grown.labels
            stage.advance(len(members), cluster=f"{cluster + 1}/{clusters}", heads=grown.circuit.num_heads)
    heads = np.array([pc.num_heads for pc in circuits], np.int32)
    labels = Labels(outer, head.reshape(outer.shape), heads, candidates if settings.finetuning.candidates else None)
    path = pieces.path(names.LABELS)
    if path is not None:
        arrays = {"outer": labels.outer, "head": labels.head, "heads": labels.heads}
        if labels.candidates is not None:
            arrays["candidates"] = labels.candidates
        write_arrays(path, arrays)
        for name in (names.OUTER, *(names.heads_of(cluster) for cluster in range(clusters))):
            path.with_name(name).unlink(missing_ok=True)
    return circuits, labels


def _patch_circuit(
    x: npt.NDArray[np.uint8],
    h: npt.NDArray[np.float32],
    cluster: int,
    settings: Settings,
    pieces: _Pieces,
    record: Record,
    progress: Progress,
) -> Grown:
    """Learn one outer cluster's circuit from its patches and their features, and their heads."""
    done = pieces.finished(names.circuit_of(cluster))
    if done is not None:
        return Grown(Circuit.load(done), read_arrays(done.with_name(names.heads_of(cluster)))[0]["head"])

    def record_cluster(entry: Mapping[str, Any]) -> None:
        record({**entry, "cluster": cluster, "patches": len(x)})

    seed, heads = derived_seed(settings.seed, cluster), settings.clusters.inner
    if settings.method == "lvd":
        grown = one_shot(x, h, num_heads=heads, circuit=settings.circuit, seed=seed, record=record_cluster)
    else:
        grown = progressive_growing(
            x, h, num_heads=heads, circuit=settings.circuit, growing=settings.growing, seed=seed,
            name=f"outer cluster {cluster}", record=record_cluster, progress=progress,
        )  # fmt: skip
    if pieces.folder is not None:
        write_arrays(pieces.folder / names.heads_of(cluster), {"head": grown.labels})
        grown.circuit.save(pieces.folder / names.circuit_of(cluster))  # last: its file says that all of this is done
    return grown


def _join(
    circuits: list[Circuit],
    labels: Labels,
    train: Images,
    valid: Images,
    settings: Settings,
    pieces: _Pieces,
    record: Record,
    progress: Progress,
) -> JointModel:
    """Learn p(z) on the labels and by EM on p(x), then all of p(x) end to end."""
    if pieces.folder is not None and pieces.finished(names.DESCRIPTION):
        return JointModel.load(pieces.folder)
    model = _with_prior(circuits, labels, train, valid, settings, pieces, record, progress)
    own, checkpoint = settings.finetuning, pieces.path(names.FINETUNING)
    if own.epochs:
        started, steps = time.monotonic(), np.linspace(*own.step_size, own.epochs)

        def record_epoch(history: History) -> None:
            record({"stage": "end to end", **_epoch(history, steps, len(history) - 1)})

        history = fit_end_to_end(
            model,
            train,
            valid,
            epochs=own.epochs,
            step_size=own.step_size,
            batch_size=own.batch_size,
            candidates=labels.candidates,
            pseudocount=own.pseudocount,
            prior_pseudocount=settings.prior.pseudocount,
            patience=own.patience,
            seed=settings.seed,
            checkpoint=checkpoint,
            on_epoch=record_epoch,
            progress=progress,
        )
        record({"stage": "end to end", "kept_epoch": history.best, "seconds": time.monotonic() - started})
    if pieces.folder is not None:
        # The checkpoint goes last: these files replace those that finetuning began with.
        model.save(pieces.folder)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    return model


def _with_prior(
    circuits: list[Circuit],
    labels: Labels,
    train: Images,
    valid: Images,
    settings: Settings,
    pieces: _Pieces,
    record: Record,
    progress: Progress,
) -> JointModel:
    """Learn p(z) on the labels, then by EM on p(x); the patch circuits stay as they are."""
    own, tied = settings.prior, settings.clusters.tied
    circuits, z = (circuits, labels.values) if tied else _position_by_position(circuits, labels)

    def joined(prior: Circuit) -> JointModel:
        return JointModel(
            image_shape=(train.shape[1], train.shape[2], train.shape[3]),
            patch=settings.teacher.patch,
            color=settings.data.color,
            circuits=circuits,
            prior=prior,
            tied=tied,
        )

    done, path = pieces.finished(names.PRIOR), pieces.path(names.PRIOR)
    if done is not None:
        return joined(Circuit.load(done))
    started = time.monotonic()
    heads = sum(circuit.num_heads for circuit in circuits) // (1 if tied else z.shape[1])
    prior = Circuit.hclt(z, num_latents=own.latents, num_cats=heads, seed=settings.seed, progress=progress)
    history = prior.fit_em(
        z,
        epochs=own.epochs,
        batch_size=own.batch_size,
        step_size=own.step_size,
        pseudocount=own.pseudocount,
        seed=settings.seed,
        progress=progress,
    )
    record({"stage": "prior", "log_likelihood": history[-1], "seconds": time.monotonic() - started})
    model = joined(prior)
    if own.soft_epochs:
        started = time.monotonic()
        steps = np.linspace(*own.soft_step_size, own.soft_epochs)
        scores = fit_prior(
            model,
            train,
            valid,
            epochs=own.soft_epochs,
            step_size=own.soft_step_size,
            batch_size=own.batch_size,
            pseudocount=own.pseudocount,
            patience=own.patience,
            memory=own.memory,
            seed=settings.seed,
            progress=progress,
        )
        for epoch in range(len(scores)):
            record({"stage": "p(x)", **_epoch(scores, steps, epoch)})
        record({"stage": "p(x)", "kept_epoch": scores.best, "seconds": time.monotonic() - started})
    if path is not None:
        prior.save(path)
    return model


def _position_by_position(circuits: list[Circuit], labels: Labels) -> tuple[list[Circuit], npt.NDArray[np.int32]]:
    """Number z at each position by its own heads; give all positions as many of them.

    A position whose features could not be told apart has fewer: its last head then stands for several values of z.
    """
    circuits, ends = list(circuits), labels.outer.max(axis=0) + 1
    counts = np.array([heads.sum() for heads in np.split(labels.heads, ends[:-1])], np.int32)
    for last, missing in zip(ends - 1, counts.max() - counts, strict=True):
        if missing:
            heads = np.arange(labels.heads[last] + missing)
            circuits[last] = circuits[last].with_heads(np.minimum(heads, labels.heads[last] - 1))
    return circuits, labels.values - (np.cumsum(counts, dtype=np.int32) - counts)


def _epoch(history: History, steps: npt.NDArray[np.float64], epoch: int) -> dict[str, float]:
    """What is recorded of an epoch of EM on p(x), from 0: log-likelihoods are means in nats."""
    return {
        "epoch": epoch + 1,
        "step_size": float(steps[epoch]),
        "train": history[epoch],
        "valid": history.valid[epoch],
    }
