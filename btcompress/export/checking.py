"""Whether a graph is ONNX, and computes what the module does."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from btcompress.checkpoint import RecurrentEntry
from btcompress.errors import BTCompressError
from btcompress.export.modules import ExportedLayer

if TYPE_CHECKING:
    import onnxruntime

#: Steps and sequences of what is compared.
_STEPS, _BATCH = 6, 3
#: Largest error that is rounding, over the largest output; and how often that of the module itself in float32.
_ROUNDING, TIMES = 1e-5, 10.0


def check_operators(path: Path) -> None:
    """Have onnx check a file.

    Raises:
        BTCompressError: it is not in order.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BTCompressError(f"the graph is not in order, so nothing was written. onnx says: {error}") from error


def has_runtime() -> bool:
    """Whether graphs can be run here."""
    return find_spec("onnxruntime") is not None


def session(path: Path, *, threads: int = 0, takes_turns: bool = False) -> onnxruntime.InferenceSession:
    """A session on the CPU, as ONNX Runtime makes it where nothing is said.

    Args:
        path: the graph.
        threads: to compute in; 0 for as many as it takes.
        takes_turns: whether its threads stop at the end of a run; else they wait busily for the next one, and take the
            processors from whatever runs meanwhile.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors alone
    if takes_turns:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def drawn_inputs(
    entry: RecurrentEntry, steps: int = _STEPS, batch: int = _BATCH, *, batch_first: bool, lengths: bool = False
) -> dict[str, Tensor]:
    """Random inputs of an exported layer in float32, by name, states among them.

    Args:
        entry: which layer.
        steps: ``T``.
        batch: ``B``.
        batch_first: whether ``x`` is ``(B, T, I)``.
        lengths: whether there are steps of each sequence: two less for each than for the one before.
    """
    generator = torch.Generator().manual_seed(0)
    n_states = entry.num_layers * (1 + entry.bidirectional)
    lead = (batch, steps) if batch_first else (steps, batch)
    sizes = {
        "x": (*lead, entry.input_size),
        "h0": (n_states, batch, entry.proj_size or entry.hidden_size),
        **({"c0": (n_states, batch, entry.hidden_size)} if entry.n_states > 1 else {}),
    }
    inputs = {name: torch.randn(*size, generator=generator) for name, size in sizes.items()}
    if lengths:
        inputs["lengths"] = torch.tensor([steps - 2 * n for n in range(batch)])
    return inputs


def module_outputs(module: ExportedLayer, inputs: Mapping[str, Tensor], *, batch_first: bool) -> list[Tensor]:
    """What a layer gives: outputs and final states."""
    lengths, states = inputs.get("lengths"), [inputs[name] for name in ("h0", "c0") if name in inputs]
    with torch.no_grad(), warnings.catch_warnings():
        # Torch then takes its own kernel, as it should.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        if lengths is None:
            return list(module(inputs["x"], *states))
        steps = inputs["x"].shape[1 if batch_first else 0]
        packed = pack_padded_sequence(inputs["x"], lengths, batch_first=batch_first, enforce_sorted=False)
        outputs, *final = module.run(packed, *states)
        return [pad_packed_sequence(outputs, batch_first=batch_first, total_length=steps)[0], *final]


def run(path: Path, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """What a graph gives."""
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    return [torch.from_numpy(np.ascontiguousarray(each)) for each in session(path).run(None, feed)]


def check_outputs(path: Path, module: ExportedLayer, inputs: Mapping[str, Tensor], *, batch_first: bool) -> float:
    """Compare a graph with a layer.

    Args:
        path: the graph.
        module: the layer; it is converted to float64 and stays so.
        inputs: by name.
        batch_first: whether ``x`` is ``(B, T, I)``.

    Returns:
        The largest difference of their outputs, over the module's largest output.

    Raises:
        BTCompressError: it is more than rounding explains.
    """
    rounded = module_outputs(module.float(), inputs, batch_first=batch_first)
    doubled = {name: in_float64(each) for name, each in inputs.items()}
    exact = module_outputs(module.double(), doubled, batch_first=batch_first)
    error, most = layer_error(run(path, inputs), exact), most_of_rounding(layer_error(rounded, exact))
    if not error <= most:
        raise BTCompressError(
            f"in ONNX Runtime the graph's outputs are off by {error:.1e} of the largest, where rounding explains "
            f"{most:.1e}, so nothing was written. Export with the other form, and report this."
        )
    return error


def relative_error(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest difference over the largest number of the reference, of whichever output it is the worst."""
    errors = []
    for own, right in zip(outputs, reference, strict=True):
        difference = (own.double() - right.double()).abs().max() if own.shape == right.shape else torch.inf
        errors.append(float(difference / right.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)))
    return max(errors)


def layer_error(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The same of a layer's ``y`` and states: ``hn`` is of the size of ``y``, of which it has a few steps."""
    (y, hn, *rest), (right_y, right_hn, *right_rest) = outputs, reference
    if y.shape != right_y.shape or hn.shape != right_hn.shape:
        return torch.inf
    both, right = (torch.cat([each.flatten() for each in pair]) for pair in ((y, hn), (right_y, right_hn)))
    return relative_error([both, *rest], [right, *right_rest])


def most_of_rounding(own_error: float) -> float:
    """The largest error that is rounding, over the largest output, where that of the module itself is known."""
    return max(_ROUNDING, TIMES * own_error)


def in_float64(tensor: Tensor) -> Tensor:
    """A tensor in float64, if it holds floating-point numbers."""
    return tensor.double() if tensor.is_floating_point() else tensor
