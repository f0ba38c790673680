"""Latent variable distillation: teacher, features, clusters, patch circuits, prior; the pipeline behind `fit`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.exchange import exchanged
from pyjuice_lvd.circuit.history import History
from pyjuice_lvd.circuit.reduce import alone, current, spread
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.data.images import mirrored
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import json_text, read_arrays, write_arrays, write_json
from pyjuice_lvd.files.run import Record
from pyjuice_lvd.large import by_blocks, contiguous, counts, digest_of, empty, joined, places, take
from pyjuice_lvd.learn.features import about, as_features, settings_for
from pyjuice_lvd.learn.growing import Grown, one_shot, progressive_growing
from pyjuice_lvd.learn.labels import Featured, Labels, OuterClusters, outer_clusters, position_by_position
from pyjuice_lvd.learn.offsets import Patches, starting_model
from pyjuice_lvd.learn.pieces import Pieces
from pyjuice_lvd.learn.sizes import check_fit, with_clusters
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.joint_em import fit_end_to_end, fit_prior
from pyjuice_lvd.models.load import load_model
from pyjuice_lvd.models.patch import PatchModel
from pyjuice_lvd.models.shapes import ShapeModel
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.seeds import derived_seed
from pyjuice_lvd.settings import FinetuningSettings, OffsetSettings, Settings
from pyjuice_lvd.teacher import Teacher

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Distilled:
    """What `distill` learns: the model of images, and the teacher, unless the features came from elsewhere."""

    teacher: Teacher | None
    model: JointModel | ShapeModel


def distill(
    train: Images,
    valid: Images,
    settings: Settings,
    *,
    features: npt.NDArray[np.floating] | None = None,
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
    features : floats (N, P, D), optional
        Of the training images' patches, by any encoder: no teacher is trained then. Mirror images are learned from
        where they have features, too: (2 N, P, D), with `data.flip` (`learn.features`).
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
        Where the images or the features do not fit the settings, or the model this machine.

    """
    check_fit(train.shape, settings)
    settings = _with_clusters(train, settings, progress)
    given = None if features is None else as_features(features, train.shape, settings)
    digests = {"training_images": digest_of(train), "validation_images": digest_of(valid)}
    if given is not None:
        digests["features"] = digest_of(given)
        settings = settings_for(given, len(train), settings)
    work = _Work(settings, Pieces(folder, settings, **digests), record, progress, given)
    teacher = None if given is not None else _teach(train, valid, work)
    if given is not None and (path := work.pieces.path(names.FEATURES)) is not None:
        write_json(path, about(given))
    if settings.data.flip:
        train = joined([train, mirrored(train)])
    if settings.offsets.steps:
        return Distilled(teacher, _with_offsets(teacher, train, valid, work))
    circuits, labels = _patch_circuits(teacher, train, valid, work)
    return Distilled(teacher, _join(circuits, labels, train, valid, work))


def _with_clusters(train: Images, settings: Settings, progress: Progress) -> Settings:
    """Choose how many outer clusters there are, where that is left to the data, and say so."""
    chosen = with_clusters(train.shape, settings)
    if chosen != settings:
        progress.log(f"clusters.outer: {chosen.clusters.outer}, by the number of training patches")
    return chosen


@dataclass(frozen=True)
class _Work:
    """What every stage of the work goes by: settings, finished pieces, and where it is recorded and shown."""

    settings: Settings
    pieces: Pieces
    record: Record
    progress: Progress
    given: npt.NDArray[np.float32] | None = None
    """Features that are not the teacher's."""


def _teach(train: Images, valid: Images, work: _Work) -> Teacher:
    settings, pieces = work.settings, work.pieces
    done, path = pieces.finished(names.TEACHER), pieces.path(names.TEACHER)
    if done is not None:
        return Teacher.load(done, device=settings.device)
    started = time.monotonic()
    teacher = Teacher(settings.teacher, color=settings.data.color).fit(
        train, valid=valid, seed=settings.seed, device=settings.device,
        checkpoint=pieces.checkpoint(names.TEACHER_IN_TRAINING), progress=work.progress,
    )  # fmt: skip
    for entry in teacher.history:
        work.record({"stage": "teacher", **entry})
    work.record({"stage": "teacher", "seconds": time.monotonic() - started})
    if path is not None:
        teacher.save(path)
        pieces.drop(names.TEACHER_IN_TRAINING)
    return teacher


def _features(
    teacher: Teacher | None, images: Images, work: _Work, *, quantized: bool = False
) -> npt.NDArray[np.float32]:
    """Compute the features of images' patches, float32 (N, P, D): each process those of its part of the images."""
    if teacher is None:
        assert work.given is not None
        return work.given
    return spread(
        len(images), lambda rows: teacher.features(images[rows], quantized=quantized), unit=128, row=images[0].nbytes
    )


