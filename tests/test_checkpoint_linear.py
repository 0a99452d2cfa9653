import pytest
import torch
from torch import nn

from btcompress.checkpoint import find_linear, find_recurrent


def found(tensors):
    return {entry.key: entry for entry in find_linear(tensors, find_recurrent(tensors))}


def test_matrices_with_a_bias_beside_them_are_linear_layers_in_natural_order():
    state = nn.Sequential(*(nn.Linear(n + 2, n + 1) for n in range(11))).state_dict()
    entries = list(found(state).values())
    assert [entry.name for entry in entries] == [str(n) for n in range(11)]
    assert all(entry.bias and entry.obstacle is None for entry in entries)
    assert (entries[3].out_features, entries[3].in_features) == (4, 5)


def test_layer_at_the_top_has_no_name():
    assert found(nn.Linear(3, 2).state_dict())["weight"].name == ""


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2),
        nn.GRU(4, 3),
        nn.LSTMCell(4, 3),
        nn.Conv1d(4, 3, 1),
        nn.Conv2d(4, 3, 1),
        nn.LayerNorm(4),
        nn.BatchNorm1d(4),
        nn.Bilinear(2, 3, 4),
    ],
    ids=lambda module: type(module).__name__,
)
def test_weights_of_other_layers_are_none(module):
    assert not found({f"layer.{name}": tensor for name, tensor in module.state_dict().items()})


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.weight": torch.zeros(3, 2, dtype=torch.int8), "a.bias": torch.zeros(3)},
        {"a.weight": torch.zeros(3, 0), "a.bias": torch.zeros(3)},
        {"a.my_weight": torch.zeros(3, 2), "a.bias": torch.zeros(3)},
        {
            f"rnn.parametrizations.weight_hh_l0.0.{k}": torch.zeros(s)
            for k, s in {"weight": (3, 2), "bias": (3,)}.items()
        },
        {"attention.in_proj_weight": torch.zeros(6, 2), "attention.in_proj_bias": torch.zeros(6)},
    ],
    ids=["whole numbers", "empty", "another name", "within an LSTM", "attention"],
)
def test_tensors_that_only_look_alike_are_none(tensors):
    assert not found(tensors)


def test_matrix_without_a_bias_of_its_rows_is_marked():
    tensors = {"a.weight": torch.zeros(3, 2), "b.weight": torch.zeros(3, 2), "b.bias": torch.zeros(2)}
    assert [entry.bias for entry in found(tensors).values()] == [False, False]


def test_tied_weights_name_what_they_are_tied_to():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "free": nn.Linear(4, 5), "head": nn.Linear(4, 5)})
    model["head"].weight = model["embedding"].weight
    entries = found(model.state_dict())
    assert "tied to embedding.weight" in entries["head.weight"].obstacle
    assert "tied to head.weight" in entries["embedding.weight"].obstacle
    assert entries["free.weight"].obstacle is None


def test_layers_that_attention_reads_directly_are_marked():
    model = nn.ModuleDict(
        {
            "encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6), 1, enable_nested_tensor=False),
            "mixed": nn.MultiheadAttention(4, 2, kdim=3, vdim=5, bias=False),
            "head": nn.Linear(4, 2),
        }
    )
    obstacles = {key: entry.obstacle for key, entry in found(model.state_dict()).items()}
    assert {key for key, obstacle in obstacles.items() if obstacle is None} == {"head.weight"}
    assert set(obstacles) == {
        "head.weight",
        "mixed.out_proj.weight",
        *(f"encoder.layers.0.{name}.weight" for name in ("self_attn.out_proj", "linear1", "linear2")),
    }


def test_shapes_without_values_serve():
    assert set(found(nn.Linear(3, 2, device="meta").state_dict())) == {"weight"}
