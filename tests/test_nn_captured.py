"""Compilers, exporters and tracers record the operations of block-term modules: they compute the same, at all sizes."""

import io

import pytest
import torch
from torch import nn
from torch.export import Dim

from btcompress import BTLSTM, BTCompressError, BTLinear, BTLSTMCell
from btcompress.modes import ShapeRequest
from btcompress.shapes import BlockTermShape, MatrixShape

#: Torch gives notice that it will drop tracers, and advice to exporters; warnings of tracers about sizes are failures.
quietly = pytest.mark.filterwarnings(
    "ignore:.torch.jit.* is deprecated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:LSTM with projections is not supported with oneDNN",
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning",
    "ignore:Exporting a model to ONNX with a batch_size other than 1",
)

INPUTS, H, P = 6, 4, 3
T_DIM, B_DIM = Dim("steps"), Dim("batch")
SIZES = [(9, 3), (1, 1)]

LOW_RANK = {
    "weight_ih_l0": MatrixShape(BlockTermShape.low_rank(4 * H, INPUTS, 2)),
    "weight_hh_l0": MatrixShape(BlockTermShape.low_rank(4 * H, H, 2)),
}
BOTH = {"matrices": ("input", "recurrent"), "cp_rank": 2, "tucker_rank": 2}


class Net(nn.Module):
    """States in, states out, or neither."""

    def __init__(self, lstm, given=True):
        super().__init__()
        self.lstm, self.given = lstm, given

    def forward(self, x, h=None, c=None):
        y, (h, c) = self.lstm(x, (h, c) if self.given else None)
        return y, h, c


NETS = {
    "low rank": lambda: Net(BTLSTM(INPUTS, H, shapes=LOW_RANK)),
    "low rank, factors alone": lambda: Net(BTLSTM(INPUTS, H, shapes=LOW_RANK, method="factored")),
    "dense": lambda: Net(BTLSTM(INPUTS, H, shapes=LOW_RANK, method="dense")),
    "cores": lambda: Net(BTLSTM(INPUTS, H, **BOTH, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)),
    "cores, factors alone": lambda: Net(BTLSTM(INPUTS, H, **BOTH, bidirectional=True, method="factored")),
    "separate gates, no bias": lambda: Net(BTLSTM(INPUTS, H, **BOTH, bias=False, gates="separate")),
    "projected": lambda: Net(BTLSTM(INPUTS, H, **BOTH, proj_size=P)),
    "double": lambda: Net(BTLSTM(INPUTS, H, shapes=LOW_RANK, dtype=torch.float64)),
    "no states": lambda: Net(BTLSTM(INPUTS, H, shapes=LOW_RANK), given=False),
}


@pytest.fixture(params=NETS)
def net(request):
    torch.manual_seed(0)
    return NETS[request.param]().eval()


def inputs_of(net, steps, batch):
    lstm = net.lstm
    n, dtype = lstm.num_layers * (1 + lstm.bidirectional), lstm.weight_hh_l0.dtype
    x = torch.randn(*((batch, steps) if lstm.batch_first else (steps, batch)), INPUTS, dtype=dtype)
    states = (torch.randn(n, batch, size, dtype=dtype) for size in (lstm.proj_size or H, H))
    return (x, *states) if net.given else (x,)


def dynamic_sizes(net):
    x = {0: B_DIM, 1: T_DIM} if net.lstm.batch_first else {0: T_DIM, 1: B_DIM}
    return (x, {1: B_DIM}, {1: B_DIM}) if net.given else (x,)


def assert_same_at_all_sizes(found, net, **tolerance):
    for steps, batch in SIZES:
        inputs = inputs_of(net, steps, batch)
        with torch.no_grad():
            torch.testing.assert_close(found(*inputs), net(*inputs), **tolerance)


@quietly
def test_traces_pass_their_own_check_and_run_at_other_sizes(net):
    with torch.no_grad():
        net(*inputs_of(net, 5, 2))
        traced = torch.jit.trace(net, inputs_of(net, 5, 2))
    assert_same_at_all_sizes(traced, net)


@quietly
def test_programs_have_one_operation_for_all_steps_and_run_at_other_sizes(net, request):
    # With the compiler's help it takes longer: one of low rank and one of cores will do.
    strict = request.node.callspec.params["net"] in ("dense", "projected")
    with torch.no_grad():
        net(*inputs_of(net, 5, 2))
    program = torch.export.export(net, inputs_of(net, 5, 2), dynamic_shapes=dynamic_sizes(net), strict=strict)
    operations = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert operations.count("aten.lstm.input") == net.lstm.num_layers
    assert not any("btcompress" in each for each in operations)
    assert_same_at_all_sizes(program.module(), net)


@quietly
def test_exporting_leaves_torch_as_it_was():
    decompositions = torch._decomp.decompositions
    before = decompositions.select_one_layer_lstm_function
    net = NETS["low rank"]().eval()
    torch.export.export(net, inputs_of(net, 5, 2), dynamic_shapes=dynamic_sizes(net))
    assert decompositions.select_one_layer_lstm_function is before