def _patches(images: Images, settings: Settings) -> npt.NDArray[np.uint8]:
    """Cut images into patches of what is modelled: uint8 (N, P, V)."""
    forward = color_transform(settings.data.color, images.shape[3]).forward
    cut = settings.teacher.patch
    return by_blocks(len(images), lambda rows: to_patches(forward(images[rows]), cut), images[0].nbytes)


@dataclass(frozen=True)
class _Cluster:
    """What an outer cluster's circuit is learned from: patches (n, V), features (n, D), validation patches (m, V)."""

    x: npt.NDArray[np.uint8]
    h: npt.NDArray[np.float32]
    valid: npt.NDArray[np.uint8] | None


def _patch_circuits(teacher: Teacher | None, train: Images, valid: Images, work: _Work) -> tuple[list[Circuit], Labels]:
    """Learn p(x | z) and z, one multi-headed circuit for each outer cluster."""
    settings, pieces = work.settings, work.pieces
    done, path = pieces.finished(names.LABELS), pieces.path(names.LABELS)
    if done is not None:
        labels = Labels.load(done)
        return [Circuit.load(done.with_name(names.circuit_of(index))) for index in range(len(labels.heads))], labels
    x = _patches(train, settings)
    h = _features(teacher, train, work)
    held_out = None
    if teacher is not None and settings.circuit.patience:  # validation images have no features but the teacher's
        held_out = Featured(_patches(valid, settings), _features(teacher, valid, work))
    clusters = _outer_clusters(Featured(x, h), held_out, settings.finetuning.candidates, work)
    outer = contiguous(clusters.candidates[:, :, 0])
    if settings.growing.quantized and settings.method == "lvd-pg":
        h = _features(teacher, train, work, quantized=True)
    x, h = x.reshape(-1, x.shape[2]), h.reshape(-1, h.shape[2])
    x_valid, outer_valid = None if held_out is None else held_out.x.reshape(-1, x.shape[1]), clusters.valid
    sizes, grown = counts(outer), {}

    def members(cluster: int) -> _Cluster:
        rows = places(outer, cluster)
        own = None if x_valid is None or outer_valid is None else take(x_valid, places(outer_valid, cluster))
        return _Cluster(take(x, rows), take(h, rows), own if own is not None and len(own) else None)

    head = empty(outer.size, np.int32)
    for cluster in range(len(sizes)):
        if (found := _kept_circuit(cluster, pieces)) is not None:
            grown[cluster] = found
    with work.progress.stage("patch circuits", total=len(x), unit="patches") as stage:
        if grown:
            stage.advance(float(sizes[list(grown)].sum()))
        for together in _at_once([cluster for cluster in range(len(sizes)) if cluster not in grown], sizes):
            grown |= _learn_circuits(together, members, work)
            heads = grown[together[-1]].circuit.num_heads
            stage.advance(float(sizes[together].sum()), cluster=f"{len(grown)}/{len(sizes)}", heads=heads)
    for cluster, own in grown.items():
        head[places(outer, cluster)] = own.labels
    circuits = [grown[cluster].circuit for cluster in range(len(sizes))]
    num_heads = np.array([pc.num_heads for pc in circuits], np.int32)
    candidates = clusters.candidates if settings.finetuning.candidates else None
    labels = Labels(outer, head.reshape(outer.shape), num_heads, candidates)
    if path is not None:
        labels.save(path)
        pieces.drop(names.OUTER, *(names.heads_of(cluster) for cluster in range(len(sizes))))
    return circuits, labels


def _outer_clusters(patches: Featured, valid: Featured | None, wanted: int, work: _Work) -> OuterClusters:
    """Give the outer clusters of patches, as `outer_clusters` finds them."""
    done, path = work.pieces.finished(names.OUTER), work.pieces.path(names.OUTER)
    if done is not None:
        arrays = read_arrays(done)[0]
        return OuterClusters(arrays["candidates"], arrays.get("valid"))
    found = outer_clusters(
        patches, work.settings, valid=valid, candidates=wanted, record=work.record, progress=work.progress
    )
    if path is not None:
        valid_part = {} if found.valid is None else {"valid": found.valid}
        write_arrays(path, {"candidates": found.candidates, **valid_part})
    return found


