"""How far forms of a matrix are off on inputs that the fit did not see, plainly and as their outputs count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.calibration.inputs import Entry, dtype_of, matrices_of, meets
from btcompress.calibration.request import SampleInputs
from btcompress.calibration.sampling import samples_of
from btcompress.calibration.sources import Source, sources_of
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, LinearEntry, RecurrentEntry
from btcompress.errors import BTCompressError
from btcompress.finetune.data import Data
from btcompress.finetune.decisions import agreement_on
from btcompress.finetune.networks import student_of, teacher_of
from btcompress.finetune.tasks import HiddenStates
from btcompress.fit import OutputErrors, Samples, fit_to_inputs
from btcompress.fit.samples import Form, Forms, product_by
from btcompress.results import InputsReport


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """A layer and what it was sampled on."""

    source: Source
    samples: Mapping[str, Samples]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class InputMeasure:
    """Measures forms of matrices, and what recurrent layers give, on sample inputs, for :func:`btcompress.report`.

    Attributes:
        compressed: holds the layers with chosen matrices.
        dense: holds the matrices.
        layers: of the layers that there are inputs of.
    """

    compressed: CompressedCheckpoint
    dense: Checkpoint
    layers: tuple[_Measured, ...]

    def __call__(self, forms: Forms) -> dict[str, tuple[OutputErrors, ...]]:
        """The errors of each form by the key, in the order given; see :func:`errors_of_forms`."""
        found: dict[str, tuple[OutputErrors, ...]] = {}
        for layer in self.layers:
            weights = {key: sample.weights for key, sample in layer.samples.items()}
            own = {key: each for key, each in forms.items() if key in weights}
            source = layer.source
            found |= errors_of_forms(own, self.dense, source.entry, source.data, weights, layer.dtype, head=source.head)
        return found

    def fitted(self, key: str, parts: tuple[BlockTerm, ...]) -> tuple[BlockTerm, ...] | None:
        """The same form of a matrix fitted to these very inputs; None if there are none of it."""
        samples = self.samples(key)
        return None if samples is None else fit_to_inputs(self.dense.tensors[key], parts, samples).parts

    def samples(self, key: str) -> Samples | None:
        """What a matrix meets; None if there are no inputs of it."""
        return next((layer.samples[key] for layer in self.layers if key in layer.samples), None)

    def hidden_state_errors(self, matrices: Mapping[str, Tensor]) -> dict[str, float]:
        """``||h - h'|| / ||h||`` of each dense layer with other matrices in the place of its chosen ones, by its name.

        Args:
            matrices: by key; a recurrent layer of whose chosen matrices one is missing is left out.

        Raises:
            BTCompressError: an error is not a number.
        """
        changed = CompressedCheckpoint.of(replace(self.dense, tensors={**self.dense.tensors, **matrices}), {}, {})
        found = {}
        for source in (layer.source for layer in self.layers):
            if isinstance(source.entry, RecurrentEntry):
                chosen = [key for key in source.entry.matrix_keys if key in self.compressed.chosen]
                if chosen and all(key in matrices for key in chosen):
                    found[source.entry.name] = hidden_state_error(changed, self.dense, source.entry, source.data)
        return found

    def reports(self) -> tuple[InputsReport, ...]:
        """What each recurrent layer gives on its inputs, beside the dense one, from the initial states that they have.

        Raises:
            BTCompressError: the dense one gives only zeros, or numbers that are not finite.
        """
        return tuple(
            self._report(source.entry, source.data)
            for source in (layer.source for layer in self.layers)
            if isinstance(source.entry, RecurrentEntry)
        )

    def _report(self, entry: RecurrentEntry, data: Data) -> InputsReport:
        error = hidden_state_error(self.compressed, self.dense, entry, data)
        return InputsReport(entry.name, len(data), error, agreement_on(self.compressed, self.dense, entry, data))


@torch.no_grad()
def hidden_state_error(
    compressed: CompressedCheckpoint, dense: Checkpoint, entry: RecurrentEntry, data: Data, batch_size: int = 32
) -> float:
    """``||h - h'|| / ||h||`` of the hidden states that a recurrent layer gives, dense and with block terms.

    Runs on the CPU, from the initial states that the data give.

    Raises:
        CheckpointError: the dense checkpoint lacks a tensor of the layer, or holds it in another shape.
        BTCompressError: an input is not finite, or the error is not a number.
    """
    dtype = dtype_of(entry, compressed.outline())
    student, task = student_of(compressed, entry).eval(), HiddenStates(teacher_of(dense, entry, dtype))
    missed = size = 0.0
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.batch(rows).to(torch.device("cpu"), dtype)
        parts = task.measure(student(batch.x, batch.lengths, batch.state), batch)
        missed, size = missed + float(parts[0]), size + float(parts[1])
    error = task.finish(missed, size) if size else math.nan
    if not math.isfinite(error):
        raise BTCompressError(
            f"the hidden-state error on {data.name} is not a number ({error}). Look for inputs that are all zero, or "
            "out of scale (--scale)."
        )
    return error


def activation_errors(
    versions: Sequence[CompressedCheckpoint],
    dense: Checkpoint,
    entry: Entry,
    data: Data,
    weights: Mapping[str, Tensor],
    batch_size: int = 32,
    *,
    head: LinearEntry | None = None,
) -> list[dict[str, OutputErrors]]:
    """The activation errors of each chosen matrix of a layer, on the inputs that it has in the dense layer.

    Those of ``W`` are the sequences, or the hidden states of the layer below; those of ``U`` are the hidden states
    of the step before; those of a projection are what is projected; those of a head are the hidden states of the last
    layer.

    Args:
        versions: of one compressed checkpoint.
        dense: holds the matrices that they stand for.
        entry: the layer.
        data: sequences of its inputs.
        weights: what the outputs of each matrix count, by its key, as :class:`btcompress.fit.Samples` has it; matrices
            without any are left out.
        batch_size: sequences at once.
        head: the linear layer on a recurrent layer's outputs, if it is to be measured too.

    Returns:
        For each version the errors of each matrix by its key; a matrix whose products are all zero has none.

    Raises:
        CheckpointError: the dense checkpoint lacks a matrix, or holds it in another shape.
        BTCompressError: an input is not finite.
    """
    chosen = dict.fromkeys(key for version in versions for key in version.chosen if key in weights)
    forms = {key: [form_of(version, key) for version in versions] for key in chosen}
    dtype = dtype_of(entry, versions[0].outline())
    errors = errors_of_forms(forms, dense, entry, data, weights, dtype, batch_size, head=head)
    return [{key: of_forms[n] for key, of_forms in errors.items()} for n in range(len(versions))]


def form_of(compressed: CompressedCheckpoint, key: str) -> Form:
    """What stands for a matrix in a compressed checkpoint."""
    return compressed.parts(key) if key in compressed.matrices else compressed.tensors[key]


def errors_fields(versions: Mapping[str, Mapping[str, OutputErrors]]) -> dict[str, dict[str, float]]:
    """The fields of a step that say the activation errors of versions, whose names end those of the fields."""
    plain = {
        f"activation_errors{name}": {key: each.plain for key, each in of_keys.items()}
        for name, of_keys in versions.items()
    }
    weighted = {
        f"weighted_activation_errors{name}": {key: each.weighted for key, each in of_keys.items()}
        for name, of_keys in versions.items()
    }
    return plain | weighted


def on_inputs(compressed: CompressedCheckpoint, dense: Checkpoint, inputs: Sequence[SampleInputs]) -> InputMeasure:
    """A measure of activation errors and hidden states for :func:`btcompress.report`, on sample inputs.

    Args:
        compressed: holds the layers with chosen matrices.
        dense: what it was made from.
        inputs: the inputs, of one layer or of several.

    Returns:
        The measure; it leaves out the matrices that there are no inputs of.

    Raises:
        BTCompressError: the inputs are not those of layers with chosen matrices.
        CheckpointError: the dense checkpoint does not fit.
    """
    chosen = compressed.chosen
    sources = sources_of(compressed, inputs, chosen)
    used = [source for source in sources if any(key in chosen for key in source.keys)]
    if not used:
        raise BTCompressError(
            f"{', '.join(source.name for source in sources)} has no compressed matrices to measure. Leave the inputs "
            "out, or choose some of its matrices."
        )
    layers = []
    for source in used:
        dtype, data = dtype_of(source.entry, compressed.outline()), source.data
        samples = samples_of(dense, source.entry, data, data, dtype, head=source.head, keys=chosen)
        layers.append(_Measured(source, samples, dtype))
    return InputMeasure(compressed, dense, tuple(layers))


@torch.no_grad()
def errors_of_forms(
    forms: Forms,
    dense: Checkpoint,
    entry: Entry,
    data: Data,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    batch_size: int = 32,
    *,
    head: LinearEntry | None = None,
) -> dict[str, tuple[OutputErrors, ...]]:
    """The activation errors of several forms of each matrix, on the same inputs; see :func:`activation_errors`.

    Args:
        forms: what to measure, by the key of the matrix that it stands for; other keys than those of this layer are
            left out.
        dense: holds the matrices.
        entry: the layer.
        data: sequences of its inputs.
        weights: what the outputs of each matrix count, by its key.
        dtype: to compute in.
        batch_size: sequences at once.
        head: the linear layer on a recurrent layer's outputs, if it is to be measured too.

    Returns:
        The errors of each form by the key, in the order given; a matrix whose products are all zero has none.

    Raises:
        CheckpointError: the dense checkpoint lacks a matrix, or holds it in another shape.
        BTCompressError: an input is not finite.
    """
    own = (*matrices_of(entry), *(() if head is None else (head.key,)))
    keys = [key for key in own if key in forms]
    of_layer = meets(entry, dense, dtype, head)
    products = {key: [product_by(form, dtype) for form in forms[key]] for key in keys}
    # Squares of the outputs that are wanted, and of what each form misses of them: by output, to be weighted once.
    sizes = {key: torch.zeros((), dtype=torch.float64) for key in keys}
    missed = {key: [torch.zeros((), dtype=torch.float64) for _ in forms[key]] for key in keys}
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.batch(rows).to(torch.device("cpu"), dtype)
        for sharing, inputs in of_layer(batch, keys):
            for key in sharing:
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
