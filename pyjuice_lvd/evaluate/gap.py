"""The gap between teacher and student: the teacher's ELBO, the LVD objective and the circuits' log-likelihood.

Liu, Liu, Van den Broeck and Liang, ICML 2023, Sec. 3 and Fig. 2; docs/gap.md defines the three as they are here.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.data.images import as_images
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.errors import InputError, LVDJuiceError
from pyjuice_lvd.evaluate.merit import std_error
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import read_arrays, write_arrays
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.teacher import Teacher
from pyjuice_lvd.units import bits_per_dimension

Images = npt.NDArray[np.uint8]
Nats = npt.NDArray[np.float64]

# Of the prior over codes. Twice the hidden states gain a few nats of thousands, at several times the cost.
_LATENTS = 64
_EM: dict[str, Any] = {
    "epochs": 50, "batch_size": 256, "step_size": (0.8, 0.02), "pseudocount": 0.03, "patience": 10,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Bounds:
    """What the two bounds need beside teacher and circuits, learned once from the images that these learned from.

    `code_prior`: p(c), over the positions, with the teacher's codes as categories. `centres`: float32 (N1, D), the mean
    feature of each outer cluster; None where refining moved patches to other clusters. `about`: how the prior was
    learned, in plain numbers.
    """

    code_prior: Circuit
    centres: npt.NDArray[np.float32] | None
    about: dict[str, Any]

    @classmethod
    def learn(
        cls,
        teacher: Teacher,
        outer: npt.NDArray[np.int32] | None,
        train: Images,
        valid: Images,
        *,
        seed: int = 0,
        folder: Path | None = None,
        progress: Progress = SILENT,
    ) -> Self:
        """Learn the prior over codes, an HCLT, by EM on the training images' codes; stop early by the validation ones'.

        Parameters
        ----------
        teacher : Teacher
            A fitted one.
        outer : int32 (N, P) or None
            The outer clusters that the circuits were learned with, of the training images' patches; None if those are
            not the features' own, but refined.
        train, valid : uint8 (N, H, W, C), (N', H, W, C)
            The images that teacher and circuits learned from.
        seed : int
            Of EM and its start.
        folder : Path, optional
            Where the prior is kept while it learns: an interrupted call goes on from there, with the same outcome. What
            is learned is written there too, for `load`.
        progress : Progress
            Where the work is shown.

        Raises
        ------
        InputError
            Where the labels are not those of the images' patches.

        """
        centres = None
        if outer is not None:
            h = teacher.features(train)
            if outer.shape != h.shape[:2]:
                raise InputError(f"outer: found labels {outer.shape}, wanted {h.shape[:2]} (images, positions)")
            centres = _means(h, outer)
        codes, held_out = (teacher.codes(images).astype(np.int32) for images in (train, valid))
        circuit = Circuit.hclt(
            codes, num_latents=_LATENTS, num_cats=teacher.settings.codes, seed=seed, progress=progress
        )
        checkpoint = None if folder is None else folder / names.CODE_PRIOR_IN_TRAINING
        history = circuit.fit_em(codes, **_EM, valid=held_out, seed=seed, checkpoint=checkpoint, progress=progress)
        about = {
            "latents": _LATENTS,
            "params": circuit.num_params,
            "epochs": len(history),
            "best_epoch": history.best,
            "valid_log_likelihood": float(circuit.log_likelihood(held_out).mean()),
        }
        bounds = cls(circuit, centres, about)
        if folder is not None:
            bounds.save(folder)
            (folder / names.CODE_PRIOR_IN_TRAINING).unlink(missing_ok=True)
        return bounds

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write both parts to a folder."""
        folder = Path(folder)
        arrays = {} if self.centres is None else {"centres": self.centres}
        write_arrays(folder / names.CENTRES, arrays, {"code_prior": json.dumps(self.about)})
        self.code_prior.save(folder / names.CODE_PRIOR)  # last: its file says that both are there

    @staticmethod
    def kept(folder: str | os.PathLike[str]) -> bool:
        """Whether a folder has what `save` wrote."""
        return (Path(folder) / names.CODE_PRIOR).exists()

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; raises InputError where a file is missing or damaged."""
        folder = Path(folder)
        arrays, metadata = read_arrays(folder / names.CENTRES)
        return cls(Circuit.load(folder / names.CODE_PRIOR), arrays.get("centres"), json.loads(metadata["code_prior"]))


def _means(h: npt.NDArray[np.float32], outer: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Give the mean feature of each cluster: features (N, P, D), clusters (N, P) to (N1, D)."""
    members = outer.ravel()
    sums = np.stack([np.bincount(members, weights=column) for column in h.reshape(-1, h.shape[2]).T], axis=1)
    means: npt.NDArray[np.float32] = (sums / np.bincount(members)[:, None]).astype(np.float32)
    return means


@dataclass(frozen=True, eq=False)
class Gap:
    """Log-densities of the same images, float64 (N,) each, in nats; `dims` are the dimensions of an image.

    `reconstruction` is log p(x | c(x)) and `codes` log p(c(x)) of the teacher; `lvd_objective` is log p(x, z(x)) of the
    circuits, and `log_likelihood` their log p(x).
    """

    reconstruction: Nats
    codes: Nats
    lvd_objective: Nats
    log_likelihood: Nats
    dims: int

    def quantities(self) -> dict[str, Nats]:
        """Give the three by name: `teacher_elbo`, `lvd_objective`, `pc_log_likelihood`.

        The teacher's encoder is deterministic and its codes are categories, so the ELBO's expectation is a value, and
        the entropy of q(c|x) is 0.
        """
        elbo = self.reconstruction + self.codes
        return {"teacher_elbo": elbo, "lvd_objective": self.lvd_objective, "pc_log_likelihood": self.log_likelihood}

    def gaps(self) -> dict[str, Nats]:
        """Give each image's gaps between neighbours of the three, then the whole: above 0 where the later is higher."""
        values = self.quantities()
        first, second, third = values
        pairs = (first, second), (second, third), (first, third)
        return {f"{low}_to_{high}": values[high] - values[low] for low, high in pairs}

    def figures(self) -> dict[str, Any]:
        """Give means over the images, in nats and bits per dimension, and the gaps, each with its standard error.

        The error of a gap is that of the images' paired differences.
        """
        means = {name: float(values.mean()) for name, values in self.quantities().items()}
        return {
            **means,
            **{f"{name}_bpd": bits_per_dimension(mean, self.dims) for name, mean in means.items()},
            "std_errors": {name: std_error(values) for name, values in self.quantities().items()},
            "gaps": {
                name: {
                    "nats": float(values.mean()),
                    "std_error": std_error(values),
                    "bpd": bits_per_dimension(-float(values.mean()), self.dims),
                }
                for name, values in self.gaps().items()
            },
            "teacher_elbo_parts": {
                "reconstruction": float(self.reconstruction.mean()),
                "codes": float(self.codes.mean()),
            },
            "n": len(self.log_likelihood),
            "dims": self.dims,
        }


def measure_gap(
    model: JointModel, teacher: Teacher, bounds: Bounds, images: Images, *, progress: Progress = SILENT
) -> Gap:
    """Measure teacher and circuits on the same images, uint8 (N, H, W, C), and the same pixels of them.

    Raises InputError where the images do not fit the model, or where teacher and circuits do not model the same pixels:
    of a lossy colour transform, both must see its output. Raises LVDJuiceError where an image has probability 0.
    """
    if not model.color.lossless and teacher.color != model.color.name:
        raise InputError(
            f"teacher: found one of {teacher.color} pixels for circuits of {model.color.name}, which is lossy; "
            "wanted a teacher of the same"
        )
    images = as_images(images)
    log_likelihood = model.score_samples(images, progress=progress)
    z, given = assign(model, teacher, bounds.centres, images)
    measured = Gap(
        reconstruction=teacher.reconstruction_nats(images),
        codes=bounds.code_prior.log_likelihood(teacher.codes(images).astype(np.int32)),
        lvd_objective=given.sum(axis=1) + model.prior.log_likelihood(z),
        log_likelihood=log_likelihood,
        dims=model.dims,
    )
    for name, values in measured.quantities().items():
        if not np.isfinite(values).all():
            raise LVDJuiceError(
                f"{name}: -inf for {np.sum(~np.isfinite(values))} of {len(values)} images, which have probability 0; "
                "fit with pseudocounts above 0"
            )
    return measured


def assign(
    model: JointModel, teacher: Teacher, centres: npt.NDArray[np.float32] | None, images: Images
) -> tuple[npt.NDArray[np.int32], Nats]:
    """Label images as the training images were: the latents z(x), and log p(x_i | z_i) in nats.

    A patch's outer cluster is that of the nearest centre to its feature, as K-means has it; its head is the one under
    which it is most likely, as growing relabels patches. Without centres that is the head of all outer clusters.

    Returns
    -------
    z : int32 (N, P)
        Numbered through the heads of all outer clusters.
    given : float64 (N, P)

    """
    from sklearn.metrics import pairwise_distances_argmin  # where it is used: seconds to load

    if centres is None:
        return _most_likely(model, images)
    h = teacher.features(images)
    shape = h.shape[:2]
    patches = to_patches(model.color.forward(images), model.patch)
    z, given = np.empty(shape, np.int32), np.empty(shape)
    first = 0
    for positions, circuits in model.groups():
        clusters = slice(first, first + len(circuits))
        nearest = pairwise_distances_argmin(h[:, positions].reshape(-1, h.shape[2]), centres[clusters])
        nearest = nearest.reshape(len(h), -1)
        for cluster, (circuit, values) in enumerate(circuits):
            members = nearest == cluster
            scores = circuit.log_likelihood(patches[:, positions][members], head="all")
            z[:, positions][members] = values.start + scores.argmax(axis=1)
            given[:, positions][members] = scores.max(axis=1)
        first = clusters.stop
    return z, given


def _most_likely(model: JointModel, images: Images) -> tuple[npt.NDArray[np.int32], Nats]:
    """Label each patch with the head of all circuits under which it is most likely, as `assign` returns it."""
    shape = len(images), model.prior.num_vars
    z, given = np.empty(shape, np.int32), np.empty(shape)
    for rows in model.chunks(len(images)):
        scores = model.patch_scores(images[rows])
        z[rows], given[rows] = scores.argmax(axis=2), scores.max(axis=2)
    return z, given
