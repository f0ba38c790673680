"""Progressive growing: clusters that only the circuits can tell, the definitions of its steps, and hard cases."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pyjuice_lvd import Circuit
from pyjuice_lvd.circuit.reduce import Reducer, using
from pyjuice_lvd.clustering import divide, kmeans
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.learn.growing import Grown, one_shot, pick, progressive_growing, relabel
from pyjuice_lvd.learn.pieces import Pieces
from pyjuice_lvd.learn.pipeline import _Cluster, _learn_circuits, _Work
from pyjuice_lvd.progress import SILENT
from pyjuice_lvd.settings import CircuitSettings, GrowingSettings, resolve

CATS = 8
EM = CircuitSettings(latents=3, epochs=8, batch_size=64)
SHORT: dict[str, Any] = {"epochs": 8}  # rounds before the last

Features = npt.NDArray[np.float32]
Patches = npt.NDArray[np.uint8]


def clusters(n: int = 400, heads: int = 4, seed: int = 0) -> tuple[Patches, Features, npt.NDArray[np.int64]]:
    """Patches of four kinds, and features that tell the kinds apart but for noise."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, heads, n)
    centre = rng.integers(0, CATS, (heads, 6))
    x = np.clip(centre[kind] + rng.integers(-1, 2, (n, 6)), 0, CATS - 1).astype(np.uint8)
    h = (4 * np.eye(heads)[kind] + rng.normal(0, 0.5, (n, heads))).astype(np.float32)
    return x, h, kind


def mean_own(circuit: Circuit, x: Patches, labels: npt.NDArray[np.int32]) -> float:
    return float(circuit.log_likelihood(x, head="all")[np.arange(len(x)), labels].mean())


def test_it_finds_the_clusters_and_beats_labels_without_feedback() -> None:
    x, h, kind = clusters()
    records: list[Any] = []
    grown = progressive_growing(
        x, h, num_heads=4, num_cats=CATS, circuit=EM, growing=GrowingSettings(**SHORT), record=records.append
    )
    assert grown.circuit.num_heads == 4
    table = np.array([[np.sum((grown.labels == head) & (kind == k)) for k in range(4)] for head in range(4)])
    assert table.max(axis=1).sum() > 0.95 * len(x)
    flat = one_shot(x, h, num_heads=4, num_cats=CATS, circuit=EM)
    assert mean_own(grown.circuit, x, grown.labels) > mean_own(flat.circuit, x, flat.labels) + 0.5
    assert [record["heads"] for record in records] == sorted({record["heads"] for record in records})
    assert records[0]["heads"] == 1
    last = records[-1]
    assert last["log_likelihood"] == pytest.approx(mean_own(grown.circuit, x, grown.labels))
    np.testing.assert_allclose(grown.circuit.head_weights, np.bincount(grown.labels) / len(x), rtol=1e-6)
    assert last["edges"] == grown.circuit.num_edges
    assert set(records[0]) >= {"stage", "round", "units", "moved", "picked", "pruned_edges", "pruning_loss", "seconds"}
    # Under noisy features some patches change their clusters, and pruning costs next to nothing.
    assert all(record["pruning_loss"] < 0.01 for record in records)


def test_a_circuit_that_would_lose_few_edges_keeps_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x, h, _ = clusters(200)

    def pruned() -> list[int]:
        records: list[Any] = []
        growing = GrowingSettings(**SHORT, min_flow=0.1)
        progressive_growing(x, h, num_heads=2, num_cats=CATS, circuit=EM, growing=growing, record=records.append)
        return [record["pruned_edges"] for record in records]

    usual = pruned()
    assert usual[0] > 0
    monkeypatch.setattr("pyjuice_lvd.learn.growing._WORTH_PRUNING", 0.9)
    assert pruned()[0] == 0


def test_the_same_seed_gives_the_same_circuit(request: pytest.FixtureRequest) -> None:
    x, h, _ = clusters(200)

    def grown(seed: int) -> Grown:
        own = GrowingSettings(**SHORT)
        return progressive_growing(x, h, num_heads=3, num_cats=CATS, circuit=EM, growing=own, seed=seed)

    first, other = grown(1), grown(2)
    request.getfixturevalue("in_blocks")  # which changes nothing
    again = grown(1)
    np.testing.assert_array_equal(first.labels, again.labels)
    for mine, yours in zip(first.circuit.parameters(), again.circuit.parameters(), strict=True):
        np.testing.assert_array_equal(mine, yours)
    assert not np.array_equal(first.circuit.log_likelihood(x), other.circuit.log_likelihood(x))


