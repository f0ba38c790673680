"""Training of the teacher: epochs of Adam on -log p(x | z) with codebook and commitment losses, resumable."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyjuice_lvd.errors import InputError, LVDJuiceError
from pyjuice_lvd.progress import Progress, Stage
from pyjuice_lvd.runs import read_arrays, write_arrays
from pyjuice_lvd.teacher import mixture
from pyjuice_lvd.teacher.quantizer import perplexity
from pyjuice_lvd.teacher.settings import TeacherSettings
from pyjuice_lvd.teacher.vqvae import VQVAE, by_position, on_grid

UInt8 = npt.NDArray[np.uint8]
Record = dict[str, Any]

INFERENCE_BATCH = 128
_WARM_UP = 0.05  # share of the training steps in which the learning rate rises
_CODEBOOK_SAMPLE = 16384  # features from which the first codes are drawn, at least, where there are so many


def new_network(settings: TeacherSettings, images: UInt8, seed: int) -> VQVAE:
    """Make an untrained network for images uint8 (N, H, W, C), on the CPU."""
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[3])])
    levels = np.arange(256) / 127.5 - 1
    mean = counts @ levels / counts[0].sum()
    # Constant images have no spread: one grey level stands for it.
    std = np.sqrt(np.maximum(counts @ levels**2 / counts[0].sum() - mean**2, (1 / 127.5) ** 2))
    return VQVAE(
        settings,
        torch.from_numpy(mean.astype(np.float32)),
        torch.from_numpy(std.astype(np.float32)),
        seed=_derived_seed(seed, 0),
    )


def train(
    network: VQVAE,
    settings: TeacherSettings,
    images: UInt8,
    valid: UInt8 | None,
    *,
    seed: int,
    checkpoint: str | PathLike[str] | None,
    progress: Progress,
    on_epoch: Callable[[Record], None] | None,
) -> list[Record]:
    """Train the network on the device where it is; see `Teacher.fit`. Returns a record for each epoch."""
    run = _Run(network, settings, images, seed)
    if checkpoint is not None and Path(checkpoint).exists():
        run.restore(checkpoint)
    epochs = range(len(run.history) + 1, settings.epochs + 1)
    with progress.stage("teacher", total=len(epochs) * len(images), unit="images") as stage:
        for epoch in epochs:
            start = time.perf_counter()
            record = run.epoch(epoch, stage)
            if valid is not None:
                bpd, used = evaluate(network, valid)
                record |= {"valid_reconstruction_bpd": bpd, "valid_perplexity": used}
            run.history.append({"epoch": epoch, **record, "seconds": time.perf_counter() - start})
            if checkpoint is not None:
                run.save(checkpoint)
            if on_epoch is not None:
                on_epoch(run.history[-1])
    return run.history


class _Run:
    """A training run between two epochs: the network, the optimiser and the history are all of its state."""

    def __init__(self, network: VQVAE, settings: TeacherSettings, images: UInt8, seed: int) -> None:
        self.network = network
        self.settings = settings
        self.images = torch.from_numpy(images)
        self.seed = seed
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        self.history: list[Record] = []

    def epoch(self, epoch: int, stage: Stage) -> Record:
        """Train one epoch, the first being 1."""
        network, settings = self.network, self.settings
        # Each epoch draws from a seed of its own: a resumed run needs no random state.
        generator = torch.Generator().manual_seed(_derived_seed(self.seed, epoch))
        order = torch.randperm(len(self.images), generator=generator)
        if epoch == 1:
            self._first_codes(order, generator)
        batches = order.split(settings.batch_size)
        sums = torch.zeros(3, dtype=torch.float64)
        all_codes = []
        revived = 0
        for index, rows in enumerate(batches):
            self._set_learning_rate((epoch - 1 + (index + 0.5) / len(batches)) / settings.epochs)
            batch = network.put(self.images[rows])
            if settings.flip:
                mirrored = torch.rand(len(batch), generator=generator).to(batch.device) < 0.5
                batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(3), batch)
            features = network.features(batch)
            quantized: Quantized = network.quantizer(features)
            parameters = network.decode(quantized.vectors, network.rows(batch))
            nats = -mixture.log_likelihood(parameters, network.to_pixels(batch)).sum() / batch.numel()
            loss = nats + quantized.codebook_loss + settings.commitment * quantized.commitment_loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            revived += network.quantizer.revive(features, quantized.codes, generator)
            figures = torch.stack((loss, nats, quantized.commitment_loss)).detach().cpu().double()
            if not torch.isfinite(figures).all():
                raise LVDJuiceError(f"teacher: the loss is not finite in epoch {epoch}; lower teacher.learning_rate")
            sums += len(batch) * figures
            all_codes.append(quantized.codes)
            stage.advance(len(batch), bpd=float(figures[1]) / math.log(2))
        loss_mean, nats_mean, commitment = (sums / len(self.images)).tolist()
        return {
            "loss": loss_mean,
            "reconstruction_bpd": nats_mean / math.log(2),
            "commitment": commitment,
            "perplexity": perplexity(torch.cat(all_codes), settings.codes),
            "revived": revived,
        }

    def _first_codes(self, order: Tensor, generator: torch.Generator) -> None:
        """Draw the codebook from the features of some training images."""
        network = self.network
        positions = self.images[0, ..., 0].numel() // math.prod(network.patch)
        sample = self.images[order[: math.ceil(_CODEBOOK_SAMPLE / positions)]].numpy()
        features = network.over(sample, network.features).flatten(0, 1)
        quantizer = network.quantizer
        quantizer.seed_codes(torch.arange(self.settings.codes), features, generator)

    def _set_learning_rate(self, done: float) -> None:
        """Set it for the moment when the share `done` of all training is done: linear warm-up, then a cosine to 0."""
        rate = done / _WARM_UP if done < _WARM_UP else (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * rate

    def _identity(self) -> Record:
        """Describe what must be the same in a resumed run."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.numpy().data)
        return {"settings": asdict(self.settings), "seed": self.seed, "training images": digest.hexdigest()}

    def save(self, path: str | PathLike[str]) -> None:
        """Write the state: the network's, Adam's moments of each parameter, and the history."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        write_tensors(path, _CHECKPOINT, tensors, {"run": self._identity(), "history": self.history})

    def restore(self, path: str | PathLike[str]) -> None:
        """Read what `save` wrote; raises InputError if the file is damaged or of another run."""
        with read_tensors(path, _CHECKPOINT) as (tensors, facts):
            for name, value in json.loads(json.dumps(self._identity())).items():  # tuples as lists, as in the file
                if facts["run"][name] != value:
                    raise InputError(f"{path}: a checkpoint of training with other {name}; wanted the same or no file")
            parts: dict[str, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                part, name = re.fullmatch(r"(network|optimizer\.\d+)\.(.+)", key).groups()
                parts.setdefault(part, {})[name] = tensor
            self.network.load_state_dict(parts.pop("network"))
            state = self.optimizer.state_dict()
            state["state"] = {int(part.removeprefix("optimizer.")): moments for part, moments in parts.items()}
            self.optimizer.load_state_dict(state)
            self.history = facts["history"]


def evaluate(network: VQVAE, images: UInt8) -> tuple[float, float]:
    """Compute -log p(x | z(x)) in bits per dimension, and the perplexity of the codes, on images (N, H, W, C)."""
    nats = network.over(images, network.log_likelihood).mean()
    used = perplexity(network.over(images, network.codes), len(network.quantizer.codebook))
    return -float(nats) / math.log(2) / images[0].size, used


def _derived_seed(seed: int, epoch: int) -> int:
    """Derive the seed of an epoch, or of the first weights (epoch 0): none repeats for another seed or epoch."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])
