"""Stand-ins for what block-term modules compute while a network is traced: one node for each call of a layer.

A module stays where it is, with its hooks and its checks of what it is given; of what it does, only the running of a
layer is another for as long as the network is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from btcompress.errors import BTCompressError
from btcompress.nn import BTLSTM, BTLinear, BTLSTMCell
from btcompress.nn.recurrence import Direction, State

#: Of the operators that stand for calls in a traced graph.
DOMAIN = "btcompress"
#: The operators: a layer of an LSTM, a cell among them; a product with a matrix.
LAYER, LINEAR = "Layer", "Linear"

BlockTermModule = BTLSTM | BTLSTMCell | BTLinear

#: Rows, or steps and sequences, that each layer met; by the names of module and layer.
Sizes = dict[tuple[str, str], tuple[int, int]]


def block_term_modules(network: nn.Module) -> dict[str, BlockTermModule]:
    """Those of a network by name; under the first of its names, where a module has several.

    A linear layer whose ``forward`` is one of its own is none.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, BTLSTM | BTLSTMCell) or (isinstance(module, BTLinear) and _is_plain(module))
    }


@contextmanager
def watched(modules: Mapping[str, BlockTermModule]) -> Iterator[Sizes]:
    """Modules that compute as ever, but note what they meet.

    Yields:
        What each layer met in its last call.
    """
    sizes: Sizes = {}

    def of_lstm(name: str, module: BTLSTM | BTLSTMCell) -> Callable[..., Any]:
        run = module.run

        def watching(
            layer: str,
            directions: Sequence[Direction],
            inputs: Tensor,
            state: State,
            batch_sizes: Tensor | None = None,
            *,
            batch_first: bool = False,
        ) -> Any:  # noqa: ANN401 - as the module's own
            _refuse_packed(name, batch_sizes)
            first, second = inputs.shape[:2]
            sizes[name, layer] = (second, first) if batch_first else (first, second)
            return run(layer, directions, inputs, state, batch_first=batch_first)

        return watching

    def of_linear(name: str, module: BTLinear) -> Callable[[Tensor], Tensor]:
        forward = module.forward

        def watching(inputs: Tensor) -> Tensor:
            sizes[name, ""] = (inputs.shape[:-1].numel(), 1)
            return forward(inputs)

        return watching

    for module in modules.values():
        # What was kept for inputs of the same shape would go past what watches.
        module.drop_formed()
    with _instead(modules, of_lstm, of_linear):
        yield sizes


@contextmanager
def traced(modules: Mapping[str, BlockTermModule]) -> Iterator[None]:
    """Modules that leave one node for each layer in a traced graph, with their name."""
    from torch.onnx.ops import symbolic, symbolic_multi_out

    def of_lstm(name: str, module: BTLSTM | BTLSTMCell) -> Callable[..., Any]:  # noqa: ARG001 - as the other one
        def standing_in(
            layer: str,
            directions: Sequence[Direction],
            inputs: Tensor,
            state: State,
            batch_sizes: Tensor | None = None,
            *,
            batch_first: bool = False,
        ) -> tuple[Tensor, State, None]:
            _refuse_packed(name, batch_sizes)
            h, c = state
            y, hn, cn = symbolic_multi_out(
                f"{DOMAIN}::{LAYER}",
                (inputs, h, c),
                attrs={"module": name, "layer": layer, "batch_first": int(batch_first)},
                dtypes=[inputs.dtype] * 3,
                shapes=[(*inputs.shape[:2], len(directions) * h.shape[-1]), tuple(h.shape), tuple(c.shape)],
                version=1,
            )
            return y, (hn, cn), None

        return standing_in

    def of_linear(name: str, module: BTLinear) -> Callable[[Tensor], Tensor]:
        def standing_in(inputs: Tensor) -> Tensor:
            if inputs.shape[-1] != module.in_features:
                raise RuntimeError(
                    f"the input of {name} has {inputs.shape[-1]} features, but in_features is {module.in_features}."
                )
            return symbolic(
                f"{DOMAIN}::{LINEAR}",
                (inputs,),
                attrs={"module": name},
                dtype=inputs.dtype,
                shape=(*inputs.shape[:-1], module.out_features),
                version=1,
            )

        return standing_in

    with _instead(modules, of_lstm, of_linear):
        yield


@contextmanager
def _instead(
    modules: Mapping[str, BlockTermModule],
    of_lstm: Callable[[str, BTLSTM | BTLSTMCell], Callable[..., Any]],
    of_linear: Callable[[str, BTLinear], Callable[[Tensor], Tensor]],
) -> Iterator[None]:
    """Run other functions in place of modules' own, until the block ends, however it does."""
    put: list[tuple[nn.Module, str]] = []
    try:
        for name, module in modules.items():
            own = "forward" if isinstance(module, BTLinear) else "run"
            function = of_linear(name, module) if isinstance(module, BTLinear) else of_lstm(name, module)
            setattr(module, own, function)
            put.append((module, own))
        yield
    finally:
        for changed, own in put:
            delattr(changed, own)


def _is_plain(module: BTLinear) -> bool:
    return type(module).forward is BTLinear.forward and "forward" not in vars(module)


def _refuse_packed(name: str, batch_sizes: Tensor | None) -> None:
    if batch_sizes is not None:
        raise BTCompressError(
            f"{name or 'the network'} gets packed sequences, which cannot be traced. Give the network padded ones to "
            "export it, all of the same number of steps, or export its LSTMs alone with lengths (export --lengths)."
        )


def is_supported() -> bool:
    """Whether this torch can leave such nodes."""
    if find_spec("torch.onnx.ops") is None:
        return False
    return hasattr(import_module("torch.onnx.ops"), "symbolic_multi_out")