def test_full_batch_rounds_never_lower_the_conditional_likelihood() -> None:
    x, h, _ = clusters(150)
    h += np.random.default_rng(1).normal(0, 2, h.shape).astype(np.float32)  # so that patches change their clusters
    em = CircuitSettings(latents=3, epochs=15, batch_size=150, step_size=(1.0, 1.0), pseudocount=0.0)
    records: list[Any] = []
    progressive_growing(
        x,
        h,
        num_heads=3,
        num_cats=CATS,
        circuit=em,
        growing=GrowingSettings(min_flow=0.0, epochs=15),
        record=records.append,
    )
    for record in records:
        assert np.all(np.diff(record["em"]) > -1e-5)  # step 1
        assert record["pruning_loss"] < 1e-5  # edges without flow change nothing
        if "relabelled_log_likelihood" in record:
            assert record["relabelled_log_likelihood"] >= record["log_likelihood"]  # step 2
    assert any(record.get("moved") for record in records)


def test_relabelling() -> None:
    scores = np.array([[0.0, 2.0], [1.0, 1.0], [3.0, 2.5], [3.0, 2.5]])
    labels = np.array([0, 1, 1, 1], np.int32)
    np.testing.assert_array_equal(relabel(scores, labels), [1, 1, 0, 0])
    np.testing.assert_array_equal(relabel(scores, labels, stickiness=0.5), [1, 1, 1, 1])
    np.testing.assert_array_equal(relabel(scores, labels, stickiness=2.0), [0, 1, 1, 1])


@pytest.mark.parametrize(
    ("share", "expected"), [(0.05, [2]), (0.1, [2]), (0.4, [2, 0]), (0.61, [2, 0, 1]), (1.0, [2, 0, 1])]
)
def test_picking_the_clusters_of_lowest_likelihood(share: float, expected: list[int]) -> None:
    np.testing.assert_array_equal(pick(np.array([-5.0, -4.0, -6.0]), np.array([50, 40, 10]), share), expected)


def test_dividing_clusters() -> None:
    rng = np.random.default_rng(0)
    h = rng.normal(0, 0.1, (90, 2)).astype(np.float32)
    h[30:60] += 5  # within cluster 7
    h[60:, 0] -= 9
    labels = np.repeat(np.array([7, 7, 3], np.int32), 30)
    divided, origins = divide(h, labels, 1, 10, seed=0)
    np.testing.assert_array_equal(origins, [7])
    assert {tuple(np.unique(divided[part])) for part in (slice(0, 30), slice(30, 60))} == {(7,), (10,)}
    assert set(divided[60:]) == {3}
    # Nothing to divide by: no new cluster.
    divided, origins = divide(np.ones((90, 2), np.float32), labels, 2, 10, seed=0)
    assert len(origins) == 0
    assert set(divided) <= {3, 7}
    # Fewer features than clusters that are wanted.
    divided, origins = divide(h[[0, 30, 60]], labels[[0, 30, 60]], 2, 10, seed=0)
    assert len(origins) == 1
    assert len(set(divided)) == 3


def test_new_clusters_come_from_different_ones() -> None:
    rng = np.random.default_rng(1)
    h = rng.normal(size=(300, 3)).astype(np.float32)
    labels = kmeans(h, 3, seed=0)
    divided, origins = divide(h, labels, 3, 3, seed=0)
    assert sorted(origins) == [0, 1, 2]
    assert set(divided) == set(range(6))


class Log:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("no stage is opened")

    def log(self, message: str) -> None:
        self.said.append(message)


