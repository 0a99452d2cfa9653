"""BTGRU, BTRNN and their cells compute what torch's modules do on the same matrices, in value and in gradient."""

import copy
import io
import itertools
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import btcompress
from btcompress import BTGRU, BTLSTM, BTRNN, BTGRUCell, BTLSTMCell, BTRNNCell
from btcompress.errors import CheckpointError
from btcompress.models import restore
from btcompress.nn.choice import choose_way
from btcompress.nn.costs import quantities
from btcompress.nn.grutype import GRU
from btcompress.nn.recurrence import Trained, recur_by_kernel, recur_by_steps
from btcompress.nn.replacing import classes_of, is_replaceable, obstacle_to, with_shapes
from btcompress.nn.rnntype import RNN
from btcompress.nn.ways import Task, Way, possible_ways
from btcompress.shapes import GATES, BlockTermShape, MatrixShape
from lowrankresults import low_rank_result

I, H, T, B = 7, 6, 5, 3  # noqa: E741 - as in the formulas

#: Torch's class, ours, and what both are built with beside sizes.
LAYERS = {
    "gru": (nn.GRU, BTGRU, {}),
    "tanh": (nn.RNN, BTRNN, {}),
    "relu": (nn.RNN, BTRNN, {"nonlinearity": "relu"}),
}
CELLS = {
    "gru": (nn.GRUCell, BTGRUCell, {}),
    "tanh": (nn.RNNCell, BTRNNCell, {}),
    "relu": (nn.RNNCell, BTRNNCell, {"nonlinearity": "relu"}),
}
BOTH = ("input", "recurrent")


def n_gates(kind):
    return 3 if kind == "gru" else 1


