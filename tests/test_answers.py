"""What follows from posterior flows, and circuits beside each other; julia/test has random circuits, by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from models import tiny_model
from scipy import stats
from scipy.special import entr, logsumexp

from pyjuice_lvd import HCLT, Circuit, CircuitBuilder
from pyjuice_lvd.circuit import Evidence
from pyjuice_lvd.errors import InputError

MIXED = ["categorical", "gaussian", "poisson", "logistic"]
GRID = np.linspace(-12, 24, 6001)


def mixed_table(n: int = 400, seed: int = 0) -> npt.NDArray[np.float64]:
    """Rows of a category, a real number, a count and a level, which follow from it."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, 3, n)
    return np.stack([z, rng.normal(4 * z, 0.7), rng.poisson(1 + 3 * z), rng.binomial(5, 0.2 + 0.3 * z)], axis=1)


@pytest.fixture(scope="module")
def mixed() -> Circuit:
    pc = Circuit.hclt(mixed_table(), num_latents=3, leaves=MIXED, start="clusters")
    pc.fit_em(mixed_table(), epochs=5, step_size=0.5)
    return pc


@pytest.fixture(scope="module")
def pairs() -> Circuit:
    """Two binary variables and one of three values, a tree with two latents; all trees are few."""
    return Circuit.from_tree([-1, 0, 0], num_latents=2, num_cats=3, heads=2, perturbation=0.9, seed=3)


ALL = np.array(list(itertools.product(range(3), repeat=3)))


def values_of(variable: int) -> npt.NDArray[np.float64]:
    """All values of a variable of the mixed table, or a grid of them."""
    return [np.arange(3.0), GRID, np.arange(60.0), np.arange(6.0)][variable]


def given(
    pc: Circuit, row: npt.NDArray[np.float64], variable: int, hidden: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """Mean and variance of a variable by likelihoods of its values, the other hidden ones summed out."""
    values = values_of(variable)
    rows = np.tile(row, (len(values), 1))
    rows[:, variable] = values
    others = hidden.copy()
    others[variable] = False
    scores = pc.log_likelihood(rows, mask=others)
    p = np.exp(scores - logsumexp(scores))
    mean = float(p @ values)
    return mean, float(p @ (values - mean) ** 2)


def test_moments_of_all_leaves_by_sums_and_quadrature(mixed: Circuit) -> None:
    X, rng = mixed_table(12, seed=1), np.random.default_rng(2)
    mask = rng.random(X.shape) < 0.6
    mask[0], mask[1] = True, False
    found = mixed.posterior_moments(X, mask)
    assert found.mean.shape == found.variance.shape == X.shape
    np.testing.assert_array_equal(found.mean[~mask], X[~mask])
    assert (found.variance[~mask] == 0).all()
    for row, variable in np.argwhere(mask):
        mean, variance = given(mixed, X[row], variable, mask[row])
        assert found.mean[row, variable] == pytest.approx(mean, rel=2e-5, abs=2e-5)
        assert found.variance[row, variable] == pytest.approx(variance, rel=2e-4, abs=1e-5)


def test_moments_by_evidence_and_of_binomials(pairs: Circuit) -> None:
    scores = np.random.default_rng(0).normal(0, 2, (5, 3, 3)).astype(np.float32)
    marginals = pairs.posterior_marginals(Evidence(scores.copy()), head=1)
    found = pairs.posterior_moments(Evidence(scores.copy()), head=1)
    mean = marginals @ np.arange(3)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.variance, ((np.arange(3) - mean[..., None]) ** 2 * marginals).sum(-1), rtol=1e-4)
    b = CircuitBuilder(num_vars=1)
    pc = b.build(heads=[b.sum([b.binomial(0, 40, 0.2), b.binomial(0, 40, 0.7)], [0.25, 0.75])])
    found = pc.posterior_moments([[0]], [True])
    mean = 0.25 * 8 + 0.75 * 28
    assert found.mean[0, 0] == pytest.approx(mean, rel=1e-6)
    spread = 0.25 * (6.4 + (8 - mean) ** 2) + 0.75 * (8.4 + (28 - mean) ** 2)
    assert found.variance[0, 0] == pytest.approx(spread, rel=1e-5)


