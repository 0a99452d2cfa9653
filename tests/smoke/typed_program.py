"""A program of someone else's that uses every public name, for type checkers and to be run.

Calls that a type checker must refuse are in ``wrong``, which nobody runs: where such a call were let through, its
``type: ignore`` would be needless, and that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import numpy as np
import torch
from torch import Tensor, nn

import btcompress
from btcompress.finetune import TrainConfig

if TYPE_CHECKING:
    from btcompress.export import DenseExport, ExportedGraph, ExportedProgram
    from btcompress.plan import PricedPlan
    from btcompress.results import CompressionReport
    from btcompress.timings import BenchReport
    from btcompress.tuning import Pin, Tuning


class Tagger(nn.Module, btcompress.HubMixin):
    """Tags of each step of a sequence."""

    def __init__(self, inputs: int = 24, hidden: int = 16) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden)
        self.head = nn.Linear(hidden, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of (steps, batch, tags) for inputs of (steps, batch, features)."""
        states: Tensor = self.lstm(inputs)[0]
        scores: Tensor = self.head(states)
        return scores


def compress(model: Tagger, data: Path) -> btcompress.CompressedCheckpoint:
    """By ranks, by bits, by a wish, and by a step that says all of it."""
    by_ranks = btcompress.factorize(model, cp_rank=2, tucker_rank=4)
    assert_type(by_ranks, btcompress.CompressedCheckpoint)
    btcompress.factorize(model.state_dict(), matrices=("input", "recurrent"), bits=4)
    plan: PricedPlan = btcompress.plan_for(model, max_bytes="2k")
    btcompress.factorize(model, plan=plan)
    inputs = (btcompress.SampleInputs(str(data)),)
    step = btcompress.FactorizeStep(target_ratio=2, matrices=("input",), calibration=inputs, calibration_epochs=1)
    told: list[object] = []
    return btcompress.compress(model, step, on_progress=told.append)


def files(model: Tagger, compressed: btcompress.CompressedCheckpoint, folder: Path) -> Mapping[str, Tensor]:
    """Results are written, read, reported on, run and exported."""
    path = folder / "model.bt.safetensors"
    btcompress.save(compressed, path)
    read: btcompress.CompressedCheckpoint = btcompress.load(str(path))
    summary: CompressionReport = btcompress.report(read)
    ratio: float = summary.model.ratio
    timed: BenchReport = btcompress.bench(path, batch=(1,), steps=(1,), seconds=0.1)
    advice: tuple[str, ...] = timed.advice
    print(f"{ratio:.2f}", *advice)
    dense: DenseExport = btcompress.export_dense(read, folder / "dense.pt")
    programs: tuple[ExportedProgram, ...] = btcompress.export_program(path, folder / "lstm.pt2")
    print(dense.n_bytes, [program.lstm for program in programs])
    weights = btcompress.to_dense(path)
    assert_type(weights, dict[str, Tensor])
    return weights


def graphs(model: Tagger, compressed: btcompress.CompressedCheckpoint, example: Tensor, folder: Path) -> None:
    """Graphs need an extra; without it the error says which."""
    try:
        written: tuple[ExportedGraph, ...] = btcompress.export_graphs(
            compressed, folder / "lstm.onnx", btcompress.GraphRequest(batch=16, steps=50)
        )
        network: ExportedGraph = btcompress.export_onnx(model, example, folder / "network.onnx")
    except btcompress.BTCompressError as error:
        print(error)
    else:
        print(len(written), network.n_bytes)


def models(path: Path, example: Tensor, folder: Path) -> None:
    """A result put into a model, whose class stays known, and the model saved as the Hub has it."""
    model = btcompress.apply(Tagger(), path)
    assert_type(model, Tagger)
    tuning: Tuning = btcompress.tune(model, example, seconds=0.01, file=folder / "pins.json")
    pins: tuple[Pin, ...] = btcompress.pin(model, folder / "pins.json")
    print(len(tuning.measured), len(pins))
    model.save_pretrained(folder / "saved")
    again = Tagger.from_pretrained(folder / "saved")
    assert_type(again, Tagger)


