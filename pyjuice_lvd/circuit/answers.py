"""What follows for each row from its posterior flows: entropy of the choices, moments, derivatives, and the flows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit.engine import Engine, Evidence, Rows
from pyjuice_lvd.circuit.rows import Mask, given_heads
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.machine import check_result
from pyjuice_lvd.progress import SILENT, Progress

Float64 = npt.NDArray[np.float64]


class Moments(NamedTuple):
    """Means and variances given what is known, float64 (N, V); of what is known the values, and 0."""

    mean: Float64
    variance: Float64


class Answers:
    """The part of `Circuit` that answers these."""

    engine: Engine

    def posterior_moments(
        self,
        X: npt.ArrayLike | Evidence,
        mask: npt.ArrayLike | None = None,
        *,
        head: int | npt.ArrayLike = 0,
        progress: Progress = SILENT,
    ) -> Moments:
        """Give each hidden variable's exact mean and variance, given what is known of its row.

        Of inputs of all kinds; categories count as the numbers 0, 1, ....

        X, mask, head, progress: as for `posterior_marginals`. Returns Moments: `.mean` and `.variance`, float64
        (N, num_vars); an observed variable has its value and 0. Raises InputError where the data are out of range, and
        where the evidence of a row has probability 0.
        """
        rows, hidden = self.engine.rows(X, mask, hides=True)
        found = Moments(*(np.empty((len(rows), self.engine.num_vars)) for _ in range(2)))
        self._run("moments_job", rows, hidden, head, *found, stage="moments", progress=progress)
        return found

    def posterior_flows(
        self,
        X: npt.ArrayLike | Evidence,
        mask: npt.ArrayLike | None = None,
        *,
        head: int | npt.ArrayLike = 0,
        progress: Progress = SILENT,
    ) -> npt.NDArray[np.float64]:
        """Give the flow of each unit for each row: the probability that it is taken, given what is known of the row.

        `flows` adds them up over rows. X, mask, head, progress: as for `latent_entropy`. Returns float64
        (N, num_nodes), in Float64 throughout. Raises InputError where the data are out of range, and where the evidence
        of a row has probability 0.
        """
        rows, hidden = self._seen(X, mask)
        check_result("X", f"{len(rows)} rows", 8 * len(rows) * self.engine.num_nodes)
        out = np.empty((len(rows), self.engine.num_nodes))
        self._run("unit_flows_job", rows, hidden, head, out, stage="flows", progress=progress)
        return out

    def latent_entropy(
        self,
        X: npt.ArrayLike | Evidence,
        mask: npt.ArrayLike | None = None,
        *,
        head: int | npt.ArrayLike = 0,
        progress: Progress = SILENT,
    ) -> npt.NDArray[np.float64]:
        """Give the entropy of the latents given what is known of each row: H(Z | x), exact, in nats.

        Z is which child each sum takes, from the head down: an induced tree. Of an HCLT that is the hidden state of
        every variable. p(z | x) is the product of the posterior weights w p_child(x) / p_sum(x) of its edges, and what
        is taken below the children of a product is independent, given what is taken above. So the entropy is the sum
        over all sums of the flow into it times the entropy of its posterior weights.

        Parameters
        ----------
        X : integers (N, num_vars), or Evidence
            What is known.
        mask : bool (N, num_vars) or (num_vars,), optional
            True where the value is hidden. With everything hidden, the answer is H(Z).
        head : int or integers (N,)
            Which head, from 0; of every row its own.
        progress : Progress
            Where the work is shown.

        Returns
        -------
        float64 (N,)
            In nats.

        Raises
        ------
        InputError
            Where the data are out of range, and where the evidence of a row has probability 0.

        """
        rows, hidden = self._seen(X, mask)
        out = np.empty(len(rows))
        self._run("latent_entropy_job", rows, hidden, head, out, stage="entropy", progress=progress)
        return out

    def gradient(
        self,
        X: npt.ArrayLike,
        mask: npt.ArrayLike | None = None,
        *,
        head: int | npt.ArrayLike = 0,
        progress: Progress = SILENT,
    ) -> npt.NDArray[np.float64]:
        """Give the derivative of log p(x) in each variable with Gaussian inputs: float64 (N, num_vars).

        It is the sum over the variable's inputs of flow times (mean - x) / deviation^2. A hidden variable has 0; one
        that has categories, levels or counts has NaN: there is no derivative.

        X : numbers (N, num_vars). mask, head, progress: as for `latent_entropy`. Raises InputError for a circuit
        without Gaussian inputs, where the data are out of range, and where the evidence of a row has probability 0.
        """
        real = self.engine.real_variables
        if not real.any():
            raise InputError(
                "gradient: found a circuit without Gaussian inputs, wanted at least one variable that has them"
            )
        rows, hidden = self._seen(X, mask)
        out = np.where(real, np.zeros((len(rows), 1)), np.nan)
        self._run("gradient_job", rows, hidden, head, out, stage="gradient", progress=progress)
        return out

    def _seen(self, X: npt.ArrayLike | Evidence, mask: npt.ArrayLike | None) -> tuple[Rows, Mask | None]:
        """Check rows and their mask; None hides nothing."""
        nothing = None if isinstance(X, Evidence) else np.zeros(self.engine.num_vars, bool)
        return self.engine.rows(X, nothing if mask is None else mask, hides=True)

    def _run(
        self,
        job: str,
        rows: Rows,
        hidden: Mask | None,
        head: int | npt.ArrayLike,
        *out: Float64,
        stage: str,
        progress: Progress,
    ) -> None:
        n, heads = len(rows), given_heads(head, len(rows), self.engine.num_heads)
        self.engine.run(job, rows, hidden, heads, *out, stage=stage, total=n, progress=progress)
