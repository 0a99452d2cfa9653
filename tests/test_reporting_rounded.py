"""What a report says of bytes, of bits, and of rounding alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.calibration import SampleInputs, on_inputs
from btcompress.checkpoint import from_state_dict, read_compressed
from btcompress.errors import CheckpointError
from btcompress.fit import OutputErrors, Samples
from btcompress.fit.rounding import fed_back, nearest
from btcompress.packing import Integers
from btcompress.reporting import rounded as measuring
from btcompress.reporting import summary, with_yardsticks
from btcompress.results import InputsReport, RoundedLSTM, RoundingReport
from btcompress.yardsticks import truncated_svd
from roundedresults import in_bits

W0, U0, W1, U1 = "weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"
INT4 = Integers(4, 32)


@pytest.fixture(scope="module")
def lstm():
    torch.manual_seed(3)
    return nn.LSTM(60, 32, num_layers=2, batch_first=True)


@pytest.fixture(scope="module")
def dense(lstm):
    return from_state_dict(lstm.state_dict())


@pytest.fixture(scope="module")
def compressed(lstm):
    """Without what is recorded of rounding alone."""
    return with_rows(
        btcompress.factorize(lstm, cp_rank=2, tucker_rank=5, max_sweeps=2), history=(), roundings=(), in_8_bits=None
    )


@pytest.fixture(scope="module")
def mixed(compressed, dense):
    """Block terms in 4 bits and in float16, and a dense matrix in 3 bits; a bias in float16."""
    precisions = {W0: INT4, W1: torch.float16, U0: Integers(3, 64)}
    return with_yardsticks(in_bits(compressed, precisions, {"bias_ih_l0": torch.float16}), dense)


def error_of(matrix, values):
    return float((matrix.double() - values.double()).norm() / matrix.double().norm())


def rows_of(report):
    return {row.name: row for row in report.matrices}


def test_each_matrix_has_its_precision_and_its_bytes_as_stored(mixed, dense):
    report = btcompress.report(mixed)
    assert [row.name for row in report.matrices] == [W0, U0, W1]
    w0, u0, w1 = report.matrices
    assert [(row.form, row.precision, row.dtype) for row in report.matrices] == [
        ("block_terms", "int4/32", "float32"),
        ("dense", "int3/64", "float32"),
        ("block_terms", "float16", "float32"),
    ]
    assert all(row.has_fewer_bits for row in report.matrices)
    assert w0.bytes_after == sum(mixed.stored[name].n_bytes for name in mixed.stored if name.startswith(f"{W0}."))
    assert u0.bytes_after == mixed.stored[U0].n_bytes
    assert w1.bytes_after == 2 * w1.params_after
    for row in report.matrices:
        assert row.bytes_before == 4 * dense.tensors[row.name].numel() == 4 * row.params_before
        assert row.to_dict()["bytes_ratio"] == row.bytes_before / row.bytes_after > 1
    assert (u0.shape, u0.cp_rank, u0.tucker_ranks, u0.core) == ((128, 32), 0, (), "none")
    assert u0.params_after == u0.params_before == 128 * 32


def test_bytes_of_the_model_are_those_of_the_tensors_as_stored_and_of_the_file(mixed, tmp_path):
    btcompress.save(mixed, tmp_path / "a.bt.safetensors")
    size = (tmp_path / "a.bt.safetensors").stat().st_size
    model = btcompress.report(mixed, bytes_after=size).model
    left = sum(tensor.nbytes for name, tensor in mixed.tensors.items() if name not in mixed.stored)
    packed = sum(mixed.bytes_of_matrix(key) for key in (W0, U0, W1)) + 2 * 128
    assert model.tensor_bytes_after == left + packed
    assert model.bytes_after == size > model.tensor_bytes_after
    assert btcompress.report(mixed).model.bytes_after == model.tensor_bytes_after


def test_truncated_svd_is_that_of_as_many_bytes_where_there_are_fewer_bits_and_else_of_as_many_parameters(
    mixed, compressed, dense
):
    for result in (mixed, with_yardsticks(compressed, dense)):
        for anew in (None, dense):
            for row in btcompress.report(result, against=anew).matrices:
                matrix = dense.tensors[row.name]
                params = row.bytes_after // 4 if row.has_fewer_bits else row.params_after
                wanted = truncated_svd(matrix, params)
                assert (row.svd_rank, row.svd_error) == (wanted.rank, wanted.error)
                assert row.svd_rank == params // sum(matrix.shape)
    assert btcompress.report(mixed).matrices[0].svd_rank < btcompress.report(compressed).matrices[0].svd_rank


def test_weight_errors_are_those_of_the_tensors_as_stored(mixed, dense):
    formed = mixed.dense_state_dict()
    for report in (btcompress.report(mixed), btcompress.report(mixed, against=dense)):
        for row in report.matrices:
            assert row.weight_error == pytest.approx(error_of(dense.tensors[row.name], formed[row.name]), rel=1e-4)
    zeros = nearest(torch.zeros(128, 32), mixed.rounded[U0].precision)
    emptied = mixed.with_tensors({U0: zeros.values()}, {U0: zeros})
    assert rows_of(btcompress.report(emptied, against=dense))[U0].weight_error == 1
    assert rows_of(btcompress.report(emptied))[U0].weight_error == rows_of(btcompress.report(mixed))[U0].weight_error


def test_roundings_are_of_the_dense_matrix_alone_and_outlast_the_file(mixed, dense, tmp_path):
    btcompress.save(mixed, tmp_path / "a.bt.safetensors")
    again = read_compressed(tmp_path / "a.bt.safetensors")
    assert (again.matrices, again.rounded) == (mixed.matrices, mixed.rounded)
    for row in btcompress.report(again).matrices:
        matrix = dense.tensors[row.name]
        precisions = [each.precision for each in row.roundings]
        assert precisions[:2] == [f"int8/{matrix.shape[1]}", "int4/32"]
        for each in row.roundings:
            bits, group = map(int, each.precision.removeprefix("int").split("/"))
            packed = nearest(matrix, Integers(bits, group))
            assert each.bytes == packed.n_bytes
            assert each.weight_error == pytest.approx(error_of(matrix, packed.values()), rel=1e-6)
            assert not each.fed_back
            assert each.activation_error is None
        within = [each for each in row.roundings if each.bytes <= row.bytes_after]
        assert set(row.roundings_within) == set(within)
        assert row.best_rounding == min(within, key=lambda each: each.weight_error, default=None)


def test_forged_roundings_are_refused(compressed, tmp_path):
    for fields in ({"precision": "int4/32\x1b[2J"}, {"weight_error": -0.5}, {"bytes": -1}):
        bad = replace(RoundingReport("int4/32", 5, 0.5), **fields)
        matrices = {**compressed.matrices, W0: replace(compressed.matrices[W0], roundings=(bad,))}
        with pytest.raises(CheckpointError, match=W0):
            btcompress.save(replace(compressed, matrices=matrices), tmp_path / "a.bt.safetensors")


def samples_for(dense, keys):
    generator = torch.Generator().manual_seed(5)
    found = {}
    for key in keys:
        rows, columns = dense.tensors[key].shape
        inputs, held = (torch.randn(n, columns, generator=generator, dtype=torch.float64) for n in (400, 90))
        mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
        scale = torch.logspace(0, -2, columns, dtype=torch.float64)[:, None] * mixing
        weights = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
        found[key] = Samples(inputs @ scale, held @ scale, weights)
    return found


def test_where_there_are_samples_roundings_and_8_bits_are_measured_on_those_held_back(compressed, dense):
    samples = samples_for(dense, [W0])
    result = with_yardsticks(in_bits(compressed, {U0: INT4}), dense, samples)
    rows = rows_of(btcompress.report(result))
    matrix, own = dense.tensors[W0].double(), samples[W0]
    wanted = own.held @ matrix.T
    nearest_ones = [each for each in rows[W0].roundings if not each.fed_back]
    again = [each for each in rows[W0].roundings if each.fed_back]
    assert [each.precision for each in nearest_ones] == [each.precision for each in again]
    for each in rows[W0].roundings:
        integers = Integers(*map(int, each.precision.removeprefix("int").split("/")))
        values = (fed_back(matrix, integers, own.inputs) if each.fed_back else nearest(matrix, integers)).values()
        missed = wanted - own.held @ values.T
        assert each.activation_error == pytest.approx(float(missed.norm() / wanted.norm()), rel=1e-3)
        weighted = float((missed * own.weights).norm() / (wanted * own.weights).norm())
        assert each.weighted_activation_error == pytest.approx(weighted, rel=1e-3)
        assert each.weighted_activation_error != pytest.approx(each.activation_error, rel=1e-5)
    int4, int4_fed_back = (next(each for each in some if each.precision == "int4/32") for some in (nearest_ones, again))
    assert int4_fed_back.activation_error < 0.9 * int4.activation_error
    assert int4_fed_back.weight_error > int4.weight_error
    eight = rows[W0].in_8_bits
    formed = torch.cat([part.to(torch.float64).to_dense() for part in result.parts(W0)])
    assert eight.weight_error == pytest.approx(rows[W0].weight_error, rel=1e-2)
    assert eight.activation_error == pytest.approx(
        float((wanted - own.held @ formed.T).norm() / wanted.norm()), rel=1e-2
    )
    assert all(each.activation_error is None for each in (*rows[U0].roundings, *rows[W1].roundings))
    assert rows[U0].in_8_bits is None
    assert rows[W1].in_8_bits.activation_error is None


def test_8_bits_of_block_terms_take_the_bytes_of_their_cores_factors_and_orders():
    ordered = btcompress.factorize(
        nn.LSTM(60, 32), cp_rank=1, tucker_rank=3, order_units=True, max_sweeps=1, matrices=("input", "recurrent")
    )
    assert any(matrix.shape.part.order_sizes for matrix in ordered.matrices.values())
    for key, matrix in ordered.matrices.items():
        integers, measured = Integers(8, 32), matrix.in_8_bits
        names = [name for name in ordered.tensors if name.startswith(f"{key}.")]
        tensors = [ordered.tensors[name] for name in names]
        wanted = sum(
            integers.n_bytes(tensor.shape) if tensor.is_floating_point() else tensor.nbytes for tensor in tensors
        )
        assert (measured.precision, measured.bytes) == ("int8/32", wanted)


def test_report_against_keeps_what_was_recorded_on_inputs_and_measures_weights_anew(compressed, dense):
    result = with_yardsticks(compressed, dense, samples_for(dense, [W0]))
    before, after = (rows_of(btcompress.report(result, against=anew))[W0] for anew in (None, dense))
    assert set(before.roundings) == set(after.roundings)
    other = from_state_dict({key: tensor + 0.01 for key, tensor in dense.tensors.items()})
    changed = rows_of(btcompress.report(result, against=other))[W0]
    for known, found in zip(before.roundings[:2], changed.roundings[:2], strict=True):
        assert (known.precision, known.activation_error) == (found.precision, found.activation_error)
        assert known.weight_error != found.weight_error


def test_large_matrices_are_rounded_alone_only_together_with_their_other_forms(compressed, dense, monkeypatch):
    for module in (measuring, summary):
        monkeypatch.setattr(module, "QUICK_ENTRIES", dense.tensors[W0].numel() - 1)
    rows = rows_of(btcompress.report(with_yardsticks(compressed, dense)))
    assert (rows[W0].roundings, rows[W0].in_8_bits) == ((), None)
    assert rows[W1].roundings
    assert rows_of(btcompress.report(compressed, against=dense))[W0].roundings == ()
    assert rows_of(btcompress.report(compressed, against=dense, yardsticks=True))[W0].roundings


def test_errors_are_not_fed_back_where_the_moments_of_a_group_would_be_large(compressed, dense, monkeypatch):
    samples = samples_for(dense, [W0])
    monkeypatch.setattr(measuring, "_QUICK_MOMENTS", 32**2)
    rows = rows_of(btcompress.report(with_yardsticks(compressed, dense, samples)))[W0].roundings
    groups = [(each.fed_back, int(each.precision.split("/")[1])) for each in rows]
    assert {group for is_fed_back, group in groups if is_fed_back} == {32}
    assert max(group for is_fed_back, group in groups if not is_fed_back) > 32


def hidden_states(tensors, lstm, x):
    own = nn.LSTM(60, 32, num_layers=2, batch_first=True).double()
    own.load_state_dict({key: tensor.double() for key, tensor in tensors.items()})
    return own(x)[0].detach()


def test_on_inputs_given_matrices_and_lstms_are_measured_as_they_are_and_rounded_alone(mixed, dense, lstm, tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 6, 60)) * np.logspace(0, -2, 60)
    np.savez(tmp_path / "x.npz", x=x)
    measure = on_inputs(mixed, dense, [SampleInputs(str(tmp_path / "x.npz"))])
    report = btcompress.report(mixed, against=dense, on_inputs=measure)
    rows, flat = rows_of(report), torch.tensor(x).reshape(-1, 60)
    wanted = flat @ dense.tensors[W0].double().T
    int4 = nearest(dense.tensors[W0], INT4).values().double()
    (found,) = [each for each in rows[W0].roundings if each.precision == "int4/32" and not each.fed_back]
    assert found.activation_error == pytest.approx(error_of(wanted, flat @ int4.T), rel=1e-3)
    again = next(each for each in rows[W0].roundings if each.precision == "int4/32" and each.fed_back)
    assert again.weighted_activation_error < 0.9 * found.weighted_activation_error
    # The dense matrix that was rounded to 3 bits, by itself.
    x1 = hidden_inputs(lstm, torch.tensor(x))
    own = error_of(x1 @ dense.tensors[U0].double().T, x1 @ mixed.tensors[U0].double().T)
    assert rows[U0].activation_error == pytest.approx(own, rel=1e-3)

    (given,) = report.on_inputs
    errors = {(each.precision, each.fed_back): each.hidden_state_error for each in given.rounded}
    states = hidden_states(dense.tensors, lstm, torch.tensor(x))
    for name, chosen in {"int8": None, "int4": INT4}.items():
        rounded = {
            key: nearest(dense.tensors[key], chosen or Integers(8, dense.tensors[key].shape[1])).values()
            for key in (W0, U0, W1)
        }
        theirs = hidden_states({**dense.tensors, **rounded}, lstm, torch.tensor(x))
        assert errors[name, False] == pytest.approx(error_of(states, theirs), rel=1e-3)
    assert errors["int8", False] < errors["int4", False] < given.hidden_state_error
    assert errors.keys() >= {("same", False), ("same", True)}


def hidden_inputs(lstm, x):
    """What ``U`` of the first layer meets: its hidden states, one step late."""
    one = nn.LSTM(60, 32, batch_first=True).double()
    one.load_state_dict({key: t.double() for key, t in lstm.state_dict().items() if key.endswith("l0")})
    hidden = one(x)[0].detach()
    return torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1).reshape(-1, 32)


def test_one_precision_for_all_takes_no_more_bytes_than_all_do_now(mixed, dense):
    asked = []

    class Measure:
        def __call__(self, forms):
            return {}

        def samples(self, key):
            return Samples(torch.eye(dense.tensors[key].shape[1]).double(), torch.empty(0), torch.ones(128))

        def hidden_state_errors(self, matrices):
            asked.append(dict(matrices))
            return {"": 0.5}

        def reports(self):
            return (InputsReport("", 3, 0.25),)

    report = btcompress.report(mixed, against=dense, on_inputs=Measure())
    ways = [(each.precision, each.fed_back) for each in report.on_inputs[0].rounded]
    assert ways == [
        *((name, False) for name in ("int8", "int4", "equal_bytes", "same")),
        *((name, True) for name in ("equal_bytes", "same")),
    ]
    total = sum(row.bytes_after for row in report.matrices)
    same = asked[3]
    assert same.keys() == {W0, U0, W1}
    fitting = [
        (bits, -group)
        for bits in range(2, 9)
        for group in (32, 64, 128)
        if sum(Integers(bits, min(group, each.shape[1])).n_bytes(each.shape) for each in same.values()) <= total
    ]
    bits, group = max(fitting)
    for key, values in same.items():
        integers = Integers(bits, min(-group, values.shape[1]))
        assert torch.equal(values, nearest(dense.tensors[key], integers).values())


ROUNDINGS = (RoundingReport("int8/60", 8192, 0.004), RoundingReport("int4/32", 4700, 0.08))


def with_rows(compressed, *, history=(), **fields):
    """The result with something else recorded of its matrices."""
    matrices = {key: replace(matrix, **fields) for key, matrix in compressed.matrices.items()}
    return replace(compressed, matrices=matrices, history=(*compressed.history, *history))


def told(report):
    return [line for line in report.advice if "Rounding alone" in line or "chosen together" in line]


def test_what_a_factorization_makes_is_recorded_with_its_yardsticks_and_without_samples_too(lstm, dense, tmp_path):
    made = btcompress.factorize(lstm, cp_rank=2, tucker_rank=5, max_sweeps=2)
    assert all(matrix.roundings and matrix.in_8_bits for matrix in made.matrices.values())
    assert with_yardsticks(made, dense).matrices == made.matrices
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(12, 6, 60)))
    calibrated = btcompress.factorize(
        lstm,
        bits=4,
        matrices=("input", "recurrent"),
        calibration=[SampleInputs(str(tmp_path / "x.npz"))],
        calibration_epochs=0,
    )
    report = btcompress.report(calibrated)
    assert len(report.matrices) == 4
    for row in report.matrices:
        assert row.precision == "int4/32"
        assert row.svd_rank == row.bytes_after // 4 // sum(row.shape)
        again = [each for each in row.roundings_within if each.precision == "int4/32"]
        assert {each.fed_back for each in again} == {False, True}
        (plain,) = [each for each in again if not each.fed_back]
        assert row.weighted_activation_error <= 1.02 * plain.weighted_activation_error


def test_what_was_there_before_keeps_its_record(lstm, tmp_path):
    btcompress.save(
        btcompress.factorize(lstm, layers=["*l0"], tucker_rank=3, max_sweeps=1), tmp_path / "a.bt.safetensors"
    )
    first = read_compressed(tmp_path / "a.bt.safetensors")
    second = btcompress.factorize(tmp_path / "a.bt.safetensors", layers=["*l1"], tucker_rank=3, max_sweeps=1)
    assert set(second.matrices) == {W0, W1}
    assert second.matrices[W0] == first.matrices[W0]
    assert second.matrices[W1].roundings


def test_block_terms_that_rounding_alone_outdoes_are_named_with_what_to_do(compressed):
    for error, outdone in ((0.079, False), (0.0801, True), (0.4, True)):
        report = btcompress.report(with_rows(compressed, roundings=ROUNDINGS[1:], weight_error=error, svd_error=1.0))
        rows = rows_of(report)
        assert all(row.bytes_after < 8192 for row in report.matrices)
        named = [row.name for row in report.matrices if row.bytes_after >= 4700]
        assert named
        assert bool(told(report)) is (outdone and bool(named))
        if outdone:
            what, remedy = told(report)
            assert what.startswith("Rounding alone does as well or better at no more bytes for ")
            assert all(name in what for name in named)
            assert f"{named[0]} (as int4/32 0.080 against {error:.3f}, 4.7 kB against" in what
            ratio = sum(row.bytes_before for row in rows.values()) / sum(row.bytes_after for row in rows.values())
            wished = float(remedy.split("--target-ratio ")[1].split()[0])
            assert 0.99 * ratio < wished <= ratio
            assert "--of bytes" in remedy
            assert "--bits auto" in remedy


def test_rounding_that_takes_more_bytes_outdoes_nothing(compressed):
    more = replace(ROUNDINGS[0], bytes=10**6)
    assert told(btcompress.report(with_rows(compressed, roundings=(more,), weight_error=0.5))) == []


def test_where_errors_on_inputs_are_known_advice_goes_by_them_and_never_by_the_weights_of_what_was_trained(compressed):
    step = {
        "step": "calibrate",
        "lstm": "",
        "hidden_state_error_before": 0.75,
        "hidden_state_error_after": 0.02,
        "epochs": 4,
        "n_train": 90,
        "n_held": 10,
        "cancellation": 1.5,
        "activation_errors": {W0: 0.05, W1: 0.05},
        "weighted_activation_errors": {W0: 0.05, W1: 0.05},
    }
    plain = (RoundingReport("int4/32", 4700, 0.08),)
    assert told(btcompress.report(with_rows(compressed, history=[step], roundings=plain, weight_error=0.5))) == []
    for error, is_fed_back, outdone in (
        (0.06, False, False),
        (0.04, False, False),
        (0.015, False, True),
        (0.015, True, True),
    ):
        on_these = (replace(plain[0], weighted_activation_error=error, fed_back=is_fed_back),)
        report = btcompress.report(with_rows(compressed, history=[step], roundings=on_these, weight_error=0.001))
        assert bool(told(report)) is outdone
        assert not outdone or ("errors fed back" in told(report)[0]) is is_fed_back


def test_of_a_matrix_that_is_rounded_only_another_better_precision_is_told(compressed, dense):
    result = with_yardsticks(in_bits(compressed, {W0: INT4, U0: INT4, W1: INT4}), dense)
    row = rows_of(btcompress.report(result))[U0]
    assert row.best_rounding.weight_error == pytest.approx(row.weight_error)
    assert not any(U0 in line for line in told(btcompress.report(result)))
    better = RoundingReport("int5/32", row.bytes_after, row.weight_error / 2)
    record = replace(result.rounded[U0], roundings=(better,))
    assert any(f"{U0} (as int5/32" in line for line in told(btcompress.report(replace(result, rounded={U0: record}))))
    trained = replace(result, rounded={U0: record}).with_step({"step": "test"})
    assert told(btcompress.report(trained)) == []


def test_an_lstm_that_rounding_alone_outdoes_is_told_by_its_hidden_states(compressed, dense):
    class Measure:
        def __init__(self, error):
            self.error = error

        def __call__(self, forms):
            return {key: (OutputErrors(0.001, 0.001),) for key in forms}

        def samples(self, key):
            return Samples(torch.eye(dense.tensors[key].shape[1]).double(), torch.empty(0), torch.ones(128))

        def hidden_state_errors(self, matrices):
            return {"": self.error}

        def reports(self):
            return (InputsReport("", 3, 0.02),)

    for error, outdone in ((0.01, True), (0.02, True), (0.03, False)):
        eight = in_bits(compressed, {W0: Integers(8), W1: Integers(8)})
        report = btcompress.report(eight, against=dense, on_inputs=Measure(error))
        assert RoundedLSTM("equal_bytes", True, error) in report.on_inputs[0].rounded
        lines = told(report)
        assert bool(lines) is outdone
        if outdone:
            assert f"leave the hidden states off by {error:.3f} of their size on the inputs given, and this" in lines[0]
            assert "--of bytes" in lines[1]


@pytest.mark.parametrize(
    ("error", "is_told"), [(0.4, True), (0.4035, True), (0.405, False)], ids=["same", "within 1 %", "more"]
)
def test_floats_that_8_bits_would_not_harm_are_told_with_the_size_of_the_file(error, is_told, compressed):
    eight = RoundingReport("int8/32", 1000, error)
    report = btcompress.report(with_rows(compressed, weight_error=0.4, in_8_bits=eight), bytes_after=60_000)
    lines = [line for line in report.advice if "In 8 bits" in line]
    assert bool(lines) is is_told
    if is_told:
        size = 60_000 - sum(row.bytes_after - 1000 for row in report.matrices)
        assert f"{60_000 / size:.2f} times smaller, {size / 1000:.1f} kB" in lines[0]
        assert "--bits 8" in lines[0]


def test_8_bits_are_told_only_if_measured_on_every_matrix_as_it_is_now(compressed):
    eight = RoundingReport("int8/32", 1000, 0.4)
    known = with_rows(compressed, weight_error=0.4, in_8_bits=eight)
    unknown = replace(known, matrices={**known.matrices, W1: replace(known.matrices[W1], in_8_bits=None)})
    for result in (unknown, known.with_step({"step": "test"})):
        assert not any("In 8 bits" in line for line in btcompress.report(result, bytes_after=60_000).advice)


def test_what_8_bits_would_save_comes_true(dense, lstm):
    low_rank = btcompress.factorize(lstm, cp_rank=2, tucker_rank=8, max_sweeps=2)
    result = with_yardsticks(low_rank, dense)
    eight = in_bits(result, dict.fromkeys(result.matrices, Integers(8, 32)))
    before, after = btcompress.report(result, against=dense), btcompress.report(eight, against=dense)
    for known, found in zip(before.matrices, after.matrices, strict=True):
        assert known.in_8_bits.bytes == found.bytes_after
        assert known.in_8_bits.weight_error == pytest.approx(found.weight_error, rel=1e-6)


def test_low_rank_of_as_many_bytes_is_told_of_block_terms_and_low_rank_in_fewer_bits(compressed, dense):
    ruined = in_bits(compressed, {W0: INT4, W1: INT4})
    matrices = {
        key: replace(each, svd_rank=2, svd_error=0.3, weight_error=0.5) for key, each in ruined.matrices.items()
    }
    (line,) = [line for line in btcompress.report(replace(ruined, matrices=matrices)).advice if "low-rank" in line]
    assert "A low-rank matrix of as many bytes" in line
    assert f"{W0} (0.300 at rank 2 against 0.500)" in line


def test_what_takes_no_fewer_bytes_is_told_and_what_the_rest_of_the_file_allows():
    model = nn.ModuleDict({"lstm": nn.LSTM(16, 4), "head": nn.Linear(200, 300)})
    plain = btcompress.factorize(model, tucker_rank=2, allow_growth=True)
    key = "lstm.weight_hh_l0"
    tiny = in_bits(plain, {key: Integers(8, 8)})
    assert not any("no fewer bytes" in line for line in btcompress.report(tiny).advice)
    halves = in_bits(plain, {key: Integers(8, 8)}, {"head.weight": torch.float16})
    for result in (tiny, halves):
        report = btcompress.report(result)
        rest = report.model.tensor_bytes_after - sum(row.bytes_after for row in report.matrices)
        (line,) = [line for line in report.advice if "all else takes" in line]
        assert f"cannot get more than {report.model.bytes_before / rest:.2f} times smaller" in line
        assert "--others float16" in line
    one_column = btcompress.factorize(nn.LSTM(64, 32, num_layers=2), tucker_rank=3).matrices
    assert one_column
    narrow = nn.ModuleDict({"lstm": nn.LSTM(64, 1), "other": nn.LSTM(64, 32)})
    wide = in_bits(btcompress.factorize(narrow, layers=["other*"]), {"lstm.weight_hh_l0": Integers(8, 8)})
    (line,) = [line for line in btcompress.report(wide).advice if "no fewer bytes" in line]
    assert "lstm.weight_hh_l0 (from 16 bytes to 17 bytes)" in line


def test_tensors_that_are_the_originals_once_rounded_are_no_change(mixed, dense):
    untouched = btcompress.report(mixed, against=dense).untouched
    assert (untouched.same, untouched.changed, untouched.rounded) == (4, (), 1)
    other = torch.randn(128).half().float()
    changed = mixed.with_tensors({"bias_ih_l0": other}, {"bias_ih_l0": torch.float16})
    assert btcompress.report(changed, against=dense).untouched.changed == ("bias_ih_l0",)


def test_json_form_tells_bits_bytes_and_roundings(mixed, dense, tmp_path, lstm, run):
    torch.save(lstm.state_dict(), tmp_path / "model.pt")
    btcompress.save(mixed, tmp_path / "a.bt.safetensors")
    value = json.loads(run("report", tmp_path / "a.bt.safetensors", "--against", tmp_path / "model.pt", "--json")[0])
    row = value["matrices"][1]
    assert {name: row[name] for name in ("form", "precision", "dtype", "in_modes", "core")} == {
        "form": "dense",
        "precision": "int3/64",
        "dtype": "float32",
        "in_modes": [],
        "core": "none",
    }
    assert row["bytes_ratio"] == row["bytes_before"] / row["bytes_after"]
    assert row["roundings"][1] == {
        "precision": "int4/32",
        "bytes": INT4.n_bytes((128, 32)),
        "weight_error": row["roundings"][1]["weight_error"],
        "activation_error": None,
        "weighted_activation_error": None,
        "fed_back": False,
    }
    assert value["matrices"][0]["in_8_bits"] is None
    assert value["model"]["bytes_after"] == (tmp_path / "a.bt.safetensors").stat().st_size
    assert value["model"]["tensor_bytes_after"] == mixed.n_bytes
    assert value["untouched"]["rounded"] == 1
