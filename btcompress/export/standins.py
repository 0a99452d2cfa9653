"""Stand-ins for what block-term modules compute while a network is traced: one node for each call of a layer.

A module stays where it is, with its hooks and its checks of what it is given; of what it does, only the running of a
layer is another for as long as the network is traced. Dense recurrent layers have stand-ins as well: torch's exporter
would fix their number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from btcompress.errors import BTCompressError
from btcompress.nn import BTLinear
from btcompress.nn.celltype import State
from btcompress.nn.recurrence import Direction
from btcompress.nn.running import Running

#: Of the operators that stand for calls in a traced graph.
DOMAIN = "btcompress"
#: The operators: recurrent layers, cells among them; a product with a matrix.
LAYERS, LINEAR = "Layers", "Linear"

#: What has a stand-in.
Module = Running | BTLinear | nn.RNNBase

#: The dense ones, whose classes say how they are called.
_DENSE = (nn.LSTM, nn.GRU, nn.RNN)

#: Steps and sequences, or rows, that each layer met; by the names of module and layer, which a dense one has none of.
Sizes = dict[tuple[str, str], tuple[int, int]]

#: What makes a function of a module, by its name, that is run in place of the module's own.
Maker = Callable[[str, Any], Callable[..., Any]]


def modules_of(network: nn.Module) -> dict[str, Module]:
    """Those of a network that have stand-ins, by name; under the first of its names, where a module has several.

    Dense recurrent layers and linear layers whose ``forward`` is one of their own have none.
    """
    return {
        name: cast(Module, module)
        for name, module in network.named_modules()
        if isinstance(module, Running) or any(_is_plain(module, kind) for kind in (BTLinear, *_DENSE))
    }


@contextmanager
def watched(modules: Mapping[str, Module]) -> Iterator[Sizes]:
    """Modules that compute as ever, but note what they meet.

    Yields:
        What each layer met in its last call.
    """
    sizes: Sizes = {}

    def of_layers(name: str, module: Running) -> Callable[..., Any]:
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
            if batch_sizes is not None:
                raise _packed(name)
            sizes[name, layer] = _steps_and_batch(inputs, batch_first=batch_first)
            return run(layer, directions, inputs, state, batch_first=batch_first)

        return watching

    def of_dense(name: str, module: nn.RNNBase) -> Callable[..., Any]:
        forward = module.forward

        def watching(input: Tensor, hx: Any = None) -> Any:  # noqa: A002, ANN401 - torch's name
            if isinstance(input, PackedSequence):
                raise _packed(name)
            batched = input if input.dim() == 3 else input.unsqueeze(0 if module.batch_first else 1)
            sizes[name, ""] = _steps_and_batch(batched, batch_first=module.batch_first)
            return forward(input, hx)

        return watching

    def of_linear(name: str, module: BTLinear) -> Callable[..., Any]:
        forward = module.forward

        def watching(inputs: Tensor) -> Tensor:
            sizes[name, ""] = (inputs.shape[:-1].numel(), 1)
            return forward(inputs)

        return watching

    for module in modules.values():
        if not isinstance(module, nn.RNNBase):
            # What was kept for inputs of the same shape would go past what watches.
            module.drop_formed()
    with _instead(modules, of_layers, of_dense, of_linear):
        yield sizes


@contextmanager
def traced(modules: Mapping[str, Module]) -> Iterator[None]:
    """Modules that leave one node for each layer in a traced graph, with their name."""
    from torch.onnx.ops import symbolic, symbolic_multi_out

    def node(
        name: str, layer: str, inputs: Tensor, states: Sequence[Tensor], outputs: int, batch_first: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, *final = symbolic_multi_out(
            f"{DOMAIN}::{LAYERS}",
            (inputs, *states),
            attrs={"module": name, "layer": layer, "batch_first": int(batch_first)},
            dtypes=[inputs.dtype] * (1 + len(states)),
            shapes=[(*inputs.shape[:2], outputs), *(tuple(each.shape) for each in states)],
            version=1,
        )
        return y, tuple(final)

    def of_layers(name: str, _: Running) -> Callable[..., Any]:
        def standing_in(
            layer: str,
            directions: Sequence[Direction],
            inputs: Tensor,
            state: State,
            batch_sizes: Tensor | None = None,
            *,
            batch_first: bool = False,
        ) -> tuple[Tensor, State, None]:
            if batch_sizes is not None:
                raise _packed(name)
            return *node(name, layer, inputs, state, len(directions) * state[0].shape[-1], batch_first), None

        return standing_in

    def of_dense(name: str, module: nn.RNNBase) -> Callable[..., Any]:
        directions, size = 1 + module.bidirectional, module.proj_size or module.hidden_size

        def standing_in(input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:  # noqa: A002, ANN401 - torch's name
            is_batched, batch = input.dim() == 3, 0 if module.batch_first else 1
            inputs = input if is_batched else input.unsqueeze(batch)
            if hx is None:
                sizes = (size, module.hidden_size) if isinstance(module, nn.LSTM) else (size,)
                lead = (directions * module.num_layers, inputs.shape[batch])
                states = [inputs.new_zeros(*lead, each) for each in sizes]
            else:
                states = [each if is_batched else each.unsqueeze(1) for each in (hx if type(hx) is tuple else (hx,))]
            y, final = node(name, "", inputs, states, directions * size, module.batch_first)
            if not is_batched:
                y, final = y.squeeze(batch), tuple(each.squeeze(1) for each in final)
            return y, final if isinstance(module, nn.LSTM) else final[0]

        return standing_in

    def of_linear(name: str, module: BTLinear) -> Callable[..., Any]:
        def standing_in(inputs: Tensor) -> Tensor:
            return symbolic(
                f"{DOMAIN}::{LINEAR}",
                (inputs,),
                attrs={"module": name},
                dtype=inputs.dtype,
                shape=(*inputs.shape[:-1], module.out_features),
                version=1,
            )

        return standing_in

    with _instead(modules, of_layers, of_dense, of_linear):
        yield


@contextmanager
def _instead(modules: Mapping[str, Module], of_layers: Maker, of_dense: Maker, of_linear: Maker) -> Iterator[None]:
    """Run other functions in place of modules' own, until the block ends, however it does."""
    put: list[tuple[nn.Module, str]] = []
    try:
        for name, module in modules.items():
            if isinstance(module, Running):
                own, make = "run", of_layers
            else:
                own, make = "forward", of_dense if isinstance(module, nn.RNNBase) else of_linear
            setattr(module, own, make(name, module))
            put.append((module, own))
        yield
    finally:
        for changed, own in put:
            delattr(changed, own)


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of a kind, and is called as all of it are."""
    return isinstance(module, kind) and type(module).forward is kind.forward and "forward" not in vars(module)


def _steps_and_batch(inputs: Tensor, *, batch_first: bool) -> tuple[int, int]:
    first, second = inputs.shape[:2]
    return (second, first) if batch_first else (first, second)


def _packed(name: str) -> BTCompressError:
    return BTCompressError(
        f"{name or 'the network'} gets packed sequences, which cannot be traced. Give the network padded ones to "
        "export it, all of the same number of steps, or export its layers alone with lengths (export --lengths)."
    )


def is_supported() -> bool:
    """Whether this torch can leave such nodes."""
    if find_spec("torch.onnx.ops") is None:
        return False
    return hasattr(import_module("torch.onnx.ops"), "symbolic_multi_out")
