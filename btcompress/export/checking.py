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

from btcompress.errors import BTCompressError
from btcompress.export.modules import ExportedLayer
from btcompress.export.request import GraphRequest
from btcompress.export.weights import Weights

if TYPE_CHECKING:
    import onnxruntime

#: Steps and sequences of what is compared.
_STEPS, _BATCH = 6, 3
#: Largest error that is rounding, over the largest output; and how often that of the module itself in float32.
_ROUNDING, _TIMES = 1e-5, 10.0


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


def drawn_inputs(weights: Weights, request: GraphRequest) -> dict[str, Tensor]:
    """Random inputs of a graph, by name, states among them; where lengths are, no two sequences have as many steps."""
    generator = torch.Generator().manual_seed(0)
    n_states = len(weights.layers) * weights.n_directions
    lead = (_BATCH, _STEPS) if request.batch_first else (_STEPS, _BATCH)
    inputs = {
        "x": torch.randn(*lead, weights.input_size, generator=generator),
        "h0": torch.randn(n_states, _BATCH, weights.output_size, generator=generator),
        "c0": torch.randn(n_states, _BATCH, weights.hidden_size, generator=generator),
    }
    if request.lengths:
        inputs["lengths"] = torch.tensor([_STEPS - 2 * n for n in range(_BATCH)])
    return inputs


def module_outputs(module: ExportedLayer, inputs: Mapping[str, Tensor], *, batch_first: bool) -> list[Tensor]:
    """What an LSTM gives: ``y``, ``hn`` and ``cn``."""
    lengths, states = inputs.get("lengths"), (inputs["h0"], inputs["c0"])
    with torch.no_grad(), warnings.catch_warnings():
        # Torch then takes its own kernel, as it should.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        if lengths is None:
            return list(module(inputs["x"], *states))
        steps = inputs["x"].shape[1 if batch_first else 0]
        packed = pack_padded_sequence(inputs["x"], lengths, batch_first=batch_first, enforce_sorted=False)
        outputs, (hn, cn) = module.lstm(packed, states)
        return [pad_packed_sequence(outputs, batch_first=batch_first, total_length=steps)[0], hn, cn]


def run(path: Path, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """What a graph gives."""
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    return [torch.from_numpy(np.ascontiguousarray(each)) for each in session(path).run(None, feed)]


def check_outputs(path: Path, module: ExportedLayer, inputs: Mapping[str, Tensor], *, batch_first: bool) -> float:
    """Compare a graph with an LSTM.

    Args:
        path: the graph.
        module: the LSTM; it is converted to float64 and stays so.
        inputs: by name.
        batch_first: whether ``x`` is ``(B, T, I)``.

    Returns:
        The largest difference of their outputs, over the module's largest output.

    Raises:
        BTCompressError: it is more than rounding explains.
    """
    rounded = module_outputs(module.float(), inputs, batch_first=batch_first)
    exact = module_outputs(module.double(), _in_float64(inputs), batch_first=batch_first)
    error, own = layer_error(run(path, inputs), exact), layer_error(rounded, exact)
    if not error <= max(_ROUNDING, _TIMES * own):
        raise BTCompressError(
            f"in ONNX Runtime the graph's outputs are off by {error:.1e} of the largest, where rounding explains "
            f"{max(_ROUNDING, _TIMES * own):.1e}, so nothing was written. Export with the other form, and report this."
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
    """The same of an LSTM's ``y``, ``hn`` and ``cn``: ``hn`` is of the size of ``y``, of which it has a few steps."""
    (y, hn, cn), (right_y, right_hn, right_cn) = outputs, reference
    if y.shape != right_y.shape or hn.shape != right_hn.shape:
        return torch.inf
    both, right = (torch.cat([each.flatten() for each in pair]) for pair in ((y, hn), (right_y, right_hn)))
    return relative_error([both, cn], [right, right_cn])


def _in_float64(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.double() if each.is_floating_point() else each for name, each in inputs.items()}
