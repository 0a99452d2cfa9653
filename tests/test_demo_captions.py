"""Laws of the task on captions."""

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from btcompress.demo.captions.features import FeatureMap
from btcompress.demo.captions.grammar import (
    STEPS,
    VOCABULARY,
    Thing,
    decode,
    encode,
    parse,
    share_right,
    things,
    wordings,
)
from btcompress.demo.captions.model import IGNORED, word_loss
from btcompress.demo.captions.scenes import _COLOURS, N_OBJECTS, SHAPES, make_scenes
from btcompress.demo.captions.scores import bleu, content
from btcompress.demo.captions.task import FULL, REFERENCES, SMALL, WORDINGS, Captions, describe, full_model, small_model
from btcompress.demo.noise import Noise
from btcompress.demo.story import draw_data
from btcompress.demo.task import Size, Training
from btcompress.errors import BTCompressError
from btcompress.modes import ShapeRequest, choose_shape
from btcompress.nn import BTLSTM

TINY = Captions(
    FeatureMap(24, 3, 8),
    8,
    0.0,
    f"{__name__}:tiny_model",
    Size(60, 20, 16, 1, 2, *[Training(3, 5e-2, batch_size=4)] * 3),
)
RED = Thing("square", "red", "large", "top left")
BLUE = Thing("disc", "blue", "small", "bottom right")


def tiny_model():
    return TINY.model()