@quietly
def test_programs_in_training_mode_send_gradients_back():
    net = NETS["cores"]().train()
    net.lstm.dropout = 0.0
    program = torch.export.export(net, inputs_of(net, 5, 2), dynamic_shapes=dynamic_sizes(net)).module()
    inputs = inputs_of(net, 7, 3)
    for each in (program, net):
        each(*inputs)[0].square().sum().backward()
    ours = dict(net.named_parameters())
    for name, parameter in program.named_parameters():
        torch.testing.assert_close(parameter.grad, ours[name].grad)


@quietly
def test_low_rank_is_applied_as_products_and_the_recurrent_matrix_is_one():
    net = NETS["low rank"]().eval()
    program = torch.export.export(net, inputs_of(net, 5, 2), dynamic_shapes=dynamic_sizes(net))
    operations = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert operations.count("aten.linear.default") == operations.count("aten.matmul.default") == 1


@quietly
def test_the_exporter_by_torchscript_makes_graphs_for_all_sizes(net):
    onnxruntime = pytest.importorskip("onnxruntime")
    if net.lstm.proj_size:
        with pytest.raises(Exception, match="LSTMs with projections"):
            torch.onnx.export(net, inputs_of(net, 5, 2), io.BytesIO(), dynamo=False)
        return
    names = ["x", "h0", "c0"][: len(inputs_of(net, 1, 1))]
    sizes = {name: dict.fromkeys(axes, "n") for name, axes in zip(names, dynamic_sizes(net), strict=True)}
    sizes["x"] = {0: "first", 1: "second"}
    file = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(
            net, inputs_of(net, 5, 2), file, dynamo=False, opset_version=17, input_names=names, dynamic_axes=sizes
        )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])

    def run(*inputs):
        given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(each) for each in session.run(None, given))

    if net.lstm.weight_hh_l0.dtype == torch.float32:
        assert_same_at_all_sizes(run, net)


@quietly
@pytest.mark.parametrize("name", ["low rank", "cores", "projected"])
def test_compiled_predictions_are_one_graph_and_follow_the_parameters(name):
    torch.manual_seed(0)
    net = NETS[name]().eval()
    with torch.no_grad():
        net(*inputs_of(net, 5, 2))
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert_same_at_all_sizes(compiled, net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(-0.5)
    assert_same_at_all_sizes(compiled, net)


@pytest.mark.parametrize("n_directions", [1, 2])
def test_a_compiler_learns_the_sizes_that_results_have(n_directions):
    weights = [torch.randn(4 * H, size) for size in (INPUTS, H)] + [torch.randn(4 * H)] * 2
    x, h, c = torch.randn(5, 2, INPUTS), torch.randn(n_directions, 2, H), torch.randn(n_directions, 2, H)
    torch.library.opcheck(torch.ops.btcompress.lstm_layer, (x, h, c, weights * n_directions, True, n_directions == 2))


@quietly
@pytest.mark.parametrize("strict", ["traced", "compiled", False, True])
def test_cells_and_linear_layers_are_recorded_too(strict):
    torch.manual_seed(0)
    shape = ShapeRequest(cp_rank=2, tucker_rank=2)
    cell = BTLSTMCell(INPUTS, H, shape=shape, matrices=("input", "recurrent")).eval()
    linears = [BTLinear(INPUTS, H, shape=shape, method=method).eval() for method in ("factored", "dense")]
    for module, n_states in ((cell, 2), *((linear, 0) for linear in linears)):

        def inputs(batch, n_states=n_states):
            states = tuple(torch.randn(batch, H) for _ in range(n_states))
            return (torch.randn(batch, INPUTS), states) if n_states else (torch.randn(batch, INPUTS),)

        with torch.no_grad():
            module(*inputs(3))
            if strict == "compiled":
                torch._dynamo.reset()
                found = torch.compile(module, backend="eager", fullgraph=True)
            elif strict == "traced":
                found = torch.jit.trace(module, inputs(3))
            else:
                sizes = ({0: B_DIM}, ({0: B_DIM},) * n_states) if n_states else ({0: B_DIM},)
                found = torch.export.export(module, inputs(3), dynamic_shapes=sizes, strict=strict).module()
            for batch in (2, 7):
                given = inputs(batch)
                torch.testing.assert_close(found(*given), module(*given))


@quietly
def test_single_sequences_without_a_batch_are_recorded_too():
    lstm = BTLSTM(INPUTS, H, shapes=LOW_RANK).eval()
    x, other = torch.randn(5, INPUTS), torch.randn(8, INPUTS)
    with torch.no_grad():
        for found in (
            torch.jit.trace(lstm, (x,)),
            torch.export.export(lstm, (x,), dynamic_shapes=({0: T_DIM},)).module(),
            torch.compile(lstm, backend="eager", fullgraph=True),
        ):
            torch.testing.assert_close(found(other), lstm(other))


@quietly
def test_compiled_training_sends_the_same_gradients():
    net = NETS["low rank, factors alone"]().train()
    inputs = inputs_of(net, 5, 2)
    net(*inputs)[0].square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    net.zero_grad()
    torch._dynamo.reset()
    torch.compile(net, backend="eager")(*inputs)[0].square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@quietly
@pytest.mark.parametrize("module", [NETS["low rank"](), BTLinear(INPUTS, H, shape=ShapeRequest(cp_rank=1))])
def test_scripting_is_refused_in_words(module):
    with pytest.raises(BTCompressError, match=r"torch\.jit\.script cannot read the code of BTL.*torch\.jit\.trace"):
        torch.jit.script(module)
