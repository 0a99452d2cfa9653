"""All that computes on a GPU, on one, against the CPU in float64.

Run as ``pytest -m gpu``, or by ``tests/benchmarks/gpu.sh``. BTCOMPRESS_GPU_TESTS_ON names another device: ``cpu`` tries
the tests themselves, ``pretended`` shows that nothing mixes devices (see pretended.py).
"""

import copy
import os
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import btcompress
from btcompress import BTGRU, BTLSTM, BTRNN, BTGRUCell, BTLinear, BTLSTMCell, BTRNNCell, memory
from btcompress.blockterm import BlockTerm
from btcompress.calibration import CalibrationRequest, SampleInputs, calibrate
from btcompress.checkpoint import read
from btcompress.compression import plan_for, priced_plan
from btcompress.contraction import layout
from btcompress.finetune import TrainConfig
from btcompress.fit import FitOptions, fit, fit_matrix, lowrank, weight_error
from btcompress.nn import BTWeight
from btcompress.orders import fit_ordered
from btcompress.recipe import FactorizeStep
from btcompress.shapes import BlockTermShape, MatrixShape
from forms import UNEVEN, in_blocks, random_form, shuffled
from tuning import SMALL, Classifier, draw, saved_pair, tune

ON = os.environ.get("BTCOMPRESS_GPU_TESTS_ON", "cuda")
HERE = "cpu"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        ON.startswith("cuda") and not torch.cuda.is_available(),
        reason="no CUDA device; BTCOMPRESS_GPU_TESTS_ON=cpu tries the test itself",
    ),
    # cuDNN copies such weights together at each call.
    pytest.mark.filterwarnings("error:RNN module weights are not part of single contiguous chunk of memory"),
]

#: Largest difference over the norm. Float64 is left to rounding. Float32 has 24 bits, bfloat16 8, and each
#: sum and step adds to what they round off.
ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-5}
ROUNDING_BF16 = 5e-2

METHODS = ("auto", "factored", "dense")
MATRICES = {"W": ("input",), "W and U": ("input", "recurrent")}
LSTMS = {
    "one layer": {},
    "two layers, both ways": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projected, without bias": {"proj_size": 4, "bias": False},
}
AUTOCAST = pytest.mark.skipif(ON == "pretended", reason="torch has no mixed precision there")


@pytest.fixture(autouse=True)
def _device():
    if ON != "pretended":
        yield
        return
    from pretended import pretended

    with pretended():
        yield


@pytest.fixture(autouse=True)
def _float32_without_tf32():
    """TF32 would keep 11 bits of each factor, in matrix products and, by torch's default, in cuDNN's LSTM."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch would have this said in another way
        before = [backend.allow_tf32 for backend in backends]
        for backend in backends:
            backend.allow_tf32 = False
        yield
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


#: Of a tensor there and one on the CPU.
MIXED = {
    "sum": lambda x, y: x + y,
    "product": lambda x, y: y @ x,
    "one of both": lambda x, y: torch.cat([x, y]),
    "in place": lambda x, y: y.add_(x),
    "indices there": lambda x, y: y[x.long()],
    "indices here": lambda x, y: x.index_select(0, y[0].long()),
    "NumPy": lambda x, y: x.numpy(),
    "generator": lambda x, y: torch.randn(2, device=ON, generator=torch.Generator()),
}


@pytest.mark.skipif(ON == "cpu", reason="nothing is elsewhere")
@pytest.mark.parametrize("mixed", MIXED.values(), ids=MIXED)
def test_it_refuses_tensors_of_the_cpu_beside_its_own(mixed):
    with pytest.raises((RuntimeError, TypeError)):
        mixed(torch.ones(2, 2).to(ON), torch.ones(2, 2))


def test_it_takes_numbers_copies_and_indices_of_the_cpu():
    x, y = torch.ones(2, 2).to(ON), torch.full((2, 2), 3.0)
    assert (x * 2 + y.to(x.device) + torch.tensor(1.0)).cpu().tolist() == [[6.0, 6.0], [6.0, 6.0]]
    assert x.copy_(y)[torch.tensor([1])].cpu().tolist() == [[3.0, 3.0]]


def difference(given, wanted):
    """The norm of the difference over that of what is wanted, on the CPU in float64."""
    given, wanted = (each.detach().to(HERE).double() for each in (given, wanted))
    return float((given - wanted).norm() / wanted.norm())


def there(module, dtype):
    """A copy of a module on the device."""
    return copy.deepcopy(module).to(dtype).to(ON)


def sequences(packed, batch_first):
    """Inputs of 12 features on the CPU, and what to make of them before they go into an LSTM."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 7, 12, generator=generator, dtype=torch.float64)
    if not packed:
        return (x if batch_first else x.transpose(0, 1).contiguous()), lambda leaf: leaf
    lengths = torch.tensor([7, 2, 5, 1, 7])
    return x, lambda leaf: pack_padded_sequence(leaf, lengths, batch_first=True, enforce_sorted=False)


