"""Latent variable distillation: teacher, features, clusters, patch circuits, prior; the pipeline behind `fit`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.clustering import Labels, one_shot_labels
from pyjuice_lvd.color import color_transform
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.joint import JointModel, circuit_path
from pyjuice_lvd.patches import position_grid, to_patches
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.runs import read_arrays, write_arrays
from pyjuice_lvd.settings import Settings
from pyjuice_lvd.teacher import Teacher

Images = npt.NDArray[np.uint8]
Record = Callable[[Mapping[str, Any]], None]


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

    Raises InputError where the images do not fit the settings.

    """
    check_images(train, settings)
    pieces = _Pieces(folder)
    teacher = _teach(train, valid, settings, pieces, record, progress)
    labels = _label(teacher, train, settings, pieces, progress)
    patches = to_patches(color_transform(settings.data.color, train.shape[3]).forward(train), settings.teacher.patch)
    circuits = _patch_circuits(patches, labels, settings, pieces, record, progress)
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
    done = pieces.finished("teacher.safetensors")
    if done is not None:
        return Teacher.load(done, device=settings.device)
    started = time.monotonic()
    checkpoint = pieces.path("teacher-in-training.safetensors")
    teacher = Teacher(settings.teacher).fit(
        train, valid=valid, seed=settings.seed, device=settings.device, checkpoint=checkpoint, progress=progress
    )
    for entry in teacher.history:
        record({"stage": "teacher", **entry})
    record({"stage": "teacher", "seconds": time.monotonic() - started})
    path = pieces.path("teacher.safetensors")
    if path is not None:
        teacher.save(path)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    return teacher


def _label(teacher: Teacher, train: Images, settings: Settings, pieces: _Pieces, progress: Progress) -> Labels:
    done = pieces.finished("labels.safetensors")
    if done is not None:
        arrays, _ = read_arrays(done)
        return Labels(arrays["outer"], arrays["head"], arrays["heads"])
    clusters = settings.clusters
    labels = one_shot_labels(
        teacher.features(train), clusters.outer, clusters.inner, seed=settings.seed, progress=progress
    )
    path = pieces.path("labels.safetensors")
    if path is not None:
        write_arrays(path, {"outer": labels.outer, "head": labels.head, "heads": labels.heads})
    return labels


def _patch_circuits(
    patches: npt.NDArray[np.uint8],
    labels: Labels,
    settings: Settings,
    pieces: _Pieces,
    record: Record,
    progress: Progress,
) -> list[Circuit]:
    """Learn p(x | z), one multi-headed HCLT for each outer cluster; `patches`: uint8 (N, P, V)."""
    flat = patches.reshape(-1, patches.shape[2])
    outer, head = labels.outer.ravel(), labels.head.ravel()
    circuits: list[Circuit] = []
    with progress.stage("patch circuits", total=len(flat), unit="patches") as stage:
        for cluster, heads in enumerate(labels.heads):
            members = np.flatnonzero(outer == cluster)
            path = pieces.path(circuit_path(Path(), cluster).name)
            if path is not None and path.exists():
                circuits.append(Circuit.load(path))
                stage.advance(len(members))
                continue
            started = time.monotonic()
            circuit = Circuit.hclt(
                flat[members], num_latents=settings.circuit.latents, num_cats=256, heads=int(heads), seed=settings.seed
            )
            history = circuit.fit_em(
                flat[members],
                heads=head[members],
                epochs=settings.circuit.epochs,
                batch_size=settings.circuit.batch_size,
                step_size=settings.circuit.step_size,
                pseudocount=settings.circuit.pseudocount,
                seed=settings.seed,
            )
            record(
                {
                    "stage": "patch circuit",
                    "cluster": cluster,
                    "patches": len(members),
                    "heads": int(heads),
                    "params": circuit.num_params,
                    "log_likelihood": history[-1],
                    "seconds": time.monotonic() - started,
                }
            )
            if path is not None:  # after the record: work that is done again is recorded again, in its place
                circuit.save(path)
            circuits.append(circuit)
            stage.advance(len(members), cluster=f"{cluster + 1}/{len(labels.heads)}", log_likelihood=history[-1])
    return circuits


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
    """Learn p(z) on the labels, then by EM on p(x)."""
    if pieces.folder is not None and pieces.finished("model.json"):
        return JointModel.load(pieces.folder)
    started = time.monotonic()
    z, own = labels.values, settings.prior
    prior = Circuit.hclt(
        z, num_latents=own.latents, num_cats=int(labels.heads.sum()), seed=settings.seed, progress=progress
    )
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
    model = JointModel(
        image_shape=(train.shape[1], train.shape[2], train.shape[3]),
        patch=settings.teacher.patch,
        color=settings.data.color,
        circuits=circuits,
        prior=prior,
    )
    for entry in model.fit_prior(
        train,
        valid,
        epochs=own.soft_epochs,
        step_size=own.soft_step_size,
        batch_size=own.batch_size,
        pseudocount=own.pseudocount,
        patience=own.patience,
        seed=settings.seed,
        progress=progress,
    ):
        record({"stage": "p(x)", **entry})
    if pieces.folder is not None:
        model.save(pieces.folder)
    return model