def finite(x: Patches, h: Features, num_heads: int = 4, **settings: Any) -> tuple[Circuit, list[str]]:
    """Grow; what comes out must be sound: a patch for each head, finite likelihoods, distributions that sum to 1."""
    log = Log()
    grown = progressive_growing(
        x, h, num_heads=num_heads, num_cats=CATS, circuit=EM, growing=GrowingSettings(**SHORT, **settings),
        name="cluster 5", progress=log,
    )  # fmt: skip
    assert set(grown.labels) == set(range(grown.circuit.num_heads))
    assert np.isfinite(grown.circuit.log_likelihood(x, head="all")[np.arange(len(x)), grown.labels]).all()
    hidden = np.ones((1, x.shape[1]), bool)
    np.testing.assert_allclose(grown.circuit.log_likelihood(x[:1], mask=hidden, head="all"), 0, atol=1e-5)
    return grown.circuit, log.said


def test_constant_features_stay_one_cluster() -> None:
    x, h, _ = clusters(60)
    circuit, said = finite(x, np.ones_like(h))
    assert circuit.num_heads == 1
    assert said == ["cluster 5: 1 heads in place of 4: no more clusters can be told apart"]


def test_fewer_patches_than_heads() -> None:
    x, h, _ = clusters(3)
    circuit, said = finite(x, h, num_heads=5)
    assert 1 <= circuit.num_heads <= 3
    assert "in place of 5" in said[-1]
    circuit, _ = finite(x[:1], h[:1])
    assert circuit.num_heads == 1


def test_identical_patches_and_variables_that_never_vary() -> None:
    _, h, _ = clusters(80)
    circuit, _ = finite(np.full((80, 6), 3, np.uint8), h)
    assert 1 <= circuit.num_heads <= 4
    x, h, _ = clusters(80)
    x[:, 2] = 5
    assert finite(x, h)[0].num_heads == 4


def test_a_head_that_no_patch_prefers_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    x, h, _ = clusters(200)
    calls = iter(range(100))

    def empty_head_0(scores: Any, labels: Any, stickiness: float) -> Any:
        moved = relabel(scores, labels, stickiness)
        return np.maximum(moved, 1).astype(np.int32) if next(calls) == 0 else moved

    monkeypatch.setattr("pyjuice_lvd.learn.growing.relabel", empty_head_0)
    circuit, said = finite(x, h, start=3, share=1.0)
    assert circuit.num_heads == 4
    assert said == ["cluster 5: 1 of 3 heads had no patch left, and were dropped"]


def test_rounds_come_to_an_end_even_if_every_new_head_is_deserted(monkeypatch: pytest.MonkeyPatch) -> None:
    x, h, _ = clusters(100)
    monkeypatch.setattr("pyjuice_lvd.learn.growing.relabel", lambda scores, labels, _: np.zeros(len(labels), np.int32))
    circuit, said = finite(x, h)
    assert circuit.num_heads == 2
    assert said[-1].endswith("no more clusters can be told apart")


def test_the_released_codes_variant() -> None:
    growing = resolve(None, {"growing": {"variant": "reference", "share": 0.5, "epochs": 8}}).growing
    assert (growing.start, growing.stickiness, growing.new_heads, growing.share) == (2, 1.0, "one", 0.5)
    assert growing.tree_per_head
    assert growing.quantized
    assert resolve(None, {"growing": {"variant": "reference", "stickiness": 0.0}}).growing.stickiness == 0
    assert resolve(base=resolve(None, {"growing": {"variant": "reference"}})).growing.start == 2
    x, h, _ = clusters(200)
    records: list[Any] = []
    grown = progressive_growing(x, h, num_heads=4, num_cats=CATS, circuit=EM, growing=growing, record=records.append)
    assert [record["heads"] for record in records] == [2, 3, 4]
    assert grown.circuit.num_heads == 4


