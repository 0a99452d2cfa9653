"""The ways to run one recurrent layer of a file: each makes a layer, and says how it is called."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from textwrap import shorten

import torch
from torch import Tensor, nn

from btcompress.benching.machine import onednn
from btcompress.checkpoint import CompressedCheckpoint, RecurrentEntry
from btcompress.export.modules import block_term_module
from btcompress.memory import is_out_of_memory
from btcompress.timings import LeftOut, Mode, WayName

#: What a layer begins from, as torch's take it: ``h`` and ``c`` of an LSTM, else ``h`` alone.
State = Tensor | tuple[Tensor, Tensor]

#: Bytes of a number in torch's dynamic int8, and of one of its biases.
_INT8_BYTES, _BIAS_BYTES = 1, 4


class _NoSuchWayError(Exception):
    """There is no such way for a layer; the text says why."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A recurrent layer run in one way.

    Attributes:
        way: which.
        module: takes the inputs.
        param_bytes: of its parameters.
        n_params: numbers in them.
        operations: of matrix products in a step of one sequence, where the matrices alone say so.
    """

    way: WayName
    module: nn.Module
    param_bytes: int
    n_params: int
    operations: int | None = None

    def around(self, mode: Mode) -> AbstractContextManager[None]:
        """What its calls are made in."""
        return _settings(with_gradients=mode == "training", with_onednn=self.way != "dense_native")

    def call(self, x: Tensor, state: State, mode: Mode) -> Callable[[], object]:
        """A call on inputs of shape ``(T, B, I)`` from a state, and in training the backward pass to all parameters."""
        module = self.module
        run = _stepper(module) if tensors_of(state)[0].dim() == 2 else module
        if mode == "prediction":
            return lambda: run(x, state)

        def training() -> None:
            module.zero_grad()
            run(x, state)[0].square().mean().backward()

        return training


def tensors_of(state: State) -> tuple[Tensor, ...]:
    """All tensors of a state."""
    return (state,) if isinstance(state, Tensor) else state


def _stepper(cell: nn.Module) -> Callable[[Tensor, State], tuple[Tensor, State]]:
    """A cell as a layer: one call for each step."""

    def run(x: Tensor, state: State) -> tuple[Tensor, State]:
        outputs = []
        for step in x.unbind(0):
            state = cell(step, state)
            outputs.append(tensors_of(state)[0])
        return (torch.stack(outputs) if torch.is_grad_enabled() else outputs[-1]), state

    return run


@contextmanager
def _settings(*, with_gradients: bool, with_onednn: bool) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(with_gradients))
        stack.enter_context(onednn(with_onednn and torch.backends.mkldnn.is_available()))
        stack.enter_context(warnings.catch_warnings())
        # Block terms may give such a layer to torch's kernel, which then takes its own without being told to.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield


def inputs_of(
    entry: RecurrentEntry, batch: int, steps: int, dtype: torch.dtype, device: str, seed: int
) -> tuple[Tensor, State]:
    """Random inputs ``(T, B, I)``, and a state to begin from: the same for the same sizes and seed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    x = draw(steps, batch, entry.input_size)
    lead = (batch,) if entry.is_cell else (entry.num_layers * (1 + entry.bidirectional), batch)
    h = draw(*lead, entry.proj_size or entry.hidden_size)
    return x, h if entry.n_states == 1 else (h, draw(*lead, entry.hidden_size))


def block_term_layer(
    compressed: CompressedCheckpoint, entry: RecurrentEntry, dtype: torch.dtype, device: str, mode: Mode
) -> Layer:
    """The layer as :func:`btcompress.apply` puts it into a model."""
    return _layer("block_terms", block_term_module(compressed, entry, dtype, device), mode)


def dense_layers(
    module: nn.Module, entry: RecurrentEntry, device: str, mode: Mode
) -> tuple[list[Layer], list[LeftOut]]:
    """The ways that a dense layer can be run in here, and the others with the reason."""
    names: tuple[WayName, ...] = ("dense_onednn", "dense_native") if device == "cpu" else ("dense_cudnn",)
    operations = 2 * sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)
    plain = replace(_layer(names[0], module, mode), operations=operations if mode == "prediction" else None)
    found = [replace(plain, way=name) for name in names]
    left_out: list[LeftOut] = []
    if device == "cpu" and (why := _obstacle_to_onednn(module, entry)):
        del found[0]
        left_out.append(LeftOut("dense_onednn", why))
    try:
        found.append(replace(_int8_layer(module, entry, device, mode), operations=plain.operations))
    except _NoSuchWayError as reason:
        left_out.append(LeftOut("int8", str(reason)))
    return found, left_out


def _obstacle_to_onednn(module: nn.Module, entry: RecurrentEntry) -> str | None:
    """Why torch takes its own kernel whatever it is told; None if it does not."""
    obstacles = {
        "this torch is built without it": not torch.backends.mkldnn.is_available(),
        "torch has its kernel for LSTMs alone": entry.type != "lstm",
        "it has no projections": entry.proj_size > 0,
        "it has no float64": next(module.parameters()).dtype == torch.float64,
    }
    return next((why for why, holds in obstacles.items() if holds), None)


def tried(layer: Layer, call: Callable[[], object], mode: Mode) -> LeftOut | None:
    """Why torch cannot run a dense layer; None if it can."""
    try:
        with layer.around(mode):
            call()
    except (RuntimeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        return LeftOut(layer.way, f"torch cannot run it ({_first_line(error)})")
    return None


def _layer(way: WayName, module: nn.Module, mode: Mode) -> Layer:
    module.train(mode == "training")
    parameters = list(module.parameters())
    size = sum(parameter.nbytes for parameter in parameters)
    return Layer(way, module, size, sum(parameter.numel() for parameter in parameters))


def _int8_layer(module: nn.Module, entry: RecurrentEntry, device: str, mode: Mode) -> Layer:
    dtypes = {parameter.dtype for parameter in module.parameters()}
    obstacles = {
        "it predicts only": mode == "training",
        "it is for CPUs only": device != "cpu",
        "it has no projections": entry.proj_size > 0,
        "it is for weights of float32 only": dtypes != {torch.float32},
    }
    if why := [why for why, holds in obstacles.items() if holds]:
        raise _NoSuchWayError(why[0])
    try:
        from torch.ao.quantization import quantize_dynamic

        with warnings.catch_warnings():
            # It warns that it is deprecated, wherever it is there still.
            warnings.simplefilter("ignore")
            quantized = quantize_dynamic(nn.Sequential(module), {type(module)}, dtype=torch.qint8)[0]
    except (ImportError, AttributeError):
        raise _NoSuchWayError("this torch has it no longer") from None
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise _NoSuchWayError(f"torch cannot make it ({_first_line(error)})") from error
    if type(quantized) is type(module):
        raise _NoSuchWayError(f"torch has no {entry.class_name} of it")
    sizes = [
        parameter.numel() * (_INT8_BYTES if parameter.dim() == 2 else _BIAS_BYTES) for parameter in module.parameters()
    ]
    return Layer("int8", quantized.eval(), sum(sizes), sum(parameter.numel() for parameter in module.parameters()))


def _first_line(error: BaseException) -> str:
    return shorten((str(error) or type(error).__name__).partition("\n")[0], 120, placeholder=" ...")
