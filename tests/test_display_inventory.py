"""What a dry run and inspect show of bits and bytes, held against tensors that are really packed."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from btcompress import display
from btcompress.checkpoint import from_state_dict
from btcompress.fit.rounding import nearest
from btcompress.modes import ShapeRequest
from btcompress.packing import FLOATS, Integers, pack_bits
from btcompress.plan import PlannedRounding, make_plan


@pytest.fixture
def checkpoint():
    model = nn.ModuleDict({"lstm": nn.LSTM(35, 9), "head": nn.Linear(9, 5), "words": nn.Embedding(11, 7)})
    return from_state_dict(model.state_dict())


def packed_bytes(tensor, precision):
    """Bytes of a tensor as it is stored, counted on what is stored."""
    if not isinstance(precision, Integers):
        return tensor.to(precision).nbytes
    packed = nearest(tensor, precision)
    return (
        len(pack_bits(packed.codes, precision.bits))
        + len(pack_bits(packed.zeros, precision.bits + 1))
        + packed.scales.nbytes
    )


def shown(checkpoint, plan, capsys):
    display.show_inventory_json(checkpoint, plan)
    return json.loads(capsys.readouterr().out)["matrices"]


@pytest.mark.parametrize("gates", ["fused", "separate"])
@pytest.mark.parametrize("precision", [None, *FLOATS.values(), Integers(3, 8), Integers(8), Integers(4, 4096)], ids=str)
def test_bytes_of_block_terms_are_those_of_their_tensors_as_stored(precision, gates, checkpoint, capsys):
    plan = make_plan(checkpoint, ShapeRequest(2, 2, gates=gates))
    (planned,) = plan.matrices
    for shape in (planned.shape, planned.shape.ordered(("row_order", "column_order"))):
        of_numbers = sum(
            packed_bytes(torch.randn(size), precision or torch.float32) for size in shape.part.tensor_shapes
        )
        of_orders = sum(torch.arange(size, dtype=torch.int32).nbytes for size in shape.part.order_sizes.values())
        row = shown(checkpoint, replace(plan, matrices=(replace(planned, shape=shape, precision=precision),)), capsys)[
            0
        ]
        assert row["bytes_after"] == shape.n_parts * (of_numbers + of_orders)
        assert row["bytes_before"] == checkpoint.tensors[planned.name].nbytes
        assert row["form"] == "block_terms"
        assert row["precision"] == str(precision or torch.float32).removeprefix("torch.")


@pytest.mark.parametrize("precision", [torch.float16, Integers(2, 8), Integers(5), Integers(8, 4096)], ids=str)
def test_bytes_of_what_stays_dense_are_those_of_the_matrix_as_stored(precision, checkpoint, capsys):
    plan = replace(make_plan(checkpoint, ShapeRequest()), matrices=())
    matrix = checkpoint.tensors["words.weight"]
    rounded = (PlannedRounding("words.weight", tuple(matrix.shape), precision),)
    (row,) = shown(checkpoint, replace(plan, rounded=rounded), capsys)
    assert row["bytes_after"] == packed_bytes(matrix, precision)
    assert (row["name"], row["form"], row["shape"]) == ("words.weight", "dense", [11, 7])
    assert row["params_before"] == row["params_after"] == 77


def test_the_table_says_what_is_stored_how_and_in_how_many_bytes(checkpoint, capsys):
    plan = make_plan(checkpoint, ShapeRequest(1, 2))
    planned = (replace(plan.matrices[0], precision=Integers(4)),)
    rounded = (PlannedRounding("lstm.weight_hh_l0", (36, 9), torch.bfloat16),)
    display.show_plan(checkpoint, replace(plan, matrices=planned, rounded=rounded))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first, second = (next(line for line in lines if line[:1] == [name]) for name in (planned[0].name, rounded[0].name))
    after = sum(packed_bytes(torch.randn(size), Integers(4)) for size in planned[0].shape.part.tensor_shapes)
    assert first[-6:] == ["int4/32", "5.0", "kB", f"{after}", "bytes", f"{5040 / after:.3g}x"]
    assert second[1:] == ["-", "-", "324", "324", "1.00x", "bfloat16", "1.3", "kB", "648", "bytes", "2.00x"]
    assert lines[lines.index(second) + 2] == ["as", "dense"]
