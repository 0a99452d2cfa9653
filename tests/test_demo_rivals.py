"""Forms in the place of an LSTM with large inputs: what they compute, how large they are, and that they train."""

import copy
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import tensorly
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from btcompress import BTCompressError, load, save, to_dense
from btcompress.demo.measures import Measure
from btcompress.demo.randomstart import random_start, with_random_terms
from btcompress.demo.rivals import (
    BLOCK_TERMS,
    FEWER_UNITS,
    FORMS,
    LOW_RANK,
    ROUNDED,
    STARTS,
    TENSOR_TRAIN,
    large_lstm,
    matrix_key,
    target_shape,
)
from btcompress.demo.task import Size, Task, Training
from btcompress.demo.tensortrain import TensorTrainLSTM, input_matrix, nearest_ranks
from btcompress.demo.trainforms import applied, train_form
from btcompress.finetune.data import open_data, split
from btcompress.modes import ShapeRequest
from btcompress.shapes import BlockTermShape, MatrixShape
from btcompress.yardsticks.otherforms import tensor_train_params

TINY = Training(2, 5e-2, batch_size=4)
SIZE = Size(64, 32, 4, 1, 2, TINY, TINY, TINY, held_fraction=0.25)
UNEVEN = BlockTermShape((2, 3, 5), (4, 3, 2), (1, 1, 1), n_gates=4)
PADDED = BlockTermShape((2, 3, 5), (8, 2, 2), (1, 1, 1), in_size=29, out_size=24, n_gates=4)
LARGE = BlockTermShape((8, 10, 6, 9), (16, 4, 2, 4), (1, 1, 1, 1))
PAPER = BlockTermShape((8, 20, 20, 18), (16, 4, 4, 4), (4, 4, 4, 4), n_blocks=2)


