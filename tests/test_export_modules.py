import pytest
import torch
from torch import nn

from btcompress import BTLSTM, factorize
from btcompress.checkpoint import from_state_dict
from btcompress.export.modules import layer_module
from btcompress.export.targets import chosen_lstms


def compressed_of(module, **options):
    options = {"matrices": ("input", "recurrent"), "cp_rank": 1, "tucker_rank": 2, "allow_growth": True, **options}
    return factorize(from_state_dict({f"net.{key}": value for key, value in module.state_dict().items()}), **options)


# Torch says so where both of its CPU kernels could be meant.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_layer_has_states_in_and_out(batch_first):
    compressed = compressed_of(nn.LSTM(6, 4, 2, bidirectional=True, proj_size=3))
    (entry,) = chosen_lstms(compressed, None)
    layer = layer_module(compressed, entry, batch_first=batch_first)
    x, h0, c0 = torch.randn(5, 2, 6), torch.randn(4, 2, 3), torch.randn(4, 2, 4)
    dense = nn.LSTM(6, 4, 2, bidirectional=True, proj_size=3)
    dense.load_state_dict({key.removeprefix("net."): tensor for key, tensor in compressed.dense_state_dict().items()})
    y, (hn, cn) = dense(x, (h0, c0))
    outputs = layer(x.transpose(0, 1) if batch_first else x, h0, c0)
    assert isinstance(layer.layer, BTLSTM)
    torch.testing.assert_close(outputs, (y.transpose(0, 1) if batch_first else y, hn, cn))


@pytest.mark.parametrize("gates", ["fused", "separate"])
def test_a_cell_is_a_layer_that_takes_steps(gates):
    compressed = compressed_of(nn.LSTMCell(6, 4), gates=gates, bits=8)
    (entry,) = chosen_lstms(compressed, None)
    cell = nn.LSTMCell(6, 4)
    cell.load_state_dict({key.removeprefix("net."): tensor for key, tensor in compressed.dense_state_dict().items()})
    x, h0, c0 = torch.randn(3, 2, 6), torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    state, outputs = (h0[0], c0[0]), []
    for step in x:
        state = cell(step, state)
        outputs.append(state[0])
    expected = torch.stack(outputs), state[0][None], state[1][None]
    torch.testing.assert_close(layer_module(compressed, entry)(x, h0, c0), expected)
    double = layer_module(compressed, entry, torch.float64)(x.double(), h0.double(), c0.double())
    torch.testing.assert_close(double, tuple(each.double() for each in expected), rtol=1e-4, atol=1e-5)


def test_a_dense_lstm_is_a_layer_too():
    lstm = nn.LSTM(6, 4)
    compressed = factorize(
        from_state_dict({**lstm.state_dict(), "head.weight": torch.randn(20, 20)}),
        matrices=("linear",),
        layers=("head.weight",),
        cp_rank=1,
    )
    (entry,) = chosen_lstms(compressed, "")
    x, state = torch.randn(3, 2, 6), torch.randn(2, 1, 2, 4)
    y, (hn, cn) = lstm(x, (state[0], state[1]))
    torch.testing.assert_close(layer_module(compressed, entry)(x, *state), (y, hn, cn))
