"""What is measured as the fastest is pinned and taken, and nothing else of a model changes. No clock counts here."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import btcompress
from btcompress.benching import turns
from btcompress.errors import BTCompressError, OutputError
from btcompress.memory import limited
from btcompress.nn import BTLSTM, BTLSTMCell
from btcompress.nn.choice import Choice, Place, choose_way
from btcompress.nn.recurrence import Trained
from btcompress.nn.ways import Way

KERNEL, LOOP = Way("kernel", "factors", "dense"), Way("loop", "dense", "dense")
T, B, INPUTS, H = 5, 3, 6, 4


class Clock:
    """Takes the place of the one that times calls: every call takes what its way takes, at each turn."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(turns, "_LEAST_TURNS", 1)
        self.seconds = lambda way: 1.0
        self.pins = []
        self.timed = []
        pin = Choice.pin

        def seen(choice, way, place=None):
            self.pins.append(way)
            pin(choice, way, place)

        def seconds_of(timed, n_calls, device):
            with timed.around():
                timed.call()
                self.timed.append(self.pins[-1])
                return self.seconds(self.pins[-1])

        monkeypatch.setattr(Choice, "pin", seen)
        monkeypatch.setattr(turns, "seconds_of", seconds_of)

    def favour(self, way, factor=0.5):
        self.seconds = lambda other: factor if other == way else 1.0


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def tune(module, example, **arguments):
    return btcompress.tune(module, example, **{"seconds": 1e-9, **arguments})


class Stack(nn.Module):
    """Two LSTM layers, then a cell in a loop, and what changes its buffers as it runs."""

    def __init__(self):
        super().__init__()
        self.body = BTLSTM(INPUTS, H, 2, dropout=0.5, tucker_rank=2, matrices=("input", "recurrent"))
        self.norm = nn.BatchNorm1d(H)
        self.heads = nn.ModuleList([BTLSTMCell(H, 5)])

    def forward(self, x, scale=1.0):
        outputs, _ = self.body(x * scale)
        state = None
        for row in outputs:
            state = self.heads[0](self.norm(row), state)
        return state[0]


def lstm(**arguments):
    return BTLSTM(INPUTS, H, tucker_rank=2, matrices=("input", "recurrent"), **arguments)


def every_way(trains):
    return [pytest.param(way, trains, id=f"{way}, {trains}") for way in lstm().ways("l0")]


# What is pinned


@pytest.mark.parametrize(("way", "trains"), every_way(trains=False) + every_way(trains=True))
def test_the_fastest_way_is_pinned_and_taken_and_gives_the_same(way, trains, clock, monkeypatch):
    module, x = lstm(dtype=torch.float64), torch.randn(T, B, INPUTS, dtype=torch.float64)

    def results():
        with torch.set_grad_enabled(trains):
            outputs, state = module(x)
            return [outputs, *state, *(torch.autograd.grad(outputs.sum(), list(module.parameters())) if trains else ())]

    before = results()
    clock.favour(way)
    tuning = tune(module, x, trains=trains)
    assert [(each.pin.place, each.pin.way) for each in tuning.measured] == [(Place("l0", T, B, trains), way)]
    assert tuning.measured[0].seconds.keys() == set(module.ways("l0"))
    torch.testing.assert_close(results(), before)
    with torch.set_grad_enabled(trains):
        (layer,) = module.kept_run(x, None)
    assert layer.way == way
    assert isinstance(layer, Trained) == trains


def test_the_way_chosen_anyway_stays_unless_another_is_clearly_faster(clock):
    module, x = lstm(), torch.randn(T, B, INPUTS)
    (own,) = {each.chosen for each in tune(module, x).measured}
    other = next(way for way in module.ways("l0") if way != own)
    for factor, best in ((0.96, own), (0.94, other)):
        clock.favour(other, factor)
        assert tune(module, x).pins[0].way == best