class Reader(nn.Module):
    """An LSTM and a head on its last hidden state."""

    def __init__(self, hidden_size=4):
        super().__init__()
        self.lstm = nn.LSTM(24, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Looper(nn.Module):
    """The same by a cell."""

    def __init__(self, hidden_size=4):
        super().__init__()
        self.inner = nn.ModuleDict({"cell": nn.LSTMCell(24, hidden_size)})
        self.head = nn.Linear(hidden_size, 3)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.inner["cell"](step, state)
        return self.head(state[0])


def mean_loss(outputs, y):
    return cross_entropy(outputs, y)


@dataclass(frozen=True, slots=True)
class Reading(Task):
    name = "reading"
    layer = "lstm"
    measures = (Measure("accuracy", is_share=True),)
    metric = measures[0]
    examples = "sequences"
    size: Size = SIZE

    input_shape = (2, 3, 4)
    scale = 0.5

    def draw(self, seed):
        raise NotImplementedError

    def model(self, hidden_size=None):
        return Reader(hidden_size or self.size.hidden_size)

    def scores(self, model, test):
        x, y = test
        with torch.no_grad():
            return (float((model.eval()(x).argmax(1) == y).double().mean()),)

    def noisy(self, test, noise):
        raise NotImplementedError

    def draw_examples(self, models, test, path):
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Looping(Reading):
    name = "looping"
    layer = "inner.cell"
    measures = (Measure("loss", higher_is_better=False),)
    metric = measures[0]

    model_reference = "test_demo_rivals:Looper"
    loss = staticmethod(mean_loss)

    def model(self, hidden_size=None):
        return Looper(hidden_size or self.size.hidden_size)

    def scores(self, model, test):
        x, y = test
        with torch.no_grad():
            return (float(cross_entropy(model.eval()(x), y)),)


TASKS = (Reading(), Looping())
CASES = [(task, form, start) for task in TASKS for form in FORMS for start in form.starts]
IDS = [f"{task.name}, {form.name}, {start}" for task, form, start in CASES]


def dense_of(task, seed=3):
    torch.manual_seed(seed)
    return task.model()


def lstms(shape, dtype=torch.float64, bias=True):
    """A layer and a cell with a matrix of this shape."""
    torch.manual_seed(1)
    sizes = (shape.in_size, shape.out_size // 4)
    return nn.LSTM(*sizes, bias=bias, batch_first=True, dtype=dtype), nn.LSTMCell(*sizes, bias=bias, dtype=dtype)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (SIZE.n_train,), generator=generator)
    x = torch.randn(SIZE.n_train, 3, 24, generator=generator) + 8 * torch.eye(3, 24)[y].unsqueeze(1)
    path = tmp_path_factory.mktemp("rivals") / "train.npz"
    np.savez(path, x=x.numpy(), y=y.numpy())
    return path


@pytest.mark.parametrize("shape", [UNEVEN, PADDED], ids=["even", "padded"])
@pytest.mark.parametrize("bias", [True, False])
def test_tensor_train_lstm_is_the_dense_one_with_the_matrix_that_it_forms(shape, bias):
    inputs = torch.randn(5, 7, shape.in_size), torch.randn(5, shape.in_size)
    for dense, x in zip(lstms(shape, bias=bias), inputs, strict=True):
        x = x.double().requires_grad_()
        train = TensorTrainLSTM(dense, shape, (2, 3))
        same, matrix = copy.deepcopy(dense), train.to_dense()
        with torch.no_grad():
            input_matrix(same).copy_(matrix)
        h = torch.randn(5, shape.out_size // 4).double()
        state = (h, 2 * h) if x.dim() == 2 else (h[None], 2 * h[None])
        for given in (None, state):
            ours, theirs = train(x, given), same(x, given)
            first = (ours[0], *ours[1]) if x.dim() == 3 else ours
            second = (theirs[0], *theirs[1]) if x.dim() == 3 else theirs
            assert [each.shape for each in first] == [each.shape for each in second]
            for one, other in zip(first, second, strict=True):
                torch.testing.assert_close(one, other)
        weights = [torch.randn_like(each) for each in first]
        loss = sum((each * weight).sum() for each, weight in zip(first, weights, strict=True))
        dense_loss = sum((each * weight).sum() for each, weight in zip(second, weights, strict=True))
        own = torch.autograd.grad(loss, [x, *train.carriages], retain_graph=True)
        of_x, of_matrix = torch.autograd.grad(dense_loss, [x, input_matrix(same)])
        wanted = torch.autograd.grad(matrix, train.carriages, of_matrix)
        for one, other in zip(own, (of_x, *wanted), strict=True):
            torch.testing.assert_close(one, other)
        loss.backward()
        without = {name for name, parameter in train.named_parameters() if parameter.grad is None}
        assert without == {
            next(name for name in dict(train.recurrent.named_parameters(prefix="recurrent")) if "ih" in name)
        }


@pytest.mark.parametrize("shape", [UNEVEN, PADDED], ids=["even", "padded"])
def test_tensor_train_of_full_rank_is_the_dense_matrix_and_of_less_the_best_of_each_cut(shape):
    for dense in lstms(shape):
        matrix = input_matrix(dense).detach()
        full = nearest_ranks(shape.mode_sizes, 10**9)
        train = TensorTrainLSTM.from_dense(dense, shape, full)
        torch.testing.assert_close(train.to_dense(), matrix)
        sizes = [carriage.square().mean() for carriage in train.carriages]
        torch.testing.assert_close(sizes, [sizes[0]] * len(sizes))
        # Oseledets 2011, theorem 2.2, where nothing is padded: the squares of what each cut drops bound the error.
        if shape is UNEVEN:
            paired = matrix.reshape(*shape.out_modes, *shape.in_modes).permute(0, 3, 1, 4, 2, 5)
            cuts = [paired.reshape(math.prod(shape.mode_sizes[:k]), -1) for k in (1, 2)]
            dropped = [torch.linalg.svdvals(cut)[2:].square().sum() for cut in cuts]
            error = (TensorTrainLSTM.from_dense(dense, shape, (2, 2)).to_dense() - matrix).square().sum()
            assert max(dropped) <= error <= sum(dropped)


@pytest.mark.parametrize(("shape", "n_draws"), [(UNEVEN, 300), (LARGE, 10)], ids=["small", "large"])
def test_random_tensor_train_gives_products_the_spread_of_the_dense_ones(shape, n_draws):
    torch.manual_seed(0)
    dense = nn.LSTM(shape.in_size, shape.out_size // 4)
    nn.init.normal_(input_matrix(dense), std=2 * shape.in_size**-0.5)
    x = torch.randn(4, shape.in_size)
    ranks = (3,) * (shape.order - 1)
    train = TensorTrainLSTM(dense, shape, ranks)
    assert sum(carriage.numel() for carriage in train.carriages) == tensor_train_params(shape.mode_sizes, ranks)
    squares = []
    for _ in range(n_draws):
        train.reset_parameters(4 / shape.in_size)
        squares.append(train.product(x).detach().square().mean())
    assert float(torch.stack(squares).mean()) == pytest.approx(4, rel=0.25)
    torch.manual_seed(0)
    made = TensorTrainLSTM(dense, shape, ranks).carriages[1].detach().std()
    train.reset_parameters(4 / shape.in_size)
    torch.testing.assert_close(made, train.carriages[1].detach().std(), rtol=0.3, atol=0)


class Largest(TorchDispatchMode):
    """Keeps how many entries the largest tensor had that any operation gave."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            self.entries = max(self.entries, each.numel() if isinstance(each, torch.Tensor) else 0)
        return found


def test_tensor_train_is_applied_without_forming_the_matrix():
    train = TensorTrainLSTM(nn.LSTMCell(LARGE.in_size, LARGE.out_size // 4), LARGE, (3, 3, 3))
    with Largest() as largest:
        train.product(torch.randn(4, LARGE.in_size)).sum().backward()
    assert 4 * LARGE.in_size <= largest.entries < LARGE.dense_params / 10
    with Largest() as largest:
        train.to_dense()
    assert largest.entries >= LARGE.dense_params


@pytest.mark.parametrize(
    ("sizes", "n_params", "ranks"),
    [
        ((128, 80, 80, 72), 3392, (4, 4, 4)),
        ((128, 80, 80, 72), 3360, (4, 4, 4)),
        ((128, 80, 80, 72), 1, (1, 1, 1)),
        ((128, 80, 80, 72), 435, (1, 1, 1)),
        ((128, 80, 80, 72), 436, (1, 1, 2)),
        ((8, 9, 10), 10**6, (8, 10)),
        ((8, 9, 10), 26, (1, 1)),
        ((6, 8), 21, (2,)),
        ((5,), 100, ()),
    ],
)
def test_ranks_are_those_whose_parameters_are_nearest(sizes, n_params, ranks):
    assert nearest_ranks(sizes, n_params) == ranks


def test_tensor_train_of_the_paper_has_its_parameters():
    assert tensor_train_params(PAPER.mode_sizes, nearest_ranks(PAPER.mode_sizes, PAPER.n_params)) == 3360
    assert PAPER.n_params == 3392


@pytest.mark.parametrize("backend", ["numpy", "pytorch"])
def test_tensorly_computes_with_what_it_did_before(monkeypatch, backend):
    for name in [name for name in sys.modules if name.split(".")[0] == "tltorch"]:
        monkeypatch.delitem(sys.modules, name)  # so that what importing it does is done again
    dense = lstms(UNEVEN)[0]
    with tensorly.backend_context(backend):
        train = TensorTrainLSTM.from_dense(dense, UNEVEN, (2, 2))
        train(torch.randn(1, 2, 30).double())[0].sum().backward()
        train.to_dense()
        assert "tltorch" in sys.modules
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(tensorly.get_backend).result() == tensorly.get_backend() == backend
    assert tensorly.get_backend() == "numpy"


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tltorch", None)
    with pytest.raises(BTCompressError, match=r"pip install 'btcompress\[rivals\]'"):
        TENSOR_TRAIN.build(
            TASKS[0], dense_of(TASKS[0]), target_shape(TASKS[0], dense_of(TASKS[0]), ShapeRequest()), "from scratch", 0
        )
    assert tensorly.get_backend() == "numpy"


def of_w(task, made):
    """The tensors of ``W`` in what was made, by looking at names alone."""
    if isinstance(made.model, nn.Module):
        parameters = dict(made.model.get_submodule(task.layer).named_parameters())
        return [each for name, each in parameters.items() if "factor" in name] or [
            input_matrix(large_lstm(task, made.model))
        ]
    return [tensor for name, tensor in made.model.tensors.items() if "weight_ih" in name]


@pytest.mark.parametrize(("task", "form", "start"), CASES, ids=IDS)
def test_form_is_made_as_asked_and_counted_on_its_tensors(task, form, start, tmp_path):
    dense = dense_of(task)
    before = copy.deepcopy(dense.state_dict())
    target = target_shape(task, dense, ShapeRequest(1, 2))
    assert math.prod(target.in_modes) == 24
    torch.manual_seed(5)
    made, again = (form.build(task, dense, target, start, seed=2) for _ in range(2))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    for name, tensor in dense.state_dict().items():
        assert torch.equal(tensor, before[name])

    assert made.n_params == sum(tensor.numel() for tensor in of_w(task, made))
    rest = sum(
        each.numel() for name, each in dense.named_parameters() if task.layer in name and "weight_ih" not in name
    )
    if form is not FEWER_UNITS:
        assert made.n_lstm_params == made.n_params + rest
    if form is ROUNDED:
        rows, columns = input_matrix(large_lstm(task, dense)).shape
        assert made.n_bytes == rows * columns // 4 + rows * 2 + rows * 3 // 8
        save(made.model, tmp_path / "rounded.safetensors")
        assert len(to_dense(load(tmp_path / "rounded.safetensors"))[matrix_key(task, dense)].unique()) <= 4 * rows
    else:
        assert made.n_bytes == 4 * made.n_params

    source = dense if start == "dense model" else dense_of(task, seed=2)
    model, same = applied(task, made.model), applied(task, again.model)
    states = model.state_dict(), same.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    if form is not FEWER_UNITS:
        assert torch.equal(model.head.weight, source.head.weight)
        assert any(
            torch.equal(value, recurrent_matrix(source, task))
            for name, value in states[0].items()
            if "weight_hh" in name
        )


def recurrent_matrix(model, task):
    """The recurrent matrix of the dense LSTM."""
    return next(each for name, each in large_lstm(task, model).named_parameters() if "weight_hh" in name)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_forms_are_as_near_to_the_target_as_they_can_be(task):
    dense = dense_of(task)
    target = target_shape(task, dense, ShapeRequest(3, 2, (2, 3, 4), (4, 2, 2)))
    made = {form.name: form.build(task, dense, target, form.starts[-1], 0) for form in FORMS}
    assert made["block terms"].n_params == target.n_params == 3 * (2 * (8 + 6 + 8) + 8)
    train = made["tensor train"].n_params
    assert train == min(
        (
            tensor_train_params((8, 6, 8), (first, last))
            for first in range(1, 9)
            for last in range(first - 1, first + 2)
            if 0 < last < 9
        ),
        key=lambda n: abs(n - target.n_params),
    )
    assert made["low rank"].n_params == round(target.n_params / (16 + 24)) * (16 + 24)
    sizes = {h: sum(each.numel() for each in large_lstm(task, task.model(h)).parameters()) for h in range(1, 20)}
    for cp_rank in range(1, 20):
        target = target_shape(task, dense, ShapeRequest(cp_rank, 2, (2, 3, 4), (4, 2, 2)))
        wanted = BLOCK_TERMS.build(task, dense, target, "from scratch", 0).n_lstm_params
        found = FEWER_UNITS.build(task, dense, target, "from scratch", 0).n_lstm_params
        assert abs(found - wanted) == min(abs(n - wanted) for n in sizes.values())
    smallest = target_shape(task, dense, ShapeRequest(1, 1, (2, 3, 4), (4, 2, 2)))
    assert LOW_RANK.build(task, dense, smallest, "from scratch", 0).n_params == 16 + 24


def test_random_block_terms_have_the_spread_of_the_matrix_and_all_else_is_the_models():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(240, 16))
    nn.init.normal_(model[0].weight_ih_l0, std=0.25)
    shape = MatrixShape(BlockTermShape((15, 16), (8, 8), (3, 3), n_blocks=4, n_gates=4))
    found = [with_random_terms(model, {"0.weight_ih_l0": shape}) for _ in range(20)]
    spreads = [to_dense(each)["0.weight_ih_l0"].square().mean() for each in found]
    assert float(torch.stack(spreads).mean()) == pytest.approx(0.25**2, rel=0.15)
    given = found[0]
    assert torch.equal(given.tensors["0.weight_hh_l0"], model[0].weight_hh_l0)
    assert not torch.equal(found[0].tensors["0.weight_ih_l0.cores"], found[1].tensors["0.weight_ih_l0.cores"])
    assert given.matrices["0.weight_ih_l0"].weight_error > 1
    assert given.history == ({"step": "random start"},)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_random_start_of_a_factorized_model_is_that_of_its_forms(task):
    dense = dense_of(task)
    target = target_shape(task, dense, ShapeRequest(2, 2))
    factorized, scratch = (BLOCK_TERMS.build(task, dense, target, start, 4).model for start in STARTS)
    torch.manual_seed(5)
    started, drawn = random_start(task.model, factorized, 4), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert started.tensors.keys() == scratch.tensors.keys() == factorized.tensors.keys()
    assert all(torch.equal(started.tensors[name], scratch.tensors[name]) for name in scratch.tensors)
    assert [step["step"] for step in started.history] == ["factorize", "random start"]
    assert started.matrices == factorized.matrices


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(("task", "form", "start"), CASES, ids=IDS)
def test_form_trains_and_goes_on_where_it_was_interrupted(task, form, start, data, tmp_path):
    dense = dense_of(task)
    target = target_shape(task, dense, ShapeRequest(2, 2))
    made = form.build(task, dense, target, start, seed=0)

    def stop(epoch):
        raise StoppedError

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    with pytest.raises(StoppedError):
        train_form(task, made, data, TINY, 0, tmp_path / "cut", on_epoch=stop)
    seen = []
    cut = train_form(task, made, data, TINY, 0, tmp_path / "cut", on_epoch=seen.append)
    assert [epoch.epoch for epoch in seen] == [2]
    whole = train_form(task, made, data, TINY, 0, tmp_path / "whole")
    again = train_form(task, made, data, TINY, 0, tmp_path / "whole", on_epoch=stop)
    assert len(whole.curve) == TINY.epochs + 1
    assert whole.curve == cut.curve == again.curve

    held = split(open_data(str(data), task.scale), SIZE.held_fraction, 0)[1]
    batch = held.batch(torch.arange(len(held)))
    best = (max if task.metric.higher_is_better else min)(whole.curve)
    for trained in (whole, cut, again):
        assert task.scores(trained.model, (batch.x, batch.y)) == (pytest.approx(best),)
        assert (trained.compressed is None) == isinstance(made.model, nn.Module)
    assert best != whole.curve[0]
