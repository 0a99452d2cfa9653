"""What is recorded of a model is what it computed on: run again on the file, its LSTMs give the same hidden states."""

import copy
import random
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import btcompress
from btcompress import recording
from btcompress.checkpoint import from_state_dict
from btcompress.errors import BTCompressError, OutputError
from btcompress.finetune.data import open_data, recorded_layers
from btcompress.finetune.networks import Recurrent, choose_dense_lstm
from btcompress.nn import BTLSTM, BTLSTMCell
from btcompress.recorder.sample import Sample
from btcompress.recorder.spool import Spool
from tuning import saved_pair, tune

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
INPUTS, HIDDEN = 3, 5


def hidden_again(model, path, layer=None):
    """The hidden states that an LSTM gives on its recorded sequences, one array for each."""
    checkpoint = from_state_dict(model.state_dict())
    recurrent = Recurrent(choose_dense_lstm(checkpoint, layer, ""), checkpoint.tensors, {}, torch.float64)
    data = open_data(str(path), layer=layer)
    batch = data.batch(torch.arange(len(data))).to(torch.device("cpu"), torch.float64)
    hidden, _, _ = recurrent(batch.x, batch.lengths, batch.state)
    return [own[:n].detach() for own, n in zip(hidden, batch.lengths, strict=True)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)


def states(model, n_sequences, **draws):
    """A state for each sequence, of the sizes of an LSTM."""
    n = model.num_layers * (1 + model.bidirectional)
    h, c = (torch.randn(n, n_sequences, size) for size in (model.proj_size or HIDDEN, HIDDEN))
    return h.double(), c.double()


# Layouts


def batch_first(model, rows, state):
    model.batch_first = True
    return list(model(torch.stack(rows), state)[0])


def time_first(model, rows, state):
    model.batch_first = False
    return list(model(torch.stack(rows, 1), state)[0].unbind(1))


def by_keywords(model, rows, state):
    model.batch_first = True
    return list(model(input=torch.stack(rows), hx=state)[0])


def one_by_one(model, rows, state):
    own = [state and tuple(each[:, n] for each in state) for n in range(len(rows))]
    return [model(row, each)[0] for row, each in zip(rows, own, strict=True)]


def packed(model, rows, state):
    rows = [rows[0], rows[1][:4], rows[2][:1]]
    outputs, _ = model(pack_sequence(rows), state)
    return [own[: len(row)] for own, row in zip(pad_packed_sequence(outputs, True)[0], rows, strict=True)]


def packed_unsorted(model, rows, state):
    lengths = torch.tensor([2, 6, 4])
    inputs = pack_padded_sequence(torch.stack(rows), lengths, batch_first=True, enforce_sorted=False)
    outputs, _ = model(inputs, state)
    return [own[:n] for own, n in zip(pad_packed_sequence(outputs, True)[0], lengths, strict=True)]


LAYOUTS = [batch_first, time_first, by_keywords, one_by_one, packed, packed_unsorted]
KINDS = [{}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 2, "proj_size": 2, "bias": False}]