def test_means_far_from_zero_keep_their_variance() -> None:
    b = CircuitBuilder(num_vars=1)
    pc = b.build(heads=[b.sum([b.indicator(0, 60_000), b.indicator(0, 60_001)], [0.5, 0.5])])
    found = pc.posterior_moments([[0]], [True])
    assert (found.mean[0, 0], found.variance[0, 0]) == (60_000.5, 0.25)


def naive_bayes(rng: np.random.Generator) -> tuple[Circuit, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A circuit, p(kind) and p(value | kind) of each of four variables, (V, kinds, values)."""
    prior, tables = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(2), (4, 3))
    b = CircuitBuilder(num_vars=4)
    kinds = [b.product([b.categorical(v, tables[v, k]) for v in range(4)]) for k in range(3)]
    return b.build(heads=[b.sum(kinds, prior)]), prior, tables


def test_entropy_of_a_naive_bayes_mixtures_kind() -> None:
    rng = np.random.default_rng(4)
    pc, prior, tables = naive_bayes(rng)
    X, mask = rng.integers(0, 2, (40, 4)), rng.random((40, 4)) < 0.5
    mask[0] = True
    likelihood = np.where(mask[:, None], 1, np.moveaxis(tables[np.arange(4), :, X], 2, 1))
    posterior = prior * likelihood.prod(axis=2)
    posterior /= posterior.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(pc.latent_entropy(X, mask), entr(posterior).sum(axis=1), rtol=1e-6)
    assert pc.latent_entropy(X[:1], mask[0])[0] == pytest.approx(entr(prior).sum(), rel=1e-6)
    np.testing.assert_array_equal(pc.latent_entropy(X), pc.latent_entropy(X, np.zeros(4, bool)))
    np.testing.assert_allclose(pc.posterior_flows(X, mask)[:, [4, 9, 14]], posterior, rtol=1e-6)


def test_entropy_is_what_more_evidence_takes_away(pairs: Circuit) -> None:
    """I(X; Z) = H(Z) - E H(Z | X) = H(X) - E H(X | Z), whose last part the leaves and the latents say."""
    hidden, heads = np.ones(3, bool), np.ones(len(ALL), int)
    p = np.exp(pairs.log_likelihood(ALL, head=1))
    told = pairs.latent_entropy(ALL[:1], hidden, head=1)[0] - p @ pairs.latent_entropy(ALL, head=heads)
    flow = pairs.posterior_flows(ALL[:1], hidden, head=1)[0]
    arrays = pairs.engine.arrays()
    start, stride = arrays["param_start"] - 1, arrays["param_stride"]
    within = sum(
        flow[u] * entr(arrays["leaf"][start[u] + np.arange(3) * stride[u]].astype(float)).sum()
        for u in np.flatnonzero(arrays["kind"] == 3)
    )
    assert told == pytest.approx(entr(p).sum() - within, abs=1e-5)
    assert told > 0


def test_flows_of_rows_add_up_to_flows(mixed: Circuit) -> None:
    X = mixed_table(50, seed=3)
    mask = np.random.default_rng(0).random(X.shape) < 0.3
    each = mixed.posterior_flows(X, mask)
    assert each.shape == (50, mixed.num_nodes)
    np.testing.assert_allclose(each.sum(axis=0), mixed.flows(X, mask=mask).nodes, rtol=1e-4, atol=1e-6)


def test_gradient_by_finite_differences(mixed: Circuit) -> None:
    X = mixed_table(30, seed=4)
    X[0, 1] = 500.0  # far from all inputs
    mask = np.zeros(X.shape, bool)
    mask[3:9, 0], mask[5:12, 1] = True, True
    found, step = mixed.gradient(X, mask), 1e-5
    up, down = X.copy(), X.copy()
    up[:, 1] += step
    down[:, 1] -= step
    # The differences of single-precision likelihoods would be noise: those of the flows' own weighted densities.
    differences = (log_density(mixed, up, mask) - log_density(mixed, down, mask)) / (2 * step)
    np.testing.assert_allclose(found[:, 1], differences, rtol=1e-5, atol=1e-6)
    assert (found[mask[:, 1], 1] == 0).all()
    assert np.isnan(found[:, [0, 2, 3]]).all()
    with pytest.raises(InputError, match="gradient: found a circuit without Gaussian inputs"):
        Circuit.fully_factorized(num_vars=2, num_cats=2).gradient([[0, 1]])


def log_density(pc: Circuit, X: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """log p, unit by unit in Float64, of the circuit's arrays."""
    a = pc.engine.arrays()
    kind, variable, leaf = a["kind"], a["variable"] - 1, a["leaf"].astype(float)
    value = np.empty((pc.num_nodes, len(X)))
    for u in range(pc.num_nodes):
        first, end = a["child_start"][u : u + 2] - 1
        children, at, step = a["child"][first:end] - 1, a["param_start"][u] - 1, a["param_stride"][u]
        if kind[u] == 1:
            value[u] = value[children].sum(axis=0)
        elif kind[u] == 2:
            value[u] = logsumexp(value[children], axis=0, b=a["weight"][first:end, None].astype(float))
        else:
            x = X[:, variable[u]]
            if kind[u] == 9:
                own = stats.norm.logpdf(x, leaf[at], leaf[at + step])
            elif kind[u] == 8:
                own = stats.poisson.logpmf(x, leaf[at])
            else:
                own = np.log(leaf[at + x.astype(int) * step])
            value[u] = np.where(mask[:, variable[u]], 0.0, own)
    found: npt.NDArray[np.float64] = value[a["heads"][0] - 1]
    return found


def test_distances_by_enumeration(pairs: Circuit) -> None:
    larger = Circuit.from_tree([-1, 0, 0], num_latents=5, num_cats=3, perturbation=0.9, seed=9)
    p, q = np.exp(pairs.log_likelihood(ALL, head=1)), np.exp(larger.log_likelihood(ALL))
    assert pairs.l2_distance(larger, head=1, other_head=0) == pytest.approx(np.linalg.norm(p - q), rel=1e-4)
    assert np.exp(pairs.log_inner_product(larger, head=1, other_head=0)) == pytest.approx(p @ q, rel=1e-5)
    assert pairs.l2_distance(pairs) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("leaves", ["logistic", "gaussian", "poisson", "binomial"])
def test_distances_of_other_leaves(leaves: str) -> None:
    rng = np.random.default_rng(5)
    X = rng.normal(4, 2, (300, 2)) if leaves == "gaussian" else rng.binomial(9, [0.3, 0.6], (300, 2))
    num_cats = None if leaves in ("gaussian", "poisson") else 10
    one, other = (
        Circuit.hclt(X, num_latents=k, num_cats=num_cats, leaves=leaves, seed=k, start="clusters") for k in (2, 3)
    )
    values = np.linspace(-15, 25, 801) if leaves == "gaussian" else np.arange(10 if num_cats else 60)
    every = np.array(list(itertools.product(values, repeat=2)))
    cell = (values[1] - values[0]) ** 2  # the trapezoidal rule, whose ends are 0
    p, q = (np.exp(pc.log_likelihood(every)) for pc in (one, other))
    assert one.l2_distance(other) == pytest.approx(np.sqrt(cell * ((p - q) ** 2).sum()), rel=2e-3)
    assert np.exp(one.log_inner_product(other)) == pytest.approx(cell * (p @ q), rel=1e-4)


def test_inputs_of_any_kind_over_categories() -> None:
    b = CircuitBuilder(num_vars=1, num_cats=3)
    table, binomial, indicator = b.categorical(0, [0.2, 0.3, 0.5]), b.binomial(0, 2, 0.5), b.indicator(0, 1)
    pc = b.build(heads=[table, binomial, indicator])
    p = np.array([[0.2, 0.3, 0.5], [0.25, 0.5, 0.25], [0, 1, 0]])
    for one, other in itertools.product(range(3), repeat=2):
        found = pc.log_inner_product(pc, head=one, other_head=other)
        assert np.exp(found) == pytest.approx(p[one] @ p[other], rel=1e-6)
    b = CircuitBuilder(num_vars=1, num_cats=3)
    assert pc.log_inner_product(b.build(heads=[b.indicator(0, 0)]), head=2, other_head=0) == -np.inf


def test_divergence_bounds_that_of_the_variables(pairs: Circuit) -> None:
    other = Circuit.from_tree([-1, 0, 0], num_latents=2, num_cats=3, heads=2, perturbation=0.9, seed=8)
    p, q = np.exp(pairs.log_likelihood(ALL, head=1)), np.exp(other.log_likelihood(ALL, head=1))
    found = pairs.kl_divergence(other, head=1)
    assert not found.exact
    assert found.nats > (p * np.log(p / q)).sum() > 0
    assert pairs.kl_divergence(pairs).nats == 0


def labelled(weights: list[float], tables: npt.NDArray[np.float64]) -> Circuit:
    """A deterministic circuit: a label, and a variable that follows from it."""
    b = CircuitBuilder(num_vars=2, num_cats=3)
    products = [b.product([b.indicator(0, k), b.categorical(1, tables[k])]) for k in range(3)]
    return b.build(heads=[b.sum(products, weights)])


def test_divergence_of_deterministic_circuits_is_exact() -> None:
    rng = np.random.default_rng(6)
    one, other = (labelled(list(rng.dirichlet(np.ones(3))), rng.dirichlet(np.ones(3), 3)) for _ in range(2))
    every = np.array(list(itertools.product(range(3), repeat=2)))
    p, q = (np.exp(pc.log_likelihood(every)) for pc in (one, other))
    found = one.kl_divergence(other)
    assert found.exact
    assert found.nats == pytest.approx((p * np.log(p / q)).sum(), rel=1e-5)
    without = labelled([0.5, 0.5, 0.0], rng.dirichlet(np.ones(3), 3))
    assert without.kl_divergence(one).nats < np.inf == one.kl_divergence(without).nats


def test_divergence_of_numbers() -> None:
    """Of one unit each, whose divergences are integrals."""

    def of(leaves: str, X: list[list[float]]) -> Circuit:
        return Circuit.hclt(X, num_latents=1, leaves=leaves, start="clusters")

    one, other = of("gaussian", [[0.0], [1.0], [3.0]]), of("gaussian", [[2.0], [4.0]])
    p, q = (pc.log_likelihood(GRID[:, None]) for pc in (one, other))
    found = one.kl_divergence(other)
    assert found.exact  # a sum of one child has no choice
    assert found.nats == pytest.approx(np.trapezoid(np.exp(p) * (p - q), GRID), rel=1e-4)
    one, other = of("poisson", [[1], [4]]), of("poisson", [[6], [9]])
    p, q = (pc.log_likelihood(np.arange(80)[:, None]) for pc in (one, other))
    assert one.kl_divergence(other).nats == pytest.approx((np.exp(p) * (p - q)).sum(), rel=1e-4)


def test_completions_say_whether_they_are_exact(pairs: Circuit) -> None:
    pc = labelled([0.3, 0.3, 0.4], np.array([[0.1, 0.1, 0.8], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3]]))
    assert pc.is_deterministic
    found, exact = pc.mpe([[0, 0]], [True, True], return_exact=True)
    assert exact
    assert found.tolist() == [[0, 2]]  # 0.24, where the likeliest label has 0.16 at most
    assert not pairs.is_deterministic
    rows, exact = pairs.mpe(ALL, [True, False, True], return_exact=True)
    assert not exact
    np.testing.assert_array_equal(rows, pairs.mpe(ALL, [True, False, True]))


