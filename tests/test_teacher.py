"""The teacher: likelihood, quantiser, networks, training, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images

from pyjuice_lvd.data.color import COLORS
from pyjuice_lvd.errors import InputError, LVDJuiceError
from pyjuice_lvd.teacher import Teacher, TeacherSettings, mixture
from pyjuice_lvd.teacher.quantizer import IDLE_STEPS, VectorQuantizer, perplexity
from pyjuice_lvd.teacher.vqvae import VQVAE

TINY = TeacherSettings(channels=16, blocks=1, code_dim=4, codes=16, mixtures=2, epochs=3, batch_size=16)


@pytest.fixture(scope="module", autouse=True)
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
    parameters[:, scales] = rng.uniform(-2, 0, size=parameters[:, scales].shape)
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


@pytest.mark.parametrize("mixtures", [1, 3])
def test_rgb_likelihood_sums_to_one(mixtures):
    """Sum over blue of p(r, g, b), then over green, then over red, each against the likelihood of fewer channels."""
    rng = np.random.default_rng(mixtures)
    count = mixture.parameter_count(3, mixtures)
    parameters = torch.from_numpy(rng.normal(size=count))
    parameters[4 * mixtures : 7 * mixtures] -= 2
    levels = torch.arange(256, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(torch.tensor([17.0]).double(), levels, levels, indexing="ij"), 0)
    red_given = mixture.log_likelihood(parameters.view(1, -1, 1, 1, 1).expand(1, count, *grid.shape[1:]), grid[None])
    marginals = red_given.exp().sum((2, 3))[0]
    # Red alone: its weights, means and scales are a grey pixel's parameters.
    rows = torch.arange(3 * mixtures).view(3, mixtures)
    rows[2] += 2 * mixtures
    grey = parameters[rows.flatten()].repeat(256, 1)
    red = mixture.log_likelihood(grey, levels[:, None]).exp()
    torch.testing.assert_close(marginals, red[[17]], rtol=1e-10, atol=0)
    assert float(red.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_likelihood_is_finite_with_finite_gradients_at_extremes(channels):
    torch.manual_seed(0)
    parameters = torch.cat([scale * torch.randn(64, mixture.parameter_count(channels, 3)) for scale in (0, 1, 30, 1e3)])
    parameters.requires_grad_()
    for value in (0.0, 1.0, 128.0, 255.0):
        log_p = mixture.log_likelihood(parameters, torch.full((256, channels), value))
        (gradient,) = torch.autograd.grad(log_p.sum(), parameters)
        assert torch.isfinite(log_p).all()
        assert (log_p <= 0).all()
        assert torch.isfinite(gradient).all()


def test_mean_of_a_sharp_mixture_is_its_component():
    # Component 0 stands at red -0.6, green 0.1 + red / 2 and blue beyond the range.
    means = [-0.6, 0, 0.1, 0, 3, 0]
    parameters = torch.tensor([20, 0, *means, *[-5] * 6, np.arctanh(0.5), 0, 0, 0, 0, 0])
    found = mixture.mean(parameters[None], 3)[0]
    np.testing.assert_allclose(found, [51, (0.1 - 0.3 + 1) * 127.5, 255], atol=0.05)


# --- the quantiser


def quantizer(codebook):
    made = VectorQuantizer(*np.shape(codebook))
    with torch.no_grad():
        made.codebook.copy_(torch.tensor(codebook))
    return made


def test_quantizer_finds_the_nearest_code_and_its_losses():
    made = quantizer([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    features = torch.tensor([[0.9, 0.2], [-0.1, 0.1], [0.2, 2.0]])
    out = made(features)
    assert out.codes.tolist() == [1, 0, 2]
    torch.testing.assert_close(out.vectors, made.codebook[[1, 0, 2]])
    wanted = (0.1**2 + 0.2**2 + 0.1**2 + 0.1**2 + 0.2**2 + 1) / 6
    assert out.codebook_loss.item() == pytest.approx(wanted)
    assert out.commitment_loss.item() == pytest.approx(wanted)


def test_straight_through_gradient_and_what_each_loss_moves():
    made = quantizer([[0.0, 0.0], [1.0, 0.0]])
    features = torch.tensor([[0.9, 0.2], [-0.1, 0.1]], requires_grad=True)
    out = made(features)
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    moved = torch.autograd.grad((out.vectors * weights).sum(), (features, made.codebook), allow_unused=True)
    assert torch.equal(moved[0], weights)
    assert moved[1] is None
    moved = torch.autograd.grad(out.codebook_loss, (features, made.codebook), allow_unused=True)
    assert moved[0] is None
    torch.testing.assert_close(moved[1], 2 / 4 * torch.tensor([[0.1, -0.1], [0.1, -0.2]]))
    moved = torch.autograd.grad(out.commitment_loss, (features, made.codebook), allow_unused=True)
    torch.testing.assert_close(moved[0], 2 / 4 * torch.tensor([[-0.1, 0.2], [-0.1, 0.1]]))
    assert moved[1] is None


def test_reconstruction_gradient_reaches_the_encoder(photos):
    net = network()
    batch = net.put(torch.from_numpy(photos[:4]))
    out = net.quantizer(net.features(batch))
    log_p = mixture.log_likelihood(net.decode(out.vectors, net.rows(batch)), net.to_pixels(batch))
    gradients = torch.autograd.grad(log_p.sum(), list(net.encoder.parameters()))
    assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)


def test_dead_codes_are_revived_and_others_stay():
    made = quantizer([[0.0, 0.0], [50.0, 50.0], [1.0, 1.0]])
    features = torch.tensor([[0.1, 0.0], [1.1, 1.0], [0.0, -0.2]])
    generator = torch.Generator().manual_seed(0)
    for _ in range(IDLE_STEPS - 1):
        assert made.revive(features, made(features).codes, generator) == 0
    assert made.revive(features, made(features).codes, generator) == 1
    assert torch.equal(made.codebook[[0, 2]], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert made.codebook[1].tolist() in features.tolist()
    assert made.idle.tolist() == [0, 0, 0]


def test_perplexity_by_hand():
    assert perplexity(torch.tensor([0, 1, 2, 3]), 9) == pytest.approx(4)
    assert perplexity(torch.tensor([[5, 5], [5, 5]]), 9) == pytest.approx(1)
    # Frequencies 1/2, 1/4, 1/4: entropy 3/2 ln 2.
    assert perplexity(torch.tensor([0, 0, 1, 8]), 9) == pytest.approx(2**1.5)


# --- the networks


@pytest.mark.parametrize(
    ("channels", "patch", "size"), [(1, (2, 3), (8, 9)), (3, (4, 4), (16, 12)), (3, (5, 1), (10, 3))]
)
def test_pixels_and_positions_are_row_major(channels, patch, size):
    net = network(channels, patch=patch)
    images = np.random.default_rng(0).integers(0, 256, (2, *size, channels), dtype=np.uint8)
    batch = net.put(torch.from_numpy(images))
    pixels = net.to_pixels(batch)
    assert torch.equal(net.from_pixels(pixels, net.rows(batch)), batch)
    columns = size[1] // patch[1]
    for row, column, y, x in [(0, 0, 0, 0), (1, 0, 1, 0), (1, columns - 1, patch[0] - 1, patch[1] - 1)]:
        found = pixels[:, :, y * patch[1] + x, row * columns + column]
        assert torch.equal(found, batch[:, :, row * patch[0] + y, column * patch[1] + x])


@pytest.mark.parametrize(
    ("channels", "patch", "size"), [(1, (2, 3), (8, 9)), (3, (4, 4), (16, 12)), (3, (5, 1), (10, 3))]
)
@pytest.mark.parametrize("decoder", ["independent", "convolutional"])
def test_shapes(channels, patch, size, decoder):
    net = network(channels, patch=patch, decoder=decoder)
    batch = net.put(torch.randint(0, 256, (2, *size, channels), dtype=torch.uint8))
    positions = size[0] // patch[0] * (size[1] // patch[1])
    assert net.features(batch).shape == (2, positions, 4)
    assert net.codes(batch).shape == (2, positions)
    assert net.log_likelihood(batch).shape == (2,)
    assert net.reconstruct(batch).shape == batch.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_independent_decoder_decodes_each_patch_from_its_code_alone(channels):
    net = network(channels)
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (3, 20), generator=rng)
    before = net.decode_codes(codes, 4)
    for position in range(20):
        changed = codes.clone()
        changed[1, position] = (codes[1, position] + 1) % 16
        differs = (net.decode_codes(changed, 4) != before).any(2).any(1)
        wanted = torch.zeros(3, 20, dtype=torch.bool)
        wanted[1, position] = True
        assert torch.equal(differs, wanted)
    # The same code gives the same distribution wherever it stands.
    same = net.decode_codes(torch.full((2, 20), 7), 4)
    torch.testing.assert_close(same, same[:1, :, :, :1].expand_as(same))


def test_convolutional_decoder_sees_neighbours():
    net = network(decoder="convolutional", blocks=1)
    codes = torch.zeros(1, 25, dtype=torch.int64)
    changed = codes.clone()
    changed[0, 12] = 1
    differs = (net.decode_codes(changed, 5) != net.decode_codes(codes, 5)).flatten(1, 2).any(1)[0].view(5, 5)
    wanted = torch.zeros(5, 5, dtype=torch.bool)
    wanted[1:4, 1:4] = True
    assert torch.equal(differs, wanted)


def test_features_see_beyond_their_patch_and_lie_on_a_sphere(photos):
    net = network(blocks=1)
    batch = net.put(torch.from_numpy(photos[:1]))
    changed = batch.clone()
    changed[:, :, :4, :4] = 255 - changed[:, :, :4, :4]
    features = net.features(batch)
    differs = (net.features(changed) != features).any(2)[0].view(4, 4)
    assert differs[:2, :2].all()
    assert not differs[2:].any()
    torch.testing.assert_close(features.norm(dim=2), torch.full((1, 16), 2.0))


# --- training


def weights(teacher):
    return teacher.network.state_dict()


def assert_same_weights(a, b):
    assert weights(a).keys() == weights(b).keys()
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name


def test_training_on_photos(photos):
    settings = TeacherSettings(channels=32, blocks=1, codes=64, mixtures=3, epochs=6, batch_size=16, learning_rate=3e-3)
    seen = []
    teacher = Teacher(settings).fit(photos[:400], valid=photos[400:500], device="cpu", on_epoch=seen.append)
    assert seen == teacher.history
    assert [entry["epoch"] for entry in seen] == [1, 2, 3, 4, 5, 6]
    first, last = seen[0], seen[-1]
    assert last["loss"] < first["loss"] - 0.3
    assert last["reconstruction_bpd"] < first["reconstruction_bpd"] - 0.5
    # Far better than one distribution for all patches, and with more than a few codes.
    assert last["valid_reconstruction_bpd"] < 6.3
    assert last["valid_perplexity"] > 15
    nats = teacher.reconstruction_nats(photos[400:500])
    assert nats.dtype == np.float64
    assert -nats.mean() / np.log(2) / 768 == pytest.approx(last["valid_reconstruction_bpd"])
    assert teacher.perplexity(photos[400:500]) == pytest.approx(last["valid_perplexity"])
    # Reconstructions: closer to the images than the mean colour is.
    images = photos[400:500].astype(float)
    error = np.square(teacher.reconstruct(photos[400:500]) - images).mean()
    assert error < 0.3 * images.var((0, 1, 2)).mean()


def test_training_on_grey_digits_with_a_rectangular_patch(digits):
    settings = TeacherSettings(patch=(4, 2), channels=32, blocks=1, codes=32, mixtures=2, epochs=6, batch_size=16)
    teacher = Teacher(settings).fit(digits[:600], device="cpu")
    # 17 levels in use: one distribution for all pixels needs about 3 bits.
    assert teacher.history[-1]["reconstruction_bpd"] < 3
    images = digits[600:700]
    assert teacher.features(images).shape == (100, 8, 16)
    assert teacher.features(images).dtype == np.float32
    codes = teacher.codes(images)
    quantized = teacher.features(images, quantized=True)
    np.testing.assert_array_equal(quantized, teacher.network.quantizer.codebook.detach().numpy()[codes])
    # Each is the nearest of all codes to the feature itself.
    distance = ((teacher.features(images) - quantized) ** 2).sum(2)
    others = teacher.network.quantizer.codebook.detach().numpy()
    assert all((distance <= ((teacher.features(images) - other) ** 2).sum(2) + 1e-5).all() for other in others)
    assert codes.shape == (100, 8)
    assert codes.dtype == np.int64
    assert teacher.reconstruct(images).shape == (100, 8, 8, 1)
    assert teacher.reconstruct(images).dtype == np.uint8
    assert np.array_equal(teacher.codes(images[..., 0], batch_size=7), codes)


def test_training_repeats_bit_for_bit_and_leaves_the_global_random_state(photos, fitted):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    again = Teacher(TINY).fit(photos[:64], device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_weights(again, fitted)
    other = Teacher(TINY).fit(photos[:64], seed=1, device="cpu")
    assert not torch.equal(other.network.quantizer.codebook, fitted.network.quantizer.codebook)


class StopError(Exception):
    pass


@pytest.mark.parametrize("flip", [False, True])
def test_resumed_training_ends_in_the_same_weights(photos, tmp_path, flip):
    settings = TeacherSettings(
        channels=16, blocks=1, code_dim=4, codes=64, mixtures=2, epochs=4, batch_size=2, flip=flip
    )
    images = photos[:64]
    whole = Teacher(settings).fit(images, seed=5, device="cpu")
    assert sum(entry["revived"] for entry in whole.history[2:]) > 0  # the part that is resumed draws and revives

    def stop(record):
        if record["epoch"] == 2:
            raise StopError

    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(StopError):
        Teacher(settings).fit(images, seed=5, device="cpu", checkpoint=checkpoint, on_epoch=stop)
    resumed = Teacher(settings).fit(images, seed=5, device="cpu", checkpoint=checkpoint)
    assert_same_weights(resumed, whole)
    for entry, wanted in zip(resumed.history, whole.history, strict=True):
        assert entry | {"seconds": 0} == wanted | {"seconds": 0}
    finished = Teacher(settings).fit(images, seed=5, device="cpu", checkpoint=checkpoint)
    assert_same_weights(finished, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_ctrl_c_leaves_the_last_checkpoint(photos, tmp_path):
    class Progress:
        def __init__(self, steps):
            self.steps = steps

        def stage(self, name, total, unit=""):
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, n=1, **info):
            self.steps -= 1
            if not self.steps:
                raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        Teacher(TINY).fit(photos[:64], device="cpu", checkpoint=checkpoint, progress=Progress(4 + 2))
    resumed = []
    teacher = Teacher(TINY).fit(photos[:64], device="cpu", checkpoint=checkpoint, on_epoch=resumed.append)
    assert [entry["epoch"] for entry in resumed] == [2, 3]
    assert_same_weights(teacher, Teacher(TINY).fit(photos[:64], device="cpu"))


def test_checkpoint_of_another_run_is_refused(photos, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    Teacher(TINY).fit(photos[:32], device="cpu", checkpoint=checkpoint)
    other = TeacherSettings(**{**vars(TINY), "epochs": 4})
    for teacher, images, seed, what in (
        (Teacher(other), photos[:32], 0, "settings"),
        (Teacher(TINY), photos[:32], 1, "seed"),
        (Teacher(TINY), photos[1:33], 0, "training images"),
    ):
        with pytest.raises(InputError, match=rf"checkpoint\.safetensors: .*other {what}"):
            teacher.fit(images, seed=seed, device="cpu", checkpoint=checkpoint)


def test_a_diverging_loss_is_a_failed_run(photos):
    settings = TeacherSettings(**{**vars(TINY), "learning_rate": 1e30})
    with pytest.raises(LVDJuiceError, match="loss is not finite in epoch 1"):
        Teacher(settings).fit(photos[:64], device="cpu")


def test_a_lossy_transform_is_what_the_teacher_models(photos, fitted, tmp_path):
    ycc709 = COLORS["ycc709"]
    seen = ycc709.forward(photos[:80])
    teacher = Teacher(TINY, color="ycc709").fit(photos[:64], valid=photos[64:80], device="cpu")
    plain = Teacher(TINY).fit(seen[:64], valid=seen[64:], device="cpu")
    assert_same_weights(teacher, plain)
    assert [record["valid_reconstruction_bpd"] for record in teacher.history] == [
        record["valid_reconstruction_bpd"] for record in plain.history
    ]
    teacher.save(tmp_path / "teacher.safetensors")
    loaded = Teacher.load(tmp_path / "teacher.safetensors", device="cpu")
    assert np.array_equal(loaded.reconstruction_nats(photos[64:80]), plain.reconstruction_nats(seen[64:]))
    assert np.array_equal(loaded.features(photos[64:80]), plain.features(seen[64:]))
    # What comes out is RGB again.
    assert np.array_equal(loaded.reconstruct(photos[64:80]), ycc709.inverse(plain.reconstruct(seen[64:])))
    # A lossless transform changes no density: the teacher sees the pixels as they are.
    assert_same_weights(Teacher(TINY, color="ycocg").fit(photos[:64], device="cpu"), fitted)
    with pytest.raises(InputError, match="color: found 'hsv'"):
        Teacher(TINY, color="hsv").fit(photos[:64], device="cpu")


# --- files


def test_save_and_load(photos, fitted, tmp_path):
    path = tmp_path / "teacher.safetensors"
    fitted.save(path)
    loaded = Teacher.load(path, device="cpu")
    assert loaded.settings == fitted.settings
    assert loaded.history == fitted.history
    assert_same_weights(loaded, fitted)
    assert np.array_equal(loaded.features(photos[64:80]), fitted.features(photos[64:80]))
    assert np.array_equal(loaded.reconstruct(photos[64:80]), fitted.reconstruct(photos[64:80]))
    assert [entry.name for entry in tmp_path.iterdir()] == ["teacher.safetensors"]


def test_bad_files(photos, fitted, tmp_path):
    path = tmp_path / "teacher.safetensors"
    for bad in (tmp_path / "a.pt", tmp_path / "none" / "a.safetensors", 3):  # before the first epoch
        with pytest.raises(InputError, match=r"named \.safetensors|cannot be written"):
            Teacher(TINY).fit(photos[:32], device="cpu", checkpoint=bad, on_epoch=pytest.fail)
    with pytest.raises(InputError, match="on_epoch: found 3, wanted a function"):
        Teacher(TINY).fit(photos[:32], device="cpu", on_epoch=3)
    with pytest.raises(InputError, match=r"teacher\.safetensors: no such file"):
        Teacher.load(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(InputError, match=r"teacher\.safetensors: damaged"):
        Teacher.load(path)
    Teacher(TINY).fit(photos[:32], device="cpu", checkpoint=tmp_path / "checkpoint.safetensors")
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: found a file of kind 'teacher checkpoint'"):
        Teacher.load(tmp_path / "checkpoint.safetensors")
    from pyjuice_lvd.files.formats import read_arrays, write_arrays

    fitted.save(path)
    arrays, metadata = read_arrays(path)
    facts = json.loads(metadata["facts"])
    facts["settings"]["channels"] += 1
    write_arrays(path, arrays, {**metadata, "facts": json.dumps(facts)})
    with pytest.raises(InputError, match=r"teacher\.safetensors: damaged, or written by another version") as raised:
        Teacher.load(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="missing"):
        fitted.save(tmp_path / "missing" / "teacher.safetensors")


# --- bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch", (0, 4)),
        ("patch", (4,)),
        ("patch", 4),
        ("decoder", "deep"),
        ("channels", 0),
        ("blocks", -1),
        ("code_dim", 1),
        ("codes", 1),
        ("mixtures", 0),
        ("epochs", 0),
        ("epochs", 2.5),
        ("batch_size", True),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("commitment", -1),
        ("commitment", "much"),
        ("flip", 1),
        ("codes", np.float64(16)),
    ],
)
def test_bad_settings(name, value):
    with pytest.raises(InputError, match=rf"^teacher\.{name}: found .*, wanted [^\n]+$"):
        TeacherSettings(**{name: value})


def test_numpys_values_are_as_good_as_pythons():
    made = TeacherSettings(patch=np.array([4, 2]), codes=np.int64(16), learning_rate=np.float32(0.5), flip=np.True_)
    assert made == TeacherSettings(patch=(4, 2), codes=16, learning_rate=0.5, flip=True)
    assert {type(value) for value in vars(made).values()} == {tuple, str, int, float, bool}


def test_a_list_is_a_patch():
    assert TeacherSettings(patch=[4, 2]).patch == (4, 2)


def test_bad_input(photos, fitted):
    teacher = Teacher(TINY)
    with pytest.raises(InputError, match=r"^teacher: found one that is not fitted, wanted [^\n]+$"):
        teacher.features(photos[:4])
    for images, message in (
        (photos[:4].astype(np.float32), "images: found dtype float32, wanted uint8"),
        (photos[0, 0], r"images: found shape \(16, 3\), wanted"),
        (photos[:0], "images: found shape .*, wanted at least one image"),
        (photos[:4, :, :15], "patch: found 4x4 for images of 16x15"),
    ):
        with pytest.raises(InputError, match=message):
            teacher.fit(images, device="cpu")
        with pytest.raises(InputError, match=message):
            fitted.features(images)
    with pytest.raises(InputError, match="valid: found 1 channels, wanted 3"):
        teacher.fit(photos[:4], valid=photos[:4, ..., :1], device="cpu")
    with pytest.raises(InputError, match="images: found 1 channels, wanted 3"):
        fitted.codes(photos[:4, ..., :1])
    with pytest.raises(InputError, match="seed: found -1, wanted"):
        teacher.fit(photos[:4], seed=-1, device="cpu")
    with pytest.raises(InputError, match="seed: found None"):
        teacher.fit(photos[:4], seed=None, device="cpu")
    with pytest.raises(InputError, match="device: found 'gpu', wanted one of auto, cpu, cuda"):
        teacher.fit(photos[:4], device="gpu")
    with pytest.raises(InputError, match="batch_size: found 0, wanted"):
        fitted.codes(photos[:4], batch_size=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(photos):
    with pytest.raises(InputError, match="device: found 'cuda', but PyTorch sees no CUDA device"):
        Teacher(TINY).fit(photos[:4], device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda(photos, fitted, tmp_path):
    teacher = Teacher(TINY).fit(photos[:64], device="cuda")
    assert teacher.network.mean.device.type == "cuda"
    assert teacher.history[-1]["loss"] == pytest.approx(fitted.history[-1]["loss"], rel=0.05)
    teacher.save(tmp_path / "teacher.safetensors")
    features = Teacher.load(tmp_path / "teacher.safetensors", device="cpu").features(photos[:8])
    np.testing.assert_allclose(teacher.features(photos[:8]), features, atol=1e-2)


def test_read_only_images_are_taken(photos, fitted):
    images = photos[:4].copy()
    images.flags.writeable = False
    assert np.array_equal(fitted.codes(images), fitted.codes(photos[:4]))


def test_settings_are_read_without_loading_torch():
    import subprocess
    import sys

    code = "import sys, pyjuice_lvd.teacher; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
