"""What prediction keeps is never used where it is stale, and is no part of what a module saves, copies or sends."""

import copy
import io
import pickle
import threading
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from btcompress.nn import BTLSTM, BTLinear, BTLSTMCell, BTWeight
from btcompress.nn.formed import Formed, _tensors_in
from btcompress.nn.ways import Way
from btcompress.shapes import BlockTermShape, MatrixShape

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

INPUTS, H = 8, 6
FACTORS, DENSE = "factors", "dense"


def low_rank(rows, columns, rank=2):
    return MatrixShape(BlockTermShape.low_rank(rows, columns, rank, 4))


def ordered(rows, columns, rank=2):
    return low_rank(rows, columns, rank).ordered(("row_order", "column_order"))


def block_terms(rows, columns, rank=2):
    return MatrixShape(BlockTermShape((2, columns // 2), (4, rows // 4), (rank, rank), 2, n_gates=4))


def make_lstm(w, u, way, dtype=torch.float32, inputs=INPUTS, hidden=H, rank=2, **arguments):
    shapes = {"weight_ih_l0": w and w(4 * hidden, inputs, rank), "weight_hh_l0": u and u(4 * hidden, hidden, rank)}
    if arguments.get("bidirectional"):
        shapes |= {f"{name}_reverse": shape for name, shape in shapes.items()}
    # Where it cannot be run in this way it goes by its factors too.
    method = "factored" if way.recurrent == FACTORS else "auto"
    lstm = BTLSTM(inputs, hidden, dtype=dtype, shapes=shapes, method=method, **arguments)
    lstm.choice.pin(way)
    return lstm


def inputs_of(lstm, steps, batch):
    """Inputs and a state."""
    n_states, dtype = lstm.num_layers * (1 + lstm.bidirectional), lstm.weight_hh_l0.dtype
    sizes = ((lstm.proj_size or lstm.hidden_size), lstm.hidden_size)
    state = tuple(torch.randn(n_states, batch, size, dtype=dtype) for size in sizes)
    return torch.randn(steps, batch, lstm.input_size, dtype=dtype), state


def lstm_of(steps, batch, *layer, **options):
    """What makes an LSTM, its inputs, and the dense LSTM of the same matrices."""

    def make(dtype=torch.float32):
        lstm = make_lstm(*layer, dtype=dtype, **options)
        return lstm, inputs_of(lstm, steps, batch)

    return make


def make_cell(batch, w, u, way):
    def make(dtype=torch.float32):
        shapes = {"weight_ih": w and w(4 * H, INPUTS), "weight_hh": u and u(4 * H, H)}
        method = "factored" if way.recurrent == FACTORS else "auto"
        cell = BTLSTMCell(INPUTS, H, dtype=dtype, shapes=shapes, method=method)
        cell.choice.pin(way)
        state = tuple(torch.randn(*batch, H, dtype=dtype) for _ in range(2))
        return cell, (torch.randn(*batch, INPUTS, dtype=dtype), state)

    return make


def make_linear(shape, method, rows=3):
    def make(dtype=torch.float32):
        linear = BTLinear(INPUTS, 20, shape=shape(20, INPUTS), method=method, dtype=dtype)
        return linear, (torch.randn(rows, INPUTS, dtype=dtype),)

    return make


#: Modules that keep views of factors, matrices formed, layouts for loops and for both kernels, and prepared products.
MAKERS = {
    "step by factors": lstm_of(1, 1, low_rank, low_rank, Way("loop", FACTORS, FACTORS)),
    "step, in other orders": lstm_of(1, 1, ordered, ordered, Way("loop", FACTORS, FACTORS)),
    "step by block terms": lstm_of(1, 1, block_terms, block_terms, Way("loop", FACTORS, DENSE)),
    "loop of one": lstm_of(4, 1, low_rank, low_rank, Way("loop", FACTORS, FACTORS)),
    "loop of one, dense": lstm_of(4, 1, ordered, None, Way("loop", DENSE, DENSE)),
    "loop": lstm_of(4, 3, low_rank, ordered, Way("loop", FACTORS, FACTORS), bidirectional=True),
    "loop, dense": lstm_of(4, 3, block_terms, block_terms, Way("loop", DENSE, DENSE)),
    "packed kernel": lstm_of(4, 3, low_rank, low_rank, Way("kernel", FACTORS, DENSE), bidirectional=True),
    "packed kernel, dense": lstm_of(4, 3, ordered, None, Way("kernel", DENSE, DENSE)),
    "packed kernel, block terms": lstm_of(4, 3, block_terms, block_terms, Way("kernel", FACTORS, DENSE)),
    "kernel": lstm_of(4, 3, low_rank, None, Way("kernel", FACTORS, DENSE), num_layers=2, proj_size=3),
    "definition": lstm_of(4, 3, block_terms, block_terms, Way("definition", FACTORS, FACTORS)),
    "definition, dense": lstm_of(4, 3, low_rank, block_terms, Way("definition", FACTORS, DENSE)),
    "cell": make_cell((), low_rank, low_rank, Way("loop", FACTORS, FACTORS)),
    "cell, several": make_cell((3,), ordered, low_rank, Way("loop", FACTORS, FACTORS)),
    "cell by a kernel": make_cell((3,), block_terms, None, Way("kernel", FACTORS, DENSE)),
    "linear by block terms": make_linear(block_terms, "factored"),
    "linear by low rank": make_linear(low_rank, "factored"),
    "linear, in other orders": make_linear(ordered, "factored"),
    "linear, dense": make_linear(block_terms, "dense"),
}


@pytest.fixture(params=MAKERS)
def made(request):
    """A module that has predicted twice, and its inputs."""
    module, inputs = MAKERS[request.param]()
    predict(module, inputs)
    predict(module, inputs)
    return module, inputs


def flat(results):
    if isinstance(results, torch.Tensor):
        return [results]
    return [each for result in results for each in flat(result)]


def predict(module, inputs, mode=torch.no_grad):
    with mode():
        return flat(module(*inputs))


def plainly(module, inputs):
    """What the dense module of the parameters as they are now gives, in float64."""
    with torch.no_grad():
        dense = copy.deepcopy(module).to_dense().double()
        return flat(dense(*doubled(inputs)))


def doubled(inputs):
    return [tuple(part.double() for part in each) if isinstance(each, tuple) else each.double() for each in inputs]


def assert_fresh(module, inputs, before=None):
    """Predictions are those of the parameters as they are now, and no longer those of before."""
    expected = plainly(module, inputs)
    dtype = flat(inputs)[0].dtype
    tolerances = {} if dtype.itemsize > 2 else {"atol": 0.02, "rtol": 0.02}
    for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
        actual = predict(module, inputs, mode)
        torch.testing.assert_close(
            [each.double() for each in actual],
            [each.to(dtype).double() for each in expected],
            **(tolerances or {"rtol": 1e-5, "atol": 1e-5}),
        )
    if before is not None:
        assert max((one - other).abs().max() for one, other in zip(actual, before, strict=True)) > 1e-4
    return actual


def each_parameter(module):
    """Parameters one by one, by name: what becomes of each has to be seen."""
    return list(module.named_parameters())


def step_of_an_optimizer(parameter):
    parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD([parameter], lr=0.3).step()


def in_place(parameter):
    with torch.no_grad():
        parameter.mul_(-1.5)


def under_inference_mode(parameter):
    with torch.inference_mode():
        parameter.add_(0.4)


def through_data(parameter):
    parameter.data.mul_(-1.5)


def copied_to_data(parameter):
    parameter.data.copy_(parameter.detach() + 0.4)


def data_set(parameter):
    parameter.data = parameter.detach() * 0.3 + 0.4


def data_set_twice(parameter):
    data_set(parameter)
    data_set(parameter)


def through_numpy(parameter):
    parameter.detach().numpy()[...] += 0.4


def one_number_through_numpy(parameter):
    parameter.detach().numpy().reshape(-1)[-1] += 3


def in_another_thread(parameter):
    thread = threading.Thread(target=in_place, args=(parameter,))
    thread.start()
    thread.join()


def in_other_strides(parameter):
    parameter.data = (0.3 * torch.randn(*parameter.shape, 2, dtype=parameter.dtype))[..., 0]


def swapped(parameter):
    torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach() * 0.3 + 0.4))


CHANGES = [
    step_of_an_optimizer,
    in_place,
    under_inference_mode,
    through_data,
    copied_to_data,
    data_set,
    data_set_twice,
    through_numpy,
    one_number_through_numpy,
    in_another_thread,
    in_other_strides,
    swapped,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_any_parameter_is_seen(change, made):
    module, inputs = made
    for _, parameter in each_parameter(module):
        before = predict(module, inputs)
        if change is swapped:
            let_swap(module)
        change(parameter)
        assert_fresh(module, inputs, before)


def let_swap(module):
    """Torch swaps no tensor of which there are views, as a linear layer keeps."""
    if isinstance(module, BTLinear) and module.weight.is_low_rank:
        module.drop_formed()


def test_changes_of_what_is_no_one_piece_of_memory_are_seen(made):
    module, inputs = made
    for _, parameter in each_parameter(module):
        in_other_strides(parameter)
        for change in (through_data, through_numpy, in_place):
            before = assert_fresh(module, inputs)
            change(parameter)
            assert_fresh(module, inputs, before)


def test_other_strides_in_the_same_memory_are_seen():
    module = nn.Linear(5, 5)
    formed = Formed(module)
    assert formed.is_of_now()
    module.weight.data = module.weight.data.T
    assert not formed.is_of_now()


#: Changes of large tensors that leave many sums as they are.
QUIET = {
    "negated": lambda data: data.neg_(),
    "doubled": lambda data: data.mul_(2),
    "reversed": lambda data: data.copy_(data.flip(0).clone()),
    "rolled": lambda data: data.copy_(data.roll(1, 0)),
    "neighbours swapped": lambda data: swap(data, 0, 1),
    "last row first": lambda data: swap(data, 0, len(data) - 1),
    "columns reversed": lambda data: data.copy_(data.flip(1).clone()),
    "first and last number swapped": lambda data: swap(data.view(-1), 0, data.numel() - 1),
    "second and fourth number swapped": lambda data: swap(data.view(-1), 1, 3),
    "one bit": lambda data: data.view(torch.int16).view(-1)[-1].bitwise_xor_(1),
}


def swap(data, first, second):
    data[[first, second]] = data[[second, first]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quiet", QUIET)
def test_what_leaves_sums_as_they_are_is_seen_in_large_tensors(quiet, dtype):
    module = nn.Module()
    for rows, columns in ((64, 64), (4096, 2), (4, 1024), (255, 255), (509, 9), (2039, 3), (4078, 2), (4001, 2)):
        module.weight = nn.Parameter(torch.randn(rows, columns, dtype=dtype))
        formed = Formed(module)

        def form(own=module.weight):
            return own.detach().clone()

        formed.get("key", (module.weight,), form)
        for _ in range(3):
            QUIET[quiet](module.weight.data)
            assert torch.equal(formed.get("key", (module.weight,), form), module.weight), (rows, columns)
        known = formed.get("key", (module.weight,), form)
        assert formed.get("key", (module.weight,), form) is known


@pytest.mark.parametrize("way", [Way("kernel", FACTORS, DENSE), Way("loop", FACTORS, FACTORS)], ids=str)
def test_large_parameters_are_watched_as_small_ones(way):
    def make():
        module, inputs = lstm_of(4, 2, low_rank, low_rank, way, inputs=70, hidden=64, rank=16)()
        return module, inputs, predict(module, inputs)

    module, *_ = make()
    assert max(parameter.numel() for parameter in module.parameters()) > 4000
    for name, _ in each_parameter(module):
        for change in (through_data, through_numpy, data_set, in_place):
            module, inputs, before = make()
            change(module.get_parameter(name))
            assert_fresh(module, inputs, before)
    for n in range(2):
        module, inputs, before = make()
        rows = module.weight_ih_l0.factors.tensors()[n].data.view(-1, 16)
        rows.copy_(rows.flip(0).clone())
        assert_fresh(module, inputs, before)


def other_of(module):
    """A module of the same kind with other parameters."""
    other = copy.deepcopy(module)
    other.reset_parameters(torch.Generator().manual_seed(5))
    for _, order in other.named_buffers():
        order.copy_(torch.randperm(len(order)))
    return other


def own_state(module, other, **options):
    module.load_state_dict(other.state_dict(), **options)


def through_a_parent(module, other, **options):
    parent, given = nn.ModuleDict({"own": module}), nn.ModuleDict({"own": other})
    parent.load_state_dict(given.state_dict(), **options)


def matrices_alone(module, other, **options):
    for name, weight in module.named_children():
        weight.load_state_dict(other.get_submodule(name).state_dict(), **options)


def matrices_loaded(module, other):
    for name, weight in module.named_children():
        weight.load(other.get_submodule(name).parts)


def matrices_replaced(module, other):
    for name, weight in list(other.named_children()):
        setattr(module, name, weight)


def parameters_replaced(module, other):
    for name, _ in list(module.named_parameters()):
        path, _, own = name.rpartition(".")
        setattr(module.get_submodule(path), own, other.get_parameter(name))


def orders_alone(module, other):
    for name, order in module.named_buffers():
        order.copy_(other.get_buffer(name))


def orders_replaced(module, other):
    for name, _ in list(module.named_buffers()):
        path, _, own = name.rpartition(".")
        setattr(module.get_submodule(path), own, other.get_buffer(name))


def everything_swapped(module, other):
    for name, own in list(module.named_parameters()):
        torch.utils.swap_tensors(own, nn.Parameter(other.get_parameter(name).detach().clone()))


LOADS = {
    "state dict": own_state,
    "state dict, assigned": partial(own_state, assign=True),
    "by a parent": through_a_parent,
    "by a parent, assigned": partial(through_a_parent, assign=True),
    "matrices alone": matrices_alone,
    "matrices alone, assigned": partial(matrices_alone, assign=True),
    "matrices loaded": matrices_loaded,
    "matrices replaced": matrices_replaced,
    "parameters replaced": parameters_replaced,
    "swapped": everything_swapped,
}


@pytest.mark.parametrize("load", LOADS)
def test_other_parameters_are_used_once_they_are_loaded(load, made):
    module, inputs = made
    before = predict(module, inputs)
    if load == "swapped":
        let_swap(module)
    LOADS[load](module, other_of(module))
    assert_fresh(module, inputs, before)


@pytest.mark.parametrize("load", [orders_alone, orders_replaced])
@pytest.mark.parametrize("name", ["step, in other orders", "loop of one, dense", "linear, in other orders"])
def test_other_orders_are_used_once_they_are_there(load, name):
    module, inputs = MAKERS[name]()
    before = predict(module, inputs)
    load(module, other_of(module))
    assert_fresh(module, inputs, before)
    assert_fresh(module, inputs)


@pytest.mark.parametrize(
    "call",
    [
        lambda module: module.train(),
        lambda module: module.eval(),
        lambda module: nn.Sequential(module).train(),
        lambda module: nn.Sequential(module).eval(),
        lambda module: module.load_state_dict(module.state_dict()),
        lambda module: nn.Sequential(module).load_state_dict(nn.Sequential(module).state_dict()),
        lambda module: module.to(torch.float64),
        lambda module: module.to("cpu", torch.float16),
        lambda module: module.double(),
        lambda module: nn.Sequential(module).half(),
        lambda module: module.to("meta"),
        lambda module: module.share_memory(),
        lambda module: module.drop_formed(),
    ],
)
def test_what_is_kept_is_dropped(call, made):
    module, inputs = made
    keeping = copy.deepcopy(module)
    predict(keeping, inputs)
    assert keeping._formed is not None
    call(keeping)
    assert keeping._formed is None
    assert keeping.formed_bytes == 0


def test_dtypes_change_and_change_back(made):
    module, inputs = made
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        module.to(dtype)
        given = [
            tuple(part.to(dtype) for part in each) if isinstance(each, tuple) else each.to(dtype) for each in inputs
        ]
        assert_fresh(module, given)


def test_storage_lost_and_found(made):
    module, inputs = made
    other = other_of(module)
    before = predict(module, inputs)
    module.to("meta")
    elsewhere = [
        tuple(part.to("meta") for part in each) if isinstance(each, tuple) else each.to("meta") for each in inputs
    ]
    assert [each.shape for each in predict(module, elsewhere)] == [each.shape for each in before]
    module.to_empty(device="cpu").load_state_dict(other.state_dict())
    assert_fresh(module, inputs, before)


def through_torch_save(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), through_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_keeps_nothing_and_each_goes_on_alone(copied, made):
    module, inputs = made
    kept = module.formed_bytes
    other = copied(module)
    assert other._formed is None
    assert module.formed_bytes == kept
    before = predict(module, inputs)
    torch.testing.assert_close(predict(other, inputs), before, rtol=0, atol=0)
    for parameter in other.parameters():
        in_place(parameter)
    changed = assert_fresh(other, inputs, before)
    torch.testing.assert_close(predict(module, inputs), before, rtol=0, atol=0)
    for parameter in module.parameters():
        data_set(parameter)
    assert_fresh(module, inputs, before)
    torch.testing.assert_close(predict(other, inputs), changed, rtol=0, atol=0)


def test_a_shallow_copy_sees_what_it_shares(made):
    module, inputs = made
    other = copy.copy(module)
    for parameter in module.parameters():
        through_data(parameter)
    assert_fresh(other, inputs)
    assert_fresh(module, inputs)


def test_what_is_kept_is_saved_nowhere(made):
    module, inputs = made
    fresh = copy.deepcopy(module)
    if not isinstance(module, BTLinear):
        fresh.choice.forget()
    assert fresh._formed is None
    assert module._formed is not None
    assert list(module.state_dict()) == list(fresh.state_dict())
    assert [name for name, _ in module.named_modules()] == [name for name, _ in fresh.named_modules()]
    assert [name for name, _ in module.named_buffers()] == [name for name, _ in fresh.named_buffers()]
    before = len(pickle.dumps(module))
    predict(module, inputs)
    assert len(pickle.dumps(module)) == before
    module.drop_formed()
    assert len(pickle.dumps(module)) == before


#: What has views of factors, and lays nothing out.
FORM = [name for name in MAKERS if name not in ("step by factors", "cell", "linear by low rank")]


@pytest.mark.parametrize("name", MAKERS)
def test_bytes_are_those_of_what_is_formed(name):
    module, inputs = MAKERS[name]()
    assert module.formed_bytes == 0
    predict(module, inputs)
    first = module.formed_bytes
    assert (first > 0) == (name in FORM)
    for _ in range(3):
        predict(module, inputs)
    assert module.formed_bytes == first
    for parameter in module.parameters():
        in_place(parameter)
    predict(module, inputs)
    assert module.formed_bytes == first


def test_a_dense_matrix_that_is_kept_takes_its_bytes():
    linear, inputs = make_linear(block_terms, "dense")()
    predict(linear, inputs)
    assert linear.formed_bytes == 20 * INPUTS * 4
    lstm, inputs = lstm_of(4, 3, block_terms, block_terms, Way("loop", DENSE, DENSE))()
    predict(lstm, inputs)
    assert lstm.formed_bytes == 4 * H * (INPUTS + H) * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_laid_out_is_kept_in_its_layout_alone(dtype):
    """Torch's kernels and loops of one sequence have matrices in a layout of their own."""
    for steps in ("kernel", "loop"):
        lstm, inputs = lstm_of(4, 1, block_terms, block_terms, Way(steps, DENSE, DENSE))(dtype)
        predict(lstm, inputs)
        biases = 2 * 4 * H if steps == "kernel" and dtype == torch.float64 else 0
        assert lstm.formed_bytes == (4 * H * (INPUTS + H) + biases) * dtype.itemsize


def test_keeping_can_be_switched_off_and_on(made):
    module, inputs = made
    before = predict(module, inputs)
    assert module.keeps_formed
    module.keeps_formed = False
    assert module._formed is None
    for _ in range(2):
        torch.testing.assert_close(predict(module, inputs), before)
        assert module.formed_bytes == 0
        assert module._formed is None
    for parameter in module.parameters():
        through_data(parameter)
    assert_fresh(module, inputs, before)
    module.keeps_formed = True
    assert_fresh(module, inputs)
    assert module._formed is not None


def test_what_is_kept_is_used_again(made, monkeypatch):
    module, inputs = made
    before = predict(module, inputs)
    formed = []
    for name in ("to_dense", "prepare"):
        own = getattr(BTWeight, name)
        monkeypatch.setattr(BTWeight, name, lambda weight, own=own, name=name: formed.append(name) or own(weight))
    monkeypatch.setattr("btcompress.nn.prediction.transposed", lambda recurrent: formed.append("transposed"))
    after = predict(module, inputs)
    assert not formed
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_gradients_are_those_of_now_after_a_prediction(made):
    module, inputs = made
    fresh = copy.deepcopy(module)
    fresh.keeps_formed = False
    names = [name for name, _ in module.named_parameters()]
    for mode in (torch.no_grad, torch.inference_mode):
        predict(module, inputs, mode)
        own, other = (
            torch.autograd.grad(sum(each.square().sum() for each in flat(given(*inputs))), [*given.parameters()])
            for given in (module, fresh)
        )
        for name, one, two in zip(names, own, other, strict=True):
            assert one.abs().max() > 0, name
            torch.testing.assert_close(one, two)
        for _ in range(2):
            for given in (module, fresh):
                given.zero_grad()
                sum(each.square().sum() for each in flat(given(*inputs))).backward()
                torch.optim.SGD(given.parameters(), lr=0.01).step()
        assert_fresh(module, inputs)
    torch.testing.assert_close(module.state_dict(), fresh.state_dict())


def test_what_inference_mode_leaves_is_for_every_mode(made):
    module, inputs = made
    module.drop_formed()
    predict(module, inputs, torch.inference_mode)
    kept = [tensor for record in module._formed._records.values() for tensor in _tensors_in(record.value)]
    assert not any(tensor.is_inference() for tensor in kept)


@pytest.mark.parametrize("name", [name for name in MAKERS if not name.startswith("linear")])
def test_states_of_another_dtype_or_size_are_refused_as_before(name):
    module, (first, (h, c)) = MAKERS[name]()
    fresh = copy.deepcopy(module)
    fresh.keeps_formed = False
    wrong = [(h.double(), c), (h, c.double()), (h.double(), c.double()), (h[..., :-1], c), (h, c[..., :-1])]
    wrong += [(h.to("meta"), c.to("meta")), (h.unsqueeze(0), c.unsqueeze(0))]
    with torch.no_grad():
        module(first, (h, c))
        for state in wrong:
            assert_same_outcome(module, fresh, first, state)
        for inputs in (first.double(), first[..., :-1], first.to("meta")):
            assert_same_outcome(module, fresh, inputs, (h, c))


def assert_same_outcome(module, fresh, *inputs):
    """Both raise errors of one kind, or give the same."""
    try:
        expected = flat(fresh(*inputs))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        with pytest.raises(type(error)):
            module(*inputs)
    else:
        torch.testing.assert_close(flat(module(*inputs)), expected)


def test_gradients_that_are_asked_for_later_are_given(made):
    module, inputs = made
    module.requires_grad_(False)
    fixed = flat(module(*inputs))
    assert not any(each.requires_grad for each in fixed)
    for name, parameter in each_parameter(module):
        parameter.requires_grad_(True)
        results = flat(module(*inputs))
        torch.testing.assert_close(results, fixed)
        (gradient,) = torch.autograd.grad(sum(each.square().sum() for each in results), [parameter])
        assert gradient.abs().max() > 0, name
        parameter.requires_grad_(False)
        assert not any(each.requires_grad for each in flat(module(*inputs)))
    given = inputs[0].clone().requires_grad_()
    results = flat(module(given, *inputs[1:]))
    (gradient,) = torch.autograd.grad(sum(each.square().sum() for each in results), [given])
    assert gradient.abs().max() > 0


def test_parameters_can_be_replaced_for_one_call(made):
    module, inputs = made
    other = other_of(module)
    for _, order in other.named_buffers():
        order.copy_(torch.arange(len(order)))
    for _, order in module.named_buffers():
        order.copy_(torch.arange(len(order)))
    own, expected = assert_fresh(module, inputs), plainly(other, inputs)
    for _ in range(2):
        with torch.no_grad():
            replaced = flat(functional_call(module, dict(other.named_parameters()), inputs))
        torch.testing.assert_close(replaced, [each.float() for each in expected], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(predict(module, inputs), own, rtol=0, atol=0)


class Doubled(nn.Module):
    def forward(self, value):
        return 2 * value


def test_parametrized_tensors_are_computed_anew(made):
    module, inputs = made
    for name, _ in each_parameter(module):
        path, _, own = name.rpartition(".")
        before = predict(module, inputs)
        parametrize.register_parametrization(module.get_submodule(path), own, Doubled())
        doubled_once = predict(module, inputs)
        assert max((one - two).abs().max() for one, two in zip(before, doubled_once, strict=True)) > 1e-4, name
        originals = getattr(module.get_submodule(path).parametrizations, own)
        with torch.no_grad():
            originals.original.mul_(0.5)
        torch.testing.assert_close(predict(module, inputs), before, rtol=1e-5, atol=1e-5)
        originals.original.data.mul_(0)
        assert max((one - two).abs().max() for one, two in zip(before, predict(module, inputs), strict=True)) > 1e-4, (
            name
        )
        originals.original.data.add_(0.2)
        parametrize.remove_parametrizations(module.get_submodule(path), own)
        assert_fresh(module, inputs)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", [name for name in MAKERS if not name.startswith("linear")])
def test_tensors_that_hooks_compute_are_not_kept(name):
    """Old-style norms put a tensor of their own in the parameter's place before each call."""
    module, inputs = MAKERS[name]()
    own = "bias_ih" if isinstance(module, BTLSTMCell) else "bias_hh_l0"
    dense = [name for name, _ in module.named_parameters(recurse=False) if name.startswith("weight")]
    for tensor in (own, *dense[:1]):
        nn.utils.weight_norm(module, tensor)
        magnitude = getattr(module, tensor + "_g")
        for mode in (torch.no_grad, torch.enable_grad):
            for _ in range(3):
                before = predict(module, inputs, mode)
                with torch.no_grad():
                    magnitude.mul_(-1.7)
                after = predict(module, inputs, mode)
                assert max((one - two).abs().max() for one, two in zip(before, after, strict=True)) > 1e-3
                if mode is torch.enable_grad:
                    module.zero_grad()
                    sum(each.sum() for each in after).backward()
                    assert magnitude.grad.abs().max() > 0
        nn.utils.remove_weight_norm(module, tensor)
        assert_fresh(module, inputs)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", ["loop", "packed kernel", "cell", "linear, dense", "linear by low rank"])
def test_factors_that_hooks_compute_are_not_kept(name):
    module, inputs = MAKERS[name]()
    weight = next(child for child in module.children() if isinstance(child, BTWeight))
    predict(module, inputs)
    nn.utils.weight_norm(weight.factors, "1")
    (hook,) = weight.factors._forward_pre_hooks.values()
    for change in (lambda data: data.mul_(-1.7), lambda data: data.add_(0.3)):
        before = predict(module, inputs)
        change(getattr(weight.factors, "1_g").data)
        # Nobody calls the factors, whose hook this is.
        hook(weight.factors, ())
        after = predict(module, inputs)
        assert max((one - two).abs().max() for one, two in zip(before, after, strict=True)) > 1e-4
        module.keeps_formed = False
        torch.testing.assert_close(predict(module, inputs), after, rtol=0, atol=0)
        module.keeps_formed = True


def test_pruned_tensors_are_not_kept(made):
    from torch.nn.utils import prune

    module, inputs = made
    name = next(name for name, _ in module.named_parameters(recurse=False) if name.startswith("bias"))
    prune.custom_from_mask(module, name, torch.arange(len(getattr(module, name))) % 2 > 0)
    for _ in range(2):
        before = predict(module, inputs)
        with torch.no_grad():
            getattr(module, name + "_orig").add_(1)
        after = predict(module, inputs)
        assert max((one - two).abs().max() for one, two in zip(before, after, strict=True)) > 1e-3
    prune.remove(module, name)
    assert_fresh(module, inputs)


def replica_of(module):
    """What torch.nn.parallel.replicate makes for one device: parameters become plain attributes."""
    copies = {child: child._replicate_for_data_parallel() for child in module.modules()}
    for original, replica in copies.items():
        for name, child in original._modules.items():
            setattr(replica, name, copies[child])
        for name, parameter in original._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.clone())
        for name, buffer in original._buffers.items():
            replica._buffers[name] = buffer
    return copies[module]


def test_replicas_keep_nothing_and_are_those_of_now(made):
    module, inputs = made
    for _ in range(2):
        with torch.no_grad():
            replica = replica_of(module)
            assert replica._formed is None
            expected = predict(module, inputs)
            for _ in range(2):
                torch.testing.assert_close(predict(replica, inputs), expected)
                assert replica._formed is None
        results = flat(replica_of(module)(*inputs))
        torch.testing.assert_close(results, expected)
        sum(each.square().sum() for each in results).backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())
        for parameter in module.parameters():
            parameter.grad = None
            through_data(parameter)


def test_threads_predict_at_once(made):
    module, inputs = made
    module.drop_formed()
    given = [tuple(0.1 * n + part for part in flat(inputs)) for n in range(4)]
    arguments = [(each[0], each[1:]) if len(each) > 1 else each for each in given]
    expected = [plainly(module, each) for each in arguments]
    failures = []
    start = threading.Barrier(len(arguments))

    def work(n):
        start.wait()
        for _ in range(60):
            actual = predict(module, arguments[n])
            worst = max((one.double() - two).abs().max() for one, two in zip(actual, expected[n], strict=True))
            if worst > 1e-5:
                failures.append(worst)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(arguments))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("name", [name for name in MAKERS if not name.startswith(("cell", "linear"))])
def test_sizes_may_change_from_call_to_call(name):
    module, _ = MAKERS[name]()
    sizes = [(1, 1), (1, 3), (4, 1), (4, 3), (2, 64), (70, 1)]
    batches = {size: inputs_of(module, *size) for size in sizes}
    expected = {size: plainly(module, batches[size]) for size in sizes}
    for size in (*sizes, *sizes[::-1], *sizes):
        actual = predict(module, batches[size])
        torch.testing.assert_close([each.double() for each in actual], expected[size], rtol=1e-5, atol=1e-5)
        single = module(*batches[size])[0]
        torch.testing.assert_close(single.double(), expected[size][0], rtol=1e-5, atol=1e-5)
    for size in sizes:
        module(*batches[size])
        in_place(next(module.parameters()))
        assert_fresh(module, batches[size])


def test_shared_memory_written_by_another_view_is_seen(made):
    module, inputs = made
    module.share_memory()
    before = predict(module, inputs)
    for parameter in module.parameters():
        view = torch.tensor([], dtype=parameter.dtype).set_(parameter.untyped_storage(), 0, parameter.shape)
        view.mul_(-1.5)
    assert_fresh(module, inputs, before)


def test_memory_of_a_file_that_changes_is_seen(made, tmp_path):
    module, inputs = made
    for n, (_, parameter) in enumerate(each_parameter(module)):
        place = tmp_path / str(n)
        parameter.detach().numpy().tofile(place)
        mapped = np.memmap(place, np.float32, mode="r+", shape=tuple(parameter.shape))
        parameter.data = torch.from_numpy(mapped)
        before = predict(module, inputs)
        mapped[...] += 0.4
        assert_fresh(module, inputs, before)


def as_it_is(module, inputs):
    return flat(module(*inputs))


def compiled(module, inputs):
    with warnings.catch_warnings():
        # The compiler warns of what it cannot see into.
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        return flat(torch.compile(module, backend="eager")(*inputs))


def traced(module, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return flat(torch.jit.trace(module, tuple(inputs), check_trace=False)(*inputs))


def exported(module, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return flat(torch.export.export(module, tuple(inputs), strict=False).module()(*inputs))


def under_autocast(module, inputs):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return flat(module(*inputs))


def transforms(module):
    """Whether it is run by operations that torch can transform, which its kernel is not."""
    return module.method != "auto"


def under_vmap(module, inputs):
    if not transforms(module):
        return [torch.ones(1)]
    first, *state = inputs
    return flat(torch.vmap(lambda each: module(each, *state))(torch.stack([first, -first])))


def functional_gradient(module, inputs):
    return flat(
        torch.func.grad(lambda first: sum(each.square().sum() for each in flat(module(first, *inputs[1:]))))(inputs[0])
    )


def gradient_of_parameters(module, inputs):
    def total(parameters):
        return sum(each.square().sum() for each in flat(functional_call(module, parameters, tuple(inputs))))

    return [*torch.func.grad(total)(dict(module.named_parameters())).values()]


def forward_gradient(module, inputs):
    if not transforms(module):
        return [torch.ones(1)]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
        return [forward_ad.unpack_dual(each).tangent for each in flat(module(dual, *inputs[1:]))]


def faked(module, inputs):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = [
            tuple(mode.from_tensor(part) for part in each) if isinstance(each, tuple) else mode.from_tensor(each)
            for each in inputs
        ]
        shapes = [each.shape for each in flat(module(*given))]
    return [torch.zeros(shape) for shape in shapes]


def counted(module, inputs):
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return [torch.tensor(counter.get_total_flops())]


def on_a_default_device(module, inputs):
    with torch.device("cpu"):
        return flat(module(*inputs))


MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad], ids=["no_grad", "enable_grad"])


def assert_sees_the_same(looked_into, mode, module, inputs):
    """What looks into a module that has kept how it runs sees what it sees in one that has not."""
    fresh = copy.deepcopy(module)
    with mode():
        expected = looked_into(fresh, inputs)
    assert max(each.detach().abs().max() for each in expected) > 0 or looked_into is faked
    # To trace all operations of a training takes seconds.
    for _ in range(1 if (looked_into, mode) == (compiled, torch.enable_grad) else 2):
        predict(module, inputs)
        with mode():
            module(*inputs)
            actual = looked_into(module, inputs)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for parameter in module.parameters():
        through_data(parameter)
    assert_fresh(module, inputs)


LOOKED_INTO = [
    as_it_is,
    under_autocast,
    under_vmap,
    functional_gradient,
    gradient_of_parameters,
    forward_gradient,
    faked,
    counted,
    on_a_default_device,
]


# Every two of module, what looks into it and mode meet.
@pytest.mark.parametrize(
    ("made", "looked_into", "mode"),
    [
        pytest.param(name, looked_into, mode, id=f"{name}-{looked_into.__name__}-{mode.__name__}")
        for n, name in enumerate(MAKERS)
        for k, looked_into in enumerate(LOOKED_INTO)
        for mode in [(torch.no_grad, torch.enable_grad)[(n + k) % 2]]
    ],
    indirect=["made"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated", "ignore:There is a performance drop")
def test_what_looks_into_operations_sees_the_same_after_a_prediction(looked_into, mode, made):
    assert_sees_the_same(looked_into, mode, *made)


@MODES
@pytest.mark.parametrize("looked_into", [compiled, traced, exported], ids=lambda each: each.__name__)
@pytest.mark.parametrize("name", ["step by factors", "packed kernel", "linear, dense"])
def test_compilers_and_tracers_see_the_same_after_a_prediction(name, looked_into, mode):
    assert_sees_the_same(looked_into, mode, *MAKERS[name]())


def test_what_fake_tensors_go_through_keeps_nothing():
    for name in ("loop of one", "packed kernel", "cell", "linear, dense"):
        with FakeTensorMode():
            module, inputs = MAKERS[name]()
        for _ in range(2):
            predict(module, inputs)
            assert module._formed is None
