"""`lvd-juice fit`: train a model of images and report its held-out bpd."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from pyjuice_lvd import julia
from pyjuice_lvd.color import COLORS, color_transform
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.evaluation import factorized_bpd, figures_of_merit, protocol
from pyjuice_lvd.figures import plot_reconstructions, plot_training
from pyjuice_lvd.images import ImageSplits, digest_of, load_images
from pyjuice_lvd.progress import Progress, make_progress
from pyjuice_lvd.runs import RunDirectory, read_json, write_json
from pyjuice_lvd.settings import METHODS, Settings, preset_names, resolve

from .options import device_option, emit, json_option, quiet_option, seed_option, threads_option

if TYPE_CHECKING:
    from pyjuice_lvd.distill import Distilled


@click.command()
@click.argument("data")
@click.option("-o", "--output", "run", type=click.Path(path_type=Path), required=True, help="The run's directory.")
@click.option("--method", type=click.Choice(METHODS), help=f"[default: {METHODS[0]}]")
@click.option("--preset", metavar="NAME", help=f"Shipped settings: {', '.join(preset_names())}.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE.toml", help="Settings of your own.")
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="One setting; repeatable.")
@click.option("--color", type=click.Choice(list(COLORS)), help="Colour transform [default: ycocg].")
@click.option("--crop", metavar="HxW", help="Model the top-left HxW pixels.")
@seed_option
@threads_option
@device_option
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
    seed: int | None,
    threads: int | None,
    device: str | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a model of DATA and report its held-out bpd.

    DATA is `digits`, `photos`, a .npy or .npz file of uint8 images, or a folder of images (docs/data.md).
    """
    from pyjuice_lvd.distill import (  # PyTorch: not for --help, nor before the settings are checked
        check_images,
        distill,
    )

    started = time.monotonic()
    base = Settings.from_dict(RunDirectory.open_existing(run, finished=False).settings) if resume else None
    settings = resolve(
        preset, config, assignments, base=base,
        method=method, color=color, crop=crop, seed=seed, threads=threads, device=device,
    )  # fmt: skip
    progress = make_progress(quiet)
    images = load_images(
        data,
        crop=settings.data.crop or None,
        size=settings.data.size,
        seed=settings.seed,
        valid_fraction=settings.data.valid_fraction,
        test_fraction=settings.data.test_fraction,
    )
    check_images(images.train, settings)
    use_threads(settings.threads)
    with RunDirectory.create(run, settings=settings.to_dict(), resume=resume) as directory:
        _keep_source(directory, images)
        if not directory.finished:
            progress.log(f"{images.source}: {images.how}")
            learned = distill(
                images.train, images.valid, settings,
                folder=directory / "model", record=directory.log, progress=progress,
            )  # fmt: skip
            directory.finish(_result(learned, images, settings, directory, time.monotonic() - started, progress))
        result = directory.result
    emit(result, as_json)


def use_threads(threads: int) -> None:
    """Start Julia, early so that a machine without one is told so at once, and let PyTorch use as many threads."""
    import torch

    torch.set_num_threads(julia.start(threads=threads or None).threads)


def _keep_source(directory: RunDirectory, images: ImageSplits) -> None:
    """Record what was learned from and how it was split; refuse to go on with other images."""
    digest = digest_of(images.train)
    record = {
        "source": images.source,
        "how": images.how,
        "digest": images.digest,
        "train_digest": digest,
        "train": list(images.train.shape),
        "valid": list(images.valid.shape),
        "test": list(images.test.shape),
    }
    path = directory / "data.json"
    if path.exists() and read_json(path)["train_digest"] != digest:
        raise InputError(f"{directory.path}: this run learns from other images ({read_json(path)['source']})")
    if not path.exists():
        write_json(path, record)


def _result(
    learned: Distilled,
    images: ImageSplits,
    settings: Settings,
    directory: RunDirectory,
    seconds: float,
    progress: Progress,
) -> dict[str, Any]:
    model, teacher = learned.model, learned.teacher
    color = color_transform(settings.data.color, images.train.shape[3])
    floor = factorized_bpd(*(color.forward(part) for part in (images.train, images.valid, images.test)))
    scores = model.score_samples(images.test, progress=progress)
    nats = teacher.reconstruction_nats(images.test)
    plot_reconstructions(directory / "reconstructions.png", images.test, teacher)
    plot_training(directory / "training.png", directory.metrics())
    return {
        "method": settings.method,
        **figures_of_merit(scores, model.dims),
        "bpd_factorized": floor,
        "params": model.num_params,
        "protocol": protocol(settings.data.color, settings.data.crop, images.train.shape[3]),
        "seconds": seconds,
        "run": str(directory.path),
        "data": {"source": images.source, "split": images.how, "train": len(images.train), "valid": len(images.valid)},
        "teacher": {
            "reconstruction_bits_per_dim": float(-nats.mean() / (np.log(2) * model.dims)),
            "perplexity": teacher.perplexity(images.test),
        },
    }
