"""What takes the place of a task's LSTM with the large inputs, at about as many parameters of its input matrix."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from btcompress.checkpoint import CompressedCheckpoint
from btcompress.checkpoint.compressed import part_names
from btcompress.compression import compress
from btcompress.demo.randomstart import with_random_terms
from btcompress.demo.task import Task
from btcompress.demo.tensortrain import DenseLSTM, TensorTrainLSTM, input_matrix, nearest_ranks
from btcompress.factorization import factorize_as_planned, open_weights
from btcompress.fit import FitOptions
from btcompress.modes import ShapeRequest, choose_shape
from btcompress.packing import LEAST_BITS, LEAST_GROUP, Packed
from btcompress.plan import make_plan
from btcompress.recipe import FactorizeStep
from btcompress.shapes import BlockTermShape, MatrixShape

#: What training begins with: the trained dense model, or random numbers.
Start: TypeAlias = Literal["dense model", "from scratch"]
STARTS: tuple[Start, ...] = ("dense model", "from scratch")

_N_GATES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A model with something in the place of the LSTM's matrix ``W``, before training.

    Attributes:
        model: as a compressed checkpoint where it can be one, to be trained by :func:`btcompress.finetune.finetune`;
            else the model itself.
        n_params: of ``W``, counted on its tensors.
        n_bytes: of ``W``, as stored.
        n_lstm_params: of the LSTM with ``W``, ``U`` and biases.
    """

    model: nn.Module | CompressedCheckpoint
    n_params: int
    n_bytes: int
    n_lstm_params: int


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What to make a form of.

    Attributes:
        task: that the model is for.
        model: the model that all comes from, trained or with random weights; never changed.
        target: shape of the block terms of ``W`` that all forms are compared with.
        start: which of the two the model is.
        seed: of random draws.
    """

    task: Task[Any]
    model: nn.Module
    target: BlockTermShape
    start: Start
    seed: int

    @property
    def layer(self) -> DenseLSTM:
        """The LSTM."""
        return large_lstm(self.task, self.model)

    @property
    def key(self) -> str:
        """Of ``W`` in the state dict."""
        return matrix_key(self.task, self.model)


@dataclass(frozen=True, slots=True)
class Form:
    """One form of ``W``, or of the LSTM.

    Attributes:
        name: of it.
        starts: what it can begin with.
        make: what makes it of a job.
    """

    name: str
    starts: tuple[Start, ...]
    make: Callable[[_Job], Made]

    def build(self, task: Task[Any], dense: nn.Module, target: BlockTermShape, start: Start, seed: int) -> Made:
        """Put this form in the place of the LSTM's ``W``.

        Args:
            task: that the model is for.
            dense: the dense model, trained; never changed, and not looked at from scratch.
            target: shape of the block terms of ``W``, whose parameters all forms come as near to as they can, and whose
                mode sizes a tensor train has.
            start: one of :attr:`starts`; from scratch, all that is not of this form begins as the dense model of the
                same seed does.
            seed: of every random draw; torch's generator is left as it was.

        Raises:
            BTCompressError: a package is missing, or a matrix is not finite.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = dense if start == "dense model" else task.model()
            return self.make(_Job(task, model, target, start, seed))


def target_shape(task: Task[Any], dense: nn.Module, request: ShapeRequest) -> BlockTermShape:
    """The shape of the block terms of ``W`` that is asked for; modes are cut along the axes of the task's input.

    Raises:
        ShapeError: modes and sizes do not fit together, or the gates are to be separate.
    """
    rows, columns = input_matrix(large_lstm(task, dense)).shape
    if request.in_modes is None and math.prod(task.input_shape) == columns:
        request = replace(request, input_shape=task.input_shape)
    return choose_shape(replace(request, gates="fused"), matrix_key(task, dense), rows, columns).shape.part


def large_lstm(task: Task[Any], model: nn.Module) -> DenseLSTM:
    """The LSTM with the large inputs of a dense model."""
    layer = model.get_submodule(task.layer)
    if not isinstance(layer, nn.LSTM | nn.LSTMCell):
        raise TypeError(f"{task.layer} is a {type(layer).__name__}, no LSTM of torch's.")
    return layer


def matrix_key(task: Task[Any], model: nn.Module) -> str:
    """The name of ``W`` in the state dict of a dense model."""
    is_layer = isinstance(large_lstm(task, model), nn.LSTM)
    return f"{task.layer}.{'weight_ih_l0' if is_layer else 'weight_ih'}"


def _block_terms(job: _Job) -> Made:
    return _with_shape(job, job.target)


