"""What a bench measures, of which layers, and that it leaves everything as it was; never how long anything takes."""

import builtins
import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

import btcompress
from btcompress.benching import measuring, turns
from btcompress.benching.counting import count
from btcompress.benching.machine import onednn
from btcompress.benching.turns import Timed, median_seconds, take_turns
from btcompress.benching.ways import block_term_layer, dense_layers, inputs_of
from btcompress.checkpoint import find_recurrent, from_state_dict
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.export.modules import dense_module
from btcompress.reporting.speed import noise_warning, speed_advice
from btcompress.timings import BenchCase, WayTiming

LSTMS = {
    "one layer": nn.LSTM(6, 5),
    "two layers, both ways": nn.LSTM(6, 5, num_layers=2, bidirectional=True),
    "projected, without bias": nn.LSTM(6, 5, bias=False, proj_size=3),
    "cell": nn.LSTMCell(6, 5),
}
BOTH = ("input", "recurrent")
QUICK = {"batch": (2,), "steps": (3,), "seconds": 0.01}


def bench(compressed, **options):
    return btcompress.bench(compressed, **{**QUICK, **options})


def factorized(model, matrices=BOTH):
    return btcompress.factorize(model, tucker_rank=2, matrices=matrices)


@pytest.mark.parametrize("name", LSTMS)
def test_every_kind_of_lstm_is_run_in_every_way_there_is(name):
    lstm = LSTMS[name]
    compressed = factorized(nn.ModuleDict({"rnn": lstm}))
    report = bench(compressed, batch=(1, 2), train=True)
    assert [(case.lstm, case.mode, case.batch, case.steps) for case in report.cases] == [
        ("rnn", mode, batch, 3) for mode in ("prediction", "training") for batch in (1, 2)
    ]
    for case in report.cases:
        measured = ["dense_onednn", "dense_native", "int8", "block_terms"]
        missing = ["dense_onednn", "int8"] if "projected" in name else ["int8"] * (case.mode == "training")
        assert [way.way for way in case.ways] == [way for way in measured if way not in missing]
        assert [each.way for each in case.left_out] == missing
        assert all(way.peak_bytes > 0 for way in case.ways)
    n_params = sum(parameter.numel() for parameter in lstm.parameters())
    weights = sum(parameter.numel() for parameter in lstm.parameters() if parameter.dim() == 2)
    *dense, own = report.cases[0].ways
    assert {way.params for way in dense} == {n_params}
    assert own.params == compressed.n_params
    assert {way.operations for way in dense} == {2 * weights}
    assert own.operations > 0
    assert {way.operations for way in report.cases[2].ways} == {None}


@pytest.mark.parametrize("name", LSTMS)
def test_all_ways_compute_the_same_lstm(name):
    compressed = factorized(nn.ModuleDict({"rnn": LSTMS[name].double(), "other": nn.LSTM(3, 2)}))
    LSTMS[name].float()
    (entry,) = (each for each in find_recurrent(compressed.outline()) if each.name == "rnn")
    x, state = inputs_of(entry, 4, 7, torch.float64, "cpu", 0)
    dense = dense_module(entry, compressed.dense_state_dict(), torch.float64, "cpu")
    found, _ = dense_layers(dense, entry, "cpu", "prediction")
    own = block_term_layer(compressed, entry, torch.float64, "cpu", "prediction")
    lstm = entry.kind == "lstm"
    runs = [layer.module(*(x, state) if lstm else (x[0], state)) for layer in (*found, own)]
    outputs = [run[0] for run in runs]
    assert all(torch.allclose(output, outputs[0], atol=1e-12) for output in outputs[1:])
    assert torch.equal(inputs_of(entry, 4, 7, torch.float64, "cpu", 0)[0], x)
    assert not torch.equal(inputs_of(entry, 4, 7, torch.float64, "cpu", 1)[0], x)