def forms(kind, sizes):
    """Shapes of all matrices of a module by their form: low rank, block terms, and separate gates where there are."""
    n = n_gates(kind)

    def block_terms(rows, columns):
        part = BlockTermShape((columns, 1), (rows // 2, 2), (2, 2), 2, n_gates=n)
        return MatrixShape(part)

    def separate(rows, columns):
        return MatrixShape.of_gates(BlockTermShape((columns, 1), (rows // n // 2, 2), (2, 1), 2), "separate", n)

    def low_rank(rows, columns):
        return MatrixShape(BlockTermShape.low_rank(rows, columns, 2, n))

    makers = {"low rank": low_rank, "block terms": block_terms} | ({"separate gates": separate} if n > 1 else {})
    return {
        form: {name: make(*size) for name, size in sizes.items() if len(size) == 2} for form, make in makers.items()
    }


def make(kind, table, form="low rank", dtype=torch.float64, sizes=(I, H), **arguments):
    """Ours with drawn parameters, and torch's with the same matrices."""
    dense, ours, more = table[kind]
    plain = dense(*sizes, **arguments, **more, device="meta")
    shapes = forms(kind, {name: each.shape for name, each in plain.named_parameters()})[form]
    torch.manual_seed(3)
    module = ours(*sizes, **arguments, **more, dtype=dtype, shapes=shapes)
    return module, module.to_dense()


def draw(*size, dtype=torch.float64):
    return torch.randn(size, dtype=dtype)


def given_to(module, layout):
    """Inputs and states of a layer."""
    n = module.num_layers * (1 + module.bidirectional)
    if layout == "packed":
        padded = draw(B, 4, I) if module.batch_first else draw(4, B, I)
        lengths = torch.tensor([2, 4, 1])
        packed = pack_padded_sequence(padded, lengths, batch_first=module.batch_first, enforce_sorted=False)
        return packed, draw(n, B, H)
    if layout == "no batch":
        return draw(T, I), draw(n, H)
    batch, steps = {"batch": (B, T), "one sequence": (1, T), "one step": (1, 1), "step of several": (B, 1)}[layout]
    return draw(*((batch, steps) if module.batch_first else (steps, batch)), I), draw(n, batch, H)


def flat(results):
    found = results if isinstance(results, tuple) else (results,)
    return [each.data if isinstance(each, PackedSequence) else each for each in found]


def pinned(module):
    """All ways to run the module, each in turn."""
    for way in module.ways(next(iter(module.layers()))):
        module.choice.unpin()
        module.choice.pin(way)
        yield way


#: Arguments of layers, and how what they are given lies.
CASES = (
    ({}, ("one sequence", "one step", "step of several", "no batch")),
    ({"num_layers": 2, "bidirectional": True}, ("batch", "one step", "packed")),
    ({"num_layers": 2, "bias": False, "batch_first": True}, ("batch", "packed")),
)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", ["low rank", "block terms"])
def test_layers_compute_what_torchs_do_in_every_way(kind, form):
    form = "separate gates" if (kind, form) == ("gru", "block terms") else form
    for arguments, layouts in CASES:
        module, dense = make(kind, LAYERS, form, **arguments)
        for layout in layouts:
            inputs, state = given_to(module, layout)
            state = None if layout == "no batch" else state
            expected = flat(dense(inputs, state))
            for way in pinned(module):
                with torch.no_grad():
                    # The second time it goes the short way.
                    for _ in range(2):
                        torch.testing.assert_close(flat(module(inputs, state)), expected, msg=str(way))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", ["low rank", "block terms"])
def test_layers_have_the_gradients_of_torchs_in_every_way(kind, form):
    for (arguments, _), layout in itertools.product(CASES[1:], ("batch", "packed")):
        module, dense = make(kind, LAYERS, form, **arguments)
        inputs, h = given_to(module, layout)
        data = (inputs.data if layout == "packed" else inputs).requires_grad_()
        inputs = inputs._replace(data=data) if layout == "packed" else inputs
        h.requires_grad_()

        def gradients(layer, data=data, inputs=inputs, h=h):
            results = flat(layer(inputs, h))
            biases = [each for name, each in layer.named_parameters() if name.startswith("bias")]
            return torch.autograd.grad(sum(each.square().sum() for each in results), [data, h, *biases])

        expected = gradients(dense)
        for way in pinned(module):
            torch.testing.assert_close(gradients(module), expected, msg=str(way))


@pytest.mark.parametrize("kind", CELLS)
def test_cells_compute_what_torchs_do_in_every_way(kind):
    for bias, form in itertools.product([True, False], ["low rank", "block terms"]):
        module, dense = make(kind, CELLS, form, bias=bias)
        for batch, given in itertools.product([(), (1,), (B,)], [True, False]):
            inputs, h = draw(*batch, I).requires_grad_(), draw(*batch, H) if given else None
            expected = dense(inputs, h)
            (gradient,) = torch.autograd.grad(expected.square().sum(), [inputs])
            for way in pinned(module):
                found = module(inputs, h)
                torch.testing.assert_close(found, expected, msg=str(way))
                torch.testing.assert_close(torch.autograd.grad(found.square().sum(), [inputs])[0], gradient)
                with torch.no_grad():
                    for _ in range(2):
                        torch.testing.assert_close(module(inputs, h), expected, msg=str(way))


@pytest.mark.parametrize("kind", LAYERS)
def test_at_full_rank_nothing_changes_and_the_way_back_is_exact(kind):
    for (dense, ours, more), arguments in ((LAYERS[kind], {}), (CELLS[kind], {"bias": False})):
        torch.manual_seed(0)
        plain = dense(4, 3, **arguments, **more, dtype=torch.float64)
        module = ours.from_dense(plain, matrices=BOTH, cp_rank=1, tucker_rank=40)
        back = module.to_dense()
        assert type(back) is dense
        assert repr(back) == repr(plain)
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(back.get_parameter(name), parameter)


def test_the_reset_gate_acts_on_the_recurrent_bias():
    """Written out unit by unit from the equations; the two biases of the new gate are not summed."""
    module, _ = make("gru", CELLS)
    x, h = draw(I), draw(H)
    with torch.no_grad():
        w, u = module.weight_ih.to_dense(), module.weight_hh.to_dense()
        found = module(x, h)
    gi, gh = w @ x + module.bias_ih, u @ h + module.bias_hh
    for k in range(H):
        r, z = (torch.sigmoid(gi[k + gate * H] + gh[k + gate * H]) for gate in (0, 1))
        n = torch.tanh(gi[k + 2 * H] + r * gh[k + 2 * H])
        torch.testing.assert_close(found[k], (1 - z) * n + z * h[k])


@pytest.mark.parametrize(("cell", "gates"), [(GRU, 3), (RNN["tanh"], 1), (RNN["relu"], 1)])
@pytest.mark.parametrize("layout", ["time first", "packed"])
def test_kernel_and_definition_agree_in_value_and_gradient(cell, gates, layout):
    tokens, sizes = ((T, B), None) if layout == "time first" else ((6,), torch.tensor([3, 2, 1]))
    z, h = draw(*tokens, 2 * gates * H).requires_grad_(), draw(2, B, H).requires_grad_()
    weights = [[draw(gates * H, H).requires_grad_()] for _ in range(2)]
    biases = [draw(gates * H).requires_grad_() for _ in range(2)] if cell is GRU else [None, None]
    leaves = [z, h, *(each for (each,) in weights), *(bias for bias in biases if bias is not None)]
    found = []
    for way in (recur_by_kernel, recur_by_steps):
        outputs, (final,) = way(z, (h,), weights, sizes, cell=cell, biases=biases)
        total = outputs.square().sum() + final.exp().sum()
        found.append([outputs, final, *torch.autograd.grad(total, leaves)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_gives_the_dtypes_that_torchs_has(kind):
    for table, inputs in ((LAYERS, draw(T, B, I, dtype=torch.float32)), (CELLS, draw(B, I, dtype=torch.float32))):
        module, dense = make(kind, table, dtype=torch.float32)
        for way in pinned(module):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found, expected = flat(module(inputs)), flat(dense(inputs))
            for own, other in zip(found, expected, strict=True):
                assert own.dtype == other.dtype, way
                torch.testing.assert_close(own.float(), other.float(), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_falls_between_layers_in_training_alone(kind):
    module, dense = make(kind, LAYERS, num_layers=2, dropout=0.5)
    dense.train()
    inputs, h = given_to(module, "batch")
    found = []
    for layer in (module, dense):
        torch.manual_seed(5)
        found.append(layer(inputs, h))
    torch.testing.assert_close(*found)
    torch.testing.assert_close(module.eval()(inputs, h), dense.eval()(inputs, h))


#: Arguments, inputs, states, the error, and words in it.
REFUSED = [
    ({}, (T, B, I + 1), None, RuntimeError, "input has 8 features, but input_size is 7"),
    ({}, (T, B, I), (1, B + 1, H), RuntimeError, r"h must have shape \(1, 3, 6\) for this input, but has \(1, 4, 6\)"),
    ({}, (T, I), (1, 1, H), RuntimeError, "with an input of 2 dimensions h must have 2 as well, but it has 3"),
    ({}, (T, B, I, 1), None, ValueError, "input must have 2 or 3 dimensions"),
    ({}, (0, B, I), None, RuntimeError, "input has no steps"),
    ({"dropout": 2.0}, None, None, ValueError, "dropout should be a number in range"),
    ({"num_layers": 0}, None, None, ValueError, "num_layers must be greater than zero"),
    ({"bias": 1}, None, None, TypeError, "bias should be of type bool"),
]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("arguments", "size", "state", "error", "words"), REFUSED)
def test_what_torch_refuses_is_refused_in_words(kind, arguments, size, state, error, words):
    with pytest.raises(error, match=words):
        make(kind, LAYERS, **arguments)[0](draw(*size), state and draw(*state))


def test_cells_refuse_in_words_too():
    for kind in CELLS:
        module, _ = make(kind, CELLS)
        for size, state, error, words in (
            ((B, I + 1), None, RuntimeError, "input has 8 features"),
            ((B, I), (B + 1, H), RuntimeError, r"h must have shape \(3, 6\) for this input, but has \(4, 6\)"),
            ((B, I), (1, B, H), ValueError, "hx must have 1 or 2 dimensions, but h has 3"),
            ((1, B, I), None, ValueError, "input must have 1 or 2 dimensions"),
        ):
            with pytest.raises(error, match=words):
                module(draw(*size), state and draw(*state))
    for build in (BTRNN, BTRNNCell):
        with pytest.raises(ValueError, match=r"elu"):
            build(I, H, nonlinearity="elu")


def test_arguments_stand_where_torchs_stand():
    assert repr(BTRNN(4, 5, 2, "relu", False, True)).startswith(
        "BTRNN(\n  4, 5, nonlinearity=relu, num_layers=2, bias=False, batch_first=True"
    )
    assert BTGRU(4, 5, 2, False, True, 0.0, True).bidirectional
    assert BTRNNCell(4, 5, False, "relu").nonlinearity == "relu"
    assert BTGRUCell(4, 5, False).bias_ih is None
    module = BTGRU(4, 5, gates="separate")
    assert [name for name, _ in module.weight_ih_l0.named_children()] == [f"gate_{gate}" for gate in GATES["gru"]]


@pytest.mark.parametrize("kind", LAYERS)
def test_copies_pickles_and_state_dicts_carry_all(kind):
    for table, layout in ((LAYERS, (T, B, I)), (CELLS, (B, I))):
        module, _ = make(kind, table)
        inputs = draw(*layout)
        fresh, _ = make(kind, table)
        torch.nn.init.zeros_(next(fresh.parameters()))
        fresh.load_state_dict(module.state_dict())
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
            torch.testing.assert_close(other(inputs), module(inputs), rtol=0, atol=0)


def test_predictions_follow_the_parameters_however_they_are_changed():
    for kind, table in (("gru", LAYERS), ("gru", CELLS), ("relu", LAYERS)):
        module, _ = make(kind, table)
        for way, batch in itertools.product(pinned(module), (1, B)):
            inputs = draw(batch, I) if table is CELLS else draw(T, batch, I)
            with torch.no_grad():
                for parameter in module.parameters():
                    module(inputs)
                    parameter.data.mul_(-0.9)
                torch.testing.assert_close(module(inputs), module.to_dense()(inputs), msg=str(way))


CLASSES = {
    ("lstm", False): (nn.LSTM, BTLSTM),
    ("lstm", True): (nn.LSTMCell, BTLSTMCell),
    ("gru", False): (nn.GRU, BTGRU),
    ("gru", True): (nn.GRUCell, BTGRUCell),
    ("rnn", False): (nn.RNN, BTRNN),
    ("rnn", True): (nn.RNNCell, BTRNNCell),
}


@pytest.mark.parametrize(("cell", "is_cell"), CLASSES)
def test_every_class_has_one_that_takes_its_place(cell, is_cell):
    dense, ours = CLASSES[cell, is_cell]
    assert classes_of(cell, is_cell) == (dense, ours)
    arguments = {"nonlinearity": "relu"} if cell == "rnn" else {}
    old = dense(I, H, bias=False, dtype=torch.float64, **arguments).eval()
    name = "weight_ih" if is_cell else "weight_ih_l0"
    shapes = {name: MatrixShape(BlockTermShape.low_rank(len(GATES[cell]) * H, I, 2, len(GATES[cell])))}
    new = with_shapes(old, shapes)
    again = with_shapes(new, shapes)
    assert type(new) is type(again) is ours
    assert repr(again) == repr(new)
    assert (new.training, new.bias) == (False, False)
    assert getattr(again, "nonlinearity", "relu") == "relu"
    assert next(again.parameters()).dtype == torch.float64
    assert is_replaceable(old)
    assert is_replaceable(new)

    class Renamed(dense):
        def extra_repr(self):
            return "mine"

    class Other(dense):
        def forward(self, *inputs):
            return super().forward(*inputs)

    renamed = Renamed(I, H)
    renamed.label = "kept"
    assert with_shapes(renamed, shapes).label == "kept"
    assert obstacle_to(Other(I, H), dense) == (
        "is a Other, a subclass with forward of its own, which a block-term layer would not have"
    )


class Model(nn.Module):
    """One of each kind, and a head."""

    def __init__(self, nonlinearity="relu"):
        super().__init__()
        self.gru = nn.GRU(I, H, bidirectional=True)
        self.rnn = nn.RNN(2 * H, H, nonlinearity=nonlinearity)
        self.step = nn.GRUCell(H, H)
        self.last = nn.RNNCell(H, H, nonlinearity=nonlinearity)
        self.head = nn.Linear(H, 2)

    def forward(self, x):
        return self.head(self.last(self.step(self.rnn(self.gru(x)[0])[0][-1])))


def result_of(model, nonlinearity):
    names = dict.fromkeys(("rnn", "last"), nonlinearity) if nonlinearity == "relu" else {}
    return replace(low_rank_result(model.state_dict(), ratio=2), nonlinearities=names)


def test_results_are_applied_to_models_of_all_kinds():
    torch.manual_seed(0)
    for nonlinearity in ("tanh", "relu"):
        model = Model(nonlinearity).eval()
        result = result_of(model, nonlinearity)
        dense = copy.deepcopy(model)
        dense.load_state_dict(btcompress.to_dense(result))
        applied = btcompress.apply(model, result)
        kinds = {"gru": BTGRU, "rnn": BTRNN, "step": BTGRUCell, "last": BTRNNCell, "head": nn.Linear}
        assert {name: type(child) for name, child in applied.named_children()} == kinds
        x = draw(T, B, I, dtype=torch.float32)
        torch.testing.assert_close(applied(x), dense(x))
        shapes = {key: matrix.shape for key, matrix in result.matrices.items()}
        restored = restore(Model(nonlinearity), shapes, applied.state_dict()).eval()
        torch.testing.assert_close(restored(x), applied(x), rtol=0, atol=0)


def test_another_nonlinearity_in_the_model_is_refused_in_words():
    model = Model("relu")
    before = model.state_dict()
    with pytest.raises(CheckpointError, match=r"last differs: nonlinearity tanh in the file and relu in .*--nonlinear"):
        btcompress.apply(model, result_of(model, "tanh"))
    assert model.state_dict().keys() == before.keys()
    wrapped = nn.ModuleDict({"module": Model("relu")})
    btcompress.apply(wrapped, result_of(model, "relu"))
    assert type(wrapped["module"].rnn) is BTRNN


def test_layers_of_another_kind_are_refused_in_words():
    for stranger, words in ((nn.LSTM(I, H), "nn.GRU at gru, but that is a LSTM"), (BTGRU(I, H), "block-term GRU alre")):
        model = Model()
        result = result_of(model, "relu")
        model.gru = stranger
        with pytest.raises(CheckpointError, match=words):
            btcompress.apply(model, result)


def test_torchs_kernel_for_them_is_never_onednns_and_no_loop_trains_them():
    for cell, trains, packed in itertools.product(("gru", "rnn"), (False, True), (False, True)):
        rows = len(GATES[cell]) * 64
        shapes = (MatrixShape(BlockTermShape.low_rank(rows, 64, 8, len(GATES[cell]))),)
        task = Task(64, 64, 5, 1, 5, packed=packed, trains=trains, w=shapes, u=shapes, onednn=False, cell=cell)
        steps = {way.steps for way in possible_ways(task, "auto")}
        assert ("loop" in steps) == (not trains and not packed)
        assert choose_way(task, "auto") in possible_ways(task, "auto")
    module, _ = make("gru", LAYERS, dtype=torch.float32)
    module(draw(T, B, I, dtype=torch.float32))
    assert [(task.cell, task.onednn) for task in module.choice.tasks.values()] == [("gru", False)]


def test_what_a_way_costs_goes_by_the_gates_of_the_cell():
    for way in (Way("kernel", "dense", "dense"), Way("loop", "dense", "dense")):
        found = {
            cell: quantities(way, Task(8, 8, 5, 2, 10, packed=False, trains=False, w=(None,), u=(None,), cell=cell))
            for cell in GATES
        }
        for name in ("gate", "product", "read", "inputs", "taken"):
            lstm, gru, rnn = (getattr(found[cell], name) for cell in ("lstm", "gru", "rnn"))
            assert (gru, rnn) == pytest.approx((3 / 4 * lstm, 1 / 4 * lstm))
            assert lstm > 0
    single = Task(256, 256, 1, 1, 1, packed=False, trains=False, w=(None,), u=(None,), onednn=False, cell="rnn")
    factors = (MatrixShape(BlockTermShape.low_rank(256, 256, 32, 1)),)
    assert choose_way(replace(single, w=factors, u=factors), "auto") == Way("loop", "factors", "factors")


def test_what_is_trained_takes_the_way_that_is_pinned(monkeypatch):
    taken = []
    run = Trained.run
    monkeypatch.setattr(Trained, "run", lambda self, *a, **k: taken.append(self.way) or run(self, *a, **k))
    module, _ = make("gru", LAYERS)
    ways = []
    for way in pinned(module):
        if way.steps != "loop":
            ways.append(way)
            module(draw(T, B, I))
    assert taken == ways
    assert {way.steps for way in ways} == {"kernel", "definition"}


#: Torch gives notice that it will drop tracers, and advice to exporters.
quietly = pytest.mark.filterwarnings(
    "ignore:.torch.jit.* is deprecated:DeprecationWarning",
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning",
    "ignore:Constant folding - Only steps=1 can be constant folded",
    "ignore:Exporting a model to ONNX with a batch_size other than 1",
)
OPERATIONS = {"gru": "aten.gru.input", "tanh": "aten.rnn_tanh.input", "relu": "aten.rnn_relu.input"}


def compiled(kind, module):
    """The module compiled: of one kind, as it takes longer."""
    if kind == "gru":
        torch._dynamo.reset()
        yield torch.compile(module, backend="eager", fullgraph=True)


@quietly
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_are_recorded_as_torchs_kernel_for_all_sizes(kind):
    module, _ = make(kind, LAYERS, dtype=torch.float32, bidirectional=True)
    module.eval()
    given, others = (
        tuple(draw(*size, dtype=torch.float32) for size in ((n, b, I), (2, b, H))) for n, b in ((4, 2), (7, 1))
    )
    sizes = ({0: Dim("steps"), 1: Dim("batch")}, {1: Dim("batch")})
    file = io.BytesIO()
    with torch.no_grad():
        module(*given)
        program = torch.export.export(module, given, dynamic_shapes=sizes)
        operations = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert operations.count(OPERATIONS[kind]) == 1
        assert not any("btcompress" in each for each in operations)
        for found in (program.module(), torch.jit.trace(module, given), *compiled(kind, module)):
            torch.testing.assert_close(found(*others), module(*others))
        axes = {"x": {0: "steps", 1: "batch"}, "h": {1: "batch"}}
        names = {"input_names": ["x", "h"], "dynamic_axes": axes}
        torch.onnx.export(module, given, file, dynamo=False, opset_version=17, **names)
    session = pytest.importorskip("onnxruntime").InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: each.numpy() for name, each in zip(("x", "h"), others, strict=True)})
    with torch.no_grad():
        torch.testing.assert_close([torch.from_numpy(each) for each in found], list(module(*others)))


@quietly
@pytest.mark.parametrize("kind", CELLS)
def test_cells_are_recorded_too(kind):
    module, _ = make(kind, CELLS, dtype=torch.float32)
    module.eval()
    given, others = (tuple(draw(b, n, dtype=torch.float32) for n in (I, H)) for b in (2, 5))
    batch = {0: Dim("batch")}
    with torch.no_grad():
        program = torch.export.export(module, given, dynamic_shapes=(batch, batch))
        for found in (program.module(), torch.jit.trace(module, given), *compiled(kind, module)):
            torch.testing.assert_close(found(*others), module(*others))


@pytest.mark.parametrize("name", ["gru", "rnn_tanh"])
def test_a_compiler_learns_the_sizes_that_results_have(name):
    rows = (3 if name == "gru" else 1) * H
    weights = [*(draw(rows, size, dtype=torch.float32) for size in (I, H)), *(torch.zeros(rows),) * 2] * 2
    given = (draw(T, B, I, dtype=torch.float32), draw(2, B, H, dtype=torch.float32))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.btcompress.one_state_layer, (*given, weights, True, True, name), test_utils=tests)


def test_what_is_fastest_is_measured_and_pinned_and_read_from_a_file(tmp_path):
    model, dense = make("gru", LAYERS)
    x = draw(2, B, I)
    tuning = btcompress.tune(model, x, seconds=1e-4, file=tmp_path / "pins.json")
    assert [(pin.module, pin.layer, pin.steps) for pin in tuning.pins] == [("", "l0", 2)]
    other = copy.deepcopy(model)
    other.choice.unpin()
    assert btcompress.pin(other, tmp_path / "pins.json") == tuning.pins
    assert other.choice.pinned == model.choice.pinned
    with torch.no_grad():
        torch.testing.assert_close(other(x), dense(x))