def _low_rank(job: _Job) -> Made:
    rows, columns = input_matrix(job.layer).shape
    rank = min(max(1, round(job.target.n_params / (rows + columns))), rows, columns)
    return _with_shape(job, BlockTermShape.low_rank(rows, columns, rank, _N_GATES))


def _with_shape(job: _Job, part: BlockTermShape) -> Made:
    """``W`` fitted by block terms of a shape, or random ones."""
    shape = MatrixShape(part)
    if job.start == "from scratch":
        return _counted_checkpoint(job, with_random_terms(job.model, {job.key: shape}))
    checkpoint = open_weights(job.model)
    plan = make_plan(checkpoint, ShapeRequest(), [job.key], allow_growth=True)
    (planned,) = plan.matrices
    plan = replace(plan, matrices=(replace(planned, shape=shape),), notices=())
    return _counted_checkpoint(job, factorize_as_planned(checkpoint, plan, FitOptions(seed=job.seed)))


def _rounded(job: _Job) -> Made:
    group = max(input_matrix(job.layer).shape[1], LEAST_GROUP)
    return _counted_checkpoint(job, compress(job.model, FactorizeStep(layers=[job.key], bits=LEAST_BITS, group=group)))


def _tensor_train(job: _Job) -> Made:
    ranks = nearest_ranks(job.target.mode_sizes, job.target.n_params)
    make = TensorTrainLSTM if job.start == "from scratch" else TensorTrainLSTM.from_dense
    layer = make(job.layer, job.target, ranks)
    model = copy.deepcopy(job.model)
    model.set_submodule(job.task.layer, layer)
    return counted(model, layer, layer.carriages)


def _fewer_units(job: _Job) -> Made:
    layer, others = job.layer, sum(parameter.numel() for parameter in job.layer.parameters())
    wanted = others - input_matrix(layer).numel() + job.target.n_params
    # The parameters of so many units are 4 h (h + n), and n the inputs and the biases of a row.
    n = layer.input_size + (2 if layer.bias else 0)
    below = int((math.sqrt(n * n + wanted) - n) / 2)
    near = (h for h in (below, below + 1) if h >= 1)
    hidden_size = min(near, key=lambda h: abs(4 * h * (h + n) - wanted))
    model = job.task.model(hidden_size)
    smaller = large_lstm(job.task, model)
    return counted(model, smaller, (input_matrix(smaller),))


def _counted_checkpoint(job: _Job, compressed: CompressedCheckpoint) -> Made:
    """A compressed checkpoint with its counts."""
    key, tensors = job.key, compressed.tensors
    matrix = compressed.matrices.get(key)
    names = [key] if matrix is None else [name for names in part_names(key, matrix.shape) for name in names]
    n_bytes = sum(_bytes_of(tensors[name], compressed.stored.get(name)) for name in names)
    n_params = sum(tensors[name].numel() for name in names)
    of_lstm = [tensor for name, tensor in tensors.items() if name.startswith(f"{job.task.layer}.")]
    return Made(compressed, n_params, n_bytes, sum(tensor.numel() for tensor in of_lstm))


def _bytes_of(tensor: Tensor, stored: torch.dtype | Packed | None) -> int:
    if isinstance(stored, Packed):
        return stored.n_bytes
    return tensor.numel() * (tensor.dtype if stored is None else stored).itemsize


def counted(model: nn.Module, layer: nn.Module, matrix: tuple[Tensor, ...]) -> Made:
    """A model with its counts.

    Args:
        model: the model.
        layer: its LSTM with the large inputs; what is not trained in it does not count.
        matrix: the tensors of ``W``.
    """
    n_params, n_bytes = sum(tensor.numel() for tensor in matrix), sum(tensor.nbytes for tensor in matrix)
    return Made(model, n_params, n_bytes, sum(each.numel() for each in layer.parameters() if each.requires_grad))


BLOCK_TERMS = Form("block terms", STARTS, _block_terms)
TENSOR_TRAIN = Form("tensor train", STARTS, _tensor_train)
LOW_RANK = Form("low rank", STARTS, _low_rank)
FEWER_UNITS = Form("fewer hidden units", ("from scratch",), _fewer_units)
ROUNDED = Form("rounded", ("dense model",), _rounded)

#: All forms that are compared, block terms first.
FORMS = (BLOCK_TERMS, TENSOR_TRAIN, LOW_RANK, FEWER_UNITS, ROUNDED)
#: Those that are not block terms.
RIVALS = FORMS[1:]