def _at_once(clusters: list[int], sizes: npt.NDArray[np.integer]) -> list[list[int]]:
    """Share outer clusters of such sizes out: those that processes learn at once, one each, are of about the same size.

    What one of them learned is kept after each such round: no more is lost than that.
    """
    processes = current().size
    if processes > 1:
        clusters = sorted(clusters, key=lambda cluster: -sizes[cluster])
    return [clusters[first : first + processes] for first in range(0, len(clusters), processes)]


def _learn_circuits(clusters: Sequence[int], members: Callable[[int], _Cluster], work: _Work) -> dict[int, Grown]:
    """Learn outer clusters' circuits from their members among the patches: one, or one in each process."""
    reducer = current()
    if reducer.size == 1:
        (cluster,) = clusters
        own = {cluster: _patch_circuit(members(cluster), cluster, work)}
        _keep_circuit(cluster, own[cluster], work.pieces)
        return own
    records: list[Mapping[str, Any]] = []
    made, told = {}, {}
    for cluster in clusters[reducer.rank : reducer.rank + 1]:
        with alone():
            learned = _patch_circuit(members(cluster), cluster, replace(work, record=records.append))
        made[cluster], told[f"{cluster}"] = learned.circuit, learned.labels
        told[f"{cluster}/records"] = np.frombuffer(json_text(records).encode(), np.uint8)
    circuits, told = exchanged(made), reducer.merged(told)
    grown = {cluster: Grown(circuits[cluster], told[f"{cluster}"]) for cluster in clusters}
    for cluster, own_circuit in grown.items():
        for entry in json.loads(told[f"{cluster}/records"].tobytes()):
            work.record(entry)
        _keep_circuit(cluster, own_circuit, work.pieces)
    return grown


def _patch_circuit(own: _Cluster, cluster: int, work: _Work) -> Grown:
    """Learn one outer cluster's circuit from its patches and their features, and their heads."""
    settings = work.settings

    def record(entry: Mapping[str, Any]) -> None:
        work.record({**entry, "cluster": cluster, "patches": len(own.x)})

    seed, heads = derived_seed(settings.seed, cluster), settings.clusters.inner
    if settings.method == "lvd":
        return one_shot(
            own.x, own.h, num_heads=heads, valid=own.valid, circuit=settings.circuit, seed=seed, record=record
        )
    return progressive_growing(
        own.x, own.h, num_heads=heads, valid=own.valid, circuit=settings.circuit, growing=settings.growing, seed=seed,
        name=f"outer cluster {cluster}", record=record, progress=work.progress,
    )  # fmt: skip


def _kept_circuit(cluster: int, pieces: Pieces) -> Grown | None:
    """Read one outer cluster's circuit and heads, where they are finished."""
    done = pieces.finished(names.circuit_of(cluster))
    if done is None:
        return None
    return Grown(Circuit.load(done), read_arrays(done.with_name(names.heads_of(cluster)))[0]["head"])


def _keep_circuit(cluster: int, grown: Grown, pieces: Pieces) -> None:
    """Write them, where pieces are kept."""
    path = pieces.path(names.circuit_of(cluster))
    if path is not None:
        write_arrays(path.with_name(names.heads_of(cluster)), {"head": grown.labels})
        grown.circuit.save(path)  # last: its file says that all of this is done


def _join(circuits: list[Circuit], labels: Labels, train: Images, valid: Images, work: _Work) -> JointModel:
    """Learn p(z) on the labels and by EM on p(x), then all of p(x) end to end."""
    settings, pieces = work.settings, work.pieces
    done = pieces.finished(names.DESCRIPTION)
    if done is not None:
        return JointModel.load(done.parent)
    model = _with_prior(circuits, labels, train, valid, work)
    if settings.finetuning.epochs:
        _end_to_end(model, train, valid, settings.finetuning, settings.prior.pseudocount, labels.candidates, work)
    if pieces.folder is not None:
        model.save(pieces.folder)
        pieces.drop(names.FINETUNING)  # last: the model's files replace those that finetuning began with
    return model


def _end_to_end(
    model: PatchModel,
    train: Images,
    valid: Images,
    own: FinetuningSettings | OffsetSettings,
    prior_pseudocount: float,
    candidates: npt.NDArray[np.int32] | None,
    work: _Work,
) -> None:
    """Learn all of p(x) by EM, in place."""
    started = time.monotonic()
    if isinstance(own, OffsetSettings):  # from batch to batch
        steps = np.linspace(*own.step_size, own.epochs + 1)[1:]
    else:
        steps = np.linspace(*own.step_size, own.epochs)

    def record_epoch(history: History) -> None:
        work.record({"stage": "end to end", **_epoch(history, steps, len(history) - 1)})

    history = fit_end_to_end(
        model, train, valid, epochs=own.epochs, step_size=own.step_size, batch_size=own.batch_size,
        candidates=candidates, pseudocount=own.pseudocount, prior_pseudocount=prior_pseudocount,
        patience=own.patience, seed=work.settings.seed, checkpoint=work.pieces.checkpoint(names.FINETUNING),
        on_epoch=record_epoch, progress=work.progress,
    )  # fmt: skip
    work.record({"stage": "end to end", "kept_epoch": history.best, "seconds": time.monotonic() - started})


