"""Agreement of decisions: which layer decides, and how often it decides alike."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.checkpoint import from_state_dict
from btcompress.finetune import decisions
from btcompress.finetune.data import Arrays, Batch
from btcompress.finetune.decisions import agreement_of, agreement_on
from btcompress.finetune.heads import deciding_head
from btcompress.finetune.networks import choose_dense_lstm
from btcompress.results import Agreement
from tuning import Classifier, draw

CPU = 4, torch.device("cpu"), torch.float32


def compressed_of(model, **arguments):
    dense = from_state_dict(model.state_dict())
    options = {"cp_rank": 1, "tucker_rank": 2, "allow_growth": True, "max_sweeps": 2, **arguments}
    return dense, btcompress.factorize(model.state_dict(), **options)


def by_hand(model, x, lengths, state=None):
    """Decisions of the model on each step that counts, and at each sequence's end, one sequence at a time."""
    steps, ends = [], []
    for row, length in enumerate(lengths):
        own = None if state is None else tuple(each[:, row : row + 1].contiguous() for each in state)
        hidden, (h, _) = model.lstm(x[row : row + 1, :length], own)
        n_directions = 1 + model.lstm.bidirectional
        for decided, states in ((steps, hidden[0]), (ends, torch.cat(list(h[-n_directions:]), -1))):
            scores = model.head(states)
            decided += (scores.argmax(-1) if scores.shape[-1] > 1 else scores[:, 0] > 0).tolist()
    return np.array(steps), np.array(ends)


class Stateful(Arrays):
    """Arrays whose sequences begin with states of their own."""

    def batch(self, rows):
        h = torch.from_numpy(draw(2, len(self), 6, seed=7))[:, rows] * 3
        return replace(super().batch(rows), state=(h, -h))


@pytest.mark.parametrize("matrices", [["input"], ["input", "recurrent", "linear"]], ids=",".join)
@pytest.mark.parametrize(
    ("arguments", "n_classes", "stateful"),
    [({}, 4, False), ({"bidirectional": True}, 3, True), ({"num_layers": 2}, 1, True)],
    ids=["plain", "two directions with states", "one output"],
)
def test_agreement_is_the_share_of_decisions_that_both_models_make_alike(arguments, n_classes, stateful, matrices):
    torch.manual_seed(3)
    model = Classifier(n_classes=n_classes, **arguments)
    dense, compressed = compressed_of(model, matrices=matrices)
    x, lengths = draw(30, 5, 24), np.arange(30) % 5 + 1
    data = (Stateful if stateful else Arrays)("x.npz", x, None, lengths, 1.0)
    state = data.batch(torch.arange(30)).state
    student = btcompress.apply(Classifier(n_classes=n_classes, **arguments), compressed)
    pairs = zip(*(by_hand(each, torch.from_numpy(x), lengths, state) for each in (student, model)), strict=True)
    steps, ends = (float((ours == theirs).mean()) for ours, theirs in pairs)
    entry = choose_dense_lstm(dense, None, "")
    assert agreement_on(compressed, dense, entry, data, 7) == Agreement(steps, ends, int(lengths.sum()), 30)
    assert 0.2 < steps < 1


def test_agreement_does_not_depend_on_how_many_outputs_are_formed_at_once(monkeypatch):
    dense, compressed = compressed_of(Classifier())
    data, entry = Arrays("x.npz", draw(20, 5, 24), None, None, 1.0), choose_dense_lstm(dense, None, "")
    whole = agreement_on(compressed, dense, entry, data)
    monkeypatch.setattr(decisions, "_MOST_OUTPUTS", 10)
    assert agreement_on(compressed, dense, entry, data) == whole != None  # noqa: E711


def test_without_a_head_in_both_files_there_is_no_agreement():
    data = Arrays("x.npz", draw(4, 5, 24), None, None, 1.0)
    for model in (nn.ModuleDict({"lstm": nn.LSTM(24, 6)}), Classifier()):
        dense, compressed = compressed_of(model)
        bare = replace(dense, tensors={key: value for key, value in dense.tensors.items() if "lstm" in key})
        assert agreement_on(compressed, bare, choose_dense_lstm(dense, None, ""), data) is None