@pytest.mark.parametrize("given", [False, True], ids=["from zeros", "from states"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("arguments", KINDS, ids=str)
def test_every_layout_is_recorded_as_the_sequences_it_holds(arguments, layout, given, tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN, **arguments).double()
    rows = [torch.randn(6, INPUTS).double() for _ in range(3)]
    with recording(model, tmp_path / "inputs.npz") as recorded:
        expected = layout(model, rows, states(model, 3) if given else None)
    assert_same(hidden_again(model, tmp_path / "inputs.npz"), expected)
    about = recorded.layers[""]
    assert (about.sequences, about.steps, about.has_states) == (3, sum(map(len, expected)), given)
    with np.load(tmp_path / "inputs.npz") as arrays:
        assert ("h0" in arrays) == given
        assert bool(arrays["has_states"]) == given
        assert arrays["x"].dtype == np.float64


def test_states_of_zeros_are_none_and_those_of_some_sequences_are_kept_for_all(tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN, batch_first=True).double()
    x, (h, c) = torch.randn(2, 4, INPUTS).double(), states(model, 2)
    zeros = torch.zeros_like(h)
    with recording(model, tmp_path / "zeros.npz"):
        model(x, (zeros, zeros))
    with np.load(tmp_path / "zeros.npz") as arrays:
        assert {*arrays} == {"x", "lengths", "has_states"}
    h[:, 1], c[:, 1] = 0, 0
    with recording(model, tmp_path / "some.npz"):
        hidden = model(x, (h, c))[0]
    with np.load(tmp_path / "some.npz") as arrays:
        assert arrays["h0"][0].any()
        assert not arrays["h0"][1].any()
    assert_same(hidden_again(model, tmp_path / "some.npz"), list(hidden))


# Streams


def moved(state):
    return tuple(each.detach().clone().cpu() for each in state)


def joined(state):
    """As models hand on one tensor of both."""
    return torch.cat(state, -1).split([each.shape[-1] for each in state], -1)


def reshaped(state):
    return tuple(each.transpose(0, 1).contiguous().transpose(0, 1).double() for each in state)


@pytest.mark.parametrize("kept", [tuple, moved, joined, reshaped], ids=lambda kept: kept.__name__)
@pytest.mark.parametrize("arguments", [{"num_layers": 2}, {"proj_size": HIDDEN - 1}], ids=str)
@pytest.mark.parametrize("n_steps", [1, 3], ids=["a step", "three steps"])
def test_calls_that_go_on_from_an_earlier_state_make_one_sequence(n_steps, arguments, kept, tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN, batch_first=True, **arguments).double()
    x, state, outputs = torch.randn(2, 12, INPUTS).double(), None, []
    with recording(model, tmp_path / "inputs.npz") as recorded:
        for part in x.split(n_steps, dim=1):
            hidden, state = model(part, state and kept(state))
            outputs.append(hidden)
    assert recorded.layers[""].steps == 24
    with np.load(tmp_path / "inputs.npz") as arrays:
        assert arrays["lengths"].tolist() == [12, 12]
        assert not arrays["has_states"]
    assert_same(hidden_again(model, tmp_path / "inputs.npz"), list(torch.cat(outputs, 1)))


def test_a_stream_is_cut_after_so_many_steps_and_goes_on_from_its_state(tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN).double()
    x, state, outputs = torch.randn(10, 1, INPUTS).double(), None, []
    with recording(model, tmp_path / "inputs.npz", steps=4):
        for part in x.split(1):
            hidden, state = model(part, state)
            outputs.append(hidden[:, 0])
    with np.load(tmp_path / "inputs.npz") as arrays:
        assert arrays["lengths"].tolist() == [4, 4, 2]
        assert [bool(h.any()) for h in arrays["h0"]] == [False, True, True]
    assert_same(hidden_again(model, tmp_path / "inputs.npz"), list(torch.cat(outputs).split(4)))


def test_streams_that_take_turns_change_places_and_end_are_told_apart(tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN, batch_first=True).double()
    x = torch.randn(4, 5, INPUTS).double()
    now, outputs = {}, {n: [] for n in range(4)}
    turns = [[0, 1], [2, 3], [1, 0], [3, 2], [3], [0, 3], [1, 2, 0]]
    with recording(model, tmp_path / "inputs.npz"):
        for turn in turns:
            given = [now.get(n, (torch.zeros(1, HIDDEN).double(),) * 2) for n in turn]
            rows = torch.stack([x[n, len(outputs[n])] for n in turn]).unsqueeze(1)
            state = tuple(torch.stack(each, 1) for each in zip(*given, strict=True))
            hidden, (h, c) = model(rows, state)
            for place, n in enumerate(turn):
                now[n] = h[:, place], c[:, place]
                outputs[n].append(hidden[place])
    assert_same(hidden_again(model, tmp_path / "inputs.npz"), [torch.cat(outputs[n]) for n in range(4)])


def test_buffers_that_the_caller_writes_over_keep_what_they_held(tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN).double()
    x, buffer, outputs = torch.randn(6, 1, INPUTS).double(), torch.empty(2, 1, INPUTS).double(), []
    h, c = states(model, 1)
    with torch.no_grad(), recording(model, tmp_path / "inputs.npz"):
        for part in x.split(2):
            buffer.copy_(part)
            hidden, (next_h, next_c) = model(buffer, (h, c))
            h.copy_(next_h)
            c.copy_(next_c)
            outputs.append(hidden[:, 0])
    assert_same(hidden_again(model, tmp_path / "inputs.npz"), [torch.cat(outputs)])


def test_what_runs_backward_never_goes_on(tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN, bidirectional=True).double()
    with recording(model, tmp_path / "inputs.npz"):
        first, state = model(torch.randn(3, 1, INPUTS).double())
        second, _ = model(torch.randn(4, 1, INPUTS).double(), state)
    assert_same(hidden_again(model, tmp_path / "inputs.npz"), [first[:, 0], second[:, 0]])


@pytest.mark.parametrize("changed", [0, 1], ids=["h", "c"])
def test_a_state_that_was_changed_in_between_begins_a_sequence_of_its_own(changed, tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN).double()
    x = torch.randn(3, 2, INPUTS).double()
    with recording(model, tmp_path / "inputs.npz"):
        first, state = model(x)
        state[changed][0, 0, 1] += 1e-9
        second, _ = model(x, state)
    with np.load(tmp_path / "inputs.npz") as arrays:
        assert arrays["lengths"].tolist() == [3, 6, 3]
    rows = [first[:, 0], torch.cat([first, second])[:, 1], second[:, 0]]
    assert_same(hidden_again(model, tmp_path / "inputs.npz"), rows)


def test_two_that_go_on_from_the_same_state_do_not_share_what_came_before(tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN).double()
    x = torch.randn(3, 2, 1, INPUTS).double()
    with recording(model, tmp_path / "inputs.npz"):
        first, state = model(x[0])
        second, _ = model(x[1], state)
        third, _ = model(x[2], state)
    expected = [torch.cat([first, second])[:, 0], third[:, 0]]
    assert_same(hidden_again(model, tmp_path / "inputs.npz"), expected)


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.below, self.above = nn.LSTMCell(INPUTS, HIDDEN), nn.LSTMCell(HIDDEN, HIDDEN)

    def forward(self, x, state=None):
        below, above, outputs = state, None, []
        for step in x.unbind(-2):
            below = self.below(step, below)
            above = self.above(below[0], above)
            outputs.append((below[0], above[0]))
        return [torch.stack(each, -2) for each in zip(*outputs, strict=True)]


@pytest.mark.parametrize("batch", [(2,), ()], ids=["batch", "unbatched"])
@pytest.mark.parametrize("given", [False, True], ids=["from zeros", "from states"])
def test_cells_in_a_loop_give_whole_sequences(given, batch, tmp_path):
    model = Cells().double()
    state = (torch.randn(*batch, HIDDEN).double(), torch.randn(*batch, HIDDEN).double()) if given else None
    with recording(model, tmp_path / "inputs.npz") as recorded:
        hidden = [model(torch.randn(*batch, n, INPUTS).double(), state) for n in (7, 4)]
    assert {name: about.has_states for name, about in recorded.layers.items()} == {"below": given, "above": False}
    for place, name in enumerate(("below", "above")):
        expected = [row for call in hidden for row in call[place].reshape(-1, *call[place].shape[-2:])]
        assert_same(hidden_again(model, tmp_path / "inputs.npz", name), expected)


# Models of several layers


class Translator(nn.Module):
    """An encoder, and a decoder that starts from its state and runs step by step on what it gave before."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True)})
        self.decoder = nn.ModuleDict({"rnn": nn.LSTM(HIDDEN, HIDDEN, 2, batch_first=True)})
        self.head = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x, n_steps):
        encoded, state = self.encoder["rnn"](x)
        step, outputs = torch.zeros(len(x), 1, HIDDEN).to(x), []
        for _ in range(n_steps):
            hidden, state = self.decoder["rnn"](step, state)
            outputs.append(hidden)
            step = self.head(hidden)
        return encoded, torch.cat(outputs, 1)


def test_a_decoder_that_starts_from_its_encoders_state_is_recorded_with_it(tmp_path):
    model, path = Translator().double(), tmp_path / "inputs.npz"
    with recording(model, path, linear=True) as recorded:
        calls = [model(torch.randn(2, n, INPUTS).double(), n + 1) for n in (3, 5)]
    assert recorded_layers(str(path)) == ("encoder.rnn", "decoder.rnn", "head")
    for place, name in enumerate(("encoder.rnn", "decoder.rnn")):
        assert_same(hidden_again(model, path, name), [row for call in calls for row in call[place]])
    assert [about.has_states for about in recorded.layers.values()] == [False, True, False]
    assert [about.sequences for about in recorded.layers.values()] == [4, 4, 20]
    assert str(recorded).splitlines()[1] == "decoder.rnn: 4 of 4 sequences, 20 steps, with initial states"


def test_inputs_of_linear_layers_are_those_of_each_item_of_a_batch(tmp_path):
    model = nn.Sequential(nn.Linear(INPUTS, 2), nn.LSTM(2, HIDDEN))
    inputs = [torch.randn(INPUTS), torch.randn(4, INPUTS), torch.randn(2, 3, INPUTS), torch.randn(2, 2, 3, INPUTS)]
    with recording(model, tmp_path / "inputs.npz", linear=True, layers=["0"]):
        for x in inputs:
            model[0](x)
    with np.load(tmp_path / "inputs.npz") as arrays:
        assert arrays["0/lengths"].tolist() == [1] * 5 + [3, 3, 6, 6]
        assert np.array_equal(arrays["0/x"], torch.cat([x.reshape(-1, INPUTS) for x in inputs]).numpy())


def test_block_term_layers_are_recorded_too(tmp_path):
    x, recurrent = torch.randn(4, 2, 12), BTLSTM(12, 8)
    cell = BTLSTMCell(12, 8)
    model = nn.ModuleDict({"lstm": recurrent, "cell": cell})
    with recording(model, tmp_path / "inputs.npz") as recorded:
        recurrent(x)
        state = None
        for step in x:
            state = cell(step, state)
    assert {name: about.steps for name, about in recorded.layers.items()} == {"lstm": 8, "cell": 8}
    for name in ("lstm", "cell"):
        found = open_data(str(tmp_path / "inputs.npz"), layer=name).batch(torch.arange(2))
        assert torch.equal(found.x, x.transpose(0, 1))


@pytest.mark.parametrize("patterns", [("*coder.rnn", "!enc*"), "decoder.?nn", ["!encoder.rnn"]], ids=str)
def test_patterns_choose_the_layers(patterns, tmp_path):
    model = Translator()
    with recording(model, tmp_path / "inputs.npz", layers=patterns) as recorded:
        model(torch.randn(1, 2, INPUTS), 1)
    assert [*recorded.layers] == ["decoder.rnn"]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_leave_no_trace_in_names_nor_hide_calls(wrap, tmp_path):
    model = Cells()
    wrapped, x = wrap(model), torch.randn(2, 3, INPUTS)
    before = wrapped(x)
    with recording(wrapped, tmp_path / "inputs.npz") as recorded:
        after = wrapped(x)
    assert {name: about.steps for name, about in recorded.layers.items()} == {"below": 6, "above": 6}
    torch.testing.assert_close(after, before)


# What the model does


def test_the_model_computes_and_learns_as_without_a_recording(tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN, 2, dropout=0.5)

    def run():
        model.zero_grad()
        torch.manual_seed(7)
        x = torch.randn(4, 2, INPUTS, requires_grad=True)
        hidden, state = model(x)
        hidden, _ = model(x, state)
        hidden.square().sum().backward()
        return [hidden, x.grad, *(each.grad.clone() for each in model.parameters()), torch.get_rng_state()]

    before = run()
    random.seed(3)
    with recording(model, tmp_path / "inputs.npz", sequences=1):
        after = run()
    drawn = random.random()
    random.seed(3)
    assert drawn == random.random()
    assert model.training
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    for ours, theirs in zip(after, before, strict=True):
        assert torch.equal(ours, theirs)


def test_copies_of_the_model_made_meanwhile_go_their_own_way(tmp_path):
    model, x = nn.LSTM(INPUTS, HIDDEN), torch.randn(2, 1, INPUTS)
    with recording(model, tmp_path / "inputs.npz") as recorded:
        other = copy.deepcopy(model)
        assert torch.equal(model(x)[0], other(x + 0)[0])
    assert recorded.layers[""].sequences == 1
    assert torch.equal(other(x)[0], model(x)[0])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_no_hook_and_no_file(error, tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN)
    (tmp_path / "inputs.npz").write_text("mine")
    with pytest.raises(error), recording(model, tmp_path / "inputs.npz", force=True):  # noqa: PT012
        model(torch.randn(2, 1, INPUTS))
        raise error
    assert not model._forward_hooks
    assert [path.name for path in tmp_path.iterdir()] == ["inputs.npz"]
    assert (tmp_path / "inputs.npz").read_text() == "mine"


def test_a_file_that_is_there_is_replaced_only_by_force(tmp_path):
    model, path = nn.LSTM(INPUTS, HIDDEN), tmp_path / "inputs.npz"
    path.write_text("mine")
    with pytest.raises(OutputError, match="already exists"), recording(model, path):
        pytest.fail("the block ran")
    with recording(model, path, force=True):
        model(torch.randn(2, 1, INPUTS))
    assert len(open_data(str(path))) == 1
    path.unlink()
    with pytest.raises(OutputError, match="already exists"), recording(model, path):  # noqa: PT012
        model(torch.randn(2, 1, INPUTS))
        path.write_text("came meanwhile")
    assert path.read_text() == "came meanwhile"


# Which sequences


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path)
    yield spool
    spool.close()
    assert not [*tmp_path.iterdir()]


def test_of_many_sequences_each_has_the_same_chance(spool):
    counts, n = Counter(), 40
    for seed in range(500):
        sample = Sample(spool, 10, "lstm", seed)
        for number in range(n):
            sequence = sample.begin(None)
            sample.extend(sequence, np.full((1, 1), float(number)), 1)
            sample.settle(sequence)
        kept = [sequence.number for sequence in sample.sequences]
        assert len(kept) == 10
        assert kept == sorted(kept)
        counts.update(kept)
        for sequence in sample.sequences:
            assert spool.read(sequence.kept.pieces[0]).item() == sequence.number
    # Each of 40 is kept in a quarter of 500 draws: 125, give or take 9.7.
    assert all(85 < counts[number] < 165 for number in range(n))


def ordered(path, seed=0, most=20):
    """A recording of sequences that say themselves when they came."""
    model = nn.LSTM(1, 2, batch_first=True)
    with recording(model, path, sequences=most, seed=seed) as recorded:
        for first in range(0, 1000, 8):
            model(torch.arange(first, first + 8).float().reshape(8, 1, 1).expand(8, 3, 1))
    assert (recorded.layers[""].sequences, recorded.layers[""].begun) == (most, 1000)
    with np.load(path) as arrays:
        return arrays["x"].reshape(most, 3)[:, 0]


def test_an_ordered_evaluation_is_represented_and_the_same_seed_gives_the_same_bytes(tmp_path):
    found = [ordered(tmp_path / f"{n}.npz", seed) for n, seed in enumerate((3, 3, 4))]
    assert all((first < 500).any() and (first > 500).any() for first in found)
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()
    assert not np.array_equal(found[0], found[2])


def test_what_was_replaced_in_the_sample_does_not_stay_on_disk(spool):
    sample, n_written = Sample(spool, 5, "lstm", 0), 0
    for number in range(2000):
        sequence = sample.begin((np.full((1, 2), float(number)),) * 2 if number % 2 else None)
        n_steps = 3000 + 37 * number % 6000
        if sequence.kept is not None:
            sample.extend(sequence, np.full((n_steps, 100), float(number)), n_steps)
            n_written += 800 * n_steps
        n_kept = sum(800 * each.n_steps for each in sample.sequences)
        assert spool.size <= n_kept + max(n_kept, 2**24) + 2**10
    assert n_written > 2 * spool.size, "too little was replaced for the test to say anything"
    for sequence in sample.sequences:
        assert (spool.read(sequence.kept.pieces[0]) == sequence.number).all()
        if sequence.number % 2:
            assert (spool.read(sequence.kept.state[1]) == sequence.number).all()


def test_steps_of_a_stream_wait_on_disk_not_in_memory(spool):
    sample = Sample(spool, 2, "lstm", 0)
    sequence = sample.begin(None)
    for _ in range(1000):
        sample.extend(sequence, np.ones((1, 100), np.float32), 1)
        assert sequence.kept.n_waiting <= 2**14
    sample.settle(sequence)
    assert sum(map(len, map(spool.read, sequence.kept.pieces))) == 1000


# What is refused


def test_layers_that_got_nothing_are_named(tmp_path):
    model = Translator()
    with pytest.warns(UserWarning, match=r"not recorded, as they got no inputs: decoder\.rnn\."):  # noqa: SIM117
        with recording(model, tmp_path / "inputs.npz"):
            model.encoder["rnn"](torch.randn(1, 2, INPUTS))
    assert recorded_layers(str(tmp_path / "inputs.npz")) == ("encoder.rnn",)
    with pytest.raises(BTCompressError, match=r"nothing was recorded: encoder\.rnn, decoder\.rnn"):  # noqa: SIM117
        with recording(model, tmp_path / "nothing.npz"):
            model.encoder["rnn"].forward(torch.randn(1, 2, INPUTS))
    assert not (tmp_path / "nothing.npz").exists()


@pytest.mark.parametrize("where", ["x", "h", "c"])
def test_numbers_that_are_not_finite_are_refused_by_the_layers_name(where, tmp_path):
    model = nn.ModuleDict({"rnn": nn.LSTM(INPUTS, HIDDEN)})
    values = {"x": torch.randn(2, 1, INPUTS), "h": torch.randn(1, 1, HIDDEN), "c": torch.randn(1, 1, HIDDEN)}
    values[where][0, 0, 1] = torch.inf
    what = "an input" if where == "x" else "a state"
    with pytest.raises(BTCompressError, match=f"rnn got {what} that is NaN or infinite"):  # noqa: SIM117
        with recording(model, tmp_path / "inputs.npz"):
            model["rnn"](values["x"], (values["h"], values["c"]))
    assert not [*tmp_path.iterdir()]


class Own(nn.LSTM):
    def forward(self, sentence):
        return super().forward(torch.ones(len(sentence), 1, self.input_size))[0]


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.LSTM(INPUTS, HIDDEN)))


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (nn.Conv1d(3, 2, 1), {}, "Conv1d has no nn.LSTM, nn.GRU, nn.RNN or cell of these, so"),
        (nn.Conv1d(3, 2, 1), {"linear": True}, "or nn.Linear"),
        (len, {}, "builtin_function_or_method was given"),
        (scripted(), {}, "TorchScript, whose layers call no hooks"),
        (nn.ModuleDict({"net": scripted()}), {}, "TorchScript"),
        (nn.LSTM(3, 2), {"sequences": 0}, "sequences must be"),
        (nn.LSTM(3, 2), {"steps": True}, "steps must be"),
        (nn.LSTM(3, 2), {"seed": -1}, "seed"),
        (Cells(), {"layers": ["rnn"]}, "no layer matches 'rnn'; there are below, above"),
        (Cells(), {"layers": ["!*"]}, "leave no layer"),
        (nn.LSTM(3, 2), {"path": "inputs.pt"}, "ends in .npz"),
        (nn.LSTM(3, 2), {"path": "nowhere/inputs.npz"}, "not a folder"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_the_block_runs(model, options, words, tmp_path):
    path = tmp_path / options.pop("path", "inputs.npz") if "path" in options else tmp_path / "inputs.npz"
    with pytest.raises(BTCompressError, match=words), recording(model, path, **options):
        pytest.fail("the block ran")
    assert not [*tmp_path.iterdir()]


def test_an_lstm_that_is_called_in_a_way_of_its_own_is_refused(tmp_path):
    model = nn.ModuleDict({"own": Own(INPUTS, HIDDEN)})
    with pytest.raises(BTCompressError, match="own is a Own that is called in a way of its own"):  # noqa: SIM117
        with recording(model, tmp_path / "inputs.npz"):
            model["own"]("words")


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(torch.float64, "f8"), (torch.float32, "f4"), (torch.float16, "f2"), (torch.bfloat16, "f4")],
)
def test_numbers_are_stored_as_they_are_where_numpy_has_their_dtype(dtype, stored, tmp_path):
    model = nn.LSTM(INPUTS, HIDDEN).to(dtype)
    x = torch.randn(2, 1, INPUTS).to(dtype)
    with recording(model, tmp_path / "inputs.npz"):
        _, state = model(x)
        model(x, tuple(each + 1 for each in state))
    with np.load(tmp_path / "inputs.npz") as arrays:
        assert {arrays[name].dtype.str[1:] for name in ("x", "h0", "c0")} == {stored}
        assert np.array_equal(arrays["x"][:2, None], x.double().numpy())


# What the files are for


@pytest.fixture
def translator(tmp_path):
    """A model on disk, dense and compressed, and a recording of it."""
    model = Translator()
    dense, compressed = saved_pair(tmp_path, model)
    with recording(model, tmp_path / "inputs.npz"), torch.no_grad():
        for _ in range(8):
            model(torch.randn(3, 4, INPUTS), 5)
    return dense, compressed, tmp_path / "inputs.npz"


def test_fine_tuning_on_a_recording_starts_from_its_states(translator, tmp_path):
    dense, compressed, path = translator
    step = tune(tmp_path, compressed, path, dense, layer="decoder.rnn", held=str(path))
    loaded = {"dense": torch.load(dense), "compressed": btcompress.to_dense(compressed)}
    data = open_data(str(path), layer="decoder.rnn")
    batch = data.batch(torch.arange(len(data)))

    def error(state):
        hidden = {}
        for name, tensors in loaded.items():
            lstm = nn.LSTM(HIDDEN, HIDDEN, 2, batch_first=True)
            lstm.load_state_dict({key[12:]: value for key, value in tensors.items() if key.startswith("decoder.rnn.")})
            hidden[name] = lstm(batch.x, state)[0]
        return ((hidden["compressed"] - hidden["dense"]).norm() / hidden["dense"].norm()).item()

    assert step["before"] == pytest.approx(error(batch.state), rel=1e-3)
    assert step["before"] != pytest.approx(error(None), rel=1e-2)
    assert step["after"] < step["before"]


def test_a_recording_of_one_layer_needs_no_name_and_never_serves_another(translator, tmp_path):
    dense, _, _ = translator
    model = Translator()
    with recording(model, tmp_path / "encoder.npz", layers="encoder*"):
        model(torch.randn(30, 4, INPUTS), 1)
    only = tmp_path / "only.bt.safetensors"
    options = {"cp_rank": 2, "tucker_rank": 2, "allow_growth": True}
    btcompress.save(btcompress.factorize(dense, layers=["encoder*"], **options), only)
    assert tune(tmp_path, only, tmp_path / "encoder.npz", dense)["n_train"] == 27
    other = tmp_path / "other.bt.safetensors"
    btcompress.save(btcompress.factorize(dense, layers=["decoder*"], **options), other)
    with pytest.raises(
        BTCompressError, match=r"holds inputs of encoder\.rnn, but they are to be those of decoder\.rnn"
    ):
        tune(tmp_path, other, tmp_path / "encoder.npz", dense, name="not.safetensors")


def test_a_recording_goes_straight_into_both_commands(run, tmp_path):
    model = nn.ModuleDict({"net": nn.LSTM(24, HIDDEN, num_layers=2)})
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with recording(model, tmp_path / "inputs.npz"), torch.no_grad():
        for n in range(1, 21):
            model["net"](pack_sequence([torch.randn(n, 24), torch.randn(2 * n, 24)], enforce_sorted=False))
    options = ["--cp-rank", 2, "--tucker-rank", 2, "--allow-growth", "--calibration-epochs", 1]
    run("factorize", "model.pt", "--calibration", "inputs.npz", *options, "-o", "small.safetensors", cwd=tmp_path)
    step = btcompress.load(tmp_path / "small.safetensors").history[-1]
    assert (step["step"], step["n_train"] + step["n_held"]) == ("calibrate", 40)
    more = ["--teacher", "model.pt", "--data", "inputs.npz", "--epochs", 1, "--cpu", "-o", "tuned.safetensors"]
    run("finetune", "small.safetensors", *more, cwd=tmp_path)
    assert btcompress.load(tmp_path / "tuned.safetensors").history[-1]["n_train"] == 36
