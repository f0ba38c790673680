"""The joint model of whole images: p(x) = sum_z p(z) prod_i p(x_i | z_i), a prior circuit over patch circuits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit import Circuit
from pyjuice_lvd.circuit.devices import backend
from pyjuice_lvd.circuit.rows import Mask
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.models.base import ImageShape, Part
from pyjuice_lvd.models.joint_queries import Summary, complete, mixed
from pyjuice_lvd.models.latent import LatentModel, Mixing
from pyjuice_lvd.models.patch import PATCHES, PRIOR, Schedule
from pyjuice_lvd.models.written_out import num_params_written_out, written_out
from pyjuice_lvd.progress import SILENT, Progress


class JointModel(LatentModel):
    """p(x) = sum_z p(z) prod_i p(x_i | z_i) over images (docs/joint.md).

    Parameters
    ----------
    image_shape : (H, W, C)
    patch : (height, width)
        Positions are the patches of an image, row by row.
    color : str
        Colour transform; p(x) is the density of its output (for a lossless one, of the image).
    circuits : sequence of Circuit
        p(x_i | z_i), one for each outer cluster; its heads are values of z. All positions share them.
    prior : Circuit
        p(z), over the positions, with as many categories as the circuits have heads in all.
    tied : bool
        False: each position has circuits of its own. `circuits` are then those of the first position, of the second and
        so on; their heads are values of that position's z, as many at each.

    Raises
    ------
    InputError
        Where the circuits are not those of such images, or positions that are not tied have different numbers of heads.

    """

    format: ClassVar[str] = "lvd-juice joint model 1"
    _kept: ClassVar[Mapping[str, Any]] = {
        "image_shape": ImageShape, "patch": tuple[int, int], "color": str, "circuits": int, "tied": bool,
    }  # fmt: skip
    _optional: ClassVar[frozenset[str]] = frozenset({"tied"})  # older models do not say

    def __init__(
        self,
        *,
        image_shape: ImageShape,
        patch: tuple[int, int],
        color: str,
        circuits: Sequence[Circuit],
        prior: Circuit,
        tied: bool = True,
    ) -> None:
        self.image_shape = image_shape
        self.patch = patch
        self.color = color_transform(color, image_shape[2])
        self.circuits = list(circuits)
        self.prior = prior
        self.tied = tied
        self._check()

    def _check(self) -> None:
        """Check that the circuits fit each other and the images."""
        size = self._check_positions()
        if not self.circuits:
            raise InputError("circuits: found none, wanted at least one")
        for index, circuit in enumerate(self.circuits):
            if circuit.num_vars != size:
                raise InputError(f"circuits: found {circuit.num_vars} variables in circuit {index}, wanted {size}")
            if (found := circuit.engine.categories) != (levels := self.circuits[0].engine.categories):
                raise InputError(f"circuits: found {found} categories in circuit {index}, wanted {levels}")
        ends = np.cumsum([circuit.num_heads for circuit in self.circuits])
        wanted = self.num_latent_values * np.arange(1, self.prior.num_vars + 1)
        if not self.tied and not (np.isin(wanted, ends).all() and wanted[-1] == ends[-1]):
            raise InputError(
                f"circuits: found other numbers of heads at some of the {self.prior.num_vars} untied positions"
            )
        if (values := self.prior.engine.categories) != self.num_latent_values:
            raise InputError(f"prior: found {values} values of z, wanted {self.num_latent_values}, the circuits' heads")

    @property
    def num_latent_values(self) -> int:
        """K, the number of values of each z_i."""
        return sum(circuit.num_heads for circuit in self.circuits) // (1 if self.tied else self.prior.num_vars)

    @property
    def num_params(self) -> int:
        """All parameters: those of the patch circuits, counted once, and of the prior."""
        return self.prior.num_params + sum(circuit.num_params for circuit in self.circuits)

    @property
    def learning(self) -> list[Circuit]:
        """The prior, then the patch circuits."""
        return [self.prior, *self.circuits]

    @property
    def num_candidates(self) -> int:
        """How many circuits a patch can be tried under."""
        return len(self.circuits)

    def em_job(
        self, patches: npt.NDArray[np.uint8], candidates: npt.NDArray[np.uint16] | None, schedule: Schedule
    ) -> julia.Handle:
        """Make the job of EM on p(x) (`LatentModel.em_job`)."""
        job: julia.Handle = julia.call(
            "joint_em_job", patches, candidates, *schedule, self.tied,
            *(circuit.engine.circuit for circuit in self.learning), *backend(),
        )  # fmt: skip
        return job

    def groups(self) -> Iterator[tuple[slice, list[tuple[Circuit, slice]]]]:
        """Give the positions that share circuits, with these circuits, and the values of z that their heads are.

        All positions are one group; where they are not tied, each is a group of its own.
        """
        positions, circuits, first = slice(0, self.prior.num_vars if self.tied else 1), [], 0
        for circuit in self.circuits:
            circuits.append((circuit, slice(first, first + circuit.num_heads)))
            first += circuit.num_heads
            if first == self.num_latent_values:
                yield positions, circuits
                positions, circuits, first = slice(positions.stop, positions.stop + 1), [], 0

    def patch_scores(self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """log p(x_i | z_i = k) of every patch and value, float32 (N, P, K), in nats.

        `images`, `mask`: as for `score_samples`. What is hidden is summed out: 0 for a patch of which nothing is known.
        """
        images, hidden = self._checked(images, mask)
        patches, masks = self.patches(images), to_patches(hidden, self.patch)
        scores = np.zeros((*patches.shape[:2], self.num_latent_values), np.float32)
        engines = (circuit.engine.evaluator(soft=False) for circuit in self.circuits)
        julia.call("patch_scores!", scores, patches, masks if masks.any() else None, self.tied, *engines)
        return scores

    def posterior(
        self, images: npt.NDArray[np.uint8], mask: npt.ArrayLike | None = None, *, progress: Progress = SILENT
    ) -> npt.NDArray[np.float64]:
        """p(z_i = k | what is known of the image), exact: float64 (N, P, K), over all positions.

        `images`, `mask`, errors: as for `inpaint`; without a mask, all is known. The values of z are the circuits'
        heads, in order. The result takes 8 P K bytes for each image: ask for that of large data in shares.
        """
        images, hidden = self._checked(images, mask)
        found = np.empty((len(images), self.prior.num_vars, self.num_latent_values))
        with progress.stage("posterior", total=len(images), unit="images") as stage:
            for rows in self.chunks(len(images)):
                found[rows] = self.prior.posterior_marginals(self._evidence(images, hidden, rows))
                stage.advance(rows.stop - rows.start)
        return found

    def _complete(
        self,
        patches: npt.NDArray[np.uint8],
        hidden: Mask,
        z: npt.NDArray[np.integer],
        rng: np.random.Generator,
        *,
        modes: bool,
        exact: bool,
    ) -> None:
        complete(self.groups(), patches, hidden, z, rng, modes=modes)

    def _mixing(self, size: int, summary: Summary, *, exact: bool) -> Mixing:
        return lambda patches, hidden, posterior: mixed(self.groups(), patches, hidden, posterior, size, summary)

    def written_out(self) -> Circuit:
        """p(x) as one circuit, with copies of the patch circuits for each position (`models.written_out`)."""
        indices = np.arange(self.dims, dtype=np.int64).reshape(1, *self.image_shape)
        return written_out(self.prior, self.circuits, to_patches(indices, self.patch)[0], tied=self.tied)

    @property
    def num_params_written_out(self) -> int:
        """Count the parameters of `written_out()`: those of the circuits once for each of their copies."""
        return num_params_written_out(self.prior, self.circuits, tied=self.tied)

    def exported(self, part: str) -> list[Part]:
        """Give p(x) as one circuit, or p(x_i | z_i) or p(z) as they are."""
        if part == PRIOR:
            return [self._prior_part("z", "the heads of its patch circuits, one circuit after another")]
        if part == PATCHES:
            variables = self.variables(self.patch)
            return [
                Part(circuit, f"p(x | z) {of}, a head for each of z = {values.start}..{values.stop - 1}\n{variables}")
                for positions, circuits in self.groups()
                for of in ("of patches" if self.tied else f"of the patch at position {positions.start}",)
                for circuit, values in circuits
            ]
        return super().exported(part)

    def _coder(self) -> julia.Handle:
        circuits = (circuit.engine.circuit for circuit in self.circuits)
        coder: julia.Handle = julia.call("joint_coder", self.prior.engine.circuit, self.tied, *circuits)
        return coder

    def _parameters(self) -> Iterator[npt.NDArray[Any]]:
        for circuit in self.learning:
            yield from circuit.engine.arrays().values()

    def _description(self) -> dict[str, Any]:
        return {
            "image_shape": self.image_shape,
            "patch": self.patch,
            "color": self.color.name,
            "circuits": len(self.circuits),
            "tied": self.tied,
        }

    def _save_circuits(self, folder: Path) -> None:
        for index, circuit in enumerate(self.circuits):
            circuit.save(folder / names.circuit_of(index))
        self.prior.save(folder / names.PRIOR)

    @classmethod
    def _restored(cls, folder: Path, kept: Mapping[str, Any]) -> Self:
        circuits = [Circuit.load(folder / names.circuit_of(index)) for index in range(kept["circuits"])]
        return cls(**{**kept, "circuits": circuits}, prior=Circuit.load(folder / names.PRIOR))
