"""The joint model written out as one circuit, against the model itself and by enumeration."""

import itertools

import numpy as np
import pytest

from pyjuice_lvd import Circuit
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.models.joint import JointModel


def model_of(
    image_shape: tuple[int, int, int], patch: tuple[int, int], *, cats: int = 256, tied: bool = True
) -> JointModel:
    """Random parts: circuits of 2, 1 and 3 heads, the last of another structure; untied, one of 6 at the others."""
    rng = np.random.default_rng(0)
    variables = patch[0] * patch[1] * image_shape[2]
    x = rng.integers(0, cats, (200, variables))
    circuits = [
        Circuit.hclt(x[rows], num_latents=4, num_cats=cats, heads=heads, perturbation=0.9, seed=heads)
        for rows, heads in ((slice(0, 99), 2), (slice(99, 200), 1))
    ]
    sizes = {"depth": 2, "replicas": 2, "num_sums": 3, "num_inputs": 3, "num_cats": cats, "heads": 3}
    circuits.append(Circuit.rat_spn(num_vars=variables, perturbation=0.9, **sizes))
    positions = image_shape[0] // patch[0] * (image_shape[1] // patch[1])
    prior = Circuit.hclt(rng.integers(0, 6, (50, positions)), num_latents=3, num_cats=6, perturbation=0.9)
    for position in range(1, 1 if tied else positions):
        own = Circuit.hclt(x, num_latents=2, num_cats=cats, heads=4, perturbation=0.9, seed=position)
        circuits.append(own.with_heads([3, 0, 1, 2, 2, 2]))  # the last stands for three values
    return JointModel(image_shape=image_shape, patch=patch, color="ycocg", circuits=circuits, prior=prior, tied=tied)


@pytest.mark.parametrize(
    ("image_shape", "patch"), [((8, 8, 3), (4, 4)), ((6, 4, 3), (3, 2)), ((6, 8, 1), (2, 4)), ((4, 4, 1), (1, 1))]
)
@pytest.mark.parametrize("tied", [True, False])
def test_it_scores_images_as_the_model_does(
    image_shape: tuple[int, int, int], patch: tuple[int, int], tied: bool
) -> None:
    model = model_of(image_shape, patch, tied=tied)
    pc = model.written_out()
    images = np.random.default_rng(1).integers(0, 256, (40, *image_shape), dtype=np.uint8)
    rows = model.color.forward(images).reshape(40, -1)
    np.testing.assert_allclose(pc.log_likelihood(rows), model.score_samples(images), rtol=1e-5)
    assert (pc.num_vars, pc.num_heads) == (model.dims, 1)
    assert pc.num_params == model.num_params_written_out


@pytest.mark.parametrize("tied", [True, False])
def test_its_density_and_its_marginals_by_enumeration(tied: bool) -> None:
    model = model_of((2, 2, 1), (1, 2), cats=3, tied=tied)
    pc = model.written_out()
    everything = np.array(list(itertools.product(range(3), repeat=4)), np.uint8)
    p = np.exp(model.score_samples(everything.reshape(-1, 2, 2)))
    np.testing.assert_allclose(np.exp(pc.log_likelihood(everything)), p, rtol=1e-5)
    assert p.sum() == pytest.approx(1, abs=1e-6)
    hidden = np.array([True, False, False, True])
    expected = [p[(everything[:, 1:3] == row[1:3]).all(axis=1)].sum() for row in everything]
    np.testing.assert_allclose(np.exp(pc.log_likelihood(everything, mask=hidden)), expected, rtol=1e-5)


def test_values_that_the_prior_rules_out_have_no_edges() -> None:
    model = model_of((2, 2, 1), (1, 2), cats=3)
    before = model.written_out().num_edges
    _, leaf = model.prior.parameters()
    table = leaf.reshape(2, 6, 3)  # position, value, latent
    table[0, 2:5] = 0
    table[0] /= table[0].sum(axis=0)
    pc = model.written_out()
    assert before - pc.num_edges == 3 * 3
    assert pc.num_params == model.num_params_written_out
    images = np.random.default_rng(1).integers(0, 3, (30, 2, 2), dtype=np.uint8)
    np.testing.assert_allclose(pc.log_likelihood(images.reshape(30, -1)), model.score_samples(images), rtol=1e-5)


def test_the_copies_come_first_in_the_order_of_positions_and_circuits() -> None:
    model = model_of((4, 4, 1), (2, 2), cats=5)
    weight, leaf = model.written_out().parameters()
    own = [circuit.parameters() for circuit in model.circuits]
    weights, leaves = (np.concatenate([parameters[i] for parameters in own]) for i in (0, 1))
    np.testing.assert_array_equal(weight[: 4 * len(weights)], np.tile(weights, 4))
    np.testing.assert_array_equal(leaf, np.tile(leaves, 4))


def test_parts_that_do_not_fit_are_refused() -> None:
    model = model_of((4, 4, 1), (2, 2))
    model.circuits.pop()
    with pytest.raises(InputError, match="the prior has 6 categories at position 0, wanted 3: the heads"):
        model.written_out()
    model.tied = False
    with pytest.raises(InputError, match="other numbers of heads at some of the 4 positions"):
        model.written_out()
    model.tied, model.patch = True, (2, 1)
    with pytest.raises(InputError, match="found variables of 8 positions, the prior has 4"):
        model.written_out()
