"""LSTMs whose input matrix is a tensor train, by TensorLy-Torch's factorized layers: the rival that the field knows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from btcompress.demo.missing import missing
from btcompress.fit.arranged import pad_matrix
from btcompress.shapes import BlockTermShape
from btcompress.yardsticks.otherforms import tensor_train_params

#: The LSTMs whose place can be taken: of one layer and one direction, or of one step.
DenseLSTM = nn.LSTM | nn.LSTMCell


class TensorTrainLSTM(nn.Module):
    """An LSTM of one layer, or a cell, whose ``W`` is a tensor train (Yang et al. 2017, eq. 6); called as torch's are.

    TensorLy-Torch computes ``W x`` by the carriages, without forming ``W``. That is the input of torch's own module,
    whose input matrix is the identity and stays it, so that torch's kernels run the steps.

    ``W`` is random at first, with the spread of the layer's matrix.

    Args:
        layer: the dense one, whose recurrent matrix and biases are copied.
        shape: of block terms of ``W``, whose mode sizes the tensor train has; padding included.
        ranks: between neighbouring modes, ``d - 1`` of them.

    Raises:
        BTCompressError: TensorLy-Torch is missing.
    """

    def __init__(self, layer: DenseLSTM, shape: BlockTermShape, ranks: Sequence[int]) -> None:
        super().__init__()
        self.shape = shape
        self.ranks = (1, *ranks, 1)
        matrix = input_matrix(layer)
        with tensorly_torch() as library:
            self.weight = library.FactorizedLinear(
                shape.in_modes,
                shape.out_modes,
                bias=False,
                factorization="blocktt",
                rank=self.ranks,
                implementation="factorized",
                dtype=matrix.dtype,
            )
        self.recurrent = _with_identity(layer)
        self.reset_parameters(float(matrix.detach().double().square().mean()))

    @classmethod
    def from_dense(cls, layer: DenseLSTM, shape: BlockTermShape, ranks: Sequence[int]) -> TensorTrainLSTM:
        """The same with the tensor train that is fitted to the layer's matrix by one SVD after another (TT-SVD).

        The error is at most ``sqrt(d - 1)`` times that of the best tensor train of these ranks (Oseledets 2011).
        Carriages are scaled to entries of one size, so that steps of one size suit all of them.
        """
        train = cls(layer, shape, ranks)
        matrix = pad_matrix(input_matrix(layer).detach(), shape)
        with tensorly_torch() as library:
            fitted = library.TensorizedTensor.from_matrix(
                matrix, shape.out_modes, shape.in_modes, list(train.ranks), factorization="blocktt"
            )
        sizes = [float(carriage.detach().double().square().mean().sqrt()) for carriage in fitted.factors]
        usable = all(size > 0 for size in sizes)
        mean = math.prod(size ** (1 / len(sizes)) for size in sizes)
        with torch.no_grad():
            for own, carriage, size in zip(train.carriages, fitted.factors, sizes, strict=True):
                own.copy_(carriage * (mean / size) if usable else carriage)
        return train

    def reset_parameters(self, variance: float) -> None:
        """Draw carriages from one normal distribution that gives the entries of ``W`` this variance.

        Each entry sums as many products as the ranks multiply to. TensorLy-Torch's own start takes the matrix for a
        tensor of order 2: at the sizes of the paper, entries of ``W`` would come out 25,000 times too small.
        """
        carriages = self.carriages
        std = (variance / math.prod(self.ranks)) ** (0.5 / len(carriages))
        for carriage in carriages:
            nn.init.normal_(carriage, std=std)

    @property
    def carriages(self) -> tuple[nn.Parameter, ...]:
        """The parameters of ``W``, shapes ``(r_(k-1), J_k, I_k, r_k)``."""
        return tuple(self.weight.weight.factors)

    def to_dense(self) -> Tensor:
        """``W``, shape ``(out_size, in_size)``; differentiable."""
        with tensorly_torch():
            whole: Tensor = self.weight.weight.to_matrix()
        return self._unpadded(whole[:, : self.shape.in_size].T).T

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Any:  # noqa: ANN401 - as torch's
        """What torch's module gives; arguments as there."""
        return self.recurrent(self.product(x), state)

    def product(self, x: Tensor) -> Tensor:
        """``W x`` for each row; ``(..., in_size)`` to ``(..., out_size)``."""
        missing = self.shape.padded_in - self.shape.in_size
        with tensorly_torch():
            whole: Tensor = self.weight(pad(x, (0, missing)) if missing else x)
        return self._unpadded(whole)

    def _unpadded(self, product: Tensor) -> Tensor:
        """``(..., padded_out)`` without what is padded at the end of each gate."""
        shape = self.shape
        if shape.padded_out == shape.out_size:
            return product
        gates = product.unflatten(-1, (shape.n_gates, -1))
        return gates[..., : shape.out_size // shape.n_gates].flatten(-2)


def nearest_ranks(mode_sizes: Sequence[int], n_params: int) -> tuple[int, ...]:
    """The ranks of a tensor train whose parameters are nearest to so many, of two equally near the more.

    All ranks are equal, as far as the modes hold them, or one larger for some of the modes.

    Args:
        mode_sizes: ``I_k J_k``.
        n_params: parameters to come near to.
    """
    sizes = tuple(mode_sizes)
    limits = [min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes))]
    best = (1,) * len(limits)

    def order(ranks: tuple[int, ...]) -> tuple[int, int]:
        params = tensor_train_params(sizes, ranks)
        return abs(params - n_params), -params

    for rank in range(1, max(limits, default=1) + 1):
        steps = itertools.product(*((rank, rank + 1) for _ in limits))
        candidates = {
            tuple(min(each, limit) for each, limit in zip(ranks, limits, strict=True)): None for ranks in steps
        }
        best = min((best, *candidates), key=order)
        if tensor_train_params(sizes, next(iter(candidates))) > n_params:
            break
    return best


def input_matrix(layer: DenseLSTM) -> nn.Parameter:
    """``W`` of an LSTM, shape ``(4 H, I)``."""
    return layer.get_parameter("weight_ih_l0" if isinstance(layer, nn.LSTM) else "weight_ih")


def _with_identity(layer: DenseLSTM) -> DenseLSTM:
    """Torch's module with the same recurrent matrix and biases, for inputs that were multiplied by ``W`` already."""
    size, dtype = 4 * layer.hidden_size, input_matrix(layer).dtype
    new: DenseLSTM
    if isinstance(layer, nn.LSTM):
        new = nn.LSTM(size, layer.hidden_size, bias=layer.bias, batch_first=layer.batch_first, dtype=dtype)
    else:
        new = nn.LSTMCell(size, layer.hidden_size, bias=bool(layer.bias), dtype=dtype)
    identity = input_matrix(new)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            parameter.copy_(torch.eye(size) if parameter is identity else layer.get_parameter(name))
    identity.requires_grad_(False)
    return new


@contextmanager
def tensorly_torch() -> Iterator[Any]:
    """TensorLy-Torch, while TensorLy computes with torch; importing it alone would let TensorLy do so for good."""
    import tensorly

    with tensorly.backend_context("pytorch", local_threadsafe=True):
        try:
            import tltorch
        except ImportError as error:
            raise missing("a tensor-train LSTM", "tensorly-torch", "rivals") from error
        yield tltorch