def test_a_cell_goes_on_from_its_own_state_for_as_many_steps_as_asked():
    compressed = factorized(nn.LSTMCell(6, 5))
    (entry,) = find_recurrent(compressed.outline())
    seen = []
    layer = block_term_layer(compressed, entry, torch.float32, "cpu", "prediction")
    layer.module.register_forward_hook(lambda _, given, out: seen.append((given[1][0], out[0])))
    x, state = inputs_of(entry, 2, 3, torch.float32, "cpu", 0)
    layer.call(x, state, "prediction")()
    assert len(seen) == 3
    assert seen[0][0] is state[0]
    assert [seen[n][0] is seen[n - 1][1] for n in (1, 2)] == [True, True]


def test_training_reaches_every_parameter_and_prediction_asks_for_no_gradient():
    compressed = factorized(nn.LSTM(6, 5, num_layers=2))
    (entry,) = find_recurrent(compressed.outline())
    x, state = inputs_of(entry, 2, 3, torch.float32, "cpu", 0)
    for mode, wanted in (("prediction", False), ("training", True)):
        layer = block_term_layer(compressed, entry, torch.float32, "cpu", mode)
        seen = []
        layer.module.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out[0].requires_grad))
        with layer.around(mode):
            layer.call(x, state, mode)()
        assert (seen, layer.module.training) == ([wanted], wanted)
        assert all((parameter.grad is not None) == wanted for parameter in layer.module.parameters())


def test_each_dense_way_has_its_kernel():
    compressed = factorized(nn.LSTM(6, 5))
    (entry,) = find_recurrent(compressed.outline())
    dense = dense_module(entry, compressed.dense_state_dict(), torch.float32, "cpu")
    found, _ = dense_layers(dense, entry, "cpu", "prediction")
    enabled = {}
    for layer in found:
        with layer.around("prediction"):
            enabled[layer.way] = torch.backends.mkldnn.enabled
    assert enabled == {"dense_onednn": True, "dense_native": False, "int8": True}


def test_dense_weights_are_those_given_or_else_formed_from_the_file(monkeypatch, tmp_path):
    model = nn.ModuleDict({"rnn": nn.LSTM(6, 5)})
    compressed, given = factorized(model), []
    taken = measuring.dense_module
    monkeypatch.setattr(
        measuring, "dense_module", lambda entry, tensors, *more: given.append(tensors) or taken(entry, tensors, *more)
    )
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for against in (None, tmp_path / "model.pt", from_state_dict(model.state_dict())):
        bench(compressed, against=against)
    key = "rnn.weight_ih_l0"
    expected = [compressed.dense_state_dict()[key], *[model.state_dict()[key]] * 2]
    assert all(torch.equal(tensors[key], tensor) for tensors, tensor in zip(given, expected, strict=True))
    assert not torch.equal(expected[0], expected[1])


def test_another_dense_checkpoint_is_refused():
    compressed = factorized(nn.ModuleDict({"rnn": nn.LSTM(6, 5)}))
    for model, words in (
        (nn.ModuleDict({"other": nn.LSTM(6, 5)}), "has no LSTM named rnn; those it has: other"),
        (nn.ModuleDict({"rnn": nn.LSTM(7, 5)}), "rnn differs: input_size 6 in the file and 7"),
        (nn.ModuleDict({"rnn": nn.LSTM(6, 5, bias=False)}), "rnn differs: bias True in the file and False"),
    ):
        with pytest.raises(CheckpointError, match=words):
            bench(compressed, against=from_state_dict(model.state_dict()))


