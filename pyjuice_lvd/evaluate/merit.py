"""Held-out figures: bpd with its standard error and protocol, and the floor that any structure must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.data.missing import missing_in
from pyjuice_lvd.large import blocks
from pyjuice_lvd.units import bits_per_dimension


def figures_of_merit(
    scores: npt.NDArray[np.float64], dims: int, seen: npt.NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Turn log-likelihoods, float64 (N,) in nats, into `bpd`, `nll_nats`, `std_error_bpd`, `n` and `dims`.

    They are of images or rows; the standard error is that of the mean over them. `seen`, int64 (N,), says how many
    values of each row are there, where some are missing: then `bpd` is bits per value that is seen, of all rows
    together, and the figure `seen` is the share of such values. Where some rows have probability 0, the first two are
    infinite, without an error. `impossible` then says how many these are, and `bpd_possible`, `nll_nats_possible` and
    `std_error_bpd_possible` are the figures of the others, None where there are none.
    """
    counts = np.full(len(scores), dims) if seen is None else seen
    figures = {**_means(scores, counts), "n": len(scores), "dims": dims}
    if (counts < dims).any():
        figures["seen"] = float(counts.mean() / dims)
    possible = scores > -np.inf
    if not possible.all():
        figures["impossible"] = int((~possible).sum())
        figures |= {f"{name}_possible": value for name, value in _means(scores[possible], counts[possible]).items()}
    return figures


def _means(scores: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> dict[str, float | None]:
    """Give the means over rows with so many values; bpd is a ratio of two sums, and its error that of such a ratio."""
    if not len(scores) or not counts.any():
        return {"bpd": None, "nll_nats": float(0.0 - scores.mean()) if len(scores) else None, "std_error_bpd": None}
    each = float(counts.mean())
    bits = bits_per_dimension(scores, each)
    bpd = float(bits.mean())
    off = bits if np.isinf(bpd) else bits - bpd * (counts / each - 1)  # what a row adds beyond its share of the values
    return {"bpd": bpd, "nll_nats": float(0.0 - scores.mean()), "std_error_bpd": std_error(off)}


def std_error(values: npt.NDArray[np.float64]) -> float | None:
    """Estimate the standard error of the mean of values (N,): their standard deviation over sqrt(N).

    None for a single one, and where one is not finite.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def protocol_text(protocol: Mapping[str, Any]) -> str:
    """Say in a few words what `DensityModel.protocol` gives."""
    if protocol["color"] is None:
        return "bits per variable"
    pixels = f"top-left {protocol['crop']}" if protocol["crop"] else "whole images"
    loss = "lossless" if protocol["lossless"] else "LOSSY: compares with no lossless bpd"
    return f"{protocol['color']}, {pixels}, {loss}"


# Tried on the validation images; a category that training never saw costs log2(N / pseudocount) bits or so.
_PSEUDOCOUNTS = (0.1, 1.0, 10.0, 100.0)


def factorized_bpd(
    train: npt.NDArray[Any], valid: npt.NDArray[Any], test: npt.NDArray[Any], num_cats: int = 256
) -> float | None:
    """Bits per dimension on `test` of the fully factorised model: one categorical for each dimension, from counts.

    All three are integers (N, ...) below `num_cats`, images in the colour space that is modelled; below 0, a value is
    missing, and counts for nothing. The pseudocount, shared by the categories, is the one that does best on `valid`.
    None where `test` has no value.
    """
    tables = [part.reshape(len(part), -1) for part in (train, valid, test)]
    dims = tables[0].shape[1]
    counts = np.zeros((dims, num_cats), np.int64)
    for rows in blocks(len(tables[0]), 8 * dims):
        cells = tables[0][rows].astype(np.intp) + num_cats * np.arange(dims)
        counts += np.bincount(_seen(cells, tables[0][rows]), minlength=counts.size).reshape(counts.shape)

    def bits_of(table: npt.NDArray[Any], pseudocount: float) -> tuple[float, int]:
        bits = -np.log2((counts + pseudocount / num_cats) / (counts.sum(axis=1, keepdims=True) + pseudocount))
        total, count = 0.0, 0
        for rows in blocks(len(table), 8 * dims):
            seen = _seen(bits[np.arange(dims), table[rows]], table[rows])
            total, count = total + float(seen.sum()), count + seen.size
        return total, count

    best = min(_PSEUDOCOUNTS, key=lambda pseudocount: bits_of(tables[1], pseudocount))
    total, count = bits_of(tables[2], best)
    return total / count if count else None


def _seen(values: npt.NDArray[Any], table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Give those of the values (N, V) that stand for values of the table which are there."""
    missing = missing_in(table)
    return values.ravel() if missing is None else values[~missing]
