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
        # Of these two, the file names the second one first.
        self.layer2, self.layer10 = nn.Linear(12, 8, dtype=dtype), nn.Linear(9, 4, dtype=dtype)


def compressed_net(dtype=torch.float32):
    kinds = ("input", "recurrent", "linear")
    return btcompress.factorize(Net(dtype), tucker_rank=2, matrices=kinds, allow_growth=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_computes_the_same(tmp_path, dtype):
    compressed = compressed_net(dtype)
    seen = []
    write(compressed, tmp_path / "out", check=lambda again: seen.append(check_same_outputs(compressed, again)))
    assert seen == [None]


@pytest.mark.parametrize("n_inputs", [262, 263, 300, 511])
def test_where_numbers_lie_in_memory_does_not_matter(tmp_path, n_inputs):
    compressed = btcompress.factorize(nn.Linear(n_inputs, 150), cp_rank=2, matrices=("linear",))
    write(compressed, tmp_path / "out", check=lambda again: check_same_outputs(compressed, again))
    for shift in range(1, 16):
        moved = {}
        for name, tensor in compressed.tensors.items():
            room = torch.empty(tensor.numel() + shift)[shift:]
            moved[name] = room.copy_(tensor.reshape(-1)).reshape(tensor.shape)
        check_same_outputs(compressed, replace(compressed, tensors=moved))


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