def test_only_what_has_block_terms_is_measured_and_what_is_left_out_is_said():
    model = nn.ModuleDict({"a": nn.LSTM(6, 5), "b": nn.LSTM(6, 5), "head": nn.Linear(5, 7)})
    layers = ("*", "!b.*")
    compressed = btcompress.factorize(model, tucker_rank=1, matrices=("input", "linear"), layers=layers)
    report = bench(compressed)
    assert {case.lstm for case in report.cases} == {"a"}
    assert report.notices == (
        "Not measured, as no matrix of theirs is in block-term form: b.",
        "Not measured, as they are no LSTMs' matrices: head.weight.",
    )
    assert bench(compressed, lstm="a").notices == ()
    with pytest.raises(BTCompressError, match=r"no LSTM named 'b' with block terms in the file. Those .*: a\."):
        bench(compressed, lstm="b")
    linear = btcompress.factorize(model, tucker_rank=1, matrices=("linear",))
    with pytest.raises(BTCompressError, match="its LSTMs, a, b, have none"):
        bench(linear)
    with pytest.raises(BTCompressError, match="it has no LSTM"):
        bench(btcompress.factorize(nn.Linear(5, 7), tucker_rank=1, matrices=("linear",)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": (0,)}, "--batch 0 is no list of sizes"),
        ({"batch": ()}, "--batch nothing is no list"),
        ({"steps": (1, True)}, "--steps 1,True is no list"),
        ({"steps": (10**7,)}, "--steps 10000000 is no list"),
        ({"threads": 0}, "--threads 0 is no number"),
        ({"seconds": float("nan")}, "--seconds nan is no time"),
        ({"seed": -1}, "seed must be"),
        ({"device": "nowhere"}, "'nowhere' cannot be used"),
        ({"device": "meta"}, "'meta' cannot be used"),
        ({"record": True}, "only the bench of a file can be recorded"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, words):
    with pytest.raises(BTCompressError, match=words):
        bench(factorized(nn.LSTM(6, 5)), **options)


def test_what_takes_more_memory_than_allowed_is_refused_before_it_is_formed():
    from btcompress.memory import limited

    compressed = factorized(nn.LSTM(6, 5))
    with limited(10_000), pytest.raises(BTCompressError, match=r"Measuring .* would take"):
        bench(compressed, batch=(1000,), steps=(1000,))


def test_settings_of_torch_and_the_garbage_collector_are_as_before(monkeypatch):
    compressed = factorized(nn.LSTM(6, 5))
    seen = []

    def watching(*_, **__):
        seen.append((torch.get_num_threads(), gc.isenabled()))
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "take_turns", watching)
    with onednn(False), pytest.raises(KeyboardInterrupt):
        bench(compressed, threads=2)
    assert seen == [(2, False)]
    assert (torch.get_num_threads(), gc.isenabled(), torch.is_grad_enabled()) == (1, True, True)
    assert torch.backends.mkldnn.enabled


def test_int8_is_left_out_with_the_reason(monkeypatch):
    def reason(model, **options):
        case = bench(factorized(model), **options).cases[-1]
        return [each.reason for each in case.left_out if each.way == "int8"]

    assert reason(nn.LSTM(6, 5)) == []
    assert reason(nn.LSTM(6, 5), train=True) == ["it predicts only"]
    assert reason(nn.LSTM(6, 5, proj_size=2)) == ["it has no projections"]
    assert reason(nn.LSTM(6, 5).double()) == ["it is for weights of float32 only"]
    imported = builtins.__import__

    def without(name, *more):
        if name.startswith("torch.ao"):
            raise ImportError
        return imported(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert reason(nn.LSTM(6, 5)) == ["this torch has it no longer"]


def test_on_a_gpu_there_is_one_dense_way():
    lstm = nn.LSTM(6, 5)
    (entry,) = find_recurrent(lstm.state_dict())
    found, left_out = dense_layers(lstm, entry, "cuda", "prediction")
    assert [layer.way for layer in found] == ["dense_cudnn"]
    assert [(each.way, each.reason) for each in left_out] == [("int8", "it is for CPUs only")]


def test_onednn_is_left_out_where_torch_takes_its_own_kernel_anyway():
    for model, why in ((nn.LSTM(6, 5, proj_size=2), "projections"), (nn.LSTM(6, 5).double(), "float64")):
        (case,) = bench(factorized(model)).cases
        assert [each.reason for each in case.left_out if each.way == "dense_onednn"] == [f"it has no {why}"]
        assert case.dense.way == "dense_native"


def test_a_way_that_torch_cannot_run_is_left_out_with_the_reason(monkeypatch):
    failing = nn.LSTM.forward

    def forward(self, *given):
        if torch.backends.mkldnn.enabled:
            raise RuntimeError("no such kernel\nand more")
        return failing(self, *given)

    monkeypatch.setattr(nn.LSTM, "forward", forward)
    (case,) = bench(factorized(nn.LSTM(6, 5))).cases
    assert [way.way for way in case.ways] == ["dense_native", "int8", "block_terms"]
    assert [(each.way, each.reason) for each in case.left_out] == [
        ("dense_onednn", "torch cannot run it (no such kernel)")
    ]


def test_progress_goes_from_nothing_to_all_of_every_case():
    seen = []
    bench(factorized(nn.LSTM(6, 5)), batch=(1, 2), on_progress=seen.append)
    assert [(each.index, each.count, each.share) for each in (seen[0], seen[-1])] == [(0, 2, 0.0), (1, 2, 1.0)]
    assert all(0 <= each.share <= 1 for each in seen)


class Clock:
    """A clock that only calls move."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        monkeypatch.setattr(turns.time, "perf_counter", lambda: self.now)

    def call(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += next(seconds) if hasattr(seconds, "__next__") else seconds

        return run


def test_calls_take_turns_in_changing_orders_and_short_ones_are_several_in_a_turn(monkeypatch):
    clock = Clock(monkeypatch)
    calls = {"a": Timed(clock.call("a", 0.01)), "b": Timed(clock.call("b", 0.0005)), "c": Timed(clock.call("c", 0.02))}
    taken = take_turns(calls, 0.5, "cpu")
    assert [taken[name].n_calls for name in "abc"] == [1, 4, 1]
    log = "".join(clock.log).removeprefix("aabbcc").replace("bbbb", "b")
    rounds = [log[n : n + 3] for n in range(0, len(log), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert all(log[n] != log[n - 1] for n in range(1, len(log)))
    assert len(rounds) == 16
    assert len(set(rounds)) > 3
    before, clock.log[:] = list(clock.log), []
    take_turns(calls, 0.5, "cpu")
    assert clock.log == before
    assert all(second == pytest.approx(0.01) for second in taken["a"].seconds)
    assert all(second == pytest.approx(0.0005) for second in taken["b"].seconds)


def test_what_is_around_a_call_is_not_timed(monkeypatch):
    clock = Clock(monkeypatch)

    class Around:
        def __enter__(self):
            clock.now += 100
            clock.log.append("in")

        def __exit__(self, *_):
            clock.now += 100
            clock.log.append("out")

    taken = take_turns({"a": Timed(clock.call("a", 0.25), Around)}, 0.01, "cpu")
    assert taken["a"].seconds == [0.25] * 8
    assert clock.log == ["in", "a", "out"] * (2 + 8)


def test_medians_quartiles_and_drift_are_those_of_all_turns(monkeypatch):
    clock = Clock(monkeypatch)
    seconds = iter([4.0, 4.0, *[4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]])
    own = take_turns({"a": Timed(clock.call("a", seconds))}, 1.0, "cpu")["a"]
    assert own.median == 7.5
    assert own.quartiles == (5.75, 9.25)
    assert own.drift == pytest.approx(4 / 7.5)


def test_medians_of_single_calls_are_of_as_many_turns_as_asked_after_warming_up(monkeypatch):
    clock = Clock(monkeypatch)
    calls = {"a": clock.call("a", iter([90.0, 80.0, 1.0, 5.0, 3.0])), "b": clock.call("b", 0.5)}
    assert median_seconds(calls, 3, "cpu") == {"a": 3.0, "b": 0.5}
    assert "".join(clock.log) == "ab" * 5


def test_operations_of_matrix_products_are_counted_once_each_and_those_of_both_kernels_alike():
    left, right, rows = torch.randn(3, 4), torch.randn(4, 5), torch.randn(2, 3, 4)
    for call, wanted in (
        (lambda: left @ right, 2 * 3 * 4 * 5),
        (lambda: rows @ right, 2 * 2 * 3 * 4 * 5),
        (lambda: torch.bmm(rows, right.expand(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
        (lambda: left @ right[:, 0], 2 * 3 * 4),
        (lambda: torch.addmm(torch.ones(3, 5), left, right), 2 * 3 * 4 * 5),
        (lambda: torch.addmv(torch.ones(3), left, right[:, 0]), 2 * 3 * 4),
        (lambda: torch.nn.functional.linear(left, right.T, torch.ones(5)), 2 * 3 * 4 * 5),
        (lambda: left * 2 + 1, 0),
    ):
        assert count(call, "cpu").operations == wanted
    lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True)
    weights = sum(parameter.numel() for parameter in lstm.parameters() if parameter.dim() == 2)
    x = torch.randn(7, 3, 6)
    for enabled in (True, False):
        with torch.no_grad(), onednn(enabled):
            assert count(lambda: lstm(x), "cpu").operations == 2 * weights * 7 * 3


def test_peak_is_the_most_that_was_allocated_at_a_time_until_the_second_call_ended():
    kept = []

    def together():
        kept.append(torch.empty(1000))
        del kept[:-2]
        first = torch.empty(2000)
        second = torch.empty(3000)
        return len(first) + len(second)

    def one_after_the_other():
        torch.empty(2000)
        torch.empty(3000)

    assert count(together, "cpu").peak_bytes == 4 * (2 * 1000 + 2000 + 3000)
    assert count(one_after_the_other, "cpu").peak_bytes == 4 * 3000


def case(own, dense, *, batch=1, steps=1, mode="prediction", lstm="rnn", spread=0.1, drift=0.0):
    def way(name, seconds):
        half = seconds * spread / 2
        return WayTiming(name, seconds, (seconds - half, seconds + half), drift, 8, 1, 10)

    ways = (way("dense_onednn", 2 * dense), way("dense_native", dense), way("int8", dense / 9))
    return BenchCase(lstm, mode, batch, steps, (*ways, way("block_terms", own)))


def test_advice_compares_with_the_faster_kernel_in_few_words():
    fast, alike = case(1.0, 2.94), case(1.0, 1.04, batch=32)
    assert list(speed_advice([fast, alike])) == [
        "At batch 1 this file runs 2.9 times as fast as the dense LSTM; at batch 32 no faster."
    ]
    slow = case(1.5, 1.0, steps=50)
    advice = list(speed_advice([fast, slow, alike, case(1.0, 12.4, mode="training")]))
    assert advice[:2] == [
        "At batch 1 and 1 step this file runs 2.9 times as fast as the dense LSTM; at batch 1 and 50 steps 1.5 times "
        "as slow; at batch 32 no faster.",
        "At batch 1 this file trains 12 times as fast as the dense LSTM.",
    ]
    assert "btcompress.to_dense" in advice[2]
    several = [case(1.0, 2.0), case(1.0, 1.0, lstm="")]
    assert list(speed_advice(several)) == [
        "At batch 1 rnn runs 2.0 times as fast as the dense LSTM.",
        "At batch 1 the LSTM at the top runs no faster than the dense LSTM.",
    ]


def test_a_noisy_machine_is_told_by_drift_or_spread():
    assert list(noise_warning([case(1.0, 2.0, spread=0.29, drift=0.09)])) == []
    for noise in ({"spread": 0.31}, {"drift": 0.11}):
        (line,) = noise_warning([case(1.0, 2.0), case(1.0, 2.0, **noise)])
        assert "in 2 of the 4 measurements" in line
    calm = case(1.0, 2.0)
    unsteady = replace(calm.ways[0], drift=0.5)
    assert list(noise_warning([replace(calm, ways=(unsteady, *calm.ways[1:]))])) == []
