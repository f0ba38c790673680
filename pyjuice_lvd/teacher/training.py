"""Training of the teacher: epochs of Adam on -log p(x | z) with codebook and commitment losses, resumable.

Processes that share the work take each its part of every batch; what they add up is the gradient of the whole batch,
with what else a step needs of it, in one transfer.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyjuice_lvd.circuit.reduce import current, spread
from pyjuice_lvd.errors import InputError, LVDJuiceError
from pyjuice_lvd.large import blocks, digest_of
from pyjuice_lvd.progress import Progress, Stage
from pyjuice_lvd.seeds import derived_seed
from pyjuice_lvd.settings import TeacherSettings, restored
from pyjuice_lvd.teacher import mixture
from pyjuice_lvd.teacher.quantizer import Quantized, counts_of, perplexity_of
from pyjuice_lvd.teacher.storage import read_tensors, write_tensors
from pyjuice_lvd.teacher.vqvae import VQVAE
from pyjuice_lvd.units import bits_per_dimension

UInt8 = npt.NDArray[np.uint8]
Record = dict[str, Any]

_CHECKPOINT = "teacher checkpoint"
_NETWORK = "network"
_WARM_UP = 0.05  # share of the training steps in which the learning rate rises
_CODEBOOK_SAMPLE = 16384  # features from which the first codes are drawn, where there are so many


def new_network(settings: TeacherSettings, images: UInt8, seed: int) -> VQVAE:
    """Make an untrained network for images uint8 (N, H, W, C), on the CPU."""
    counts = np.zeros((images.shape[3], 256), np.int64)
    for rows in blocks(len(images), 8 * images[0].size):
        counts += [np.bincount(images[rows, ..., c].ravel(), minlength=256) for c in range(images.shape[3])]
    frequencies = counts / counts[0].sum()
    levels = np.arange(256) / 127.5 - 1
    mean = frequencies @ levels
    variance = frequencies @ levels**2 - mean**2
    std = np.sqrt(np.maximum(variance, (1 / 127.5) ** 2))  # at least one grey level, for a constant channel
    scale = [torch.from_numpy(array.astype(np.float32)) for array in (mean, std)]
    return VQVAE(settings, *scale, seed=derived_seed(seed, 0, bits=64))


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
    """Train the network on the device where it is; see `Teacher.fit`. Returns the history, one record an epoch."""
    run = _Run(network, settings, images, seed)
    if checkpoint is not None and Path(checkpoint).exists():
        run.restore(checkpoint)
    run.start_alike()
    epochs = range(len(run.history) + 1, settings.epochs + 1)
    with progress.stage("teacher", total=len(epochs) * len(images), unit="images") as stage:
        for epoch in epochs:
            start = time.perf_counter()
            record = run.train_epoch(epoch, stage)
            if valid is not None:
                bpd, used = evaluate(network, valid)
                record |= {"valid_reconstruction_bpd": bpd, "valid_perplexity": used}
            run.history.append({"epoch": epoch, **record, "seconds": time.perf_counter() - start})
            if checkpoint is not None and current().rank == 0:
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
        self._reducer = current()

    def start_alike(self) -> None:
        """Check that all processes learn the same, and give them the first one's weights."""
        if self._reducer.size > 1:
            done = str(len(self.history))
            self._reducer.check_same(teacher_settings=json.dumps(self._identity), teacher_checkpoint=done)
            for tensor in self.network.state_dict().values():
                told = tensor.cpu().numpy().copy()
                self._reducer.broadcast(told)
                tensor.copy_(torch.from_numpy(told))

    def train_epoch(self, epoch: int, stage: Stage) -> Record:
        """Train one epoch, the first being 1."""
        network, settings = self.network, self.settings
        # Each epoch draws from a seed of its own: a resumed run needs no random state.
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch, bits=64))
        order = torch.randperm(len(self.images), generator=generator)
        if epoch == 1:
            self._first_codes(order, generator)
        batches = torch.split(order, settings.batch_size)
        sums = torch.zeros(3, dtype=torch.float64)
        all_counts = torch.zeros(settings.codes, dtype=torch.float64)
        revived = 0
        for index, rows in enumerate(batches):
            self._set_learning_rate((epoch - 1 + (index + 0.5) / len(batches)) / settings.epochs)
            batch = self.images[rows]
            mirrored = torch.rand(len(batch), generator=generator) < 0.5 if settings.flip else None
            figures, counts, features = self._gradients(batch, mirrored)
            self.optimizer.step()
            revived += network.quantizer.revive(features, torch.nonzero(counts)[:, 0], generator)
            if not torch.isfinite(figures).all():
                raise LVDJuiceError(f"teacher: the loss is not finite in epoch {epoch}; lower teacher.learning_rate")
            sums += len(batch) * figures
            all_counts += counts
            stage.advance(len(batch), bpd=bits_per_dimension(-float(figures[1]), 1))
        loss_mean, nats_mean, commitment = (sums / len(self.images)).tolist()
        return {
            "loss": loss_mean,
            "reconstruction_bpd": bits_per_dimension(-nats_mean, 1),
            "commitment": commitment,
            "perplexity": perplexity_of(all_counts),
            "revived": revived,
        }

    def _gradients(self, images: Tensor, mirrored: Tensor | None) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        """Set the gradients of the mean loss of a batch, uint8 (n, H, W, C), of which some are `mirrored`, bool (n,).

        Returns the loss, its likelihood in nats and the commitment, float64 (3,), the counts of the codes, float64
        (codes,), and what gives the features of the whole batch.
        """
        network, settings, part = self.network, self.settings, self._reducer.part(len(images))
        figures = torch.zeros(3, dtype=torch.float64)
        counts = torch.zeros(settings.codes, dtype=torch.float64)
        features: Tensor | None = None
        self.optimizer.zero_grad()
        if part.stop > part.start:
            batch = network.put(images[part])
            if mirrored is not None:
                batch = torch.where(mirrored[part].to(batch.device).view(-1, 1, 1, 1), batch.flip(3), batch)
            features = network.features(batch)
            quantized: Quantized = network.quantizer(features)
            parameters = network.decode(quantized.vectors, network.rows(batch))
            nats = -mixture.log_likelihood(parameters, network.to_pixels(batch)).sum() / batch.numel()
            loss = nats + quantized.codebook_loss + settings.commitment * quantized.commitment_loss
            torch.autograd.backward(loss if self._reducer.size == 1 else loss * (len(batch) / len(images)))
            figures = torch.stack((loss, nats, quantized.commitment_loss)).detach().cpu().double()
            counts = counts_of(quantized.codes, settings.codes).cpu()
        if self._reducer.size > 1:
            figures, counts = self._add_up(figures * ((part.stop - part.start) / len(images)), counts)
        return figures, counts, lambda: self._of_all(features)

    def _add_up(self, figures: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradients up over the processes, and figures and counts, which it returns."""
        learned = list(self.network.parameters())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
        flat = torch.cat([*(gradient.flatten().cpu().double() for gradient in gradients), figures, counts])
        self._reducer.all_reduce(flat.numpy())
        sizes = [*(parameter.numel() for parameter in learned), len(figures), len(counts)]
        *summed, figures, counts = torch.split(flat, sizes)
        for parameter, gradient in zip(learned, summed, strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter)
        return figures, counts

    def _of_all(self, features: Tensor | None) -> Tensor:
        """Give the features of the whole batch, of which these are the process' own."""
        if self._reducer.size == 1:
            assert features is not None
            return features
        return torch.from_numpy(self._reducer.gather(None if features is None else features.detach().cpu().numpy()))

    def _first_codes(self, order: Tensor, generator: torch.Generator) -> None:
        """Draw the codebook from the features of some training images."""
        network = self.network
        positions = self.images[0, ..., 0].numel() // math.prod(network.patch)
        sample = self.images[order[: math.ceil(_CODEBOOK_SAMPLE / positions)]].numpy()
        features = network.over(sample, network.features).flatten(0, 1)
        network.quantizer.seed_codes(torch.arange(self.settings.codes), features, generator)

    def _set_learning_rate(self, done: float) -> None:
        """Set it for the moment when the share `done` of all training is done: linear warm-up, then a cosine to 0."""
        rate = done / _WARM_UP if done < _WARM_UP else (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * rate

    @cached_property
    def _identity(self) -> Record:
        """What must be the same in a resumed run."""
        digest = digest_of(self.images.numpy())
        return {"settings": asdict(self.settings), "seed": self.seed, "training images": digest}

    def save(self, path: str | PathLike[str]) -> None:
        """Write the state: the network's, Adam's moments of each parameter, and the history."""
        tensors = {f"{_NETWORK}/{name}": tensor for name, tensor in self.network.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{number}/{name}": tensor for name, tensor in moments.items()}
        write_tensors(path, _CHECKPOINT, tensors, {"run": self._identity, "history": self.history})

    def restore(self, path: str | PathLike[str]) -> None:
        """Read what `save` wrote; raises InputError if the file is damaged or of another run."""
        with read_tensors(path, _CHECKPOINT) as (tensors, facts):
            of = restored({"teacher": facts["run"]["settings"]}, f"{path}: ", whole=False).teacher
            facts["run"]["settings"] = json.loads(json.dumps(asdict(of)))
            for name, value in json.loads(json.dumps(self._identity)).items():  # tuples as lists, as in the file
                if facts["run"][name] != value:
                    raise InputError(f"{path}: a checkpoint of training with other {name}; wanted the same or no file")
            parts: dict[str, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                owner, name = key.split("/")
                parts.setdefault(owner, {})[name] = tensor
            self.network.load_state_dict(parts.pop(_NETWORK))
            moments = {int(number): tensors for number, tensors in parts.items()}
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
            self.history = facts["history"]


def evaluate(network: VQVAE, images: UInt8) -> tuple[float, float]:
    """Compute -log p(x | z(x)) in bits per dimension, and the perplexity of the codes, on images (N, H, W, C)."""
    nats = spread(len(images), lambda rows: network.over(images[rows], network.log_likelihood).numpy(), unit=128)
    counts, part = np.zeros(len(network.quantizer.codebook)), current().part(len(images), unit=128)
    for rows in blocks(part.stop - part.start, images[0].nbytes, unit=128):
        own = images[part][rows]
        counts += counts_of(network.over(own, network.codes), len(counts)).numpy()
    current().all_reduce(counts)
    return bits_per_dimension(float(nats.mean()), images[0].size), perplexity_of(torch.from_numpy(counts))