def lstm(inputs=24, hidden=6, **arguments):
    return nn.LSTM(inputs, hidden, **arguments)


def named(**modules):
    """A state dict of modules by their names; ``__`` stands for the dot."""
    return {f"{n.replace('__', '.')}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "tensors", "head"),
    [
        ("lstm", named(lstm=lstm(), head=nn.Linear(6, 3)), "head"),
        ("lstm", named(embed=nn.Embedding(50, 24), lstm=lstm(), out=nn.Linear(6, 3)), "out"),
        ("lstm", named(embed=nn.Embedding(50, 6), lstm=lstm(6), out=nn.Linear(6, 50)), "out"),
        ("lstm", named(lstm=lstm(), out=nn.Linear(6, 3, bias=False)), "out"),
        ("lstm", named(conv=nn.Conv1d(1, 2, 10), below=nn.Linear(262, 24), lstm=lstm(), out=nn.Linear(6, 3)), "out"),
        ("lstm", named(lstm=lstm(bidirectional=True), out=nn.Linear(12, 3)), "out"),
        ("a.lstm", named(a__lstm=lstm(), a__out=nn.Linear(6, 3), b__lstm=lstm(), b__out=nn.Linear(6, 4)), "a.out"),
        ("b.lstm", named(a__lstm=lstm(), a__out=nn.Linear(6, 3), b__lstm=lstm(), b__out=nn.Linear(6, 4)), "b.out"),
        ("decoder", named(encoder=lstm(), decoder=lstm(), out=nn.Linear(6, 3)), "out"),
        ("decoder.rnn", named(encoder__rnn=lstm(), decoder__rnn=lstm(), decoder__out=nn.Linear(6, 3)), "decoder.out"),
        ("second", named(first=lstm(24, 8), second=lstm(8, 6), out=nn.Linear(6, 3)), "out"),
        ("lstm", named(lstm=lstm(), gru=nn.GRU(4, 5), out=nn.Linear(6, 3)), "out"),
        ("gru", named(lstm=lstm(24, 8), gru=nn.GRU(8, 6), out=nn.Linear(6, 3)), "out"),
    ],
    ids=[
        *("head alone", "embedding", "embedding as wide", "no bias", "layers below", "two directions", "scope a"),
        *("scope b", "decoder", "decoder in a module", "second", "a GRU of other sizes", "a GRU's"),
    ],
)
def test_head_is_found_where_it_is_clear(name, tensors, head):
    entry = choose_dense_lstm(from_state_dict(tensors), name, "")
    assert deciding_head(tensors, entry).name == head


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("lstm", named(lstm=lstm())),
        ("lstm", named(lstm=lstm(), out=nn.Linear(7, 3))),
        ("lstm", named(lstm=lstm(), a=nn.Linear(6, 3), b=nn.Linear(6, 4))),
        ("lstm", named(lstm=lstm(), hidden=nn.Linear(6, 5), out=nn.Linear(5, 3))),
        ("lstm", named(lstm=lstm(), norm=nn.LayerNorm(6), out=nn.Linear(6, 3))),
        ("lstm", named(lstm=lstm(), conv=nn.Conv1d(6, 4, 1), out=nn.Linear(6, 3))),
        ("lstm", named(embed=nn.Embedding(50, 6), lstm=lstm(6))),
        ("lstm", {**named(lstm=lstm(), out=nn.Linear(6, 3)), "attention": torch.zeros(6, 9)}),
        ("lstm", {**named(lstm=lstm(), out=nn.Linear(6, 3)), "crf.transitions": torch.zeros(3, 3)}),
        ("lstm", named(lstm=lstm(), gru=nn.GRU(6, 9), out=nn.Linear(6, 3))),
        ("first", named(first=lstm(), second=lstm(), out=nn.Linear(6, 3))),
        ("first", named(first=lstm(), second=lstm(6, 9), out=nn.Linear(6, 3))),
        ("encoder", named(encoder=lstm(), decoder=lstm(), out=nn.Linear(6, 3))),
        ("encoder.rnn", named(encoder__rnn=lstm(), decoder__rnn=lstm(), decoder__out=nn.Linear(6, 3))),
        ("encoder.rnn", named(encoder__rnn=lstm(), encoder__bridge=nn.Linear(6, 5), decoder__rnn=lstm(24, 5))),
    ],
    ids=[
        *("none", "other size", "two", "hidden layer", "norm", "convolution", "embedding alone", "attention", "crf"),
        *("a GRU on it", "twin", "stacked", "encoder", "encoder in a module", "bridge"),
    ],
)
def test_doubtful_heads_are_none(name, tensors):
    assert deciding_head(tensors, choose_dense_lstm(from_state_dict(tensors), name, "")) is None


