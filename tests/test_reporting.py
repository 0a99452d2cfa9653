import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import btcompress
from btcompress.checkpoint import from_state_dict, read
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.fit import OutputErrors
from btcompress.nn import BTLSTM


def exact_lstm(input_size, hidden_size, **arguments):
    """An LSTM whose input weights are block terms of CP rank 1 and Tucker rank 2."""
    return BTLSTM(input_size, hidden_size, cp_rank=1, tucker_rank=2, **arguments).to_dense()


def test_high_error_is_called_what_it_is():
    report = btcompress.report(btcompress.factorize(nn.LSTM(256, 64), tucker_rank=2))
    assert report.matrices[0].weight_error > 0.9
    assert any("Next to nothing is kept of weight_ih_l0" in line for line in report.advice)


def test_exact_fit_gets_no_warning():
    report = btcompress.report(btcompress.factorize(exact_lstm(256, 64), tucker_rank=2))
    assert report.matrices[0].weight_error < 1e-4
    assert not any("weight error" in line for line in report.advice)


def test_better_low_rank_matrix_is_named():
    lstm = nn.LSTM(64, 32)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.outer(torch.randn(128), torch.randn(64)))
    report = btcompress.report(btcompress.factorize(lstm, tucker_rank=4))
    row = report.matrices[0]
    assert row.svd_rank >= 1
    assert row.svd_error < 1e-3 < row.weight_error
    assert any(
        "low-rank matrix of equal size fits better than block terms for weight_ih_l0" in line for line in report.advice
    )


