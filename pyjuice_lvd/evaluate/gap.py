"""The gap between teacher and student: the teacher's ELBO, the LVD objective and the circuits' log-likelihood.

Liu, Liu, Van den Broeck and Liang, ICML 2023, Sec. 3 and Fig. 2; docs/gap.md defines the three as they are here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit import Circuit, Evidence
from pyjuice_lvd.circuit.reduce import current, spread
from pyjuice_lvd.clustering import means_of
from pyjuice_lvd.data.images import mirrored
from pyjuice_lvd.errors import InputError, LVDJuiceError
from pyjuice_lvd.evaluate.merit import std_error
from pyjuice_lvd.files import names
from pyjuice_lvd.files.formats import read_arrays, write_arrays
from pyjuice_lvd.large import joined
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.shapes import ShapeModel
from pyjuice_lvd.progress import SILENT, Progress
from pyjuice_lvd.teacher import Teacher
from pyjuice_lvd.teacher.teacher import BATCH_SIZE
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
    feature of each outer cluster; None where the circuits alone say the labels: with offsets, or where refining moved
    patches to other clusters. `about`: how the prior was
    learned, in plain numbers. `mirror_images`: whether the centres are those of mirror images, too.
    """

    code_prior: Circuit
    centres: npt.NDArray[np.float32] | None
    about: dict[str, Any]
    mirror_images: bool = False

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
            The outer clusters that the circuits were learned with, of the training images' patches; (2 N, P) where they
            learned from mirror images too, whose clusters follow. None if they are not the features' own, but refined,
            and with offsets.
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
        centres, mirror_images = None, False
        if outer is not None:
            h = _of_images(train, teacher.features)
            if mirror_images := len(outer) == 2 * len(h):
                h = joined([h, _of_images(mirrored(train), teacher.features)])
            if outer.shape != h.shape[:2]:
                raise InputError(f"outer: found labels {outer.shape}, wanted {h.shape[:2]} (images, positions)")
            clusters = np.arange(int(outer.max()) + 1)
            centres = means_of(h.reshape(-1, h.shape[2]), outer.reshape(-1), clusters).astype(np.float32)

        def codes_of(images: Images) -> npt.NDArray[np.int32]:
            return teacher.codes(images).astype(np.int32)

        codes, held_out = (_of_images(images, codes_of) for images in (train, valid))
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
        bounds = cls(circuit, centres, about, mirror_images)
        if folder is not None and current().rank == 0:
            bounds.save(folder)
            (folder / names.CODE_PRIOR_IN_TRAINING).unlink(missing_ok=True)
        return bounds

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write both parts to a folder."""
        folder = Path(folder)
        arrays = {} if self.centres is None else {"centres": self.centres}
        facts = {"code_prior": json.dumps(self.about), "mirror_images": json.dumps(self.mirror_images)}
        write_arrays(folder / names.CENTRES, arrays, facts)
        self.code_prior.save(folder / names.CODE_PRIOR)  # last: its file says that both are there

    @classmethod
    def kept(cls, folder: str | os.PathLike[str]) -> Self | None:
        """Read what `save` wrote, if that was done; raises InputError where a file is missing or damaged."""
        folder = Path(folder)
        if not (folder / names.CODE_PRIOR).exists():
            return None
        arrays, facts = read_arrays(folder / names.CENTRES)
        try:
            about, mirror_images = json.loads(facts["code_prior"]), json.loads(facts.get("mirror_images", "false"))
        except (KeyError, ValueError) as error:
            raise InputError(f"{folder / names.CENTRES}: damaged ({error}), wanted centres of clusters") from error
        return cls(Circuit.load(folder / names.CODE_PRIOR), arrays.get("centres"), about, mirror_images)


def _of_images(images: Images, compute: Callable[[Images], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Give what the teacher says of images, of which each process asks it about a part."""
    return spread(len(images), lambda rows: compute(images[rows]), unit=BATCH_SIZE, row=images[:1].nbytes)


