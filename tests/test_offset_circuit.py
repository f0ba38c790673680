"""The offsets model written out as one circuit, of few categories, by enumeration."""

import itertools
from typing import Any

import numpy as np
import pytest
from models import OffsetParts, offset_parts

from pyjuice_lvd import Circuit, julia
from pyjuice_lvd.errors import InputError


def written_out(parts: OffsetParts, variables: np.ndarray) -> Circuit:
    handles = [circuit.engine.circuit for channels in parts.shapes for circuit in channels]
    steps = np.array(parts.steps, np.int64)
    prior, tables = parts.prior.engine.circuit, [np.ascontiguousarray(table) for table in (parts.join, *parts.shifts)]
    return Circuit(julia.call("offset_circuit_of", prior, np.ascontiguousarray(variables), steps, *tables, *handles))


def probabilities(parts: OffsetParts, rows: np.ndarray, variables: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """p(x_known) of rows over all variables: the sum over all h, j and d, as the model is defined."""
    states = range(parts.join.shape[1])
    h = np.array(list(itertools.product(states, repeat=len(variables))))
    emitted = [
        parts.emissions(rows[:, own], np.broadcast_to(hidden[own], (len(rows), len(own)))).reshape(
            len(rows), len(states), -1
        )
        for own in variables
    ]
    given = np.prod([e.sum(2)[:, h[:, i]] for i, e in enumerate(emitted)], axis=0)
    total: np.ndarray = given @ np.exp(parts.prior.log_likelihood(h))
    return total


@pytest.mark.parametrize("steps", [(2,), (4,), (8,), (1,), (2, 4), (8, 2), (4, 8, 2), (8, 8, 8)])
def test_it_is_the_sum_over_states_joins_and_offsets(steps: tuple[int, ...]) -> None:
    channels, rng = len(steps), np.random.default_rng(1)
    parts = offset_parts(steps)
    # Patches beside each other, each of two pixels; the columns between them are as in an image of 2x2.
    variables = np.arange(4 * channels).reshape(2, 2, channels).transpose(1, 0, 2).reshape(2, 2 * channels)
    pc = written_out(parts, variables)
    rows = rng.integers(0, 8, (60, 4 * channels))
    for hidden in (np.zeros(4 * channels, bool), *(rng.random((3, 4 * channels)) < 0.5), np.ones(4 * channels, bool)):
        expected = probabilities(parts, rows, variables, hidden)
        np.testing.assert_allclose(np.exp(pc.log_likelihood(rows, mask=hidden)), expected, rtol=1e-5)
    assert (pc.num_vars, pc.num_heads) == (4 * channels, 1)


def test_what_has_probability_0_has_no_edges() -> None:
    parts = offset_parts((2, 4), states=4)
    variables = np.arange(8).reshape(2, 4)
    before = written_out(parts, variables)
    parts.join[1:, 0] = 0  # of the first state, only join 0
    parts.join[0, 0] = 1
    parts.shifts[0][2] = 0  # an offset that no state has
    parts.shifts[0][:2, 1] = 0
    parts.shifts[0][:] /= parts.shifts[0].sum(0)
    parts.shifts[1][:, 3] = (0, 1)
    pc = written_out(parts, variables)
    weight, _ = pc.parameters()
    assert (weight > 0).all()
    copied = 2 * sum(channels[0].num_params for channels in parts.shapes)  # both positions' copies of that offset
    sums = [2 * (1 + 3 + 3 + 3), 2 * (3 + 3 * 1 + 3 * 3 + 3 * 3), 2 * (2 + 3 * 2 + 3 * 2 + 3)]  # join, and each channel
    full = [2 * 4 * 3, 2 * 4 * 3 * 4, 2 * 4 * 3 * 2]
    assert before.num_params - pc.num_params == copied + sum(full) - sum(sums)
    rows = np.random.default_rng(1).integers(0, 8, (60, 8))
    expected = probabilities(parts, rows, variables, np.zeros(8, bool))
    np.testing.assert_allclose(np.exp(pc.log_likelihood(rows)), expected, rtol=1e-5)


def test_states_that_the_prior_rules_out_have_no_edges() -> None:
    parts, variables = offset_parts((2,)), np.arange(4).reshape(2, 2)
    before = written_out(parts, variables).num_edges
    table = parts.prior.parameters()[1].reshape(2, 3, 3)  # position, state, latent
    table[0, 1] = 0
    table[0] /= table[0].sum(axis=0)
    pc = written_out(parts, variables)
    assert before - pc.num_edges == 3
    rows = np.random.default_rng(1).integers(0, 8, (60, 4))
    np.testing.assert_allclose(
        np.exp(pc.log_likelihood(rows)), probabilities(parts, rows, variables, np.zeros(4, bool)), rtol=1e-5
    )


def test_parts_that_do_not_fit_are_refused() -> None:
    parts, variables = offset_parts((2, 4)), np.arange(8).reshape(2, 4)
    other = offset_parts((2, 4), cats=16, variables=3, states=4)
    (first, second), (third, _) = parts.shapes
    for change, message in (
        ({"steps": (2,), "shifts": parts.shifts[:1]}, "found 3 joins, wanted 6"),
        ({"shapes": [[first, third]]}, "shape 0, channel 1 has 1 heads, channel 0 of the shape 2"),
        ({"shapes": [parts.shapes[0]]}, "found 3 joins, wanted 2: the shapes' heads"),
        ({"shapes": [[first, second], other.shapes[1]]}, "shape 1, channel 0 has 3 variables, the first 2"),
        ({"steps": (4, 4)}, "shape 0, channel 0 has 8 categories in variable 0, wanted 16: 4 offsets times 4"),
        ({"shifts": [parts.shifts[0], parts.shifts[1][:, :2]]}, "found offsets of 2 states in channel 1, wanted 3"),
        ({"shifts": [parts.shifts[0], 0 * parts.shifts[1]]}, "found no offset of channel 1 of state 0"),
        ({"join": parts.join * np.array([1, 1, 0], np.float32)}, "found no join of state 2"),
        ({"prior": other.prior}, "the prior has 4 categories at position 0, wanted 3: the states"),
    ):
        wrong: dict[str, Any] = change
        with pytest.raises(InputError, match=message):
            written_out(parts._replace(**wrong), variables)
    with pytest.raises(InputError, match="found variables of 1 positions, the prior has 2"):
        written_out(parts, variables[:1])
    with pytest.raises(InputError, match="found 3 variables of a patch, wanted 2 of 2 channels"):
        written_out(parts, np.arange(6).reshape(2, 3))
    with pytest.raises(InputError, match=r"not each of 1\.\.8 once"):
        written_out(parts, np.zeros((2, 4), np.int64))


def test_a_size_that_no_machine_has_room_for_is_refused_before_it_is_made() -> None:
    parts = offset_parts((1,), cats=256, variables=16, states=2, positions=4)
    with pytest.raises(InputError, match="offset_circuit of 400000 positions: a circuit of this size takes"):
        written_out(
            parts._replace(prior=Circuit.fully_factorized(num_vars=400_000, num_cats=2)),
            np.arange(6_400_000).reshape(-1, 16),
        )