def layers(inputs: Tensor) -> list[nn.Module]:
    """Every layer, with the arguments of torch's, out of it and back."""
    options = btcompress.FitOptions(max_sweeps=5, restarts=1)
    lstm = btcompress.BTLSTM.from_dense(nn.LSTM(24, 16), options=options, cp_rank=2, tucker_rank=4)
    assert_type(lstm, btcompress.BTLSTM)
    assert_type(lstm.to_dense(), nn.LSTM)
    gru = btcompress.BTGRU(24, 16, num_layers=2, bidirectional=True, matrices=("input", "recurrent"))
    assert_type(gru.to_dense(), nn.GRU)
    rnn = btcompress.BTRNN(24, 16, nonlinearity="relu", order=2)
    assert_type(rnn.to_dense(), nn.RNN)
    cells: list[nn.Module] = [btcompress.BTLSTMCell(24, 16), btcompress.BTGRUCell(24, 16), btcompress.BTRNNCell(24, 16)]
    linear = btcompress.BTLinear.from_dense(nn.Linear(24, 8), cp_rank=1)
    assert_type(linear.to_dense(), nn.Linear)
    made: list[nn.Module] = [lstm, gru, rnn, *cells, linear]
    for layer in (lstm, gru, rnn):
        layer(inputs)
    return made


def forms() -> Tensor:
    """A matrix in block-term form, (15, 6)."""
    shape = btcompress.BlockTermShape(in_modes=(2, 3), out_modes=(3, 5), ranks=(2, 2), n_blocks=2)
    form = btcompress.BlockTerm.of(shape, [torch.ones(size) for size in shape.tensor_shapes])
    return form.to_dense()


def record(model: Tagger, example: Tensor, path: Path) -> int:
    """How many sequences were recorded while a model ran."""
    with btcompress.recording(model, path, sequences=100) as recording:
        model(example)
    return sum(layer.sequences for layer in recording.layers.values())


def recipe(model: Path, data: Path, folder: Path) -> btcompress.CompressedCheckpoint:
    """Several steps in one go."""
    first = btcompress.FactorizeStep(cp_rank=1, tucker_rank=2)
    tuned = btcompress.FineTuneStep({"data": str(data), "teacher": model}, TrainConfig(epochs=1))
    steps = (first, tuned, btcompress.DenseStep(), first)
    return btcompress.run(btcompress.Recipe(str(model), folder / "recipe.bt.safetensors", steps))


def wrong(model: Tagger, compressed: btcompress.CompressedCheckpoint) -> None:
    """What must be refused, one way for each kind of mistake."""
    btcompress.factorize(model, cp_rank="2")  # type: ignore[arg-type]
    btcompress.factorize(model, cprank=2)  # type: ignore[call-arg]
    btcompress.factorize(model, matrices=("inputs",))  # type: ignore[arg-type]
    btcompress.FactorizeStep(of="everything")  # type: ignore[arg-type]
    btcompress.FactorizeStep(2)  # type: ignore[arg-type, call-arg]
    btcompress.save("model.bt.safetensors", compressed)  # type: ignore[arg-type]
    btcompress.report(model)  # type: ignore[arg-type]
    btcompress.apply("model.pt", compressed)  # type: ignore[type-var]
    btcompress.BTLSTM(24, 16, cp_ranks=2)  # type: ignore[call-arg]
    btcompress.BTGRU.from_dense(nn.LSTM(24, 16))  # type: ignore[arg-type]
    btcompress.GraphRequest(batch="16")  # type: ignore[arg-type]
    btcompress.Recipe("model.pt", "small.safetensors", 3)  # type: ignore[arg-type]
    btcompress.bench(compressed, steps=50)  # type: ignore[arg-type]
    _ = btcompress.nothing_of_this_name  # type: ignore[attr-defined]
    compressed.tensors = {}  # type: ignore[misc]
    open_tagger: Callable[[str], Tagger] = btcompress.load  # type: ignore[assignment]
    print(open_tagger)


def main() -> None:
    """All but what is wrong, in the folder where it is run."""
    folder = Path("typed")
    folder.mkdir()
    model, example = Tagger(), torch.randn(6, 2, 24)
    weights, data = folder / "model.pt", folder / "inputs.npz"
    torch.save(model.state_dict(), weights)
    np.savez(data, x=torch.randn(20, 6, 24).numpy())
    compressed = compress(model, data)
    dense = files(model, compressed, folder)
    graphs(model, compressed, example, folder)
    models(folder / "model.bt.safetensors", example, folder)
    print(len(dense), len(layers(example)), forms().shape, record(model, example, folder / "recorded.npz"))
    print(recipe(weights, data, folder).n_params)


if __name__ == "__main__":
    main()
