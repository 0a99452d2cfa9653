"""How long the planner takes for an LSTM of three layers, on its weights and on sample inputs.

Run it alone on a quiet machine:

    python tests/benchmarks/plan_time.py

The LSTM, 256 hidden units and as many inputs or 1,024, is untrained: among forms of white noise no one stands out, so
many are priced. Its inputs are 200 sequences of 50 steps, each entry an autoregressive process of variance 1 and
correlation 0.9 between steps. W and U of all layers are planned at a ratio of 8. One JSON line each: seconds, those of
gathering the samples included, and the sum of squared losses that the plan foretells.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from btcompress.calibration import CalibrationRequest, SampleInputs, gather_samples
from btcompress.checkpoint import read
from btcompress.factorization import plan_for

N_HIDDEN, N_LAYERS = 256, 3
N_SEQUENCES, N_STEPS, CORRELATION = 200, 50, 0.9
RATIO = 8.0


def write_model(path: Path, n_inputs: int) -> None:
    """An LSTM as torch initialises it."""
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(n_inputs, N_HIDDEN, N_LAYERS)
    torch.save({f"lstm.{name}": tensor for name, tensor in lstm.state_dict().items()}, path)


def write_sequences(path: Path, n_inputs: int) -> None:
    """``x`` of shape ``(N, T, n_inputs)``, float32."""
    steps = np.random.default_rng(0).standard_normal((N_SEQUENCES, N_STEPS, n_inputs), dtype=np.float32)
    for step in range(1, N_STEPS):
        steps[:, step] = CORRELATION * steps[:, step - 1] + (1 - CORRELATION**2) ** 0.5 * steps[:, step]
    np.savez(path, x=steps)


def planned(model: Path, inputs: Path | None) -> dict[str, object]:
    """Plan on the weights, or on inputs, and say how long it took."""
    began = time.perf_counter()
    samples = None if inputs is None else gather_samples(read(model), CalibrationRequest((SampleInputs(str(inputs)),)))
    priced = plan_for(model, target_ratio=RATIO, matrices=("input", "recurrent"), samples=samples)
    seconds = time.perf_counter() - began
    loss = sum((form.curve.stake * form.point.error) ** 2 for form in priced.forms if form.point)
    return {"planned on": "weights" if inputs is None else "inputs", "seconds": round(seconds, 1), "loss": loss}


def main() -> None:
    """Plan on weights and on inputs, and print a line for each."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for n_inputs in (256, 1024):
        with tempfile.TemporaryDirectory() as folder:
            model, inputs = Path(folder) / "model.pt", Path(folder) / "inputs.npz"
            write_model(model, n_inputs)
            write_sequences(inputs, n_inputs)
            for sequences in (None, inputs):
                print(json.dumps({"inputs": n_inputs, **planned(model, sequences)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