def test_circuits_that_do_not_fit_are_named(pairs: Circuit, mixed: Circuit) -> None:
    chain = Circuit.from_tree([-1, 0, 1], num_latents=2, num_cats=3, heads=2)
    crossing = Circuit.from_tree([1, -1, 0], num_latents=2, num_cats=3, heads=2)
    assert pairs.l2_distance(chain) > 0  # which divides further what the star has divided
    with pytest.raises(InputError, match=r"other: found unit \d+, which divides variables 0, 1, 2 otherwise than unit"):
        chain.l2_distance(crossing)
    for ask in (pairs.log_inner_product, pairs.l2_distance):
        with pytest.raises(InputError, match=r"other: found 4 variables, wanted the circuit's 3"):
            ask(mixed)
        with pytest.raises(InputError, match=r"other: variable \d: found 4 categories, wanted 3 categories, as here"):
            ask(Circuit.fully_factorized(num_vars=3, num_cats=4))
        with pytest.raises(InputError, match=r"other_head: found 1, wanted 0\.\.0"):
            ask(Circuit.fully_factorized(num_vars=3, num_cats=3), head=1)
        with pytest.raises(InputError, match="other: found str, wanted a Circuit"):
            ask("model.jpc")
    with pytest.raises(InputError, match=r"other: found another structure: unit \d+ differs"):
        pairs.kl_divergence(chain)
    reals = Circuit.from_tree([-1, 0, 0], num_latents=2, num_cats=3, leaves="gaussian")
    with pytest.raises(InputError, match=r"other: variable \d: found real numbers, wanted 3 categories"):
        pairs.log_inner_product(reals)


