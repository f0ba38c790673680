"""`lvd-juice fit`: train a model and report its held-out bpd."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit.devices import usable, use_device
from pyjuice_lvd.circuit.juice import ENGINES, JUICE, refuse_training
from pyjuice_lvd.circuit.reduce import Reducer, all_or_none, spread
from pyjuice_lvd.data.features import read_features
from pyjuice_lvd.data.load import largest_value, load_data, num_categories
from pyjuice_lvd.data.source import Array
from pyjuice_lvd.data.splits import Splits
from pyjuice_lvd.distributed import note, noted, processes, restarted, start_together
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.evaluate.merit import factorized_bpd, figures_of_merit
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import json_text, write_json
from pyjuice_lvd.files.run import RunDirectory
from pyjuice_lvd.large import by_blocks, cache_folder, digest_of
from pyjuice_lvd.learn.features import about as about_features
from pyjuice_lvd.learn.features import as_features, of_images
from pyjuice_lvd.learn.sizes import check_categories, check_fit
from pyjuice_lvd.progress import Progress, make_progress
from pyjuice_lvd.report.figures import plot_em, plot_growth, plot_reconstructions, plot_training
from pyjuice_lvd.settings import METHODS, OF_PATCHES, Settings, kept, preset_names, resolve, restored
from pyjuice_lvd.settings.choices import COLOR_NAMES
from pyjuice_lvd.settings.resolve import without_use
from pyjuice_lvd.units import bits_per_dimension
from pyjuice_lvd.versions import versions

from .options import GIVEN, PATH, device_option, emit, json_option, quiet_option, seed_option, threads_option

if TYPE_CHECKING:
    from pyjuice_lvd.models.base import DensityModel


@click.command()
@click.argument("data", type=GIVEN)
@click.option("-o", "--output", "run", type=PATH, required=True, help="The run's directory.")
@click.option("--method", type=click.Choice(METHODS), help=f"[default: {METHODS[0]}]")
@click.option("--preset", metavar="NAME", help=f"Shipped settings: {', '.join(preset_names())}.")
@click.option("--config", type=PATH, metavar="FILE.toml", help="Settings of your own.")
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="One setting; repeatable.")
@click.option("--color", type=click.Choice(COLOR_NAMES), help="Colour transform [default: ycocg].")
@click.option("--crop", metavar="HxW", help="Model the top-left HxW pixels.")
@click.option(
    "--features",
    "features_file",
    type=PATH,
    metavar="FILE",
    help="Features of DATA's patches, .npy or .npz, in place of a teacher's (docs/features.md).",
)
@seed_option
@threads_option
@device_option
@click.option(
    "--engine", type=click.Choice(ENGINES), default=ENGINES[0], show_default=True, help="What learns (docs/juice.md)."
)
@click.option("--resume", is_flag=True, help="Continue the run in the directory.")
@json_option
@quiet_option
def fit(
    data: str,
    run: Path,
    method: str | None,
    preset: str | None,
    config: Path | None,
    assignments: tuple[str, ...],
    color: str | None,
    crop: str | None,
    features_file: Path | None,
    seed: int | None,
    threads: int | None,
    device: str | None,
    engine: str,
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a model of DATA and report its held-out bpd.

    DATA is `digits`, `photos`, a .npy or .npz file of uint8 images, a folder of images, or, for hclt,
    sparse-hclt, rat-spn and einet, a table of integers: .csv, .npy, .npz or a DEBD folder (docs/data.md).
    """
    started = time.monotonic()
    with processes(start=False) as reducer, ExitStack() as context:
        # All that can be wrong with what was typed is found first: Julia and PyTorch take seconds to start.
        first, earlier, settings = reducer.rank == 0, None, Settings()
        with all_or_none():
            if first:  # of torchrun's processes: the others need not see the run, nor what it was resumed from
                ours = f"began {run.absolute()}"
                resume = resume or (restarted() and (run / names.SETTINGS).exists() and noted(ours))
                RunDirectory.check(run, resume=resume)
                note(ours)
                earlier = RunDirectory.open_existing(run, finished=False) if resume else None
                base = restored(earlier.settings, f"{run / names.SETTINGS}: ") if earlier else None
                settings = resolve(
                    preset, config, assignments, base=base,
                    method=method, color=color, crop=crop, seed=seed, threads=threads, device=device,
                )  # fmt: skip
                if earlier:
                    earlier.check_settings(kept(settings), _completed)
                if engine == JUICE:
                    refuse_training(settings.method, ("hclt", "rat-spn"))
        if reducer.size > 1:
            settings = restored(json.loads(reducer.broadcast_bytes(json_text(kept(settings)).encode())))
        progress = make_progress(quiet or not first)
        with all_or_none():
            if features_file is not None and settings.method not in OF_PATCHES:
                raise InputError(
                    f"--features: found method {settings.method}, wanted lvd-pg or lvd, which learn from them"
                )
            if reducer.size > 1:
                cache_folder()  # which is needed at some time
            splits = load_data(data, **settings.loading)
            _check_data(splits, settings)
            about = _about(splits)
            features = None
            if features_file is not None:
                features = _features(features_file, splits, settings)
                about["features"] = {"file": str(features_file), **about_features(features)}
            if earlier:
                _check_same_source(earlier, about)
        learn = partial(_distill, features=features) if settings.method in OF_PATCHES else _learn_circuit
        reducer.check_same(
            DATA=json_text([about[f"{part}digest"] for part in ("", "train_", "valid_", "test_")]),
            features=json_text(about.get("features", {}).get("digest")),
        )
        if not _finished(earlier, reducer):
            prepare(settings)
            context.enter_context(use_device(settings.device))
            for line in (splits.how, *splits.notes):
                progress.log(f"{splits.source}: {line}")
            for text in without_use(assignments, settings):
                offsets = " with offsets" if settings.offsets.steps else ""
                progress.log(f"--set {text}: method {settings.method}{offsets} has no use for it")
            if splits.train.ndim == 2 and (color or crop):
                progress.log(f"{'--color' if color else '--crop'}: {splits.source} is a table, which has no use for it")
        directory = None
        with all_or_none():
            if first:
                directory = context.enter_context(
                    RunDirectory.create(run, settings=kept(settings), resume=resume, completed=_completed)
                )
                _check_same_source(directory, about)
        if directory is None:
            if not _finished(None, reducer):
                _result(learn(splits, settings, None, progress)[0], splits, settings, progress)
            return
        if not (directory / names.DATA).exists():
            write_json(directory / names.DATA, about)
        if not _finished(directory, reducer):
            model, more = learn(splits, settings, directory, progress)
            directory.finish(
                {
                    **_result(model, splits, settings, progress),
                    "seconds": time.monotonic() - started,
                    "seed": settings.seed,
                    "threads": julia.start().threads,
                    **({"processes": reducer.size} if reducer.size > 1 else {}),
                    "run": str(directory.path),
                    "data": {
                        "source": splits.source,
                        "split": splits.how,
                        "train": len(splits.train),
                        "valid": len(splits.valid),
                        **({"notes": splits.notes} if splits.notes else {}),
                        **({"features": about["features"]} if "features" in about else {}),
                    },
                    **more,
                    "versions": versions(),
                }
            )
        emit(directory.result, as_json)


