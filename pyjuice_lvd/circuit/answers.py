"""What follows for each row from its posterior flows: entropy of the choices, moments, derivatives, and the flows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.circuit.engine import Engine, Evidence, Rows
from pyjuice_lvd.circuit.rows import Mask, given_heads
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.memory import check_result
from pyjuice_lvd.progress import Progress

Float64 = npt.NDArray[np.float64]
Head = int | npt.ArrayLike


class Moments(NamedTuple):
    """Means and variances given what is known, float64 (N, V); of what is known the values, and 0."""

    mean: Float64
    variance: Float64


def latent_entropy(
    engine: Engine, X: npt.ArrayLike | Evidence, mask: npt.ArrayLike | None, head: Head, progress: Progress
) -> Float64:
    """See `Circuit.latent_entropy`."""
    rows, hidden = _seen(engine, X, mask)
    out = np.empty(len(rows))
    _run(engine, "latent_entropy_job", rows, hidden, head, out, stage="entropy", progress=progress)
    return out


def posterior_moments(
    engine: Engine, X: npt.ArrayLike | Evidence, mask: npt.ArrayLike | None, head: Head, progress: Progress
) -> Moments:
    """See `Circuit.posterior_moments`."""
    rows, hidden = engine.rows(X, mask, hides=True)
    found = Moments(*(np.empty((len(rows), engine.num_vars)) for _ in range(2)))
    _run(engine, "moments_job", rows, hidden, head, *found, stage="moments", progress=progress)
    return found


def posterior_flows(
    engine: Engine, X: npt.ArrayLike | Evidence, mask: npt.ArrayLike | None, head: Head, progress: Progress
) -> Float64:
    """See `Circuit.posterior_flows`."""
    rows, hidden = _seen(engine, X, mask)
    check_result("X", f"{len(rows)} rows", 8 * len(rows) * engine.num_nodes)
    out = np.empty((len(rows), engine.num_nodes))
    _run(engine, "unit_flows_job", rows, hidden, head, out, stage="flows", progress=progress)
    return out


def gradient(engine: Engine, X: npt.ArrayLike, mask: npt.ArrayLike | None, head: Head, progress: Progress) -> Float64:
    """See `Circuit.gradient`."""
    real = engine.real_variables
    if not real.any():
        raise InputError(
            "gradient: found a circuit without Gaussian inputs, wanted at least one variable that has them"
        )
    rows, hidden = _seen(engine, X, mask)
    out = np.where(real, np.zeros((len(rows), 1)), np.nan)
    _run(engine, "gradient_job", rows, hidden, head, out, stage="gradient", progress=progress)
    return out


def _seen(engine: Engine, X: npt.ArrayLike | Evidence, mask: npt.ArrayLike | None) -> tuple[Rows, Mask | None]:
    """Check rows and their mask; None hides nothing."""
    nothing = None if isinstance(X, Evidence) else np.zeros(engine.num_vars, bool)
    return engine.rows(X, nothing if mask is None else mask, hides=True)


def _run(
    engine: Engine, job: str, rows: Rows, hidden: Mask | None, head: Head, *out: Float64, stage: str, progress: Progress
) -> None:
    n, heads = len(rows), given_heads(head, len(rows), engine.num_heads)
    engine.run(job, rows, hidden, heads, *out, stage=stage, total=n, progress=progress)
