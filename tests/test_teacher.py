"""The teacher: likelihood, quantiser, networks, training, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images

from pyjuice_lvd.errors import InputError, LVDJuiceError
from pyjuice_lvd.teacher import Teacher, TeacherSettings, mixture
from pyjuice_lvd.teacher.quantizer import IDLE_STEPS, VectorQuantizer, perplexity
from pyjuice_lvd.teacher.vqvae import VQVAE

TINY = TeacherSettings(channels=16, blocks=1, code_dim=4, codes=16, mixtures=2, epochs=3, batch_size=16)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos():
    """Real photographs in 16x16 pieces, uint8 (N, 16, 16, 3)."""
    pieces = [
        photo[:416, :640].reshape(26, 16, 40, 16, 3).swapaxes(1, 2).reshape(-1, 16, 16, 3)
        for photo in load_sample_images().images
    ]
    return np.ascontiguousarray(np.concatenate(pieces)[np.random.default_rng(0).permutation(2080)])


@pytest.fixture(scope="module")
def digits():
    """Real digits, uint8 (N, 8, 8, 1), values 0 to 16."""
    return load_digits().images.astype(np.uint8)[..., None]


@pytest.fixture(scope="module")
def fitted(photos):
    return Teacher(TINY).fit(photos[:64], device="cpu")


def network(channels=3, **settings):
    made = TeacherSettings(**{"channels": 8, "code_dim": 4, "codes": 16, "mixtures": 3, **settings})
    torch.manual_seed(0)
    net = VQVAE(made, torch.zeros(channels), torch.full((channels,), 0.5), seed=3)
    with torch.no_grad():
        net.quantizer.codebook.normal_()
    return net


# --- the likelihood


def brute_force(parameters, values):
    """The mixture's formula, written out for one pixel in float64 with differences of sigmoids."""
    channels = len(values)
    mixtures = len(parameters) // mixture.parameter_count(channels, 1)
    logits, rest = parameters[:mixtures], parameters[mixtures:]
    means, rest = rest[: channels * mixtures].reshape(channels, mixtures), rest[channels * mixtures :]
    scales, rest = np.exp(rest[: channels * mixtures]).reshape(channels, mixtures), rest[channels * mixtures :]
    coefficients = np.tanh(rest).reshape(-1, mixtures)
    x = [value / 127.5 - 1 for value in values]
    total = 0.0
    for k in range(mixtures):
        p = np.exp(logits[k]) / np.exp(logits).sum()
        for c in range(channels):
            mean = means[c, k]
            if c == 1:
                mean += coefficients[0, k] * x[0]
            if c == 2:
                mean += coefficients[1, k] * x[0] + coefficients[2, k] * x[1]
            upper = 1.0 if values[c] == 255 else 1 / (1 + np.exp(-(x[c] + 1 / 255 - mean) / scales[c, k]))
            lower = 0.0 if values[c] == 0 else 1 / (1 + np.exp(-(x[c] - 1 / 255 - mean) / scales[c, k]))
            p *= upper - lower
        total += p
    return np.log(total)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_likelihood_is_the_formula(channels, dtype):
    rng = np.random.default_rng(channels)
    count, mixtures = 40, 3
    parameters = rng.normal(size=(count, mixture.parameter_count(channels, mixtures)))
    scales = slice(mixtures * (1 + channels), mixtures * (1 + 2 * channels))
    parameters[:, scales] = rng.uniform(-4, 0, size=parameters[:, scales].shape)
    values = rng.integers(0, 256, size=(count, channels))
    values[:10], values[10:20] = 0, 255
    found = mixture.log_likelihood(torch.tensor(parameters, dtype=dtype), torch.tensor(values, dtype=dtype))
    wanted = [brute_force(p, v) for p, v in zip(parameters, values, strict=True)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("log_scale", [-12.0, -7.0, -4.0, -1.0, 3.0, 30.0])
@pytest.mark.parametrize("location", [-1.5, -1.0, 0.3, 1.0])
def test_grey_likelihood_sums_to_one(log_scale, location):
    # Two components: one as given, one elsewhere.
    parameters = torch.tensor([0.3, -0.2, location, 0.1, log_scale, -2.0]).repeat(256, 1)
    p = mixture.log_likelihood(parameters, torch.arange(256.0)[:, None]).double().exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.isfinite(p).all()


def test_rgb_likelihood_sums_to_one():
    """Each channel's conditional, given the channels before it, sums to one: so does their product."""
    torch.manual_seed(0)
    parameters = torch.randn(30, dtype=torch.float64)
    parameters[12:21] -= 2
    levels = torch.arange(256.0, dtype=torch.float64)
    one_component = parameters.reshape(10, 3)[:, :1].reshape(10)  # with one component the conditionals are ratios

    def joint(p, red, green, blue):
        values = torch.stack(torch.broadcast_tensors(red, green, blue), -1).reshape(-1, 3)
        return mixture.log_likelihood(p.repeat(len(values), 1), values).exp()

    blue = joint(one_component, torch.tensor(17.0), torch.tensor(255.0), levels)
    other = joint(one_component, torch.tensor(17.0), torch.tensor(200.0), levels)
    # p(r, g) = sum over b; its sum over g is p(r), a grey likelihood of the red parameters alone.
    assert float(blue.sum()) != pytest.approx(float(other.sum()))
    red_green = sum(
        joint(parameters, torch.tensor(17.0), levels[:, None], chunk).reshape(256, -1).sum(1) for chunk in levels.split(64)
    )
    red_parameters = torch.cat((parameters[:3], parameters[3:6], parameters[12:15]))
    red = mixture.log_likelihood(red_parameters[None], torch.tensor([[17.0]], dtype=torch.float64)).exp()
    assert float(red_green.sum()) == pytest.approx(float(red), rel=1e-10)
    reds = mixture.log_likelihood(red_parameters.repeat(256, 1), levels[:, None]).exp()
    assert float(reds.sum()) == pytest.approx(1, abs=1e-10)
