"""Measure what the figures of docs/math.md show of a real checkpoint, as JSON; docs/figures/draw.py draws it.

    python docs/figures/measure.py model_1_weights.pt inputs.npz model_1_weights.bt.safetensors

The model is BeatNet 1.1.3's, as its package ships it; its inputs come from tests/benchmarks/beatnet_inputs.py, and the
result from the first command of README.md. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from bytes_before_and_after import measure_bytes
from calibrating import STAGES, measure_calibrating
from fitting import measure_fitting

from btcompress import FactorizeStep, factorize
from btcompress.calibration import DEFAULT, CalibrationRequest, SampleInputs, calibrate, gather_samples
from btcompress.checkpoint import Checkpoint, read_compressed
from btcompress.compression import priced_plan
from btcompress.factorization import open_weights
from btcompress.fit import Samples
from btcompress.modes import ShapeRequest, choose_shape

MEASURED = Path(__file__).with_name("measured.json")

_KINDS = ("input", "recurrent")
#: A matrix whose fit is followed, and one whose directions are looked at.
_FITTED, _LOOKED_AT = "lstm.weight_hh_l0", "lstm.weight_hh_l1"
#: Blocks and rank of the form that is followed.
_FORM = ShapeRequest(order=3, cp_rank=8, tucker_rank=4)
#: The ratio of parameters that calibrating is shown at.
_RATIO = 4


def measure(name: str, model: Path, inputs: Path, result: Path, seed: int = 0, epochs: int = 10) -> dict[str, Any]:
    """All that is drawn of a checkpoint.

    Args:
        name: what the figures call it.
        model: its file.
        inputs: sequences of its LSTM's inputs.
        result: of its compression, whose bytes are shown.
        seed: of every random draw.
        epochs: of calibrating, over all layers together.
    """
    dense = open_weights(model)
    request = CalibrationRequest((SampleInputs(str(inputs)),))
    samples = gather_samples(dense, request, seed)
    matrix = dense.tensors[_FITTED]
    shape = choose_shape(_FORM, _FITTED, *matrix.shape).shape.part
    return {
        "name": name,
        "fitting": {"key": _FITTED, **measure_fitting(matrix, shape, seed)},
        "calibrating": _calibrating(model, dense, request, samples, seed, epochs),
        "bytes": measure_bytes(read_compressed(result), result.stat().st_size),
    }


def _calibrating(
    model: Path, dense: Checkpoint, request: CalibrationRequest, samples: dict[str, Samples], seed: int, epochs: int
) -> dict[str, Any]:
    """One plan, fitted to the weights, to the inputs, and trained."""
    config = replace(DEFAULT, seed=seed, epochs=epochs)
    plan = priced_plan(model, FactorizeStep(target_ratio=_RATIO, matrices=_KINDS), samples=samples)
    first = factorize(model, plan=plan)
    later = [calibrate(first, dense, replace(request, train=train), config, samples=samples) for train in (False, True)]
    stages = dict(zip(STAGES, (first, *later), strict=True))
    return {"ratio": _RATIO, **measure_calibrating(stages, dense, samples, _LOOKED_AT)}


def main() -> None:
    """Read the arguments, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--json", type=Path, default=MEASURED)
    parser.add_argument("--name", default="BeatNet 1.1.3, model 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    measured = measure(args.name, args.model, args.inputs, args.result, args.seed, args.epochs)
    args.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