def test_what_is_far_slower_than_another_way_is_not_timed_further(clock, monkeypatch):
    monkeypatch.setattr(turns, "_LEAST_TURNS", 8)
    module = lstm()
    clock.favour(LOOP, 0.3)
    (measured,) = tune(module, torch.randn(T, B, INPUTS)).measured
    assert measured.seconds == {way: 0.3 if way == LOOP else 1.0 for way in module.ways("l0")}
    assert {clock.timed.count(way) for way in measured.seconds} == {2}
    clock.timed.clear()
    clock.favour(LOOP, 0.4)
    tune(module, torch.randn(T, B, INPUTS))
    assert min(clock.timed.count(way) for way in measured.seconds) > 8


def test_every_layer_and_size_is_measured_once_at_its_place(clock):
    model = Stack().eval()
    tuning = tune(model, (torch.randn(T, B, INPUTS), 2.0))
    places = [("body", "l0", T, B), ("body", "l1", T, B), ("heads.0", "cell", 1, B)]
    assert [(pin.module, pin.layer, pin.steps, pin.batch) for pin in tuning.pins] == places
    for name, _, *place in places:
        for layer in model.get_submodule(name).layers():
            assert Place(layer, *place, False) in model.get_submodule(name).choice.pinned


@pytest.mark.filterwarnings("ignore")  # of the compiler, that it leaves caches and path searches to Python
def test_compiled_models_are_tuned_as_they_were_written(clock):
    model, x = torch.compile(Stack().eval(), backend="eager"), torch.randn(T, B, INPUTS)
    with torch.no_grad():
        before = model(x)
        assert [pin.module for pin in tune(model, x).pins] == ["body", "body", "heads.0"]
        torch.testing.assert_close(model(x), before)


def test_pins_at_other_places_stay(clock):
    module = lstm()
    clock.favour(KERNEL)
    tune(module, torch.randn(T, B, INPUTS))
    clock.favour(LOOP)
    tune(module, torch.randn(1, B, INPUTS))
    tune(module, torch.randn(T, B, INPUTS), trains=True)
    assert module.choice.pinned == {
        Place("l0", T, B, False): KERNEL,
        Place("l0", 1, B, False): LOOP,
        Place("l0", T, B, True): LOOP,
    }


def test_packed_sequences_are_measured(clock):
    module = lstm()
    packed = pack_sequence([torch.randn(T, INPUTS), torch.randn(2, INPUTS)])
    for trains in (False, True):
        assert tune(module, packed, trains=trains).pins[0].place == Place("l0", T, 2, trains)


def test_method_says_which_ways_there_are(clock):
    module = lstm(method="factored")
    (measured,) = tune(module, torch.randn(T, B, INPUTS)).measured
    assert {(way.inputs, way.recurrent) for way in measured.seconds} == {("factors", "factors")}


def test_ways_are_those_of_the_surroundings_of_the_call(clock):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = lstm()

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.lstm(x)

    (measured,) = tune(Mixed(), torch.randn(T, B, INPUTS)).measured
    assert {way.steps for way in measured.seconds} == {"kernel", "definition"}


def test_dense_matrices_that_memory_does_not_hold_are_not_formed(clock):
    module, x = lstm(), torch.randn(T, B, INPUTS)
    tune(module, x)
    own = choose_way(module.choice.tasks[Place("l0", T, B, False)], "auto")
    with limited(100):
        (measured,) = tune(module, x).measured
    assert measured.seconds.keys() == {own, *(w for w in module.ways("l0") if w.inputs == w.recurrent == "factors")}


def test_shown_form_names_places_ways_and_times(clock):
    clock.favour(KERNEL)
    text = str(tune(Stack(), torch.randn(T, B, INPUTS)))
    assert text.count("\n") == 2
    assert "body l0, 5 steps, batch 3, prediction: kernel, inputs by factors, states by dense (kernel" in text
    assert "heads.0 cell, 1 step, batch 3, prediction: " in text
    assert "states by dense 500 ms; " in text