def _finished(directory: RunDirectory | None, reducer: Reducer) -> bool:
    """Say to all processes whether the run is finished: the first of them knows, from its directory."""
    return bool(reducer.broadcast_bytes(b"finished" if directory is not None and directory.finished else b""))


def prepare(settings: Settings, *, threads: int | None = None, device: str | None = None) -> None:
    """Start Julia, so that a machine without one is told so at once, and let PyTorch use as many threads.

    PyTorch comes first: that it misses a device is found without Julia. Then the circuits' device must be there.
    """
    if settings.method in OF_PATCHES:  # the others do without PyTorch and the seconds that it takes to load
        import torch

        from pyjuice_lvd.teacher.teacher import resolve_device

        resolve_device(settings.device if device is None else device)
    started = start_together((settings.threads if threads is None else threads) or None)
    usable(settings.device if device is None else device)
    if settings.method in OF_PATCHES:
        torch.set_num_threads(started.threads)


def _check_data(splits: Splits, settings: Settings) -> None:
    """Raise InputError where no model can be learned of the data by these settings on this machine."""
    categories, largest = num_categories(splits), None
    if splits.train.ndim == 2:
        largest = largest_value(splits)
        check_categories(categories, sum(map(len, (splits.train, splits.valid, splits.test))), largest)
    check_fit(splits.train.shape, settings, categories, largest=largest, source=splits.source)


def _about(splits: Splits) -> dict[str, Any]:
    """Record what is learned from and how it was split."""
    return {
        "source": splits.source,
        "how": splits.how,
        "digest": splits.digest,
        "train_digest": digest_of(splits.train),
        "valid_digest": digest_of(splits.valid),
        "test_digest": digest_of(splits.test),
        "categories": num_categories(splits),
        "columns": splits.columns,
        "train": splits.train.shape,
        "valid": splits.valid.shape,
        "test": splits.test.shape,
    }


