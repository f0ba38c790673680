"""Arrays in every form that numpy has: circuits take them as they take plain ones, and leave them as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyjuice_lvd import Circuit
from pyjuice_lvd.circuit import Evidence

Form = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(params=["bytes", "file", "unaligned", "swapped", "fortran", "strided", "flagged"])
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Form:
    """A way to lay out an array: a copy of it, most of them read-only."""

    def lay_out(x: np.ndarray) -> np.ndarray:
        match request.param:
            case "bytes":
                y = np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape)
            case "file":
                path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
                np.save(path, x)
                return np.load(path, mmap_mode="r")
            case "unaligned":
                y = np.frombuffer(b"x" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
            case "swapped":
                y = x.astype(x.dtype.newbyteorder(">"))
            case "fortran":
                y = np.asfortranarray(x)
            case "strided":
                y = np.stack([x, x], axis=-1)[..., 0]
            case _:
                y = x.copy()
                y.flags.writeable = False
        return y

    return lay_out


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_tables_masks_heads_and_weights_of_any_form(form: Form, dtype: type) -> None:
    rng = np.random.default_rng(0)
    n, v = 200, 5
    plain = {
        "X": rng.integers(0, 3, (n, v)).astype(dtype),
        "mask": rng.random((n, v)) < 0.5,
        "heads": rng.integers(0, 2, n).astype(np.int32),
        "weights": rng.random(n).astype(np.float32),
        "select": np.array([1]),
        "parent": np.array([-1, 0, 1, 1, 0]),
    }
    given = {name: form(x) for name, x in plain.items()}
    assert_same(everything(**given), everything(**plain))
    for name, x in given.items():
        np.testing.assert_array_equal(x, plain[name])


def everything(
    X: np.ndarray, mask: np.ndarray, heads: np.ndarray, weights: np.ndarray, select: np.ndarray, parent: np.ndarray
) -> list[Any]:
    tree = Circuit.from_tree(parent, num_latents=2, num_cats=3)
    start = Circuit.hclt(X, num_latents=3, num_cats=3, heads=2, start="clusters", labels=heads)
    pc = Circuit.hclt(X, num_latents=3, num_cats=3, heads=2)
    history = pc.fit_em(X, heads=heads, weights=weights, epochs=2, batch_size=50, valid=X, valid_heads=heads)
    statistics = pc.accumulate(X, heads=heads, weights=weights)
    for x in (statistics.edges, statistics.inputs):
        x.flags.writeable = False
    pc.apply(statistics, step_size=0.5)
    flows = pc.flows(X, heads=heads, weights=weights)
    grown = pc.grow(X, heads=heads, weights=weights, select=select, threshold=1)
    other_circuits = (
        tree, start, grown, pc.prune(X, heads=heads, weights=weights), pc.prune(X, min_flow=0.0), pc.with_heads(select),
        Circuit.mixture([pc, start], weights=weights[:2]),
    )  # fmt: skip
    return [
        np.array(history), flows.nodes, flows.edges, pc.log_likelihood(X, mask=mask, head="all"),
        pc.sample(2, X=X, mask=mask, head=heads), pc.posterior_marginals(X, mask, head=heads),
        pc.mpe(X, mask, head=heads), *(other.log_likelihood(X, head="all") for other in other_circuits),
    ]  # fmt: skip


def test_soft_evidence_of_any_form(form: Form) -> None:
    scores = np.log(np.random.default_rng(1).random((100, 4, 3))).astype(np.float32)

    def all_of(scores: np.ndarray) -> list[Any]:
        pc = Circuit.from_tree([-1, 0, 1, 2], num_latents=2, num_cats=3)
        before = pc.log_likelihood(Evidence(scores))
        pc.fit_em(Evidence(scores), epochs=2, batch_size=32)
        return [before, pc.log_likelihood(Evidence(scores)), pc.sample(2, X=Evidence(scores))]

    given = form(scores)
    given.flags.writeable = False
    assert_same(all_of(given), all_of(np.stack([scores, scores], axis=-1)[..., 0]))  # whose copy may be written to
    np.testing.assert_array_equal(given, scores)


def test_bytes_of_a_mask_other_than_0_and_1_hide_too() -> None:
    X = np.array([[0, 1, 2], [2, 1, 0]])
    pc = Circuit.from_tree([-1, 0, 1], num_latents=2, num_cats=3)
    mask = np.array([[0, 1, 0], [1, 0, 0]], bool)
    bytes_of_c = np.array([[0, 2, 0], [128, 0, 0]], np.uint8).view(bool)
    np.testing.assert_array_equal(pc.log_likelihood(X, mask=bytes_of_c), pc.log_likelihood(X, mask=mask))
    np.testing.assert_array_equal(
        pc.log_likelihood(np.array([[0, 2, 0]], np.uint8).view(bool)), pc.log_likelihood(np.array([[0, 1, 0]]))
    )


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=str(i))
