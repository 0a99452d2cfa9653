"""How far forms of a matrix are off on inputs that the fit did not see, plainly and as their outputs count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.calibration.inputs import inputs_of, layers_of
from btcompress.calibration.sampling import samples_of
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, LSTMEntry
from btcompress.errors import BTCompressError
from btcompress.finetune.data import Data, open_data
from btcompress.finetune.networks import check_inputs, choose_lstm, is_factorized, training_dtype
from btcompress.fit import OutputErrors, Samples, fit_to_inputs
from btcompress.fit.samples import product_by

#: Several forms of each matrix by its key, each of them block terms whose rows are stacked.
Forms = Mapping[str, Sequence[tuple[BlockTerm, ...]]]


@dataclass(frozen=True, slots=True, eq=False)
class InputMeasure:
    """Measures forms on sequences of an LSTM's inputs, for :func:`btcompress.report`.

    Attributes:
        dense: holds the matrices.
        entry: the LSTM.
        data: the sequences.
        samples: of them, by the key of the matrix.
        dtype: to compute in.
    """

    dense: Checkpoint
    entry: LSTMEntry
    data: Data
    samples: Mapping[str, Samples]
    dtype: torch.dtype

    def __call__(self, forms: Forms) -> dict[str, tuple[OutputErrors, ...]]:
        """The errors of each form by the key, in the order given; see :func:`errors_of_forms`."""
        weights = {key: sample.weights for key, sample in self.samples.items()}
        return errors_of_forms(forms, self.dense, self.entry, self.data, weights, self.dtype)

    def fitted(self, key: str, parts: tuple[BlockTerm, ...]) -> tuple[BlockTerm, ...] | None:
        """The same form of a matrix fitted to these very inputs; None if it is not of this LSTM."""
        if key not in self.samples:
            return None
        return fit_to_inputs(self.dense.tensors[key], parts, self.samples[key]).parts


def activation_errors(
    versions: Sequence[CompressedCheckpoint],
    dense: Checkpoint,
    entry: LSTMEntry,
    data: Data,
    weights: Mapping[str, Tensor],
    batch_size: int = 32,
) -> list[dict[str, OutputErrors]]:
    """The activation errors of each factorized matrix of an LSTM, on the inputs that it has in the dense LSTM.

    Those of ``W`` are the sequences, or the hidden states of the layer below; those of ``U`` are the hidden states
    of the step before. Projections are left out: what they take is not among the LSTM's outputs.

    Args:
        versions: of one compressed checkpoint, with the same forms.
        dense: holds the matrices that they stand for.
        entry: the LSTM.
        data: sequences of its inputs.
        weights: what the outputs of each matrix count, by its key, as :class:`btcompress.fit.Samples` has it.
        batch_size: sequences at once.

    Returns:
        For each version the errors of each matrix by its key; a matrix whose products are all zero has none.

    Raises:
        CheckpointError: the dense checkpoint lacks a matrix, or holds it in another shape.
        BTCompressError: an input is not finite.
    """
    keys = [key for key in entry.matrix_keys if key in versions[0].matrices]
    forms = {key: [version.parts(key) for version in versions] for key in keys}
    dtype = training_dtype(versions[0].outline(), entry)
    errors = errors_of_forms(forms, dense, entry, data, weights, dtype, batch_size)
    return [{key: of_forms[n] for key, of_forms in errors.items()} for n in range(len(versions))]


def on_inputs(
    compressed: CompressedCheckpoint, dense: Checkpoint, data: str, scale: float = 1.0, lstm: str | None = None
) -> InputMeasure:
    """A measure of activation errors for :func:`btcompress.report`, on sequences of an LSTM's inputs.

    Args:
        compressed: holds the LSTM with block terms.
        dense: what it was factorized from.
        data: the sequences, as fine-tuning takes them; labels are not looked at.
        scale: what to multiply the inputs of files by.
        lstm: name of the LSTM; may be left out where there is one.

    Returns:
        The measure; it leaves out the matrices that are not of this LSTM, and projections.

    Raises:
        BTCompressError: the sequences are not inputs of an LSTM with block terms.
        CheckpointError: the dense checkpoint does not fit.
    """
    entry = choose_lstm(compressed, lstm, "Name one with --lstm.")
    if not is_factorized(compressed, entry):
        raise BTCompressError(
            f"{entry.name or 'the LSTM'} has no block-term matrices to measure. Leave the inputs out, or factorize it."
        )
    sequences = open_data(data, scale)
    check_inputs(sequences, sequences.batch(torch.tensor([0])), entry)
    dtype = training_dtype(compressed.outline(), entry)
    samples = samples_of(dense, entry, sequences, sequences, dtype, keys=compressed.matrices)
    return InputMeasure(dense, entry, sequences, samples, dtype)


@torch.no_grad()
def errors_of_forms(
    forms: Forms,
    dense: Checkpoint,
    entry: LSTMEntry,
    data: Data,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    batch_size: int = 32,
) -> dict[str, tuple[OutputErrors, ...]]:
    """The activation errors of several forms of each matrix, on the same inputs; see :func:`activation_errors`.

    Args:
        forms: what to measure, by the key of the matrix that it stands for; other keys than those of ``W`` and ``U``
            of this LSTM are left out.
        dense: holds the matrices.
        entry: the LSTM.
        data: sequences of its inputs.
        weights: what the outputs of each matrix count, by its key.
        dtype: to compute in.
        batch_size: sequences at once.

    Returns:
        The errors of each form by the key, in the order given; a matrix whose products are all zero has none.

    Raises:
        CheckpointError: the dense checkpoint lacks a matrix, or holds it in another shape.
        BTCompressError: an input is not finite.
    """
    keys = [key for key in (*entry.input_keys, *entry.recurrent_keys) if key in forms]
    layers = layers_of(entry, dense, dtype)
    products = {key: [product_by(parts, dtype) for parts in forms[key]] for key in keys}
    # Squares of the outputs that are wanted, and of what each form misses of them: by output, to be weighted once.
    sizes = {key: torch.zeros((), dtype=torch.float64) for key in keys}
    missed = {key: [torch.zeros((), dtype=torch.float64) for _ in forms[key]] for key in keys}
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.batch(rows).to(torch.device("cpu"), dtype)
        for key, inputs in inputs_of(entry, layers, batch, keys):
            wanted = inputs @ dense.tensors[key].to(dtype).T
            sizes[key] = sizes[key] + wanted.double().square().sum(0)
            for n, product in enumerate(products[key]):
                missed[key][n] = missed[key][n] + (wanted - product(inputs)).double().square().sum(0)
    scales = {key: weights[key].double().square() for key in keys}
    return {
        key: tuple(
            OutputErrors(_error(each * scales[key], sizes[key] * scales[key]), _error(each, sizes[key]))
            for each in missed[key]
        )
        for key in keys
        if sizes[key].any()
    }


def _error(missed: Tensor, size: Tensor) -> float:
    return math.sqrt(float(missed.sum() / size.sum()))