def scenes_of(seed, n=40, side=24):
    return make_scenes(n, side=side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def drawn():
    return TINY.draw(0)


def test_objects_of_a_scene_are_at_places_of_their_own_in_order():
    scenes = scenes_of(0, n=200)
    assert scenes.objects.shape == (200, N_OBJECTS, 4)
    for objects in scenes.objects:
        places = objects[:, 3].tolist()
        assert places == sorted(set(places))
    assert len(np.unique(scenes.objects[:, :, 3], axis=0)) == 6


def test_an_object_is_drawn_at_its_place_and_nowhere_else():
    scenes = scenes_of(1, n=300, side=64)
    quarters = scenes.images.reshape(300, 2, 32, 2, 32, 3).max((2, 4, 5)).reshape(300, 4)  # the brightest byte of each
    for place in range(4):
        there = (scenes.objects[:, :, 3] == place).any(1)
        assert quarters[there, place].min() > quarters[~there, place].max()


def test_an_object_has_the_colour_that_it_is_named_by():
    scenes = scenes_of(2, n=100, side=64)
    shapes, colours, _, places = np.moveaxis(scenes.objects, 2, 0)
    middles = scenes.images[np.arange(100)[:, None], 16 + 32 * (places // 2), 16 + 32 * (places % 2)] / 255
    nearest = np.abs(middles[:, :, None] - np.array(list(_COLOURS.values()))).sum(-1).argmin(-1)
    solid = np.isin(shapes, [SHAPES.index("disc"), SHAPES.index("square")])
    assert solid.sum() > 50
    assert np.array_equal(nearest[solid], colours[solid])


def test_every_wording_names_the_objects_of_its_scene_and_fits():
    generator = np.random.default_rng(0)
    for objects in scenes_of(0, n=150).objects:
        shown = things(objects)
        sentences = wordings(shown, 5, generator)
        assert len(set(sentences)) == 5
        for sentence in sentences:
            assert sorted(map(repr, parse(sentence))) == sorted(map(repr, shown))
        assert [decode(row) for row in encode(sentences)] == list(sentences)


def test_the_vocabulary_has_a_hundred_words_and_none_twice():
    assert len(VOCABULARY) - 3 >= 100
    assert len(set(VOCABULARY)) == len(VOCABULARY)


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("at top left a large red square and at bottom right a small blue disc", (RED, BLUE)),
        ("in this picture in lower right sits a tiny azure circle , in upper left is a big ruby box", (BLUE, RED)),
        ("there is at top left a large red square and at bottom right a small blue", (RED,)),
        ("at top left a red square", ()),
        ("a large red square", ()),
        ("", ()),
    ],
)
def test_a_sentence_is_parsed_into_what_it_names_in_full(sentence, named):
    assert parse(sentence) == named


@pytest.mark.parametrize(
    ("named", "share"),
    [((BLUE, RED), 1), ((RED,), 1 / 2), ((RED, RED), 1 / 2), ((RED, BLUE, BLUE), 2 / 3), ((), 0)],
)
def test_share_of_objects_right_counts_what_is_missing_and_what_is_too_much(named, share):
    assert share_right(named, (RED, BLUE)) == pytest.approx(share)


def test_scores_of_known_sentences():
    right = "at top left a large red square and at bottom right a small blue disc"
    half = "at top left a large red square and at bottom right a small blue ring"
    assert content([right, half], [(RED, BLUE)] * 2) == (0.5, 0.75)
    assert bleu([right], [(right, half)]) == pytest.approx(1)
    assert 0.3 < bleu([half], [(right, right)]) < 1
    assert bleu(["we see"], [(right, half)]) < 0.05


def test_a_missing_sacrebleu_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(BTCompressError, match=r"pip install 'btcompress\[demo\]'"):
        bleu(["a"], [("a",)])


def test_a_missing_scikit_learn_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(BTCompressError, match=r"pip install 'btcompress\[demo\]'"):
        scenes_of(0, n=1)


def test_features_are_the_same_whatever_was_drawn_before_and_differ_between_pictures():
    images = scenes_of(0).images
    first = TINY.features.of(images)
    torch.manual_seed(5)
    torch.rand(3)
    assert np.array_equal(TINY.features.of(images), first)
    assert np.array_equal(TINY.features.of(images[7:9]), first[7:9])
    assert len(np.unique(first, axis=0)) == len(images)


def test_same_seed_gives_the_same_data_and_another_seed_others(drawn):
    again, other = TINY.draw(0), TINY.draw(1)
    assert np.array_equal(again.x, drawn.x)
    assert np.array_equal(again.y, drawn.y)
    assert again.test.references == drawn.test.references
    assert not np.array_equal(other.x, drawn.x)


def test_y_are_the_sentences_that_x_ends_with_and_padding_counts_for_nothing(drawn):
    assert drawn.x.shape == (60, 1, 72 + WORDINGS * STEPS)
    assert drawn.x.dtype == np.uint8
    tokens = drawn.x[:, 0, 72:].astype(int)
    assert np.array_equal(np.where(tokens == 0, IGNORED, tokens), drawn.y)
    sentences = [[decode(row) for row in each] for each in tokens.reshape(60, WORDINGS, STEPS)]
    assert all(len(set(each)) == WORDINGS for each in sentences)
    assert all(sorted(map(repr, parse(one))) == sorted(map(repr, parse(each[0]))) for each in sentences for one in each)
    scores, y = torch.randn(60, WORDINGS * STEPS, len(VOCABULARY)), torch.from_numpy(drawn.y).long()
    other = scores.masked_fill((y == IGNORED)[..., None], 7.0)
    assert torch.equal(word_loss(scores, y), word_loss(other, y))


def test_sentences_about_one_picture_are_scored_each_on_its_own(drawn):
    model = tiny_model().eval()
    x = torch.from_numpy(drawn.x[:5]).float()
    maps, *sentences = x.split([72, *[STEPS] * WORDINGS], dim=-1)
    apart = [model(torch.cat([maps, each], dim=-1)) for each in sentences]
    torch.testing.assert_close(model(x), torch.cat(apart, dim=1))


def test_the_model_cannot_see_the_word_that_it_is_to_write_nor_those_after_it(drawn):
    model = tiny_model().eval()
    x = torch.from_numpy(drawn.x[:5]).float()
    changed = x.clone()
    changed[..., 72 + 4 : 72 + STEPS] = 5
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


def test_greedy_captions_are_those_that_step_by_step_calls_of_the_whole_model_give(drawn):
    torch.manual_seed(0)
    model = tiny_model().eval()
    maps = torch.from_numpy(drawn.test.maps[:3]).float()
    tokens = torch.zeros(3, STEPS)
    with torch.no_grad():
        for step in range(STEPS):
            tokens[:, step] = model(torch.cat([maps, tokens], 1)[:, None])[:, step].argmax(-1)
    assert [decode(row) for row in tokens.long().numpy()] == [decode(row) for row in model.captions(maps).numpy()]


@pytest.mark.parametrize("form", ["dense", "block terms", "smaller"])
def test_models_learn_with_any_reader(form, drawn, tmp_path):
    data = tmp_path / "train.npz"
    draw_data(TINY, data, 0)
    torch.manual_seed(0)
    model = TINY.model(3) if form == "smaller" else TINY.model()
    if form == "block terms":
        model.reader = BTLSTM.from_dense(model.reader, cp_rank=1, tucker_rank=2, input_shape=TINY.input_shape)
    before = model.reader.state_dict()["bias_ih_l0"].clone()
    curve = TINY.train(model, data, TINY.size.dense, 0)
    assert min(curve) < 0.8 * curve[0]
    assert not torch.equal(model.reader.state_dict()["bias_ih_l0"], before)
    assert len(TINY.scores(model, drawn.test)) == len(TINY.measures)


def test_noise_changes_pictures_and_their_features_alone(drawn):
    noisy = TINY.noisy(drawn.test, Noise("gaussian", 0.2))
    assert not np.array_equal(noisy.images, drawn.test.images)
    assert not np.array_equal(noisy.maps, drawn.test.maps)
    assert np.array_equal(noisy.maps, TINY.features.of(noisy.images))
    assert noisy.objects is drawn.test.objects
    assert noisy.references is drawn.test.references
    none = TINY.noisy(drawn.test, Noise("gaussian", 0))
    assert np.array_equal(none.maps, drawn.test.maps)


def test_examples_are_drawn_beside_what_each_model_says(drawn, tmp_path):
    models = {"dense": tiny_model(), "another": tiny_model()}
    TINY.draw_examples(models, drawn.test, tmp_path / "a.png")
    TINY.draw_examples({"dense": models["dense"]}, drawn.test, tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as wide, Image.open(tmp_path / "b.png") as narrow:
        assert wide.width > narrow.width > 300
        assert len(wide.convert("RGB").getcolors(1 << 24)) > 100
    assert len(describe(models["dense"], drawn.test)) == len(drawn.test.references)
    assert all(len(set(each)) == REFERENCES for each in drawn.test.references)


def test_references_name_the_factories_and_the_loss():
    assert SMALL.model_reference == "btcompress.demo.captions.task:small_model"
    assert FULL.model_reference == "btcompress.demo.captions.task:full_model"
    assert SMALL.loss_reference == "btcompress.demo.captions.model:word_loss"
    assert SMALL.loss is word_loss
    assert SMALL.input_shape == (8, 8, 64)
    assert FULL.input_shape == (14, 14, 256)
    with torch.device("meta"):
        assert small_model().reader.weight_ih_l0.shape == (512, 4_096)
        assert full_model().reader.weight_ih_l0.shape == (1_024, 50_176)


@pytest.mark.parametrize(("task", "n_inputs", "ratio"), [(SMALL, 4_096, 100), (FULL, 50_176, 1_000)])
def test_sizes_are_those_that_are_asked_for(task, n_inputs, ratio):
    assert math.prod(task.input_shape) == n_inputs
    request = ShapeRequest(task.size.cp_rank, task.size.tucker_rank, input_shape=task.input_shape)
    shape = choose_shape(request, "reader.weight_ih_l0", 4 * task.size.hidden_size, n_inputs).shape
    assert shape.ratio >= ratio