def _with_offsets(teacher: Teacher | None, train: Images, valid: Images, work: _Work) -> ShapeModel:
    """Learn a model with offsets: shapes, where it starts, then EM on p(x) end to end."""
    settings, pieces, own = work.settings, work.pieces, work.settings.offsets
    done = pieces.finished(names.DESCRIPTION)
    if done is not None:
        return _below_offsets(done.parent)
    shape = train.shape[1], train.shape[2], train.shape[3]
    patches = Patches.of(_patches(train, settings), own.of_channels(shape[2])[0])
    h = patches.less_means(_features(teacher, train, work))
    candidates = _outer_clusters(Featured(patches.residuals, h), None, own.candidates, work).candidates
    start, path = pieces.finished(names.START), pieces.path(names.START)
    if start is not None and (start / names.DESCRIPTION).exists():
        model = _below_offsets(start)
    else:
        started = time.monotonic()
        model = starting_model(patches, contiguous(candidates[:, :, 0]), settings, shape, progress=work.progress)
        work.record({"stage": "shapes", "params": model.num_params, "seconds": time.monotonic() - started})
        if path is not None:
            model.save(path)
    tried = candidates if own.candidates and settings.refining.rounds else None
    _end_to_end(model, train, valid, own, own.prior_pseudocount, tried, work)
    if pieces.folder is not None:
        model.save(pieces.folder)
        pieces.drop(names.FINETUNING, names.START, names.OUTER)
    return model


def _below_offsets(folder: Path) -> ShapeModel:
    """Read a model with offsets."""
    model = load_model(folder)
    if not isinstance(model, ShapeModel):
        raise InputError(f"{folder}: found a model without offsets")
    return model


def _with_prior(circuits: list[Circuit], labels: Labels, train: Images, valid: Images, work: _Work) -> JointModel:
    """Learn p(z) on the labels, then by EM on p(x); the patch circuits stay as they are."""
    settings, own, tied = work.settings, work.settings.prior, work.settings.clusters.tied
    circuits, z = (circuits, labels.values) if tied else position_by_position(circuits, labels)

    def joined(prior: Circuit) -> JointModel:
        return JointModel(
            image_shape=(train.shape[1], train.shape[2], train.shape[3]), patch=settings.teacher.patch,
            color=settings.data.color, circuits=circuits, prior=prior, tied=tied,
        )  # fmt: skip

    done, path = work.pieces.finished(names.PRIOR), work.pieces.path(names.PRIOR)
    if done is not None:
        return joined(Circuit.load(done))
    started = time.monotonic()
    heads = sum(circuit.num_heads for circuit in circuits) // (1 if tied else z.shape[1])
    prior = Circuit.hclt(z, num_latents=own.latents, num_cats=heads, seed=settings.seed, progress=work.progress)
    history = prior.fit_em(
        z, epochs=own.epochs, batch_size=own.batch_size, step_size=own.step_size, pseudocount=own.pseudocount,
        seed=settings.seed, progress=work.progress,
    )  # fmt: skip
    work.record({"stage": "prior", "log_likelihood": history[-1], "seconds": time.monotonic() - started})
    model = joined(prior)
    if own.soft_epochs:
        started, steps = time.monotonic(), np.linspace(*own.soft_step_size, own.soft_epochs)
        scores = fit_prior(
            model, train, valid, epochs=own.soft_epochs, step_size=own.soft_step_size, batch_size=own.batch_size,
            pseudocount=own.pseudocount, patience=own.patience, memory=own.memory, seed=settings.seed,
            progress=work.progress,
        )  # fmt: skip
        for epoch in range(len(scores)):
            work.record({"stage": "p(x)", **_epoch(scores, steps, epoch)})
        work.record({"stage": "p(x)", "kept_epoch": scores.best, "seconds": time.monotonic() - started})
    if path is not None:
        prior.save(path)
    return model


def _epoch(history: History, steps: npt.NDArray[np.float64], epoch: int) -> dict[str, float]:
    """What is recorded of an epoch of EM on p(x), from 0: its last step size, and mean log-likelihoods in nats."""
    return {
        "epoch": epoch + 1,
        "step_size": float(steps[epoch]),
        "train": history[epoch],
        "valid": history.valid[epoch],
    }
