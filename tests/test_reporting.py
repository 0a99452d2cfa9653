import json

import pytest
import torch
from torch import nn

import btcompress
from btcompress.checkpoint import from_state_dict
from btcompress.errors import CheckpointError
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


def test_middling_error_asks_for_a_measurement():
    report = btcompress.report(btcompress.factorize(nn.LSTM(64, 16), tucker_rank=16))
    assert 0.5 <= report.matrices[0].weight_error < 0.9
    assert any("Half or more is lost of weight_ih_l0" in line for line in report.advice)
