"""What a report measures on inputs given now: hidden states and decisions of the tensors as they are."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.calibration import SampleInputs, on_inputs
from btcompress.checkpoint import from_state_dict
from btcompress.errors import BTCompressError

QUICK = {"max_sweeps": 2}


class Pair(nn.Module):
    """Two LSTMs, a head on the second one."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(12, 5, batch_first=True), nn.LSTM(9, 6, batch_first=True)
        self.decoder.head = nn.Linear(6, 4)


def made(module):
    """The checkpoint of a module, dense and compressed."""
    options = {"tucker_rank": 2, "matrices": ("input", "recurrent"), "allow_growth": True, **QUICK}
    return from_state_dict(module.state_dict()), btcompress.factorize(module, **options)


def saved(path, *shape, seed=0, **arrays):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape)
    np.savez(path, x=x, **arrays)
    return str(path), torch.tensor(x)


def hidden_states(tensors, name, module, x, state=None):
    lstm = type(module)(*[getattr(module, size) for size in ("input_size", "hidden_size")], batch_first=True).double()
    own = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
    lstm.load_state_dict({key: tensor for key, tensor in own.items() if not key.startswith("head")})
    return lstm(x, state)[0].detach()


def error_and_hidden(dense, compressed, name, module, x, state=None):
    ours = hidden_states(compressed.dense_state_dict(), name, module, x, state)
    theirs = hidden_states(dense.tensors, name, module, x, state)
    return float((ours - theirs).norm() / theirs.norm()), ours, theirs


def test_hidden_states_and_decisions_of_each_lstm_are_measured_on_its_inputs(tmp_path):
    module = Pair().double()
    dense, compressed = made(module)
    first, x = saved(tmp_path / "a.npz", 7, 5, 12)
    second, y = saved(tmp_path / "b.npz", 40, 6, 9, seed=1)
    measure = on_inputs(compressed, dense, [SampleInputs(second, "decoder"), SampleInputs(first, "encoder")])
    decoder, encoder = sorted(measure.reports(), key=lambda each: each.lstm)
    assert (encoder.lstm, encoder.n_sequences) == ("encoder", 7)
    wanted, _, _ = error_and_hidden(dense, compressed, "encoder", module.encoder, x)
    assert encoder.hidden_state_error == pytest.approx(wanted, rel=1e-9)
    wanted, ours, theirs = error_and_hidden(dense, compressed, "decoder", module.decoder, y)
    assert decoder.hidden_state_error == pytest.approx(wanted, rel=1e-9)
    alike = module.decoder.head(ours).argmax(-1) == module.decoder.head(theirs).argmax(-1)
    assert 0.1 < decoder.agreement.steps < 1
    assert decoder.agreement.steps == pytest.approx(float(alike.double().mean()))
    assert decoder.agreement.ends == pytest.approx(float(alike[:, -1].double().mean()))
    assert (decoder.agreement.n_steps, decoder.agreement.n_ends) == (240, 40)


def test_runs_begin_with_the_states_that_the_data_give(tmp_path):
    module = Pair().double()
    dense, compressed = made(module)
    h, c = np.random.default_rng(2).normal(size=(2, 7, 1, 5))
    file, x = saved(tmp_path / "a.npz", 7, 2, 12, h0=h, c0=c)
    plain, _ = saved(tmp_path / "b.npz", 7, 2, 12)
    state = tuple(torch.tensor(each).transpose(0, 1).contiguous() for each in (h, c))
    wanted, _, _ = error_and_hidden(dense, compressed, "encoder", module.encoder, x, state)
    (given,) = on_inputs(compressed, dense, [SampleInputs(file, "encoder")]).reports()
    (without,) = on_inputs(compressed, dense, [SampleInputs(plain, "encoder")]).reports()
    assert given.hidden_state_error == pytest.approx(wanted, rel=1e-9)
    assert without.hidden_state_error != pytest.approx(wanted, rel=0.01)


def test_hidden_states_that_are_all_zero_are_refused(tmp_path):
    module = nn.LSTM(12, 5, bias=False)
    dense, compressed = made(module)
    np.savez(tmp_path / "zeros.npz", x=np.zeros((2, 3, 12)))
    with pytest.raises(BTCompressError, match="not a number"):
        on_inputs(compressed, dense, [SampleInputs(str(tmp_path / "zeros.npz"))]).reports()


def test_a_report_on_new_inputs_shows_what_was_measured_on_them(tmp_path, run):
    module = Pair()
    torch.save(module.state_dict(), tmp_path / "model.pt")
    _, compressed = made(module)
    old = {
        "step": "calibrate",
        "lstm": "encoder",
        "hidden_state_error_before": 0.9,
        "hidden_state_error_after": 0.0123,
        "epochs": 1,
        "n_train": 9,
        "n_held": 3,
        "cancellation": 1.0,
        "activation_errors": {},
    }
    btcompress.save(compressed.with_step(old), tmp_path / "model.bt.safetensors")
    first, _ = saved(tmp_path / "a.npz", 7, 5, 12)
    second, _ = saved(tmp_path / "b=c.npz", 4, 6, 9, seed=1)
    command = ["report", tmp_path / "model.bt.safetensors", "--against", tmp_path / "model.pt"]
    command += ["--inputs", f"encoder={first}", "--inputs", f"decoder={second}"]
    value = json.loads(run(*command, "--json")[0])
    decoder, encoder = sorted(value["on_inputs"], key=lambda each: each["lstm"])
    assert (encoder["lstm"], encoder["n_sequences"]) == ("encoder", 7)
    assert (decoder["lstm"], decoder["n_sequences"]) == ("decoder", 4)
    assert encoder["hidden_state_error"] > 0.1
    assert encoder["agreement"] is None
    assert decoder["agreement"]["n_steps"] == 24
    assert all(row["activation_error"] is not None for row in value["matrices"])
    out, _ = run(*command)
    assert "on the inputs given" in out
    assert f"{encoder['hidden_state_error']:.4f}" in out
    assert any(f"{encoder['hidden_state_error']:.3f}" in line for line in value["advice"])
    assert not any("0.012" in line for line in value["advice"])
