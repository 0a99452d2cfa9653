from dataclasses import replace

import pytest
import torch
from torch import nn

import btcompress
from btcompress.checkpoint import write
from btcompress.errors import OutputError
from btcompress.finetune.readback import check_same_outputs


class Net(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.rnn = nn.LSTM(12, 8, num_layers=2, bidirectional=True, dtype=dtype)
        self.cell = nn.LSTMCell(6, 8, dtype=dtype)
        self.head = nn.Linear(16, 6, dtype=dtype)


def compressed_net(dtype=torch.float32):
    kinds = ("input", "recurrent", "linear")
    return btcompress.factorize(Net(dtype), tucker_rank=2, matrices=kinds, allow_growth=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_computes_the_same(tmp_path, dtype):
    compressed = compressed_net(dtype)
    seen = []
    write(compressed, tmp_path / "out", check=lambda again: seen.append(check_same_outputs(compressed, again)))
    assert seen == [None]


@pytest.mark.parametrize(
    "name",
    ["rnn.bias_hh_l1_reverse", "rnn.weight_ih_l0.cores", "cell.weight_hh.factors.0", "head.weight.factors.1"],
)
def test_another_number_in_any_part_is_found_and_nothing_is_written(tmp_path, name):
    compressed = compressed_net()
    other = replace(compressed, tensors={**compressed.tensors, name: compressed.tensors[name] * 1.01 + 0.01})
    with pytest.raises(OutputError, match=f"{name.split('.')[0]}.* gives other outputs"):
        write(compressed, tmp_path / "out", check=lambda _: check_same_outputs(compressed, other))
    assert list(tmp_path.iterdir()) == []