class Giving(nn.Module):
    """Gives the same outputs whatever it is called with."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x, lengths, state):
        return self.outputs


class Given:
    """Two sequences of three steps, the second of which ends after one."""

    name = "given"

    def __init__(self, lengths=True, y=None):
        self.lengths = torch.tensor([3, 1]) if lengths else None
        self.y = y

    def __len__(self):
        return 2

    def batch(self, rows):
        return Batch(torch.zeros(2, 3, 5), self.y, self.lengths)


def one_hot(*classes):
    return nn.functional.one_hot(torch.tensor(classes), 4).float()


STEPS, OTHERS = one_hot([0, 1, 2], [3, 3, 3]), one_hot([0, 1, 1], [3, 0, 0])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (STEPS, OTHERS, Agreement(3 / 4, None, 4, 0)),
        (STEPS.mT, OTHERS.mT, Agreement(3 / 4, None, 4, 0)),
        ({"a": STEPS}, {"a": OTHERS}, Agreement(3 / 4, None, 4, 0)),
        ((torch.zeros(7), [STEPS, OTHERS]), (torch.ones(7), [OTHERS, OTHERS]), Agreement(3 / 4, None, 4, 0)),
        (one_hot(1, 2), one_hot(1, 3), Agreement(None, 1 / 2, 0, 2)),
        (torch.tensor([-1.0, 2]), torch.tensor([3.0, 2]), Agreement(None, 1 / 2, 0, 2)),
        (torch.tensor([0.4, 0.7]), torch.tensor([0.6, 0.9]), Agreement(None, 1 / 2, 0, 2)),
        (torch.tensor([[1.0, -1, 1], [1, 1, 1]]), torch.tensor([[2.0, 1, 1], [2, 9, 9]]), Agreement(0.75, None, 4, 0)),
        (torch.zeros(7), torch.zeros(7), None),
        (torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64), None),
    ],
    ids=[
        *("steps", "classes before steps", "mapping", "nested", "once", "signs", "probabilities", "sign each step"),
        *("no scores", "whole numbers"),
    ],
)
def test_outputs_of_a_network_decide_by_their_shape(ours, theirs, expected):
    assert agreement_of(Giving(ours), Giving(theirs), Given(), *CPU) == expected


def test_without_lengths_all_steps_are_compared():
    assert agreement_of(Giving(STEPS), Giving(OTHERS), Given(lengths=False), *CPU) == Agreement(0.5, None, 6, 0)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (torch.tensor([1, 3]), Agreement(None, 1 / 2, 0, 2)),
        (torch.tensor([[1], [3]]), Agreement(None, 1 / 2, 0, 2)),
        (torch.tensor([0.5, 1.5]), None),
        (torch.ones(2, 4, dtype=torch.uint8), None),
    ],
    ids=["classes", "classes in rows", "values", "as many values as outputs"],
)
def test_outputs_of_which_values_are_wanted_decide_nothing(y, expected):
    assert agreement_of(Giving(one_hot(1, 2)), Giving(one_hot(1, 3)), Given(y=y), *CPU) == expected