def run_lstm(module, x, prepare):
    """Outputs and final states, and the gradients of a function of them all, by name."""
    leaf = x.clone().requires_grad_()
    outputs, (h, c) = module(prepare(leaf))
    outputs = outputs.data if isinstance(outputs, nn.utils.rnn.PackedSequence) else outputs
    return graded(module, leaf, {"outputs": outputs, "h": h, "c": c})


def graded(module, leaf, values):
    wide = [value.float() if value.dtype.itemsize < 4 else value for value in values.values()]
    torch.stack([value.sin().sum() for value in wide]).sum().backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    return {**values, "gradient of x": leaf.grad, **gradients}


def assert_near(given, wanted, most):
    assert given.keys() == wanted.keys()
    far = {name: difference(given[name], wanted[name]) for name in wanted}
    assert max(far.values()) < most, far


def lstm_of(matrices, method, **arguments):
    return BTLSTM(12, 8, dtype=torch.float64, matrices=matrices, method=method, cp_rank=2, tucker_rank=2, **arguments)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("arguments", LSTMS.values(), ids=LSTMS)
@pytest.mark.parametrize("matrices", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("method", METHODS)
def test_an_lstm_gives_what_it_gives_on_the_cpu_and_the_same_gradients(method, matrices, arguments, packed, dtype):
    here = lstm_of(matrices, method, **arguments)
    x, prepare = sequences(packed, here.batch_first)
    given = run_lstm(there(here, dtype), x.to(dtype).to(ON), prepare)
    assert all(value.device.type == torch.device(ON).type and value.dtype == dtype for value in given.values())
    assert_near(given, run_lstm(here, x, prepare), ROUNDING[dtype])


@pytest.mark.parametrize("arguments", LSTMS.values(), ids=LSTMS)
def test_running_an_lstm_gives_no_advice_that_it_cannot_follow(arguments):
    x, prepare = sequences(False, arguments.get("batch_first", False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_lstm(there(lstm_of(("input",), "dense", **arguments), torch.float32), x.float().to(ON), prepare)


@AUTOCAST
@pytest.mark.parametrize("arguments", LSTMS.values(), ids=LSTMS)
@pytest.mark.parametrize("matrices", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("method", METHODS)
def test_an_lstm_computes_in_the_dtype_of_mixed_precision(method, matrices, arguments):
    here = lstm_of(matrices, method, **arguments)
    x, prepare = sequences(False, here.batch_first)
    with torch.autocast(torch.device(ON).type, torch.bfloat16):
        given = run_lstm(there(here, torch.float32), x.float().to(ON), prepare)
    assert {given[name].dtype for name in ("outputs", "h", "c")} == {torch.bfloat16}
    assert_near(given, run_lstm(here, x, prepare), ROUNDING_BF16)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("matrices", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("method", METHODS)
def test_a_cell_gives_what_it_gives_on_the_cpu_and_the_same_gradients(method, matrices, dtype):
    here = BTLSTMCell(12, 8, dtype=torch.float64, matrices=matrices, method=method)
    x = sequences(False, True)[0][:, 0]

    def run(module, x):
        leaf = x.clone().requires_grad_()
        h, c = module(leaf, module(leaf))
        return graded(module, leaf, {"h": h, "c": c})

    assert_near(run(there(here, dtype), x.to(dtype).to(ON)), run(here, x), ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(("build", "cell"), [(BTGRU, BTGRUCell), (BTRNN, BTRNNCell)], ids=["gru", "rnn"])
@pytest.mark.parametrize("method", METHODS)
def test_grus_and_plain_rnns_give_what_they_give_on_the_cpu_and_the_same_gradients(method, build, cell, packed, dtype):
    def run(module, x, prepare):
        leaf = x.clone().requires_grad_()
        found = module(leaf, module(leaf)) if isinstance(module, cell) else module(prepare(leaf))
        outputs, h = found if isinstance(found, tuple) else (found, found)
        outputs = outputs.data if isinstance(outputs, nn.utils.rnn.PackedSequence) else outputs
        return graded(module, leaf, {"outputs": outputs, "h": h})

    given = {"dtype": torch.float64, "matrices": ("input", "recurrent"), "method": method}
    layer = build(12, 8, num_layers=2, bidirectional=True, **given)
    for here in (layer, *(() if packed else (cell(12, 8, **given),))):
        x, prepare = sequences(packed, False)
        x = x[0] if isinstance(here, cell) else x
        moved = run(there(here, dtype), x.to(dtype).to(ON), prepare)
        assert_near(moved, run(here, x, prepare), ROUNDING[dtype])


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_layer_gives_what_it_gives_on_the_cpu(method):
    here = BTLinear(12, 30, dtype=torch.float64, method=method)
    x = sequences(False, True)[0]
    assert difference(there(here, torch.float64)(x.to(ON)), here(x)) < ROUNDING[torch.float64]


def test_rows_in_pieces_that_are_computed_again_give_the_same(monkeypatch):
    here = lstm_of(("input",), "factored")
    x, prepare = sequences(False, False)
    wanted = run_lstm(here, x, prepare)
    monkeypatch.setattr(layout, "PIECE_NUMBERS", 2**3)
    given = run_lstm(there(here, torch.float64), x.to(ON), prepare)
    assert_near(given, wanted, ROUNDING[torch.float64])


def test_a_matrix_with_orders_gives_what_it_gives_on_the_cpu(generator):
    form = random_form(UNEVEN.ordered(("row_order", "column_order")), generator)
    weight = BTWeight(MatrixShape(form.shape), dtype=torch.float64)
    weight.load((form,))
    x = torch.randn(4, form.shape.in_size, generator=generator, dtype=torch.float64)
    moved = there(weight, torch.float64)
    assert difference(moved.to_dense(), form.to_dense()) < ROUNDING[torch.float64]
    assert difference(moved.matmul(x.to(ON)), form.matmul(x)) < ROUNDING[torch.float64]
    elsewhere = BlockTerm(form.shape, form.cores.to(ON), [factor.to(ON) for factor in form.factors], form.orders)
    for each in (form.to(ON), elsewhere):
        assert weight_error(form.to_dense(), (each,)) < ROUNDING[torch.float64]
        assert difference(each.to_dense(), form.to_dense()) < ROUNDING[torch.float64]


@pytest.mark.parametrize("large", [False, True], ids=["whole", "by Gram matrices"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        MatrixShape(BlockTermShape.low_rank(60, 28, 5, 4)),
        MatrixShape(BlockTermShape.low_rank(28, 60, 5, 4)),
        MatrixShape(BlockTermShape.low_rank(15, 28, 3), "separate"),
        MatrixShape(BlockTermShape((4, 7), (12, 5), (6, 6), n_gates=4, core="identity")),
    ],
    ids=["wide", "tall", "each gate", "Kronecker"],
)
def test_a_fit_without_core_is_the_best_one_as_on_the_cpu(shape, dtype, large, generator, monkeypatch):
    if large:
        monkeypatch.setattr(lowrank, "SMALL_ENTRIES", 0)
    matrix = torch.randn(shape.out_size, shape.in_size, generator=generator, dtype=torch.float64).to(dtype)
    here, moved = fit_matrix(matrix, shape), fit_matrix(matrix, shape, FitOptions(device=ON))
    # Compressing in float32 first, a sum of Kronecker products is best up to float32's rounding.
    most = ROUNDING[dtype] if large else ROUNDING[torch.float64]
    assert moved.weight_error == pytest.approx(here.weight_error, rel=most)
    for ours, theirs in zip(moved.parts, here.parts, strict=True):
        assert difference(ours.to_dense(), theirs.to_dense()) < 10 * most


@pytest.mark.parametrize("n_blocks", [1, 2])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_fit_reaches_the_noise_and_says_its_true_error(dtype, n_blocks, generator):
    shape = replace(UNEVEN, n_blocks=n_blocks)
    signal = random_form(shape, generator).to_dense()
    noise = torch.randn(signal.shape, generator=generator, dtype=torch.float64)
    matrix = (signal / signal.norm() + 0.1 * noise / noise.norm()).to(dtype)
    fitted = fit(matrix, shape, FitOptions(device=ON))
    assert fitted.value.cores.device.type == torch.device(ON).type
    assert fitted.weight_error == pytest.approx(weight_error(matrix, (fitted.value.to(HERE),)), rel=1e-6)
    # Eigenvectors may come with other signs on another device, and so random starts with other blocks.
    assert fitted.weight_error == pytest.approx(fit(matrix.double(), shape).weight_error, rel=1e-3)
    assert fitted.weight_error < 0.1 / 1.01**0.5


def test_a_fit_in_orders_gives_a_form_that_can_be_used_there(generator):
    part = BlockTermShape((4, 6), (8, 3), (2, 2), n_blocks=1, n_gates=1)
    matrix = shuffled(part, generator)
    fitted = fit_ordered(matrix, MatrixShape(part), FitOptions(device=ON, max_sweeps=5))
    form = fitted.parts[0]
    assert form.shape.order_sizes
    assert difference(form.to_dense(), matrix) == pytest.approx(fitted.weight_error, rel=1e-6)
    assert fitted.weight_error == pytest.approx(weight_error(matrix, fitted.parts), rel=1e-6)


def state_dict():
    torch.manual_seed(3)
    return {f"lstm.{name}": tensor for name, tensor in nn.LSTM(12, 4).double().state_dict().items()}


def test_a_plan_prices_low_rank_as_on_the_cpu_and_nothing_ends_worse():
    weights = state_dict()
    options = {"target_ratio": 4, "matrices": ("input", "recurrent"), "order": 3}
    here, moved = (plan_for(weights, **options, device=device) for device in (HERE, ON))
    for ours, theirs in zip(moved.forms, here.forms, strict=True):
        errors = [[point.error for point in form.curve.low_rank] for form in (ours, theirs)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-9)
    assert moved.params_after <= moved.params_before / 4
    compressed = btcompress.factorize(weights, plan=moved, device=ON)
    for form in moved.forms:
        if form.point is not None:
            own = compressed.matrices[form.name]
            assert form.low_rank is None or own.weight_error <= form.low_rank.error * (1 + 1e-6)
            assert own.weight_error == pytest.approx(weight_error(weights[form.name], compressed.parts(form.name)))
    assert {tensor.device.type for tensor in compressed.tensors.values()} == {HERE}


def test_a_plan_in_orders_keeps_to_its_budget(generator):
    part = BlockTermShape((3, 4), (8, 2), (2, 2), n_blocks=1, n_gates=4)
    weights = {**state_dict(), "lstm.weight_ih_l0": in_blocks(part, generator)}
    plan = plan_for(weights, target_ratio=2, order=2, order_units=True, device=ON)
    compressed = btcompress.factorize(weights, plan=plan, device=ON, max_sweeps=5)
    assert compressed.matrices["lstm.weight_ih_l0"].shape.n_params <= 16 * 12 / 2


def test_fits_in_orders_of_units_say_their_true_errors():
    weights = state_dict()
    options = {"cp_rank": 1, "tucker_rank": 2, "order": 2, "matrices": ("input", "recurrent"), "order_units": True}
    here, moved = (btcompress.factorize(weights, **options, device=device, max_sweeps=3) for device in (HERE, ON))
    assert moved.matrices.keys() == here.matrices.keys()
    for key, matrix in moved.matrices.items():
        assert matrix.weight_error == pytest.approx(weight_error(weights[key], moved.parts(key)), rel=1e-6)


def dense_and_sequences(folder, dtype, **arguments):
    folder = folder / str(dtype)
    folder.mkdir()
    torch.manual_seed(5)
    model = nn.ModuleDict({"lstm": nn.LSTM(24, 6, batch_first=True, **arguments)}).to(dtype)
    dense, compressed = saved_pair(folder, model)
    np.savez(folder / "inputs.npz", x=draw(40, 5, 24).astype(np.float64))
    return dense, compressed, str(folder / "inputs.npz")


def test_a_plan_on_sample_inputs_is_that_of_the_cpu(tmp_path):
    dense, _, inputs = dense_and_sequences(tmp_path, torch.float64)
    steps = [FactorizeStep(target_ratio=4, calibration=[SampleInputs(inputs)], device=device) for device in (HERE, ON)]
    here, moved = (priced_plan(dense, step) for step in steps)
    for ours, theirs in zip(moved.forms, here.forms, strict=True):
        errors = [[point.error for point in form.curve.low_rank] for form in (ours, theirs)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-9)
    assert moved.params_after <= moved.params_before / 4


#: How far trainings may end apart, of the metric: Adam's first steps are of one size however small the gradient, so a
#: few of them take rounding further than sums do.
APART = {torch.float64: 1e-6, torch.float32: 1e-2}


#: Calibrating also fits to inputs, by sweeps that end by an error in the model's dtype: 1.4 % on a CPU in float32.
APART_CALIBRATED = {torch.float64: 1e-6, torch.float32: 3e-2}


@pytest.mark.parametrize("dtype", APART, ids=str)
def test_calibrating_ends_as_on_the_cpu(tmp_path, dtype):
    def calibrated(folder, dtype, cpu):
        dense, compressed, inputs = dense_and_sequences(folder, dtype, num_layers=2)
        config = TrainConfig(epochs=2, learning_rate=3e-3, cpu=cpu)
        return calibrate(
            btcompress.load(compressed), read(dense), CalibrationRequest((SampleInputs(inputs),)), config
        ).history[-1]

    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    steps = calibrated(tmp_path / "there", dtype, False), calibrated(tmp_path / "here", torch.float64, True)
    assert steps[0]["hidden_state_error_after"] < steps[0]["hidden_state_error_before"]
    for name in ("hidden_state_error_before", "hidden_state_error_after"):
        assert steps[0][name] == pytest.approx(steps[1][name], rel=APART_CALIBRATED[dtype])


WAYS = {
    "hidden states": {"teacher": True},
    "hidden states, in parts": {"teacher": True, "accumulate": 3},
    "hidden states, of several lengths": {"teacher": True, "lengths": True},
    "labels": {"teacher": True, "labels": True},
    "labels of each step": {"labels": True, "lengths": True, "per_step": True},
    "own model": {"teacher": True, "labels": True, "model": "tuning:Classifier"},
}


def tuned(folder, name, dtype, cpu, *, teacher=False, labels=False, lengths=False, per_step=False, **more):
    """Fine-tune a classifier's file one way; what its history says, and its file."""
    folder = folder / str(dtype)
    dense, compressed = folder / "model.pt", folder / "model.bt.safetensors"
    if not folder.exists():
        folder.mkdir()
        torch.manual_seed(7)
        model = Classifier().to(dtype)
        saved_pair(folder, model if labels else nn.ModuleDict({"lstm": model.lstm}))
    arrays = {"x": draw(40, 5, 24)}
    if labels:
        arrays["y"] = np.random.default_rng(2).integers(3, size=(40, 5) if per_step else 40)
    if lengths:
        arrays["lengths"] = np.random.default_rng(3).integers(1, 6, size=40)
    np.savez(folder / "data.npz", **arrays)
    changes = {key: more.pop(key) for key in ("precision", "accumulate") if key in more}
    config = replace(SMALL, cpu=cpu, **changes)
    step = tune(folder, compressed, folder / "data.npz", dense if teacher else None, config, name, **more)
    return step, folder / name


@pytest.mark.parametrize("dtype", APART, ids=str)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_fine_tuning_ends_as_on_the_cpu(tmp_path, way, dtype):
    here, here_file = tuned(tmp_path, "here.safetensors", torch.float64, True, **way)
    moved, moved_file = tuned(tmp_path, "there.safetensors", dtype, False, **way)
    assert moved["before"] == pytest.approx(here["before"], rel=APART[dtype])
    # Factorized in another dtype, two factors may have other signs: their matrix has not.
    ours, theirs = (btcompress.to_dense(path) for path in (moved_file, here_file))
    for name in theirs:
        assert difference(ours[name], theirs[name]) < APART[dtype], name
    if moved["metric"] != "accuracy":  # one clip more or less is a step that rounding may take
        assert moved["after"] == pytest.approx(here["after"], rel=APART[dtype])


PRECISIONS = ["bf16", pytest.param("fp16", marks=pytest.mark.skipif(ON == "cpu", reason="not on a CPU"))]


@AUTOCAST
@pytest.mark.parametrize("precision", PRECISIONS)
def test_fine_tuning_in_mixed_precision_ends_near_float64(tmp_path, precision):
    here, _ = tuned(tmp_path, "here.safetensors", torch.float64, True, teacher=True)
    moved, moved_file = tuned(tmp_path, "there.safetensors", torch.float32, False, teacher=True, precision=precision)
    assert moved["after"] < moved["before"]
    assert moved["after"] == pytest.approx(here["after"], rel=ROUNDING_BF16)
    assert {tensor.dtype for tensor in btcompress.load(moved_file).tensors.values()} == {torch.float32}


def test_one_process_trains_on_the_device_after_the_cpu_and_the_other_way_round(tmp_path):
    from btcompress.finetune import loop

    seen = []
    for n, cpu in enumerate((True, False, True)):
        tuned(tmp_path, f"{n}.safetensors", torch.float32, cpu, teacher=True)
        seen.append(loop.Accelerator().device.type)
    assert seen == [HERE, torch.device(ON).type, HERE]


def test_resuming_goes_on_where_it_was_interrupted_optimizer_included(tmp_path):
    whole, whole_file = tuned(tmp_path, "whole.safetensors", torch.float64, False, teacher=True)

    def stop(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path, "resumed.safetensors", torch.float64, False, teacher=True, on_epoch=stop)
    resumed, resumed_file = tuned(tmp_path, "resumed.safetensors", torch.float64, False, teacher=True, resume=True)
    assert resumed["after"] == pytest.approx(whole["after"], rel=1e-9)
    ours, theirs = (btcompress.load(path).tensors for path in (resumed_file, whole_file))
    for name in theirs:
        assert difference(ours[name], theirs[name]) < 1e-9, name


def test_applying_a_result_to_a_model_on_the_device_gives_what_the_cpu_gives(tmp_path):
    model = Classifier().double()
    _, compressed = saved_pair(tmp_path, model)
    x = torch.randn(3, 5, 24, dtype=torch.float64)
    moved = btcompress.apply(there(model, torch.float64), compressed)
    assert difference(moved(x.to(ON)), btcompress.apply(model, compressed)(x)) < ROUNDING[torch.float64]


@pytest.mark.parametrize("fitted_on", [HERE, ON])
def test_a_module_on_the_device_is_converted_and_back(fitted_on):
    torch.manual_seed(2)
    plain = there(nn.LSTM(12, 8), torch.float64)
    ranks = {
        "cp_rank": 1,
        "tucker_rank": 100,
        "options": FitOptions(device=fitted_on),
        "matrices": ("input", "recurrent"),
    }
    converted = BTLSTM.from_dense(plain, **ranks)
    x = sequences(False, False)[0].to(ON)
    assert difference(converted(x)[0], plain(x)[0]) < ROUNDING[torch.float64]
    assert difference(converted.to_dense()(x)[0], plain(x)[0]) < ROUNDING[torch.float64]


@pytest.mark.skipif(ON == "pretended", reason="it has neither a clock nor memory of its own")
def test_a_bench_measures_there():
    compressed = btcompress.factorize(nn.LSTM(12, 8, num_layers=2), tucker_rank=2, matrices=("input", "recurrent"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = btcompress.bench(compressed, batch=(2,), steps=(3,), train=True, device=ON, seconds=0.05)
    dense = ["dense_onednn", "dense_native"] if ON == "cpu" else ["dense_cudnn"]
    for case in report.cases:
        assert [way.way for way in case.ways if way.way != "int8"] == [*dense, "block_terms"]
        assert all(way.peak_bytes > 0 for way in case.ways)
    assert report.machine.device == ON


@pytest.mark.skipif(ON == "pretended", reason="it has no clock of its own")
@pytest.mark.parametrize("trains", [False, True])
def test_ways_to_run_are_measured_and_pinned_there(trains):
    module = there(BTLSTM(12, 8, tucker_rank=2, matrices=("input", "recurrent"), dropout=0.0), torch.float32)
    x = sequences(False, False)[0].to(ON, torch.float32)
    random = None if ON == "cpu" else torch.cuda.get_rng_state(ON)
    with torch.set_grad_enabled(trains):
        before = module(x)[0]
        (measured,) = btcompress.tune(module, x, trains=trains, seconds=0.05).measured
        assert difference(module(x)[0], before) < ROUNDING[torch.float32]
        (layer,) = module.kept_run(x, None)
    assert layer.way == measured.pin.way
    assert {way.steps for way in measured.seconds} == {"kernel", "definition", *(["loop"] if ON == "cpu" else [])}
    assert random is None or torch.equal(torch.cuda.get_rng_state(ON), random)


def test_too_little_memory_is_told_from_a_defect():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, device=ON)
    assert memory.is_out_of_memory(caught.value)