def test_small_share_of_the_model_names_the_best_ratio_reachable():
    model = nn.ModuleDict({"lstm": nn.LSTM(64, 16), "head": nn.Linear(200, 300)})
    report = btcompress.report(btcompress.factorize(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    best = total / (total - 64 * 64)
    assert any(f"cannot pass {best:.2f}" in line for line in report.advice)
    assert report.model.ratio < best


def test_report_against_the_dense_checkpoint_measures_the_tensors_as_they_are_now():
    lstm = nn.LSTM(64, 32)
    compressed = btcompress.factorize(lstm)
    changed = compressed.with_step(
        {"step": "test"}, {"weight_ih_l0.cores": torch.zeros_like(compressed.tensors["weight_ih_l0.cores"])}
    )
    assert btcompress.report(changed).matrices[0].weight_error < 1
    anew = btcompress.report(changed, against=from_state_dict(lstm.state_dict()))
    assert anew.matrices[0].weight_error == pytest.approx(1)
    assert anew.matrices[0].svd_error == pytest.approx(btcompress.report(changed).matrices[0].svd_error)


def test_report_against_another_checkpoint_is_refused_or_said():
    compressed = btcompress.factorize(nn.LSTM(64, 32))
    with pytest.raises(CheckpointError, match="has it in shape"):
        btcompress.report(compressed, against=from_state_dict(nn.LSTM(32, 32).state_dict()))
    with pytest.raises(CheckpointError, match="has no such matrix"):
        btcompress.report(compressed, against=from_state_dict({"weight": torch.ones(2)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("yardsticks", [False, True])
def test_report_against_a_matrix_that_is_not_finite_is_refused(value, yardsticks):
    lstm = nn.LSTM(64, 32)
    compressed = btcompress.factorize(lstm)
    tensors = {key: tensor.clone() for key, tensor in lstm.state_dict().items()}
    tensors["weight_ih_l0"][3, 5] = value
    with pytest.raises(CheckpointError, match=r"weight_ih_l0 .* not finite"):
        btcompress.report(compressed, against=from_state_dict(tensors), yardsticks=yardsticks)


def test_report_against_a_file_with_another_digest_says_so(tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save(nn.LSTM(64, 32).state_dict(), tmp_path / name)
    compressed = btcompress.factorize(tmp_path / "a.pt")
    from btcompress.checkpoint import read

    same = btcompress.report(compressed, against=read(tmp_path / "a.pt"))
    other = btcompress.report(compressed, against=read(tmp_path / "b.pt"))
    assert not any("digests differ" in line for line in same.notices)
    assert any("digests differ" in line for line in other.notices)
    assert other.matrices[0].weight_error > same.matrices[0].weight_error


def test_json_form_has_the_documented_keys_and_is_plain():
    value = json.loads(json.dumps(btcompress.report(btcompress.factorize(nn.LSTM(64, 32))).to_dict()))
    assert value["matrices"][0].keys() >= {
        *("name", "shape", "in_modes", "out_modes", "cp_rank", "tucker_ranks"),
        *("params_before", "params_after", "weights_ratio", "weight_error", "svd_error"),
    }
    assert value["model"].keys() >= {"params_before", "params_after", "ratio", "bytes_before", "bytes_after"}
    row = value["matrices"][0]
    assert row["weights_ratio"] == row["params_before"] / row["params_after"]


def test_advice_that_is_the_same_for_several_matrices_is_given_once():
    report = btcompress.report(btcompress.factorize(nn.LSTM(64, 32, num_layers=2), tucker_rank=2))
    assert len(report.matrices) == 2
    lines = [line for line in report.advice if "Next to nothing" in line]
    assert len(lines) == 1
    assert all(row.name in lines[0] for row in report.matrices)


@pytest.mark.parametrize("rank", [16, 30])
def test_without_inputs_nobody_knows_what_weight_errors_of_any_size_do_and_it_is_said_how_to_find_out(rank):
    report = btcompress.report(btcompress.factorize(nn.LSTM(64, 16), tucker_rank=rank, allow_growth=True))
    (row,) = report.matrices
    assert 0.01 < row.weight_error < 0.9
    assert (row.weight_error < 0.3) is (rank == 30)
    (line,) = [line for line in report.advice if "Nobody knows" in line]
    assert f"the weight errors of weight_ih_l0 (up to {row.weight_error:.3f})" in line
    for way_out in ("btcompress.recording", "--calibration FILE", "report --against MODEL --inputs FILE"):
        assert way_out in line


def test_bytes_are_those_of_the_tensors_taken_and_a_larger_file_is_told(tmp_path):
    lstm = nn.LSTM(64, 32)
    lstm(torch.randn(3, 1, 64))[0].sum().backward()
    optimizer = torch.optim.Adam(lstm.parameters())
    optimizer.step()
    torch.save({"model": lstm.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "both.pt")
    torch.save(lstm.state_dict(), tmp_path / "alone.pt")
    both, alone = (btcompress.report(btcompress.factorize(tmp_path / name)) for name in ("both.pt", "alone.pt"))
    size = 4 * sum(tensor.numel() for tensor in lstm.parameters())
    for report in (both, alone):
        assert report.model.bytes_before == size
        assert report.model.bytes_before / report.model.bytes_after == pytest.approx(report.model.ratio)
    assert both.model.file_bytes_before == (tmp_path / "both.pt").stat().st_size > 3 * size
    (told,) = [notice for notice in both.notices if "was left out" in notice and "both.pt has" in notice]
    assert f"the tensors taken from it {size / 1000:.1f} kB" in told
    assert not any("alone.pt has" in notice for notice in alone.notices)


def test_bytes_count_each_dtype_by_its_size_and_tied_tensors_once(tmp_path):
    lstm, table = nn.LSTM(64, 32), torch.randn(500, 32, dtype=torch.float64)
    tensors = {**{f"lstm.{key}": tensor.half() for key, tensor in lstm.state_dict().items()}}
    tensors |= {"embedding.weight": table, "head.weight": table, "head.bias": torch.zeros(500, dtype=torch.float64)}
    size = 2 * sum(tensor.numel() for tensor in lstm.parameters()) + 8 * (500 * 32 + 500)
    torch.save(tensors, tmp_path / "model.pt")
    for matrices in (("input",), ("input", "recurrent")):
        report = btcompress.report(btcompress.factorize(tmp_path / "model.pt", matrices=matrices))
        assert report.model.bytes_before == size
    shared = btcompress.factorize(nn.ModuleDict({"a": lstm, "b": lstm}))
    assert len(shared.matrices) == 2
    assert btcompress.report(shared).model.bytes_before == 4 * sum(tensor.numel() for tensor in lstm.parameters())


def test_errors_that_print_alike_are_not_compared():
    lstm = nn.LSTM(64, 32)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.outer(torch.randn(128), torch.randn(64)))
    compressed = btcompress.factorize(lstm)
    (name,) = compressed.matrices

    def advice_at(weight_error, svd_error):
        matrix = replace(compressed.matrices[name], weight_error=weight_error, svd_error=svd_error, svd_rank=1)
        return [
            line
            for line in btcompress.report(replace(compressed, matrices={name: matrix})).advice
            if "fits better than block terms" in line
        ]

    assert advice_at(3e-7, 1e-8) == []
    assert advice_at(0.2004, 0.1996) == []
    assert "(0.199 at rank 1 against 0.201)" in advice_at(0.2006, 0.1994)[0]
    on_inputs = Measure(lambda forms: {name: (4e-4, 2e-6, 4e-6, 4e-6)})
    dense = from_state_dict(lstm.state_dict())
    report = btcompress.report(compressed, against=dense, yardsticks=True, on_inputs=on_inputs)
    assert not any("on the inputs given for" in line for line in report.advice)


def tensor_train_lstm():
    """An LSTM whose input weights are a tensor train of ranks 3 over modes (4, 4, 4) by (8, 4, 4), and its form."""
    lstm = nn.LSTM(64, 32)
    carriages = [torch.randn(1, 4, 8, 3), torch.randn(3, 4, 4, 3), torch.randn(3, 4, 4, 1)]
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.einsum("zaxr,rbys,sctz->xytabc", *carriages).reshape(128, 64))
    options = {"cp_rank": 4, "tucker_rank": 2, "in_modes": (4, 4, 4), "out_modes": (8, 4, 4)}
    return lstm, btcompress.factorize(lstm, **options)


def test_yardsticks_are_measured_at_equal_size_and_a_better_form_is_named():
    lstm, compressed = tensor_train_lstm()
    report = btcompress.report(compressed, against=from_state_dict(lstm.state_dict()), yardsticks=True)
    row = report.matrices[0]
    low_rank, train, greedy = row.yardsticks
    assert [other.form for other in row.yardsticks] == ["low_rank", "tensor_train", "greedy"]
    assert (low_rank.ranks, low_rank.weight_error) == ((row.svd_rank,), row.svd_error)
    assert train.weight_error < 1e-5 < row.weight_error < greedy.weight_error
    assert all(0 < other.params <= row.params_after for other in row.yardsticks)
    assert all(other.activation_error is None for other in row.yardsticks)
    line = next(line for line in report.advice if "A tensor train of equal size fits better" in line)
    assert f"weight_ih_l0 (0.000 at rank {','.join(map(str, train.ranks))} against {row.weight_error:.3f})" in line
    assert not any("Greedy" in line or "on the inputs given" in line for line in report.advice)


def test_blocks_that_greedy_deflation_beats_are_said_unless_they_were_trained():
    lstm, compressed = tensor_train_lstm()
    cores = "weight_ih_l0.cores"
    worse = {cores: compressed.tensors[cores] * 0.1}
    dense = from_state_dict(lstm.state_dict())
    untrained = btcompress.report(compressed.with_step({"step": "factorize"}, worse), against=dense, yardsticks=True)
    assert any("fits better than block terms" in line and "--restarts" in line for line in untrained.advice)
    trained = btcompress.report(compressed.with_step({"step": "test"}, worse), against=dense, yardsticks=True)
    assert not any("--restarts" in line for line in trained.advice)


class Measure:
    """Stands for what :func:`btcompress.calibration.on_inputs` makes; fits low rank by halving it."""

    def __init__(self, measure, fits=False, reports=(), samples=None, hidden=lambda matrices: {}):
        self.measure, self.fits, self.measured, self.reports = measure, fits, [], lambda: reports
        self.samples, self.hidden_state_errors = (samples or {}).get, hidden

    def __call__(self, forms):
        self.measured.append({key: len(parts) for key, parts in forms.items()})
        errors = self.measure(forms)
        return {key: tuple(OutputErrors(error / 2, error) for error in own) for key, own in errors.items()}

    def fitted(self, key, parts):
        halved = (replace(part, factors=(part.factors[0] / 2, *part.factors[1:])) for part in parts)
        return tuple(halved) if self.fits else None


def test_activation_errors_go_to_the_forms_they_were_measured_on():
    lstm, compressed = tensor_train_lstm()
    dense = from_state_dict(lstm.state_dict())
    inputs = torch.randn(50, 64, dtype=torch.float64)

    def measure(forms):
        wanted = inputs @ lstm.weight_ih_l0.detach().double().T
        given = [torch.cat([part.to(torch.float64).matmul(inputs) for part in parts], -1) for parts in forms[key]]
        return {key: tuple(float((wanted - product).norm() / wanted.norm()) for product in given)}

    key, on_inputs = "weight_ih_l0", Measure(measure, fits=True)
    row = btcompress.report(compressed, against=dense, yardsticks=True, on_inputs=on_inputs).matrices[0]
    assert [other.form for other in row.yardsticks] == ["low_rank", "low_rank_on_inputs", "tensor_train", "greedy"]
    for form in (row, *row.yardsticks):
        assert form.activation_error == pytest.approx(form.weight_error, rel=0.2, abs=1e-6)
        assert form.weighted_activation_error == form.activation_error / 2
    assert len({form.activation_error for form in (row, *row.yardsticks)}) == 5
    low_rank, on_these = row.yardsticks[:2]
    assert (on_these.ranks, on_these.params) == (low_rank.ranks, low_rank.params)
    assert on_these.weight_error > low_rank.weight_error
    alone = btcompress.report(compressed, against=dense, on_inputs=on_inputs).matrices[0]
    assert (alone.activation_error, alone.yardsticks) == (row.activation_error, ())


def test_form_that_is_closer_on_the_inputs_is_named_by_its_activation_error():
    lstm, compressed = tensor_train_lstm()
    on_inputs = Measure(lambda forms: {"weight_ih_l0": (1.0, 0.5, 1 - 1e-4, 1.5)})
    dense = from_state_dict(lstm.state_dict())
    report = btcompress.report(compressed, against=dense, yardsticks=True, on_inputs=on_inputs)
    rank = report.matrices[0].svd_rank
    closer = [line for line in report.advice if "on the inputs given" in line]
    assert closer == [
        "A low-rank matrix of equal size is closer than block terms on the inputs given for weight_ih_l0 "
        f"(0.250 at rank {rank} against 0.500)."
    ]


def test_forms_that_were_skipped_are_said_and_have_no_errors():
    lstm = nn.LSTM(64, 32)
    compressed = btcompress.factorize(lstm, cp_rank=1, tucker_rank=1, in_modes=(4, 4, 4), out_modes=(8, 4, 4))
    on_inputs = Measure(lambda forms: {"weight_ih_l0": (0.5, 0.6, 0.7)}, fits=True)
    dense = from_state_dict(lstm.state_dict())
    report = btcompress.report(compressed, against=dense, yardsticks=True, on_inputs=on_inputs)
    low_rank, train, greedy = report.matrices[0].yardsticks
    assert (low_rank.ranks, low_rank.weight_error, low_rank.activation_error) == ((), None, None)
    assert (train.activation_error, greedy.activation_error) == (0.6, 0.7)
    assert on_inputs.measured == [{"weight_ih_l0": 3}]
    words = "no yardstick low rank for weight_ih_l0: even rank 1 has more parameters"
    assert any(words in line for line in report.notices)


def test_of_low_rank_matrices_no_better_low_rank_is_told_and_what_they_lack_is_said_once():
    lstm = nn.LSTM(64, 32, num_layers=2)
    with torch.no_grad():
        for weight in (lstm.weight_ih_l0, lstm.weight_ih_l1):
            weight.copy_(torch.randn(128, 3) @ torch.randn(3, weight.shape[1]))
    compressed = btcompress.factorize(lstm, plan=btcompress.plan_for(lstm, max_error=1e-3))
    assert all(matrix.shape.part.is_low_rank for matrix in compressed.matrices.values())
    on_inputs = Measure(lambda forms: dict.fromkeys(forms, (1.0, 0.5, 0.4)), fits=True)
    report = btcompress.report(
        compressed, against=from_state_dict(lstm.state_dict()), yardsticks=True, on_inputs=on_inputs
    )
    assert [row.yardsticks[1].weighted_activation_error for row in report.matrices] == [0.2, 0.2]
    assert not any("on the inputs given" in line for line in report.advice)
    (train,) = [line for line in report.notices if "tensor train" in line]
    assert "no yardstick tensor train for weight_ih_l0, weight_ih_l1: two modes" in train


def test_low_rank_that_is_only_rounded_is_told_of_no_better_low_rank():
    lstm = nn.LSTM(64, 32)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.randn(128, 3) @ torch.randn(3, 64))
    lstm = lstm.bfloat16()
    compressed = btcompress.factorize(lstm, plan=btcompress.plan_for(lstm, max_error=0.05))
    report = btcompress.report(compressed)
    (row,) = report.matrices
    assert compressed.matrices[row.name].shape.part.is_low_rank
    assert row.svd_error < 0.9 * row.weight_error
    assert not any("low-rank matrix of equal size" in line for line in report.advice)


def test_matrix_of_zeros_has_no_yardsticks():
    lstm, compressed = tensor_train_lstm()
    zeros = from_state_dict({key: torch.zeros_like(tensor) for key, tensor in lstm.state_dict().items()})
    assert btcompress.report(compressed, against=zeros, yardsticks=True).matrices[0].yardsticks == ()


@pytest.mark.parametrize(
    "asked", [{"yardsticks": True}, {"on_inputs": Measure(lambda forms: {})}], ids=["forms", "inputs"]
)
def test_comparing_without_the_dense_checkpoint_is_refused(asked):
    _, compressed = tensor_train_lstm()
    with pytest.raises(BTCompressError, match="--against MODEL"):
        btcompress.report(compressed, **asked)


def test_json_form_of_yardsticks_has_the_documented_keys_and_is_plain():
    lstm, compressed = tensor_train_lstm()
    report = btcompress.report(compressed, against=from_state_dict(lstm.state_dict()), yardsticks=True)
    value = json.loads(json.dumps(report.to_dict()))["matrices"][0]
    assert value["activation_error"] is None
    keys = {"form", "ranks", "params", "weight_error", "activation_error"}
    assert [other.keys() for other in value["yardsticks"]] == [{*keys, "weighted_activation_error", "skipped"}] * 3
    assert btcompress.report(compressed).to_dict()["matrices"][0]["yardsticks"] == ()


def read_again(module, folder):
    torch.save(module.state_dict(), folder / "model.pt")
    return read(folder / "model.pt")


class WithHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(64, 32), nn.Linear(32, 5)


def test_tensors_that_were_not_factorized_are_the_originals_bit_for_bit(tmp_path):
    model = WithHead()
    with torch.no_grad():
        model.head.bias[:2] = torch.tensor([float("nan"), -0.0])
    dense = read_again(model, tmp_path)
    compressed = btcompress.factorize(model)
    report = btcompress.report(compressed, against=dense)
    assert (report.untouched.same, report.untouched.changed) == (5, ())
    assert report.to_dict()["untouched"] == {"same": 5, "changed": (), "trained": False, "rounded": 0}
    assert btcompress.report(compressed).untouched is None


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bit", [0, 7 * 8 * 4 + 3])
def test_one_bit_that_is_not_the_originals_is_found_and_told(tmp_path, bit, trained):
    model = WithHead()
    dense = read_again(model, tmp_path)
    compressed = btcompress.factorize(model)
    changed = compressed.tensors["head.weight"].clone()
    changed.view(torch.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
    history = (*compressed.history, *[{"step": "a later one"}] * trained)
    forged = replace(compressed, tensors={**compressed.tensors, "head.weight": changed}, history=history)
    report = btcompress.report(forged, against=dense)
    assert (report.untouched.same, report.untouched.changed, report.untouched.trained) == (4, ("head.weight",), trained)
    assert any("head.weight. Nothing was trained" in text for text in report.advice) is not trained
