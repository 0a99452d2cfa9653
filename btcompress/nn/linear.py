"""A linear layer whose matrix is in block-term form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import init

from btcompress.contraction import is_captured
from btcompress.fit import FitOptions
from btcompress.modes import ShapeRequest, choose_shape
from btcompress.nn.captured import ROWS
from btcompress.nn.conversion import fill_dense, fill_factorized
from btcompress.nn.formed import Keeping, is_plain
from btcompress.nn.options import ShapeOptions
from btcompress.nn.pretrained import Pretrained
from btcompress.nn.ways import Method, check_method
from btcompress.nn.weight import BTWeight, Products, check_size, multiply
from btcompress.shapes import MatrixShape


class BTLinear(Pretrained, Keeping):
    """``y = W x + b`` with ``W`` in block-term form; takes the place of :class:`torch.nn.Linear`.

    Parameters: ``weight.cores``, ``weight.factors.0`` to ``weight.factors.{d-1}``, and ``bias``.

    Args:
        in_features: ``I``.
        out_features: ``J``.
        bias: whether to add ``b``.
        device: where the parameters are.
        dtype: of the parameters.
        shape: the block-term shape of ``W``, or a request by which to choose one.
        method: multiply by the factors, by the dense matrix, or by the cheaper of the two;
            see :meth:`BTWeight.prefers_dense`.
        keeps_formed: whether predictions keep what they form of the parameters; see
            :class:`btcompress.nn.formed.Keeping`.

    Raises:
        ShapeError: the shape is not that of a ``(out_features, in_features)`` matrix, or none can be chosen.
        BTCompressError: unknown method.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        shape: MatrixShape | ShapeRequest = ShapeRequest(),
        method: Method = "auto",
        keeps_formed: bool = True,
    ) -> None:
        super().__init__(keeps_formed=keeps_formed)
        self.in_features = in_features
        self.out_features = out_features
        self.method = check_method(method)
        if isinstance(shape, ShapeRequest):
            shape = choose_shape(shape, "weight", out_features, in_features, n_gates=1).shape
        self.weight = BTWeight(check_size("weight", shape, (out_features, in_features)), device, dtype)
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw parameters so that ``W`` and ``b`` have the variance that :class:`torch.nn.Linear` gives them."""
        bound = self.in_features**-0.5
        self.weight.reset_parameters(bound**2 / 3, generator)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound, generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., I)`` to ``(..., J)``."""
        if is_captured():
            return self._captured(inputs)
        weight, formed = self.weight, self.formed() if self.keeps_formed and _predicts(self, inputs) else None
        dense = weight.prefers_dense(inputs.shape[:-1].numel(), self.method, formed=formed is not None)
        form: Callable[[], Tensor | Products] = weight.to_dense if dense else weight.prepare
        operand = form() if formed is None else formed.get(dense, weight.tensors, form)
        return multiply(inputs, operand, self.bias)

    def _captured(self, inputs: Tensor) -> Tensor:
        """The product where operations are recorded, for any number of rows."""
        weight = self.weight
        dense = weight.prefers_dense(ROWS, self.method)
        return multiply(inputs, weight.to_dense() if dense else weight.prepare(), self.bias)

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        *,
        options: FitOptions = FitOptions(),
        method: Method = "auto",
        **shape: Unpack[ShapeOptions],
    ) -> BTLinear:
        """Fit ``W`` and copy ``b``; dtype, device, training and gradient flags are those of ``linear``.

        Args:
            linear: never changed, and shares no storage with the result.
            options: effort, seed and device of the fit.
            method: as the constructor's.
            **shape: fields of :class:`btcompress.modes.ShapeRequest`; ``cp_rank`` is 2 where left out.

        Raises:
            ShapeError: modes, ranks and sizes do not fit together.
            BTCompressError: ``W`` is not finite.
        """
        shape.setdefault("cp_rank", 2)
        module = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            device="meta",
            dtype=linear.weight.dtype,
            shape=ShapeRequest(**shape),
            method=method,
        )
        return fill_factorized(module.to_empty(device=linear.weight.device), linear, options)

    def to_dense(self) -> nn.Linear:
        """The plain layer, the matrix formed; shares no storage with this one."""
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.weight.dtype
        )
        return fill_dense(linear.to_empty(device=self.weight.device), self)

    def extra_repr(self) -> str:
        """Sizes, as :class:`torch.nn.Linear` shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _predicts(linear: BTLinear, inputs: Tensor) -> bool:
    """Whether nobody asks for gradients, or looks into operations."""
    tensors = [inputs, *linear.weight.tensors, *([] if linear.bias is None else [linear.bias])]
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return not trains and is_plain(tensors)