def _features(path: Path, splits: Splits, settings: Settings) -> npt.NDArray[np.float32]:
    """Read the features of DATA's images, and give those of the training part."""
    every = as_features(read_features(path), (splits.pool, *splits.train.shape[1:]), settings, str(path))
    return of_images(every, splits.train_rows, splits.pool)


def _check_same_source(directory: RunDirectory, about: Mapping[str, Any]) -> None:
    """Refuse to go on with other data; older runs know their training part only."""
    if not (directory / names.DATA).exists():
        return
    earlier, kind = directory.data, "rows" if len(about["train"]) == 2 else "images"
    if earlier["train_digest"] != about["train_digest"]:
        raise InputError(f"{directory.path}: this run learns from other {kind} ({earlier['source']})")
    for part in ("valid", "test"):
        if earlier.get(f"{part}_digest", about[f"{part}_digest"]) != about[f"{part}_digest"]:
            raise InputError(f"{directory.path}: this run has other {part} {kind} ({earlier['source']})")
    before, now = (known.get("features") or {} for known in (earlier, about))
    if before.get("digest") != now.get("digest"):
        whose = f"the features in {before['file']}" if before else "its teacher's features"
        found = f"those in {now['file']}" if now else "no --features"
        raise InputError(f"{directory.path}: this run learns from {whose}; found {found}")


def _completed(table: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings of an earlier run as this version would keep them."""
    return kept(restored(table))


def _distill(
    splits: Splits,
    settings: Settings,
    directory: RunDirectory | None,
    progress: Progress,
    *,
    features: npt.NDArray[np.float32] | None = None,
) -> tuple[DensityModel, dict[str, Any]]:
    """Learn by distillation; returns the model and what the result says beyond its figures.

    Without a directory it is another process that keeps it, with the figures.
    """
    from pyjuice_lvd.learn.pipeline import distill

    if directory is None:
        return distill(splits.train, splits.valid, settings, features=features, progress=progress).model, {}
    learned = distill(
        splits.train, splits.valid, settings, features=features,
        folder=directory / names.MODEL, record=directory.log, progress=progress,
    )  # fmt: skip
    model, teacher = learned.model, learned.teacher
    plot_training(directory / names.TRAINING, directory.metrics())
    if settings.method == "lvd-pg" and not settings.offsets.steps:
        plot_growth(directory / names.GROWTH, directory.metrics())
    if teacher is None:
        return model, {}
    plot_reconstructions(directory / names.RECONSTRUCTIONS, splits.test, teacher)
    nats = teacher.reconstruction_nats(splits.test)
    return model, {
        "teacher": {
            "reconstruction_bits_per_dim": bits_per_dimension(float(nats.mean()), model.dims),
            "perplexity": teacher.perplexity(splits.test),
        }
    }


def _learn_circuit(
    splits: Splits, settings: Settings, directory: RunDirectory | None, progress: Progress
) -> tuple[DensityModel, dict[str, Any]]:
    """Learn one circuit; as `_distill`."""
    from pyjuice_lvd.learn.baselines import learn_circuit
    from pyjuice_lvd.learn.windows import learn_windows

    learn: Callable[..., DensityModel] = partial(learn_circuit, num_cats=num_categories(splits))
    if settings.method == "windows":
        learn = learn_windows
    if directory is None:
        return learn(splits.train, splits.valid, settings, progress=progress), {}
    model = learn(
        splits.train, splits.valid, settings, folder=directory / names.MODEL, record=directory.log, progress=progress
    )
    plot_em(directory / names.TRAINING, directory.metrics())
    return model, {}


def _modelled(model: DensityModel, part: Array) -> Array:
    return by_blocks(len(part), lambda rows: model.modelled(part[rows]), max(1, part[:1].nbytes))


def _result(model: DensityModel, splits: Splits, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Measure the model on the test set, beside the factorised one."""
    train, valid, test = (_modelled(model, part) for part in (splits.train, splits.valid, splits.test))
    scores = spread(len(splits.test), lambda rows: model.score_samples(splits.test[rows], progress=progress))
    figures = figures_of_merit(scores, model.dims, model.num_seen(splits.test))
    floor = factorized_bpd(train, valid, test, num_categories(splits))
    if floor is not None and figures["bpd"] is not None and figures["bpd"] > floor:
        progress.log(
            "the test set is likelier with every dimension on its own (bpd_factorized): "
            "too little data for this model, or too short a training (docs/settings.md, Few images)"
        )
    return {
        "method": settings.method,
        **figures,
        "bpd_factorized": floor,
        "params": model.num_params,
        "protocol": model.protocol(settings.data.crop),
    }