def test_rows_that_cannot_be_asked_about(pairs: Circuit) -> None:
    pc = labelled([0.5, 0.5, 0.0], np.full((3, 3), 1 / 3))
    for ask in (pc.latent_entropy, pc.posterior_flows, pc.posterior_moments):
        with pytest.raises(InputError, match="X: row 1: the evidence has probability 0 under head 0"):
            ask([[1, 0], [2, 0]], [False, True])
    with pytest.raises(InputError, match="mask: found None"):
        pairs.posterior_moments(ALL)
    assert pairs.latent_entropy(ALL[:0]).shape == (0,)
    assert pairs.posterior_moments(ALL[:0], np.ones(3, bool)).mean.shape == (0, 3)


def test_estimators_give_moments() -> None:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 3, (60, 3)).astype(float)
    X[::7, 1] = np.nan
    model = HCLT(num_latents=2, epochs=2).fit(X)
    found, marginals = model.moments(X[:10]), model.marginals(X[:10])
    np.testing.assert_allclose(found.mean, marginals @ np.arange(3), atol=1e-5)
    assert (found.variance[[0, 7], 1] > 0).all()
    assert found.variance.sum() == found.variance[[0, 7], 1].sum()
    # Columns of a data frame that are real numbers, too: what is missing follows from the rest.
    kind = np.tile([0, 1], 100)
    frame = pd.DataFrame({"kind": np.array(["small", "large"])[kind], "size": 10.0 * kind + rng.normal(size=200)})
    frame.loc[:1, "size"] = np.nan
    found = HCLT(num_latents=2, epochs=10, start="clusters").fit(frame).moments(frame)
    np.testing.assert_allclose(found.mean[:2, 1], [0, 10], atol=1.5)
    assert (found.variance[:2, 1] > 0.2).all()
    np.testing.assert_array_equal(found.mean[2:, 1], frame["size"][2:])


def test_models_of_images_give_moments_of_their_channels() -> None:
    model = tiny_model()
    images = np.random.default_rng(1).integers(0, 256, (3, 2, 2, 1), dtype=np.uint8)
    mask = np.array([[True, False], [False, True]])
    found, marginals = model.moments(images, mask), model.marginals(images, mask)
    levels = np.arange(256)
    np.testing.assert_allclose(found.mean, marginals @ levels, rtol=1e-6)
    np.testing.assert_allclose(found.variance, marginals @ levels**2 - found.mean**2, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.mean[:, ~mask], images[:, ~mask])
