"""Items of a user's Dataset that do not make a batch are named in one line."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from btcompress.errors import BTCompressError
from btcompress.finetune import data as room
from btcompress.finetune.data import open_data

X = torch.ones(4, 2)
GOOD = (X, 1, 3)


class Items:
    def __init__(self, items, length=None):
        self.items, self.length = items, length

    def __len__(self):
        return len(self.items) if self.length is None else self.length

    def __getitem__(self, row):
        return self.items[row]


@pytest.fixture
def batch(monkeypatch):
    """The batch of all items of a Dataset, or of a Dataset with a collation of its own."""

    def made(items, length=None, collate=None):
        dataset = Items(items, length)
        value = dataset if collate is None else DataLoader(dataset, collate_fn=collate)
        monkeypatch.setattr(room, "resolve", lambda option, text, folder: lambda: value)
        data = open_data("made.up:items")
        return data.batch(torch.arange(len(data)))

    return made


@pytest.mark.parametrize(
    "item",
    [
        GOOD,
        list(GOOD),
        {"x": X, "y": 1, "lengths": 3},
        {"x": X, "y": 1, "length": 3, "id": "a name", "note": None},
        (X.numpy(), np.int64(1), np.array(3)),
    ],
    ids=["tuple", "list", "mapping", "more than is needed", "NumPy"],
)
def test_items_of_every_kind_make_the_same_batch(item, batch):
    found = batch([item, item])
    assert torch.equal(found.x, torch.stack([X, X]))
    assert found.y.tolist() == [1, 1]
    assert found.lengths.tolist() == [3, 3]


def test_states_of_mappings_come_as_an_lstm_takes_them(batch):
    items = [{"x": X, "h0": torch.full((2, 3), float(n)), "c0": np.full((2, 5), 10.0 + n)} for n in range(4)]
    h, c = batch(items).state
    assert (h.shape, c.shape) == ((2, 4, 3), (2, 4, 5))
    assert h[1, :, 2].tolist() == [0, 1, 2, 3]
    assert c[0, :, 4].tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ({"c0": torch.zeros(2, 3)}, "h0 has no numbers"),
        ({"h0": torch.zeros(3), "c0": torch.zeros(2, 3)}, r"h0 has shape \(1, 3\)"),
        ({"h0": torch.zeros(2, 3), "c0": torch.zeros(2, 3, dtype=torch.int64)}, "c0 has shape .*int64"),
        ({"h0": torch.full((2, 3), torch.nan), "c0": torch.zeros(2, 3)}, "NaN or infinity in h0"),
        ({"h0": 1.0, "c0": 2.0}, r"h0 has shape \(1,\)"),
    ],
    ids=str,
)
def test_states_that_are_none_are_refused(states, words, batch):
    with pytest.raises(BTCompressError, match=rf"made\.up:items: items 0: .*{words}"):
        batch([{"x": X, **states}])


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (X, "x float32"),
        ((X, 1), "x float32"),
        ((X, 1, 3, 4), "item 1 is tuple of Tensor, int, int, int"),
        ((X, "a", 3), "item 1 is tuple of Tensor, str, int"),
        ((X, None, 3), "item 1 is tuple of Tensor, NoneType, int"),
        ((X, np.array(["a"]), 3), "item 1 is tuple of Tensor, ndarray, int"),
        ((X[:3], 1, 3), r"item 1 is x float32 \(3, 2\).*item 0 is x float32 \(4, 2\)"),
        ((X.double(), 1, 3), "item 1 is x float64"),
        ((X, 1.0, 3), "y float"),
        ((X, 1, 3.0), "lengths float"),
        ("text", "item 1 is str of str"),
        (None, "item 1 is NoneType"),
        ({}, "item 1 is dict"),
        ((), "item 1 is tuple"),
    ],
    ids=str,
)
def test_an_item_unlike_the_others_is_named(item, words, batch):
    with pytest.raises(BTCompressError, match=rf"made\.up:items: .*{words}"):
        batch([GOOD, item])


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ((X, 1, 0), "entries from 0 to 0.*from 1 to 4"),
        ((X, 1, 5), "entries from 5 to 5"),
        ((X, 1, 2.5), "dtype float64"),
        ((X, 1, True), "dtype bool"),
        ((X, 1, torch.tensor([3])), r"shape \(1, 1\)"),
        ((X * torch.nan, 1, 3), "NaN or infinity"),
        ((X[:0], 1, 3), r"x has shape \(1, 0, 2\)"),
        ((X, torch.zeros(0), 3), r"y has shape \(1, 0\)"),
        (({"x": X}, 1), "item 0 is tuple of dict, int"),
        ({"y": 1}, "no inputs x"),
        ((X + 1j, 1), "complex"),
    ],
    ids=str,
)
def test_items_that_are_no_sequences_are_refused(item, words, batch):
    with pytest.raises(BTCompressError, match=rf"made\.up:items: .*{words}"):
        batch([item])


def test_a_dataset_with_fewer_items_than_its_length_is_told_so(batch):
    with pytest.raises(BTCompressError, match="no item 1, although the Dataset has a length of 2"):
        batch([GOOD], length=2)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ((X[None], torch.ones(2)), r"y has shape \(2,\)"),
        ((X[None], torch.ones(1), torch.ones(2, dtype=torch.int64)), "lengths has shape"),
        ((X[None], [1]), "Tensor', 'list"),
        ((None, torch.ones(1)), "no inputs x"),
        ("x", "a batch must be x"),
    ],
    ids=str,
)
def test_batches_of_an_own_collation_whose_parts_do_not_fit_are_refused(made, words, batch):
    with pytest.raises(BTCompressError, match=words):
        batch([GOOD], collate=lambda items: made)