@dataclass(frozen=True, eq=False)
class Gap:
    """Log-densities of the same images, float64 (N,) each, in nats; `dims` are the dimensions of an image.

    `reconstruction` is log p(x | c(x)) and `codes` log p(c(x)) of the teacher; `lvd_objective` is log p(x, z(x)) of the
    circuits, and `log_likelihood` their log p(x). All are finite. `impossible` says of how many other images each of
    the three has probability 0: these images are left out.
    """

    reconstruction: Nats
    codes: Nats
    lvd_objective: Nats
    log_likelihood: Nats
    dims: int
    impossible: Mapping[str, int] = field(default_factory=dict)

    def quantities(self) -> dict[str, Nats]:
        """Give the three by name: `teacher_elbo`, `lvd_objective`, `pc_log_likelihood`.

        The teacher's encoder is deterministic and its codes are categories, so the ELBO's expectation is a value, and
        the entropy of q(c|x) is 0.
        """
        elbo = self.reconstruction + self.codes
        return {"teacher_elbo": elbo, "lvd_objective": self.lvd_objective, "pc_log_likelihood": self.log_likelihood}

    def possible(self) -> Gap:
        """Leave out the images that one of the three has probability 0 of, and say how many they are.

        Raises
        ------
        LVDJuiceError
            Where no image is left.

        """
        finite = {name: np.isfinite(values) for name, values in self.quantities().items()}
        kept = np.logical_and.reduce(list(finite.values()))
        if kept.all():
            return self
        impossible = {name: int((~ok).sum()) for name, ok in finite.items() if not ok.all()}
        if not kept.any():
            found = " and ".join(f"{name} for {count}" for name, count in impossible.items())
            raise LVDJuiceError(f"probability 0: {found} of all {len(kept)} images; fit with pseudocounts above 0")
        return Gap(
            self.reconstruction[kept], self.codes[kept], self.lvd_objective[kept], self.log_likelihood[kept],
            self.dims, impossible,
        )  # fmt: skip

    def gaps(self) -> dict[str, Nats]:
        """Give each image's gaps between neighbours of the three, then the whole: above 0 where the later is higher."""
        values = self.quantities()
        first, second, third = values
        pairs = (first, second), (second, third), (first, third)
        return {f"{low}_to_{high}": values[high] - values[low] for low, high in pairs}

    def figures(self) -> dict[str, Any]:
        """Give means over the images, in nats and bits per dimension, and the gaps, each with its standard error.

        The error of a gap is that of the images' paired differences. `impossible`, where there are such images, is how
        many others have probability 0, by quantity.
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
            **({"impossible": dict(self.impossible)} if self.impossible else {}),
            "dims": self.dims,
        }


def measure_gap(
    model: JointModel | ShapeModel,
    teacher: Teacher,
    bounds: Bounds,
    images: Images,
    *,
    progress: Progress = SILENT,
) -> Gap:
    """Measure teacher and circuits on the same images, uint8 (N, H, W, C), and the same pixels of them.

    Labels are those of `assign`, or of `ShapeModel.labels`. Images of probability 0 are left out, and counted. Where
    processes share their work, they share the images out.

    Raises
    ------
    InputError
        Where the images do not fit the model, or where teacher and circuits do not model the same pixels: of a lossy
        colour transform, both must see its output.
    LVDJuiceError
        Where all images have probability 0.

    """
    if not model.color.lossless and teacher.color != model.color.name:
        raise InputError(
            f"teacher: found one of {teacher.color} pixels for circuits of {model.color.name}, which is lossy; "
            "wanted a teacher of the same"
        )
    images = model.checked(images, "images")

    def measured(rows: slice) -> Nats:
        own = images[rows]
        if isinstance(model, ShapeModel):
            lvd_objective = model.log_joint(own, model.labels(own, progress=progress), progress=progress)
            log_likelihood = model.score_samples(own, progress=progress)
        else:
            labels = assign(model, teacher, bounds.centres, own, progress=progress)
            lvd_objective = labels.given.sum(axis=1) + model.prior.log_likelihood(labels.z)
            log_likelihood = labels.log_likelihood
        codes = bounds.code_prior.log_likelihood(teacher.codes(own).astype(np.int32))
        return np.stack([teacher.reconstruction_nats(own), codes, lvd_objective, log_likelihood], axis=1)

    reconstruction, codes, lvd_objective, log_likelihood = spread(len(images), measured, unit=BATCH_SIZE).T.copy()
    return Gap(reconstruction, codes, lvd_objective, log_likelihood, model.dims).possible()


class Assigned(NamedTuple):
    """The latents z(x) of images, int32 (N, P), numbered through the heads of all outer clusters.

    `given`: log p(x_i | z_i), float64 (N, P); `log_likelihood`: log p(x), float64 (N,), both in nats.
    """

    z: npt.NDArray[np.int32]
    given: Nats
    log_likelihood: Nats


def assign(
    model: JointModel,
    teacher: Teacher,
    centres: npt.NDArray[np.float32] | None,
    images: Images,
    *,
    progress: Progress = SILENT,
) -> Assigned:
    """Label images, uint8 (N, H, W, C), as the training images were; with what else their patches' scores tell.

    A patch's outer cluster is that of the nearest centre to its feature, as K-means has it; its head is the one under
    which it is most likely, as growing relabels patches. Without centres that is the head of all outer clusters.
    """
    shape = len(images), model.prior.num_vars
    z, given, log_likelihood = np.empty(shape, np.int32), np.empty(shape), np.empty(len(images))
    outer = None if centres is None else _nearest(model, teacher.features(images), centres)
    with progress.stage("log-likelihood", total=len(images), unit="images") as stage:
        for rows in model.chunks(len(images)):
            scores = model.patch_scores(images[rows])
            own = scores if outer is None else _within(model, scores, outer[rows])
            z[rows], given[rows] = own.argmax(axis=2), own.max(axis=2)
            log_likelihood[rows] = model.prior.log_likelihood(Evidence(scores))  # which takes the scores over
            stage.advance(rows.stop - rows.start)
    return Assigned(z, given, log_likelihood)


def _nearest(model: JointModel, h: npt.NDArray[np.float32], centres: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Give each feature, (N, P, D), the nearest of the centres of its position: (N, P), numbered through all."""
    from sklearn.metrics import pairwise_distances_argmin  # where it is used: seconds to load

    outer, first = np.empty(h.shape[:2], np.intp), 0
    for positions, circuits in model.groups():
        own = centres[first : first + len(circuits)]
        nearest = pairwise_distances_argmin(h[:, positions].reshape(-1, h.shape[2]), own)
        outer[:, positions] = first + nearest.reshape(len(h), -1)
        first += len(circuits)
    return outer


def _within(model: JointModel, scores: npt.NDArray[np.float32], outer: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    """Keep of scores (n, P, K) those of the heads of each patch's cluster, (n, P): -inf for the others."""
    cluster_of = np.empty(scores.shape[1:], np.intp)  # of each value of z, at each position
    number = 0
    for positions, circuits in model.groups():
        for _, values in circuits:
            cluster_of[positions, values] = number
            number += 1
    return np.where(cluster_of == outer[:, :, None], scores, -np.inf).astype(np.float32)
