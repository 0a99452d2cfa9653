import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import btcompress
from btcompress.checkpoint import from_state_dict
from btcompress.errors import BTCompressError, CheckpointError, ShapeError
from btcompress.factorization import matrices
from btcompress.modes import ShapeRequest
from btcompress.plan import make_plan


class Tagger(nn.Module):
    """Embedding, two-layer bidirectional LSTM, LSTM cell, GRU and head: unequal sizes throughout."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embedding = nn.Embedding(11, 24)
        self.lstm = nn.LSTM(24, 10, num_layers=2, bidirectional=True)
        self.cell = nn.LSTMCell(20, 12)
        self.gru = nn.GRU(12, 6)
        self.head = nn.Linear(6, 5)
        self.to(dtype)


INPUT_KEYS = [
    "lstm.weight_ih_l0",
    "lstm.weight_ih_l0_reverse",
    "lstm.weight_ih_l1",
    "lstm.weight_ih_l1_reverse",
    "cell.weight_ih",
    "gru.weight_ih_l0",
]


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("gates", ["fused", "separate"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_recurrent_layer_is_factorized_and_all_else_passes_bit_for_bit(gates, dtype):
    state = Tagger(dtype).state_dict()
    compressed = btcompress.factorize(state, tucker_rank=2, gates=gates)
    assert sorted(compressed.matrices) == sorted(INPUT_KEYS)
    for key, tensor in state.items():
        if key not in INPUT_KEYS:
            assert compressed.tensors[key].dtype == tensor.dtype
            assert torch.equal(compressed.tensors[key], tensor)
    for key in INPUT_KEYS:
        assert key not in compressed.tensors
        assert all(tensor.dtype == dtype for part in compressed.parts(key) for tensor in part.tensors)


def test_full_rank_gives_the_dense_weights_back():
    state = Tagger(torch.float64).state_dict()
    compressed = btcompress.factorize(state, tucker_rank=10_000, allow_growth=True)
    dense = btcompress.to_dense(compressed)
    assert list(dense) == list(state)
    for key, tensor in state.items():
        torch.testing.assert_close(dense[key], tensor, atol=1e-12, rtol=0)


def test_reported_errors_are_those_of_the_stored_tensors():
    state = Tagger(torch.float16).state_dict()
    compressed = btcompress.factorize(state, tucker_rank=3, cp_rank=2, allow_growth=True)
    dense = btcompress.to_dense(compressed)
    for row in btcompress.report(compressed).matrices:
        assert row.weight_error == pytest.approx(relative(dense[row.name], state[row.name]), rel=1e-2)
        values = torch.linalg.svdvals(state[row.name].double())
        assert row.svd_error == pytest.approx(float(values[row.svd_rank :].norm() / values.norm()), abs=1e-7)
        assert row.svd_rank * sum(row.shape) <= row.params_after < (row.svd_rank + 1) * sum(row.shape)


def test_counts_come_from_the_tensors_written(tmp_path):
    torch.save(Tagger().state_dict(), tmp_path / "model.pt")
    compressed = btcompress.factorize(tmp_path / "model.pt", tucker_rank=2)
    btcompress.save(compressed, tmp_path / "model.bt.safetensors")
    report = btcompress.report(compressed)
    stored = load_file(tmp_path / "model.bt.safetensors")
    assert report.model.params_after == sum(tensor.numel() for tensor in stored.values())
    assert report.model.params_before == sum(parameter.numel() for parameter in Tagger().parameters())
    for row in report.matrices:
        assert row.params_after == sum(t.numel() for name, t in stored.items() if name.startswith(f"{row.name}."))


def test_file_shrinks_by_what_the_counts_say(tmp_path):
    save_file(nn.LSTM(512, 64).state_dict(), tmp_path / "model.safetensors")
    compressed = btcompress.factorize(tmp_path / "model.safetensors")
    btcompress.save(compressed, tmp_path / "small.safetensors")
    before, after = ((tmp_path / name).stat().st_size for name in ("model.safetensors", "small.safetensors"))
    report = btcompress.report(compressed)
    assert before - after > 0.9 * 4 * (report.model.params_before - report.model.params_after)


def test_same_command_gives_the_same_bytes(tmp_path):
    torch.save(Tagger().state_dict(), tmp_path / "model.pt")
    digests = set()
    for run in range(2):
        torch.rand(run + 1)
        path = tmp_path / f"{run}.safetensors"
        btcompress.save(btcompress.factorize(tmp_path / "model.pt", cp_rank=2, tucker_rank=2), path)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_module_state_dict_and_file_give_the_same_tensors(tmp_path):
    model = Tagger()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    results = [btcompress.factorize(w, tucker_rank=2) for w in (model, model.state_dict(), tmp_path / "model.pt")]
    for other in results[1:]:
        assert other.tensors.keys() == results[0].tensors.keys()
        assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in results[0].tensors.items())


def test_factorizing_a_module_leaves_it_as_it_was_and_shares_no_block_terms():
    model = Tagger()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    btcompress.factorize(model, tucker_rank=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (["lstm"], INPUT_KEYS[:4]),
        (["*_l0*"], [*INPUT_KEYS[:2], INPUT_KEYS[5]]),
        (["!cell"], [*INPUT_KEYS[:4], INPUT_KEYS[5]]),
        (["lstm", "!*_reverse"], [INPUT_KEYS[0], INPUT_KEYS[2]]),
        (["cell.weight_ih", "lstm.weight_ih_l1"], [INPUT_KEYS[2], INPUT_KEYS[4]]),
    ],
    ids=str,
)
def test_layer_patterns_choose_by_key_or_lstm_name_and_leave_out(layers, chosen):
    plan = make_plan(from_state_dict(Tagger().state_dict()), ShapeRequest(1, 2), layers)
    assert sorted(planned.name for planned in plan.matrices) == sorted(chosen)


def test_layer_pattern_without_a_match_is_refused_with_the_keys_named():
    with pytest.raises(CheckpointError, match=r"'decoder'.*lstm\.weight_ih_l0"):
        btcompress.factorize(Tagger(), layers=["decoder"])


def test_layer_patterns_that_leave_nothing_are_refused():
    with pytest.raises(CheckpointError, match="leave no matrix"):
        btcompress.factorize(Tagger(), layers=["!*"])


def test_matrix_that_would_grow_stays_dense_unless_growth_is_allowed():
    state = nn.LSTM(4, 2).state_dict()
    with pytest.raises(CheckpointError, match="no matrix is worth factorizing"):
        btcompress.factorize(state, tucker_rank=8)
    grown = btcompress.report(btcompress.factorize(state, tucker_rank=8, allow_growth=True))
    assert grown.matrices[0].params_after >= grown.matrices[0].params_before
    assert any("What grew: weight_ih_l0" in line for line in grown.advice)


def test_matrix_left_dense_is_reported_beside_the_factorized_ones():
    model = nn.ModuleDict({"large": nn.LSTM(64, 32), "small": nn.LSTM(4, 2)})
    report = btcompress.report(btcompress.factorize(model, tucker_rank=4))
    assert [row.name for row in report.matrices] == ["large.weight_ih_l0"]
    assert report.left_dense[0].name == "small.weight_ih_l0"
    assert "lower the ranks" in report.left_dense[0].reason


def test_modes_by_hand_go_to_the_matrices_they_fit_and_the_rest_is_chosen():
    compressed = btcompress.factorize(nn.LSTM(30, 8, num_layers=2), in_modes=(5, 6), tucker_rank=2)
    rows = btcompress.report(compressed).matrices
    assert [row.in_modes for row in rows] == [(5, 6), (2, 4)]


def test_modes_that_fit_no_matrix_are_refused_in_the_words_of_the_option():
    with pytest.raises(ShapeError, match="in_modes 5,7 multiplies to 35, but weight_ih_l0 has 30 inputs"):
        btcompress.factorize(nn.LSTM(30, 8), in_modes=(5, 7))


def test_input_shape_cuts_modes_along_its_axes():
    compressed = btcompress.factorize(nn.LSTM(6 * 10 * 3, 8), input_shape=(6, 10, 3), order=3, tucker_rank=2)
    assert btcompress.report(compressed).matrices[0].in_modes == (6, 10, 3)


def test_checkpoint_without_a_recurrent_layer_is_refused_and_lookalikes_are_named():
    with pytest.raises(CheckpointError, match=r"holds no LSTM, GRU or plain RNN.*18 rows for a hidden size of 9"):
        btcompress.factorize({"weight_ih": torch.ones(18, 4), "weight_hh": torch.ones(18, 9)})


@pytest.mark.parametrize("gates", ["fused", "separate"])
@pytest.mark.parametrize("module", [nn.GRU(12, 6, 2, bidirectional=True), nn.RNN(12, 6), nn.GRUCell(12, 6)])
def test_grus_and_plain_rnns_come_back_from_full_rank_and_from_their_file(tmp_path, module, gates):
    asked = {"tucker_rank": 10_000, "allow_growth": True, "gates": gates, "matrices": ["input", "recurrent"]}
    btcompress.save(btcompress.factorize(module, **asked), tmp_path / "model.safetensors")
    loaded = btcompress.load(tmp_path / "model.safetensors")
    separate = gates == "separate" and not isinstance(module, nn.RNN)
    for key, matrix in loaded.matrices.items():
        assert matrix.shape.part_names == (("gate_r", "gate_z", "gate_n") if separate else ("",)), key
    dense = btcompress.to_dense(loaded)
    assert loaded.matrices.keys() == {key for key in dense if "weight" in key}
    for key, tensor in module.state_dict().items():
        torch.testing.assert_close(dense[key], tensor, rtol=1e-5, atol=1e-6)


def test_nonlinearity_of_plain_rnns_is_as_said_and_kept_with_the_result(tmp_path):
    model = nn.ModuleDict({"rnn": nn.RNN(12, 6, nonlinearity="relu"), "lstm": nn.LSTM(12, 6)})
    assert btcompress.factorize(model, tucker_rank=2).nonlinearities == {"rnn": "relu"}
    told = btcompress.report(btcompress.factorize(model.state_dict(), tucker_rank=2)).notices
    assert any("rnn: a plain RNN, taken to apply tanh" in each for each in told)
    btcompress.save(
        btcompress.factorize(model.state_dict(), tucker_rank=2, nonlinearity="relu"), tmp_path / "a.safetensors"
    )
    loaded = btcompress.load(tmp_path / "a.safetensors")
    assert [entry.nonlinearity for entry in loaded.recurrent() if entry.type == "rnn"] == ["relu"]
    further = btcompress.factorize(tmp_path / "a.safetensors", matrices=["recurrent"], tucker_rank=2)
    assert further.nonlinearities == {"rnn": "relu"}
    assert not any("taken to apply tanh" in each for each in btcompress.report(further).notices)
    with pytest.raises(CheckpointError, match="rnn applies relu, not tanh"):
        btcompress.factorize(tmp_path / "a.safetensors", matrices=["recurrent"], tucker_rank=2, nonlinearity="tanh")
    with pytest.raises(CheckpointError, match="holds no plain RNN"):
        btcompress.factorize(nn.LSTM(12, 6), nonlinearity="relu")
    with pytest.raises(BTCompressError, match="must be tanh or relu, but 'sigmoid'"):
        btcompress.factorize(model, nonlinearity="sigmoid")


def test_weights_that_are_not_finite_are_refused_with_the_matrix_named():
    lstm = nn.LSTM(64, 32)
    with torch.no_grad():
        lstm.weight_ih_l0[3, 4] = torch.nan
    with pytest.raises(BTCompressError, match=r"weight_ih_l0: .*not finite"):
        btcompress.factorize(lstm)


def test_block_terms_beyond_the_range_of_the_dtype_are_left_out_and_never_all_of_them(monkeypatch):
    fit_matrix = matrices.fit_matrix

    def fit_larger(matrix, *arguments):
        fitted = fit_matrix(matrix, *arguments)
        large = (replace(part, cores=part.cores * 1e9) for part in fitted.parts)
        return replace(fitted, parts=tuple(large)) if matrix.shape[1] == 64 else fitted

    monkeypatch.setattr(matrices, "fit_matrix", fit_larger)
    first, second = nn.LSTM(64, 32).half(), nn.LSTM(48, 32).half()
    some = btcompress.factorize(nn.ModuleDict({"first": first, "second": second}))
    assert set(some.matrices) == {"second.weight_ih_l0"}
    assert torch.equal(some.tensors["first.weight_ih_l0"], first.weight_ih_l0)
    assert "range of torch.float16" in some.history[0]["left_dense"][0]["reason"]
    with pytest.raises(CheckpointError, match=r"nothing could be factorized.*range of torch\.float16.*float32"):
        btcompress.factorize(first)


def test_progress_counts_matrices_and_sweeps():
    seen = []
    btcompress.compress(Tagger(), btcompress.FactorizeStep(cp_rank=2, tucker_rank=2), seen.append)
    assert {state.count for state in seen} == {6}
    assert [state.index for state in seen] == sorted(state.index for state in seen)
    assert seen[0].name == INPUT_KEYS[0] or seen[0].name == "cell.weight_ih"
    assert all(0 < state.sweep.error <= 1 for state in seen)
