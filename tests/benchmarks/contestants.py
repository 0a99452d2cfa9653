"""What takes the place of an LSTM's matrices in so many bytes: ours, and what there is otherwise.

Each function takes a :class:`Job` and gives :class:`Smaller`. Of the ways to spend the bytes that a rival leaves open,
bits and groups, it gets the one whose hidden states come out best on the sequences to calibrate on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from decisions import measured
from stored_bytes import names_of, stored_bytes
from torch import Tensor, nn

from btcompress import FactorizeStep, SampleInputs, compress
from btcompress.calibration import gather_samples
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, RecurrentEntry, read
from btcompress.finetune.data import Data, open_data
from btcompress.finetune.networks import Recurrent, choose_dense_lstm, student_of, teacher_of
from btcompress.fit import Samples
from btcompress.fit.rounding import fed_back, nearest
from btcompress.packing import LEAST_BITS, LEAST_GROUP, MOST_BITS, Integers, Packed, precision_of

KINDS = ("input", "recurrent")


@dataclass(frozen=True)
class Job:
    """A checkpoint, and how small its LSTM's matrices are to be.

    Attributes:
        name: of the model, as :mod:`decisions` knows it.
        weights: its file.
        train: inputs to calibrate on.
        ratio: bytes of the dense matrices over those that may be taken.
        seed: of every random draw.
    """

    name: str
    weights: Path
    train: Path
    ratio: float
    seed: int

    @cached_property
    def dense(self) -> Checkpoint:
        """The checkpoint."""
        return read(self.weights)

    @cached_property
    def entry(self) -> RecurrentEntry:
        """Its LSTM."""
        return choose_dense_lstm(self.dense, None, "")

    @cached_property
    def matrices(self) -> dict[str, Tensor]:
        """The matrices of the LSTM by key."""
        return {key: self.dense.tensors[key] for key in self.entry.matrix_keys}

    @property
    def dense_bytes(self) -> int:
        """Of the matrices."""
        return sum(matrix.nbytes for matrix in self.matrices.values())

    @property
    def most_bytes(self) -> int:
        """That may be taken."""
        return int(self.dense_bytes / self.ratio)

    @cached_property
    def data(self) -> Data:
        """The inputs to calibrate on."""
        return open_data(str(self.train))

    @property
    def calibration(self) -> tuple[SampleInputs, ...]:
        """The same for a step."""
        return (SampleInputs(str(self.train)),)

    @cached_property
    def samples(self) -> Mapping[str, Samples]:
        """What each matrix meets on them."""
        step = FactorizeStep(calibration=self.calibration, seed=self.seed)
        return gather_samples(self.dense, step.calibration_request, self.seed, tuple(self.matrices))


@dataclass(frozen=True)
class Smaller:
    """What takes the place of the LSTM.

    Attributes:
        network: as :func:`decisions.measured` takes it.
        n_bytes: of the LSTM's matrices.
        form: in words.
    """

    network: nn.Module
    n_bytes: int
    form: str


def rounded(job: Job) -> Smaller:
    """Every matrix rounded to the nearest in the same bits and groups, with the best clipping."""
    return _best_integers(job, lambda _, matrix, integers: nearest(matrix, integers))


def errors_fed_back(job: Job) -> Smaller:
    """The same, each column's error taken up by those that follow, as sample inputs say."""
    return _best_integers(
        job, lambda key, matrix, integers: fed_back(matrix, integers, job.samples[key].inputs.to(torch.float32))
    )


def _best_integers(job: Job, round_one: Callable[[str, Tensor, Integers], Packed]) -> Smaller:
    tried = []
    for integers in _that_fit(job):
        packed = {key: round_one(key, matrix, integers) for key, matrix in job.matrices.items()}
        network = _dense_with(job, {key: each.values() for key, each in packed.items()})
        smaller = Smaller(network, sum(each.n_bytes for each in packed.values()), str(integers))
        tried.append((measured(job.name, job.dense, network, job.data)["hidden_state_error"], smaller))
    return min(tried, key=lambda pair: pair[0])[1]


def _that_fit(job: Job) -> list[Integers]:
    """For each number of bits the smallest groups that fit, the largest of all where none do: whole rows of 2 bits."""
    widest = max(matrix.shape[1] for matrix in job.matrices.values())
    fitting = []
    for bits in range(LEAST_BITS, MOST_BITS + 1):
        every = (Integers(bits, group) for group in range(LEAST_GROUP, widest + 1))
        some = (each for each in every if _bytes_of(job, each) <= job.most_bytes)
        fitting += [first] if (first := next(some, None)) else []
    return fitting or [Integers(LEAST_BITS, widest)]