# What stays as it was


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_else_of_the_model_changes(trains, training, clock):
    model = Stack().train(training)
    model.body.bias_ih_l0.grad = torch.ones(4 * H)
    x = torch.randn(T, B, INPUTS, requires_grad=True)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    tune(model, x, trains=trains)
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == buffers
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert x.grad is None
    given = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert given == {"body.bias_ih_l0"}
    assert torch.equal(model.body.bias_ih_l0.grad, torch.ones(4 * H))
    assert all(module.training == training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert model.body.formed_bytes == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_pins_go_with_copies_and_are_no_part_of_the_state_dict(copied, clock):
    module = lstm()
    clock.favour(KERNEL)
    tune(module, torch.randn(T, B, INPUTS))
    other = copied(module)
    assert other.choice.pinned == module.choice.pinned == {Place("l0", T, B, False): KERNEL}
    other.choice.unpin()
    assert len(module.choice.pinned) == 1
    fresh = lstm()
    fresh.load_state_dict(module.state_dict())
    assert not fresh.choice.pinned


def test_pins_stay_until_they_are_taken_away(clock):
    module, x = lstm(), torch.randn(T, B, INPUTS)
    own = tune(module, x).measured[0].chosen
    clock.favour(KERNEL)
    tune(module, x)

    def way():
        with torch.no_grad():
            module(x.to(module.weight_ih_l0.cores.dtype))
            return module.kept_run(x.to(module.weight_ih_l0.cores.dtype), None)[0].way

    for change in (module.train, module.eval, module.double, module.float):
        change()
        assert way() == KERNEL
    module.load_state_dict(module.state_dict())
    module.method = "dense"
    assert way() == KERNEL
    module.method = "auto"
    module.choice.unpin()
    assert way() == own != KERNEL


def test_what_was_pinned_before_stays_where_tuning_fails(clock):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = lstm()

        def forward(self, x):
            self.lstm(x)
            raise ZeroDivisionError

    model = Failing()
    model.lstm.choice.pin(LOOP)
    random = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        tune(model, torch.randn(T, B, INPUTS, generator=torch.Generator().manual_seed(0)))
    assert model.lstm.choice.pinned == {None: LOOP}
    assert not model.lstm._forward_hooks
    assert torch.equal(torch.get_rng_state(), random)


# What is refused


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = lstm()

    def forward(self, x):
        return self.lstm.forward(x)


class Copying(Around):
    def forward(self, x):
        return copy.deepcopy(self.lstm)(x)


def frozen():
    return lstm().requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (lambda: nn.LSTM(INPUTS, H), {}, "LSTM has no BTLSTM or BTLSTMCell"),
        (lambda: "model.pt", {}, "a torch.nn.Module has ways to run, but str was given"),
        (Around, {}, "on the example the model called none of lstm"),
        (Copying, {}, "on the example the model called none of lstm"),
        (frozen, {"trains": True}, "no block-term module is asked for gradients"),
        (lstm, {"seconds": 0}, "seconds must be a number above 0, but 0 was given"),
        (lstm, {"seconds": math.nan}, "seconds must be a number above 0, but nan was given"),
        (lstm, {"seconds": "1"}, "seconds must be a number above 0, but '1' was given"),
    ],
    ids=["dense", "file", "not called", "only copies", "frozen", "zero", "nan", "text"],
)
def test_what_cannot_be_tuned_is_refused(model, arguments, message, clock):
    with pytest.raises(BTCompressError, match=message):
        tune(model(), torch.randn(T, B, INPUTS), **arguments)


def test_other_devices_are_refused(clock):
    with pytest.raises(BTCompressError, match="on 'meta' nothing is measured"):
        tune(lstm(device="meta"), torch.randn(T, B, INPUTS, device="meta"))


def test_calls_without_sequences_are_nothing_to_measure(clock):
    with pytest.raises(BTCompressError, match=r"none of \(top\), or without sequences"):
        tune(lstm(), torch.randn(T, 0, INPUTS))


def test_files_are_replaced_only_when_asked_and_that_is_known_beforehand(clock, tmp_path):
    path = tmp_path / "pins.json"
    path.write_text("mine")
    module = lstm()
    with pytest.raises(OutputError, match="already exists"):
        tune(module, torch.randn(T, B, INPUTS), file=path)
    assert not clock.timed
    assert not module.choice.pinned
    assert path.read_text() == "mine"
    tune(module, torch.randn(T, B, INPUTS), file=path, force=True)
    assert path.read_text() != "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["pins.json"]
