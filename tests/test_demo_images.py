"""Laws of the task on images."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import sigmoid

import btcompress
from btcompress.demo.images import FULL, SMALL, DrawingModel, Images, make_images
from btcompress.demo.images.likelihood import log_likelihood
from btcompress.demo.images.model import bound, loss, normal_divergence
from btcompress.demo.noise import Noise
from btcompress.demo.task import Size, Training
from btcompress.finetune import finetune
from btcompress.modes import ShapeRequest, choose_shape

TRAINING = Training(3, 3e-2, batch_size=8)
TINY = Images(
    10,
    n_latent=3,
    n_steps=3,
    decoder_size=24,
    size=Size(160, 60, 12, 1, 2, TRAINING, TRAINING, TRAINING),
    factory="test_demo_images:tiny_model",
)


def tiny_model():
    return TINY.model()


@pytest.fixture(scope="module")
def drawn():
    return TINY.draw(3)


@pytest.fixture(scope="module")
def data(drawn, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "train.npz"
    np.savez(path, x=drawn.x, y=drawn.y)
    return path


@pytest.fixture(scope="module")
def trained(data):
    torch.manual_seed(0)
    model = TINY.model()
    return model, TINY.train(model, data, replace(TRAINING, epochs=12), seed=0)


def inputs(images, n):
    return torch.from_numpy(images.x[:n]) / 255, torch.from_numpy(images.y[:n])


def test_bytes_have_probabilities_that_add_up_to_one_and_are_those_of_the_logistic_distribution():
    y = torch.arange(256, dtype=torch.float64)
    for mean, scale in ((0.3, 0.05), (0.001, 0.02), (1.0, 0.3), (0.5, 0.002)):
        log_scale = torch.tensor(scale, dtype=torch.float64).log()
        found = log_likelihood(y, torch.full((256,), mean, dtype=torch.float64), log_scale)
        edges = sigmoid(((torch.arange(255) + 0.5).double() / 255 - mean) / scale)
        plain = torch.diff(edges, prepend=torch.zeros(1), append=torch.ones(1))
        assert found.exp().sum() == pytest.approx(1)
        torch.testing.assert_close(found.exp(), plain, rtol=1e-9, atol=1e-15)
    far = log_likelihood(torch.tensor([200]), torch.tensor([0.0], requires_grad=True), torch.tensor([-6.0]))
    assert torch.isfinite(far).all()


def test_divergence_is_that_of_normal_distributions():
    mean, log_deviation = torch.randn(2, 5, 3, dtype=torch.float64)
    one = torch.distributions.Normal(mean, log_deviation.exp())
    expected = torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(normal_divergence(mean, log_deviation), expected)


@torch.no_grad()
def test_bound_is_what_the_equations_say_step_by_step(drawn):
    model = TINY.model().double()
    x, y = inputs(drawn.test, 2)
    noise = model.noise(2, torch.Generator().manual_seed(5)).double()
    found = bound(model.drawn(x.double(), noise), y)
    for row in range(2):
        image = x[row, 0].double()
        canvas, encoder, decoder, divergence = model.first_canvas, None, None, 0.0
        for step in range(3):
            lacking = image - sigmoid(canvas)
            read = torch.cat([image.view(10, 10, 3), lacking.view(10, 10, 3)], 2).flatten() * model.scale
            encoder = model.encoder(read, encoder)
            told = model.posterior(encoder[0])
            mean, deviation = told[:3], told[3:].exp()
            divergence += 0.5 * (mean**2 + deviation**2 - 1 - 2 * deviation.log()).sum()
            decoder = model.decoder(mean + deviation * noise[step, row], decoder)
            canvas = canvas + model.write.weight @ decoder[0]
        drawing = model.drawn(x.double(), noise)
        likely = log_likelihood(y[row], sigmoid(canvas), drawing.log_scale).sum()
        assert float(found[row]) == pytest.approx(float(likely - divergence), rel=1e-12)
    assert float(loss(model.drawn(x.double(), noise), y)) == pytest.approx(-float(found.mean()) / (300 * math.log(2)))


def test_noise_is_drawn_anew_in_training_alone(drawn):
    model, (x, _) = TINY.model(), inputs(drawn.test, 4)
    first, second = model(x), model(x)
    assert not torch.equal(first.mean, second.mean)
    torch.manual_seed(7)
    third = model(x)
    torch.manual_seed(7)
    assert torch.equal(third.mean, model(x).mean)
    model.eval()
    state = torch.random.get_rng_state()
    assert torch.equal(model(x).mean, model(x).mean)
    assert torch.equal(state, torch.random.get_rng_state())


def test_model_learns_and_its_encoder_tells_it_what_to_draw(trained, drawn):
    model, curve = trained
    assert min(curve) < curve[0] - 0.5
    bits = TINY.scores(model, drawn.test)[1]
    assert TINY.scores(model, replace(drawn.test, x=np.roll(drawn.test.x, 1, axis=0)))[1] > bits + 0.05


def test_scores_are_the_same_at_every_call_and_agree_with_one_another(trained, drawn):
    nats, bits, error = TINY.scores(trained[0], drawn.test)
    assert (nats, bits, error) == TINY.scores(trained[0], drawn.test)
    assert bits == pytest.approx(-nats / (300 * math.log(2)))
    # Better than black images would be, and within what bytes can be.
    assert 0 < error < math.sqrt(((drawn.test.y / 255) ** 2).mean())


def test_block_terms_take_the_place_of_the_encoder_and_are_trained_on_by_reference(trained, data, tmp_path, drawn):
    model, _ = trained
    dense, compressed, tuned = (tmp_path / name for name in ("dense.pt", "bt.safetensors", "tuned.safetensors"))
    torch.save(model.state_dict(), dense)
    found = btcompress.factorize(dense, layers=["encoder.*"], cp_rank=1, tucker_rank=2, input_shape=TINY.input_shape)
    assert list(found.matrices) == ["encoder.weight_ih"]
    btcompress.save(found, compressed)
    before = TINY.scores(btcompress.apply(TINY.model(), found), drawn.test)
    result = finetune(TINY.finetuning(compressed, data, tuned, dense), TRAINING.config(0)).compressed
    smaller = btcompress.apply(TINY.model(), result)
    assert type(smaller.encoder) is btcompress.BTLSTMCell
    assert TINY.scores(smaller, drawn.test)[0] > before[0]


def test_noise_is_over_what_is_read_and_not_over_what_is_to_be_drawn(drawn):
    noisy = TINY.noisy(drawn.test, Noise("gaussian", 0.2))
    assert np.array_equal(noisy.y, drawn.test.y)
    assert not np.array_equal(noisy.x, drawn.test.x)
    assert np.array_equal(drawn.test.x[:, 0], drawn.test.y)


def test_picture_shows_samples_of_every_step_and_reconstructions(trained, drawn, tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        TINY.draw_examples({"dense": trained[0], "untrained": TINY.model()}, drawn.test, path)
        torch.manual_seed(0)
    with Image.open(first) as picture:
        assert picture.width > 400
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
    samples = trained[0].sample(5, torch.Generator().manual_seed(0))
    assert samples.shape == (3, 5, 300)
    assert float(samples.min()) >= 0
    assert float(samples.max()) <= 1


def test_same_seed_draws_the_same_images_of_many_colours():
    first, again, other = (make_images(20, side=9, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.x, again.x)
    assert not np.array_equal(first.x, other.x)
    assert first.x.shape == (20, 1, 243)
    assert first.x.dtype == np.uint8
    assert len(np.unique(first.x)) > 100
    with pytest.raises(btcompress.BTCompressError, match="at least 1"):
        make_images(0, side=9, generator=torch.Generator())


@pytest.mark.parametrize(("task", "n_inputs", "ratio"), [(SMALL, 3_456, 100), (FULL, 24_576, 1_000)])
def test_sizes_are_those_that_are_asked_for(task, n_inputs, ratio):
    with torch.device("meta"):
        model = task.model()
    assert isinstance(model, DrawingModel)
    assert model.encoder.input_size == n_inputs == math.prod(task.input_shape)
    request = ShapeRequest(task.size.cp_rank, task.size.tucker_rank, input_shape=task.input_shape)
    shape = choose_shape(request, "encoder.weight_ih", 4 * task.size.hidden_size, n_inputs).shape
    assert shape.ratio >= ratio