@pytest.mark.parametrize(
    ("x", "h", "heads", "message"),
    [
        (np.zeros((0, 2), np.uint8), np.zeros((0, 2)), 2, "x: found no patches"),
        (np.zeros((4, 2), np.uint8), np.zeros((3, 2)), 2, "h: found float64 (3, 2), wanted floats (4, D)"),
        (np.zeros((4, 2), np.uint8), np.zeros((4, 2), int), 2, "h: found int64 (4, 2), wanted floats"),
        (np.zeros((4, 2), np.uint8), np.full((4, 2), np.nan), 2, "h: found values that are not finite"),
        (np.zeros((4, 2), np.uint8), np.zeros((4, 2)), 0, "num_heads: found 0"),
        (np.full((4, 2), 300), np.zeros((4, 2)), 2, "value 300 is outside 0..255"),
    ],
)
def test_bad_input_is_named(x: Any, h: Any, heads: int, message: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        progressive_growing(x, h, num_heads=heads)
    assert message in str(caught.value)


class OneOfTwo(Reducer):
    """Process 1 of two writes down what it says; process 0 then hears that. Nobody else is there."""

    def __init__(self, rank: int, said: list[Mapping[str, npt.NDArray[Any]]]) -> None:
        self.rank, self.size, self._said = rank, 2, said

    def merged(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        if self.rank == 1:
            self._said.append(arrays)
            return dict(arrays)
        return {**arrays, **self._said.pop(0)}


def test_validation_patches_end_em_before_it_learns_by_heart() -> None:
    x, h, _ = clusters(700)
    noise = np.random.default_rng(1).integers(-2, 3, x.shape)
    x = np.clip(x + noise, 0, CATS - 1).astype(np.uint8)
    train, valid, others = x[:60], x[60:160], x[160:]
    em = CircuitSettings(latents=6, epochs=60, batch_size=16, step_size=(0.5, 0.1), pseudocount=1e-3, patience=3)
    schedule = GrowingSettings(epochs=60)
    for learn, options in ((one_shot, {}), (progressive_growing, {"growing": schedule})):
        records: list[Any] = []
        common: dict[str, Any] = {"num_heads": 4, "num_cats": CATS, "circuit": em, **options}
        stopped = learn(train, h[:60], valid=valid, record=records.append, **common)
        whole = learn(train, h[:60], **common)
        found, by_heart = (grown.circuit.log_likelihood(others, head="mixture").mean() for grown in (stopped, whole))
        assert found > by_heart + 0.3
        for entry in records:
            assert len(entry["em"]) == len(entry["valid"]) == entry["kept_epoch"] + 3 < 60
            if entry["kept_epoch"]:  # else no epoch was better than what it began with
                assert entry["valid"][entry["kept_epoch"] - 1] == max(entry["valid"])
        last = records[-1]
        assert last["log_likelihood"] == pytest.approx(mean_own(stopped.circuit, train, stopped.labels))
        # Without patience the validation patches have no say.
        never = learn(train, h[:60], valid=valid, **(common | {"circuit": replace(em, patience=0)}))
        for scores in zip(*(grown.circuit.log_likelihood(others, head="all") for grown in (never, whole)), strict=True):
            np.testing.assert_array_equal(*scores)


def test_processes_grow_the_circuits_that_one_does() -> None:
    x, h, _ = clusters(300)
    settings = resolve(
        assignments=["clusters.inner=2", "circuit.latents=3", "circuit.epochs=4", "circuit.batch_size=64",
                     "growing.epochs=4"],
    )  # fmt: skip
    members = {cluster: np.arange(cluster, 300, 2) for cluster in (0, 1)}
    own, shared, said = list[Any](), list[Any](), list[Any]()
    alone = _Work(settings, Pieces(None, settings), own.append, SILENT)
    together = replace(alone, record=shared.append)

    def of(cluster: int) -> _Cluster:
        rows = members[cluster]
        return _Cluster(x[rows], h[rows], x[::5])

    wanted = {cluster: _learn_circuits([cluster], of, alone)[cluster] for cluster in members}
    with using(OneOfTwo(1, said)), pytest.raises(KeyError):  # what process 0 has learned, nobody tells it
        _learn_circuits(list(members), of, together)
    with using(OneOfTwo(0, said)):
        found = _learn_circuits(list(members), of, together)
    assert said == []
    for c, grown in wanted.items():
        assert found[c].circuit.num_heads == grown.circuit.num_heads == 2
        np.testing.assert_array_equal(found[c].labels, grown.labels)
        scores = (each.circuit.log_likelihood(x, head="all") for each in (found[c], grown))
        np.testing.assert_array_equal(*scores)
    assert [(entry["cluster"], entry["edges"]) for entry in shared] == [(e["cluster"], e["edges"]) for e in own]