def _bytes_of(job: Job, integers: Integers) -> int:
    return sum(integers.n_bytes(tuple(matrix.shape)) for matrix in job.matrices.values())


def _dense_with(job: Job, values: Mapping[str, Tensor]) -> Recurrent:
    tensors = {**job.dense.tensors, **values}
    return teacher_of(replace(job.dense, tensors=tensors), job.entry, torch.float32)


def torch_int8(job: Job) -> Smaller:
    """Torch's dynamic quantization of the LSTM alone: a scale for each matrix, activations rounded as they come."""
    network = _dense_with(job, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.lstm = torch.ao.quantization.quantize_dynamic(nn.Sequential(network.lstm), {nn.LSTM}, torch.qint8)[0]
    n_bytes = sum(matrix.numel() + torch.finfo(torch.float32).bits // 8 for matrix in job.matrices.values())
    return Smaller(network, n_bytes, f"int8, {torch.backends.quantized.engine}")


def low_rank(job: Job) -> Smaller:
    """Forms of fewer parameters in float32, calibrated: what a wish for a ratio of the matrices gives."""
    step = FactorizeStep(matrices=KINDS, target_ratio=job.ratio, calibration=job.calibration, seed=job.seed)
    return _compressed(job, compress(job.weights, step), "float32")


def low_rank_halved(job: Job) -> Smaller:
    """Twice as many parameters, rounded to float16 once they are calibrated."""
    step = FactorizeStep(matrices=KINDS, target_ratio=job.ratio / 2, calibration=job.calibration, seed=job.seed)
    found = compress(job.weights, step)
    terms = {name for key in found.matrices for name in names_of(found, key)}
    tensors = {
        name: tensor.half().float() if name in terms and tensor.is_floating_point() else tensor
        for name, tensor in found.tensors.items()
    }
    halved = replace(found, tensors=tensors)
    whole = _compressed(job, halved, "float16")
    return replace(whole, n_bytes=stored_bytes(found, job.matrices, torch.float16))


def ours(job: Job) -> Smaller:
    """Form and precision chosen for each matrix, and calibrated."""
    step = FactorizeStep(matrices=KINDS, target_ratio=job.ratio, of="bytes", calibration=job.calibration, seed=job.seed)
    return _compressed(job, compress(job.weights, step))


def ours_dense(job: Job) -> Smaller:
    """No form: the bits and groups that error feedback does best in, calibrated through the rounding."""
    integers = precision_of(errors_fed_back(job).form)
    assert isinstance(integers, Integers)
    step = FactorizeStep(
        matrices=KINDS, bits=integers.bits, group=integers.group, calibration=job.calibration, seed=job.seed
    )
    return _compressed(job, compress(job.weights, step))


def ours_on_the_weights(job: Job) -> Smaller:
    """The same without any inputs."""
    return _compressed(job, compress(job.weights, FactorizeStep(matrices=KINDS, target_ratio=job.ratio, of="bytes")))


def _compressed(job: Job, found: CompressedCheckpoint, precision: str | None = None) -> Smaller:
    return Smaller(
        student_of(found, job.entry), stored_bytes(found, job.matrices), ", ".join(_forms(found, job, precision))
    )


def _forms(found: CompressedCheckpoint, job: Job, precision: str | None) -> list[str]:
    forms = []
    for key in job.matrices:
        stored = found.stored.get(names_of(found, key)[0])
        how = str(stored.integers) if isinstance(stored, Packed) else str(stored or precision).removeprefix("torch.")
        shape = found.matrices[key].shape if key in found.matrices else None
        what = "dense" if shape is None else f"N={shape.part.n_blocks} R={','.join(map(str, shape.part.ranks))}"
        forms.append(f"{what} {how}")
    return forms


#: By name; each is measured at the ratios that it can be asked for.
CONTESTANTS: dict[str, Callable[[Job], Smaller]] = {
    "rounded": rounded,
    "errors fed back": errors_fed_back,
    "torch int8": torch_int8,
    "low rank": low_rank,
    "low rank, float16": low_rank_halved,
    "ours, on the weights": ours_on_the_weights,
    "ours, one precision": ours_dense,
    "ours": ours,
}
#: These give one size whatever is asked for.
OF_ONE_SIZE = ("torch int8",)
#: In these nothing is drawn.
WITHOUT_SEED = ("rounded", "torch int8", "ours, on the weights")
