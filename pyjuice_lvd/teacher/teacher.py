"""The teacher of latent variable distillation: a VQ-VAE on patches (Liu et al., ICML 2023, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from os import PathLike
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyjuice_lvd.checks import function, integer, one_of
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.data.images import as_images
from pyjuice_lvd.data.patches import position_grid
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import check_arrays_file
from pyjuice_lvd.large import by_blocks, contiguous
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.settings import DEVICES, TeacherSettings, restored
from pyjuice_lvd.teacher.quantizer import perplexity
from pyjuice_lvd.teacher.storage import read_tensors, write_tensors
from pyjuice_lvd.teacher.training import Record, new_network, train
from pyjuice_lvd.teacher.vqvae import VQVAE

UInt8 = npt.NDArray[np.uint8]

BATCH_SIZE = 128
"""Images that are looked at together where nothing is trained."""

_KIND = "teacher"


class Teacher:
    """A VQ-VAE whose features are clustered into the circuit's latents.

    Images are uint8 (N, H, W, C), C = 1 (grey) or 3 (RGB), or (N, H, W) for grey; H and W are a whole number of
    patches. P = (H / ph) * (W / pw) positions are in row-major order. All methods raise InputError for images of
    another dtype or shape, and all but `fit` and `load` for a teacher that is not fitted.

    `settings` is a TeacherSettings. `color` names the colour transform of what is modelled, so that the teacher's
    densities and a circuit's of the same transform are of the same thing: of a lossy one the teacher sees the output,
    while with a lossless one, which changes no density, it sees the pixels as they are. Images go in and come out as
    pixels in any case. `history` holds one dict for each epoch of training: `epoch`, `loss` (what is
    minimised), `reconstruction_bpd`, `commitment` (unweighted), `perplexity`, `revived` (codes), `seconds`, and with
    validation images `valid_reconstruction_bpd` and `valid_perplexity`.
    """

    def __init__(self, settings: TeacherSettings | None = None, *, color: str = "rgb") -> None:
        self.settings = settings if settings is not None else TeacherSettings()
        self.color = color
        self.history: list[Record] = []
        self._network: VQVAE | None = None

    def fit(
        self,
        images: UInt8,
        *,
        valid: UInt8 | None = None,
        seed: int = 0,
        device: str = "auto",
        checkpoint: str | PathLike[str] | None = None,
        progress: Progress | None = None,
        on_epoch: Callable[[Record], None] | None = None,
    ) -> Self:
        """Train on images, from new weights.

        Minimises, with Adam, -log p(x | z) in nats per dimension + codebook loss + `commitment` * commitment loss.
        On a CPU, the same settings, images, seed and number of threads (`torch.set_num_threads`) give the same weights
        bit for bit. PyTorch's global random state is not used.

        Parameters
        ----------
        images : uint8 (N, H, W, C)
            What to train on.
        valid : uint8 (N', H, W, C), optional
            Images that are not trained on; each epoch reports on them.
        seed : int, 0 or above
            Of the weights, the order of the images, the flips and the revived codes.
        device : "auto", "cpu" or "cuda"
            Where to train; auto: CUDA if PyTorch sees it. The teacher stays there.
        checkpoint : path, optional
            A safetensors file, replaced after each epoch. If it exists, training goes on from it and ends in the very
            weights that it would have ended in undisturbed.
        progress : Progress, optional
            Shows one stage, "teacher", in images; None: silent.
        on_epoch : callable, optional
            Gets each epoch's record (see `history`), after the checkpoint is written.

        Raises
        ------
        InputError
            Bad images, seed or device; a checkpoint of other settings, images or seed; a path that cannot be written.
        LVDJuiceError
            The loss is not finite.

        """
        images = self._checked(images, "images")
        if valid is not None:
            valid = self._checked(valid, "valid", images.shape[3])
        seed = integer("seed", seed, least=0)
        function("on_epoch", on_epoch)
        if checkpoint is not None:
            check_arrays_file("checkpoint", checkpoint)
        place = resolve_device(device)
        network = new_network(self.settings, images, seed).to(place)
        history = train(
            network,
            self.settings,
            images,
            valid,
            seed=seed,
            checkpoint=checkpoint,
            progress=SILENT if progress is None else progress,
            on_epoch=on_epoch,
        )
        self._network, self.history = network, history
        return self

    @property
    def network(self) -> VQVAE:
        """The fitted network; raises InputError if there is none."""
        if self._network is None:
            raise InputError("teacher: found one that is not fitted, wanted a call of fit or load first")
        return self._network

    def features(
        self, images: UInt8, *, quantized: bool = False, batch_size: int = BATCH_SIZE
    ) -> npt.NDArray[np.float32]:
        """Compute the encoder's output h: float32 (N, P, code_dim), on a sphere (see docs).

        Before quantisation, or, `quantized`, the codes in its place.
        """
        if quantized:
            codebook: npt.NDArray[np.float32] = self.network.quantizer.codebook.detach().cpu().numpy()
            return codebook[self.codes(images, batch_size=batch_size)]
        features: npt.NDArray[np.float32] = self._over(images, self.network.features, batch_size).numpy()
        return features

    def codes(self, images: UInt8, *, batch_size: int = BATCH_SIZE) -> npt.NDArray[np.int64]:
        """Find each position's code, 0 to `settings.codes` - 1: int64 (N, P)."""
        codes: npt.NDArray[np.int64] = self._over(images, self.network.codes, batch_size).numpy()
        return codes

    def reconstruct(self, images: UInt8, *, batch_size: int = BATCH_SIZE) -> UInt8:
        """Decode the images' codes: uint8 (N, H, W, C), the mean of p(x | z(x)), rounded."""
        means = self._over(images, self.network.reconstruct, batch_size)
        seen = np.ascontiguousarray(means.round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
        transform = color_transform(self.color, seen.shape[3])
        return seen if transform.lossless else transform.inverse(seen)

    def reconstruction_nats(self, images: UInt8, *, batch_size: int = BATCH_SIZE) -> npt.NDArray[np.float64]:
        """Compute the reconstruction term log p(x | z(x)) of each image: float64 (N,), in nats, never above 0."""
        nats: npt.NDArray[np.float64] = self._over(images, self.network.log_likelihood, batch_size).numpy()
        return nats

    def perplexity(self, images: UInt8, *, batch_size: int = BATCH_SIZE) -> float:
        """Compute exp(entropy) of the code frequencies on images: how many of the codes are in use."""
        return perplexity(self._over(images, self.network.codes, batch_size), self.settings.codes)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted teacher as safetensors, settings and history in its metadata.

        Raises InputError if `path` cannot be written.
        """
        facts = {"settings": asdict(self.settings), "color": self.color, "history": self.history}
        write_tensors(path, _KIND, self.network.state_dict(), facts)

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: str = "auto") -> Self:
        """Read what `save` wrote, onto a device (see `fit`).

        Raises InputError if the file is missing, damaged or no teacher, or there is no such device.
        """
        place = resolve_device(device)
        with read_tensors(path, _KIND) as (tensors, facts):
            # A file that names no colour transform is of a teacher that saw the pixels as they are.
            teacher = cls(
                restored({"teacher": facts["settings"]}, f"{path}: ", whole=False).teacher,
                color=facts.get("color", "rgb"),
            )
            network = VQVAE(teacher.settings, tensors["mean"].flatten(), tensors["std"].flatten())
            network.load_state_dict(tensors)
            teacher._network, teacher.history = network.to(place), facts["history"]
        return teacher

    def _checked(self, images: UInt8, name: str, channels: int | None = None) -> UInt8:
        """Check images, give them a channel axis and C order; return what the teacher sees of them."""
        images = as_images(images, name)
        position_grid(images.shape[1], images.shape[2], self.settings.patch)
        if channels is not None and images.shape[3] != channels:
            raise InputError(f"{name}: found {images.shape[3]} channels, wanted {channels} as in training")
        transform = color_transform(self.color, images.shape[3])
        seen = images
        if not transform.lossless:
            seen = by_blocks(len(images), lambda rows: transform.forward(images[rows]), images[:1].nbytes)
        seen = contiguous(seen)
        return np.require(seen, requirements=["W"])  # PyTorch shares memory with writable arrays only

    def _over(self, images: UInt8, function: Callable[[Tensor], Tensor], batch_size: int) -> Tensor:
        batch_size = integer("batch_size", batch_size, least=1)
        return self.network.over(self._checked(images, "images", self.network.channels), function, batch_size)


def resolve_device(name: str) -> torch.device:
    """Choose the device that "auto", "cpu" or "cuda" stands for; raises InputError if it is not there."""
    one_of("device", name, DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: found 'cuda', but PyTorch sees no CUDA device; wanted auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
