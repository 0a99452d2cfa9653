"""BTLSTM as a module: what it is built from, what it refuses, and what the rest of torch may do with it."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from btcompress.errors import BTCompressError, ShapeError
from btcompress.nn import BTLSTM
from btcompress.shapes import BlockTermShape, MatrixShape

ARGUMENTS = {"num_layers": 2, "bidirectional": True, "proj_size": 3}
KINDS = (("input",), ("input", "recurrent"))


@pytest.fixture
def student():
    return BTLSTM(6, 5, **ARGUMENTS, cp_rank=2, tucker_rank=2, dtype=torch.float64)


@pytest.fixture
def inputs(generator):
    return torch.randn(4, 3, 6, generator=generator, dtype=torch.float64)


def assert_same(module, other, inputs):
    torch.testing.assert_close(module(inputs), other(inputs), rtol=0, atol=0)


def test_state_dict_names_follow_torch(student):
    dense = [name for name in nn.LSTM(6, 5, **ARGUMENTS).state_dict() if "weight_ih" not in name]
    parts = ("cores", "factors.0", "factors.1")
    matrices = ("weight_ih_l0", "weight_ih_l0_reverse", "weight_ih_l1", "weight_ih_l1_reverse")
    assert set(student.state_dict()) == {*dense, *(f"{matrix}.{part}" for matrix in matrices for part in parts)}


def test_separate_gates_are_named():
    names = set(BTLSTM(6, 5, gates="separate", tucker_rank=1).state_dict())
    assert {f"weight_ih_l0.gate_{gate}.cores" for gate in "ifgo"} < names
    assert "weight_ih_l0.cores" not in names


def test_parameters_are_those_of_the_state_dict_and_are_counted_by_the_shapes(student):
    assert set(dict(student.named_parameters())) == set(student.state_dict())
    dense = sum(parameter.numel() for parameter in student.parameters(recurse=False))
    total = sum(parameter.numel() for parameter in student.parameters())
    assert total == dense + sum(shape.n_params for shape in student.shapes.values())


@pytest.mark.parametrize("gates", ["fused", "separate"])
def test_state_dict_of_one_is_loaded_by_another(gates, inputs):
    first, second = (BTLSTM(6, 5, **ARGUMENTS, gates=gates, dtype=torch.float64) for _ in range(2))
    assert (first(inputs)[0] - second(inputs)[0]).abs().max() > 1e-4
    second.load_state_dict(first.state_dict())
    assert_same(first, second, inputs)


def through_torch_save(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch_save])
def test_copies_compute_the_same_and_share_nothing(copied, student, inputs):
    other = copied(student)
    assert_same(student, other, inputs)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert student(inputs)[0].abs().max() > 1e-4


def test_teacher_and_student_share_no_storage():
    teacher = nn.LSTM(6, 5, **ARGUMENTS)
    student = BTLSTM.from_dense(teacher, tucker_rank=2)
    pointers = [
        {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        for module in (teacher, student, student.to_dense())
    ]
    assert len(set.union(*pointers)) == sum(map(len, pointers))


def test_dtype_and_flags_are_carried_over():
    teacher = nn.LSTM(6, 5, dropout=0.25, num_layers=2, batch_first=True, dtype=torch.bfloat16).eval()
    teacher.weight_ih_l1.requires_grad_(False)
    teacher.bias_hh_l0.requires_grad_(False)
    student = BTLSTM.from_dense(teacher, tucker_rank=2)
    back = student.to_dense()
    for module in (student, back):
        assert not module.training
        assert (module.dropout, module.batch_first) == (0.25, True)
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    frozen = {name.split(".")[0] for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert frozen == {"weight_ih_l1", "bias_hh_l0"}
    assert {name for name, parameter in back.named_parameters() if not parameter.requires_grad} == frozen


@pytest.mark.parametrize("bias", [True, False])
def test_bias_is_neither_lost_nor_invented(bias):
    teacher = nn.LSTM(6, 5, bias=bias)
    student = BTLSTM.from_dense(teacher, tucker_rank=2)
    for module in (student, student.to_dense()):
        assert {name for name in module.state_dict() if "bias" in name} == {
            name for name in teacher.state_dict() if "bias" in name
        }


def test_dense_form_computes_the_same(student, inputs):
    torch.testing.assert_close(student.to_dense()(inputs), student(inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", ["factored", "dense"])
@pytest.mark.parametrize("matrices", KINDS, ids=",".join)
def test_other_dtypes_compute_about_the_same_and_train(dtype, method, matrices, inputs):
    student = BTLSTM(6, 5, num_layers=2, bidirectional=True, method=method, matrices=matrices, dtype=torch.float64)
    expected = student(inputs)[0]
    student.to(dtype)
    outputs, (h, c) = student(inputs.to(dtype))
    assert {outputs.dtype, h.dtype, c.dtype} == {dtype}
    torch.testing.assert_close(outputs.double(), expected, atol=0.02, rtol=0)
    outputs.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())


def test_meta_device_gives_shapes_only(student):
    student.to("meta")
    outputs, (h, c) = student(torch.empty(4, 3, 6, dtype=torch.float64, device="meta"))
    assert outputs.is_meta
    assert [outputs.shape, h.shape, c.shape] == [(4, 3, 6), (4, 3, 3), (4, 3, 5)]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("method", ["factored", "dense"])
@pytest.mark.parametrize("matrices", KINDS, ids=",".join)
def test_autocast_gives_its_dtype_and_full_precision_gradients(method, matrices, inputs):
    student = BTLSTM(6, 5, num_layers=2, bidirectional=True, method=method, matrices=matrices)
    expected = student(inputs.float())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, (h, c) = student(inputs.float())
    assert {outputs.dtype, h.dtype, c.dtype} == {torch.bfloat16}
    torch.testing.assert_close(outputs.float(), expected, atol=0.02, rtol=0)
    outputs.float().sum().backward()
    assert {parameter.grad.dtype for parameter in student.parameters()} == {torch.float32}


def test_parameters_can_be_replaced_in_a_functional_call(student, inputs):
    other = BTLSTM(6, 5, **ARGUMENTS, cp_rank=2, tucker_rank=2, dtype=torch.float64)
    replaced = functional_call(student, dict(other.named_parameters()), (inputs,))
    torch.testing.assert_close(replaced, other(inputs), rtol=0, atol=0)


def replica_of(module):
    """What torch.nn.parallel.replicate makes for one device: parameters become plain attributes."""
    copies = {child: child._replicate_for_data_parallel() for child in module.modules()}
    for original, replica in copies.items():
        for name, child in original._modules.items():
            setattr(replica, name, copies[child])
        for name, parameter in original._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.clone())
    return copies[module]


@pytest.mark.parametrize("gates", ["fused", "separate"])
@pytest.mark.parametrize("method", ["factored", "dense"])
@pytest.mark.parametrize("matrices", KINDS, ids=",".join)
def test_replicas_compute_the_same_and_send_gradients_back(gates, method, matrices, inputs):
    student = BTLSTM(6, 5, **ARGUMENTS, gates=gates, method=method, matrices=matrices, dtype=torch.float64)
    replica = replica_of(student)
    assert not list(replica.parameters())
    assert_same(student, replica, inputs)
    replica(inputs)[0].sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in student.parameters())


@pytest.mark.parametrize("method", ["factored", "dense"])
@pytest.mark.parametrize("matrices", KINDS, ids=",".join)
def test_compiled_module_computes_the_same(method, matrices, inputs):
    shape = {"cp_rank": 2, "tucker_rank": 2, "matrices": matrices}
    # Steps by factors are many operations to trace: two of one layer are enough.
    inputs = inputs if method == "dense" else inputs[:2]
    student = BTLSTM(6, 5, num_layers=2 if method == "dense" else 1, **shape, method=method, dtype=torch.float64)
    with warnings.catch_warnings():
        # The compiler warns that it cannot see into caches and path searches, and leaves them to Python.
        warnings.simplefilter("ignore")
        compiled = torch.compile(student, backend="eager")
        outputs, state = compiled(inputs)
        outputs.sum().backward()
    torch.testing.assert_close((outputs, state), student(inputs))
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_frozen_matrices_get_no_gradient(student, inputs):
    student.weight_ih_l0.requires_grad_(False)
    student(inputs)[0].sum().backward()
    assert {name.split(".")[0] for name, parameter in student.named_parameters() if parameter.grad is None} == {
        "weight_ih_l0"
    }


def test_flatten_parameters_changes_nothing(student, inputs):
    expected = student(inputs)
    student.flatten_parameters()
    torch.testing.assert_close(student(inputs), expected, rtol=0, atol=0)


def test_shown_form_names_arguments_and_shapes():
    shown = repr(BTLSTM(6, 5, num_layers=2, dropout=0.5, in_modes=(2, 3), tucker_rank=2, method="dense"))
    assert "6, 5, num_layers=2, dropout=0.5" in shown
    assert "(weight_ih_l0): BTWeight(20x6, in_modes=(2, 3)" in shown
    assert "bidirectional" not in shown


def test_initial_matrices_have_the_variance_of_a_plain_lstm(generator):
    student = BTLSTM(60, 16, tucker_rank=3, cp_rank=2, order=3)
    drawn = []
    for _ in range(40):
        student.reset_parameters(generator)
        drawn.append(student.weight_ih_l0.to_dense().detach())
        assert student.weight_hh_l0.abs().max() <= 0.25
    assert torch.stack(drawn).var().item() == pytest.approx(nn.LSTM(60, 16).weight_ih_l0.var().item(), rel=0.1)


def test_initial_matrices_of_every_step_have_the_variance_of_a_plain_lstm(generator):
    student = BTLSTM(3, 24, proj_size=20, tucker_rank=3, cp_rank=2, matrices=("recurrent",))
    plain = nn.LSTM(3, 24, proj_size=20)
    drawn = {name: [] for name in student.shapes}
    for _ in range(80):
        student.reset_parameters(generator)
        for name, matrices in drawn.items():
            matrices.append(getattr(student, name).to_dense().detach())
    assert drawn.keys() == {"weight_hh_l0", "weight_hr_l0"}
    for name, matrices in drawn.items():
        assert torch.stack(matrices).var().item() == pytest.approx(getattr(plain, name).var().item(), rel=0.15)


def test_same_generator_draws_the_same_parameters(student):
    other = copy.deepcopy(student)
    for module in (student, other):
        module.reset_parameters(torch.Generator().manual_seed(3))
    torch.testing.assert_close(student.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_size": 0},
        {"input_size": 6.0},
        {"hidden_size": 0},
        {"hidden_size": "5"},
        {"num_layers": 0},
        {"bias": 1},
        {"batch_first": None},
        {"dropout": 1.5},
        {"dropout": True},
        {"proj_size": 5},
        {"proj_size": -1},
    ],
    ids=str,
)
def test_wrong_arguments_raise_what_torch_raises(arguments):
    arguments = {"input_size": 6, "hidden_size": 5, **arguments}
    with pytest.raises((ValueError, TypeError)) as expected:
        nn.LSTM(**arguments)
    with pytest.raises(expected.type, match=str(expected.value).split(",")[0][:20]):
        BTLSTM(**arguments)


def test_dropout_without_a_layer_to_apply_it_to_warns_as_torch_does():
    with pytest.warns(UserWarning, match="dropout"):
        BTLSTM(6, 5, dropout=0.5)


def zeros(*size, dtype=torch.float32):
    return torch.zeros(size, dtype=dtype)


WRONG_INPUTS = {
    "features": (zeros(4, 2, 5), None),
    "one dimension": (zeros(4), None),
    "four dimensions": (zeros(4, 2, 6, 1), None),
    "no steps": (zeros(0, 2, 6), None),
    "no steps, unbatched": (zeros(0, 6), None),
    "dtype": (zeros(4, 2, 6, dtype=torch.float64), None),
    "batch of both states": (zeros(4, 2, 6), (zeros(1, 3, 5), zeros(1, 3, 5))),
    "size of the cell state": (zeros(4, 2, 6), (zeros(1, 2, 5), zeros(1, 2, 4))),
    "number of states": (zeros(4, 2, 6), (zeros(2, 2, 5), zeros(2, 2, 5))),
    "unbatched states": (zeros(4, 2, 6), (zeros(1, 5), zeros(1, 5))),
    "batched states": (zeros(4, 6), (zeros(1, 2, 5), zeros(1, 2, 5))),
    "batch of states, packed": (pack_padded_sequence(zeros(4, 2, 6), [4, 3]), (zeros(1, 3, 5), zeros(1, 3, 5))),
    "features, packed": (pack_padded_sequence(zeros(4, 2, 5), [4, 3]), None),
}


@pytest.mark.parametrize(("inputs", "state"), WRONG_INPUTS.values(), ids=WRONG_INPUTS)
def test_wrong_inputs_raise_what_torch_raises(inputs, state):
    with pytest.raises((ValueError, RuntimeError)) as expected:
        nn.LSTM(6, 5)(inputs, state)
    for method in ("factored", "dense"):
        for matrices in KINDS:
            with pytest.raises(expected.type):
                BTLSTM(6, 5, method=method, matrices=matrices)(inputs, state)


@pytest.mark.parametrize("method", ["factored", "dense"])
def test_input_without_steps_is_named_as_such(method):
    with pytest.raises(RuntimeError, match="input has no steps"):
        BTLSTM(6, 5, method=method)(zeros(0, 2, 6))


def test_modes_that_fit_no_matrix_are_refused():
    with pytest.raises(ShapeError, match=r"in_modes 5,7 multiplies to 35, but weight_ih_l0 has 12 inputs"):
        BTLSTM(12, 6, 2, in_modes=(5, 7))


def test_shapes_of_unknown_matrices_are_refused():
    with pytest.raises(ShapeError, match=r"bias_hh_l0, but the matrices are weight_ih_l0, weight_hh_l0\. Use"):
        BTLSTM(6, 5, shapes={"bias_hh_l0": None})


def test_shape_of_another_matrix_is_refused():
    with pytest.raises(ShapeError, match="weight_ih_l0 is 20 x 6, but its block-term shape is for 20 x 8"):
        BTLSTM(6, 5, shapes={"weight_ih_l0": MatrixShape(BlockTermShape((2, 4), (5, 4), (2, 3)))})


def test_parts_of_another_shape_are_refused(student):
    other = BTLSTM(6, 5, tucker_rank=1, dtype=torch.float64)
    with pytest.raises(ShapeError, match="cannot hold"):
        student.weight_ih_l0.load(other.weight_ih_l0.parts)


def test_unknown_method_is_refused():
    with pytest.raises(BTCompressError, match="auto, factored, dense, but 'fast' was given"):
        BTLSTM(6, 5, method="fast")


@pytest.mark.parametrize("matrices", [("input",), ("input", "recurrent")], ids=len)
def test_batch_without_sequences_gives_none_in_every_way(matrices):
    module = BTLSTM(6, 5, cp_rank=2, tucker_rank=2, matrices=matrices)
    for way in module.ways("l0"):
        module.choice.pin(way)
        for asks in (False, True):
            with torch.set_grad_enabled(asks):
                outputs, (h, c) = module(torch.zeros(4, 0, 6))
            assert [outputs.shape, h.shape, c.shape] == [(4, 0, 5), (1, 0, 5), (1, 0, 5)]
