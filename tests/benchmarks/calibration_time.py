"""What calibrating a large LSTM takes: CPU seconds of each part, and the hidden-state error that they bring.

    OMP_NUM_THREADS=1 python tests/benchmarks/calibration_time.py result.json

Model and inputs are made here: three layers of 256 hidden units in both directions, whose matrices have singular values
that fall as those of trained ones do, and 800 sequences of 33 to 133 steps of 128 correlated inputs. ``W`` and ``U`` of
all layers are planned at a ratio of 4 and calibrated as the command does it by default. CPU seconds are those of user
and system together, of all threads, so that other work on the machine changes them little.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from btcompress import FactorizeStep, factorize
from btcompress.calibration import DEFAULT, CalibrationRequest, SampleInputs, calibrate, gather_samples
from btcompress.compression import priced_plan
from btcompress.factorization import open_weights

N_INPUTS, N_HIDDEN, N_LAYERS = 128, 256, 3
STEPS = (33, 133)
RATIO = 4.0
#: Singular value ``i`` of a matrix is ``i`` to this power, and the spread of its entries that of a trained one.
DECAY, SPREAD = -0.7, 0.05
#: Of an input at neighbouring steps.
CORRELATION = 0.9


def write_model(path: Path) -> None:
    """An LSTM with matrices whose singular values fall."""
    generator = torch.Generator().manual_seed(0)
    lstm = torch.nn.LSTM(N_INPUTS, N_HIDDEN, N_LAYERS, bidirectional=True)
    tensors = {}
    for name, tensor in lstm.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() == 2:
            left, _, right = torch.linalg.svd(drawn, full_matrices=False)
            drawn = left * torch.arange(1, len(right) + 1).float().pow(DECAY) @ right
        tensors[f"lstm.{name}"] = SPREAD * drawn / drawn.std()
    torch.save(tensors, path)


def write_sequences(path: Path, n_sequences: int) -> None:
    """``x`` of shape ``(N, T, I)`` and the steps of each sequence."""
    random = np.random.default_rng(0)
    mixing = random.standard_normal((N_INPUTS, N_INPUTS)) * np.arange(1, N_INPUTS + 1)[:, None] ** DECAY
    x = random.standard_normal((n_sequences, STEPS[1], N_INPUTS))
    for step in range(1, STEPS[1]):
        x[:, step] = CORRELATION * x[:, step - 1] + (1 - CORRELATION**2) ** 0.5 * x[:, step]
    x = (x @ (mixing / mixing.std() / N_INPUTS**0.5)).astype(np.float32)
    np.savez(path, x=x, lengths=random.integers(*STEPS, endpoint=True, size=n_sequences))


def main() -> None:
    """Make model and inputs, calibrate, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--sequences", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=DEFAULT.epochs)
    args = parser.parse_args()
    seconds = {}

    def timed(what: str, began: float) -> None:
        seconds[what] = round(time.process_time() - began, 1)
        print(json.dumps({what: seconds[what]}), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        model, inputs = Path(folder) / "model.pt", Path(folder) / "inputs.npz"
        write_model(model)
        write_sequences(inputs, args.sequences)
        dense, request = open_weights(model), CalibrationRequest((SampleInputs(str(inputs)),))
        began = time.process_time()
        samples = gather_samples(dense, request)
        timed("gathering", began)
        began = time.process_time()
        step = FactorizeStep(target_ratio=RATIO, matrices=("input", "recurrent"))
        compressed = factorize(model, plan=priced_plan(model, step, samples=samples))
        timed("planning and fitting", began)
        began = time.process_time()
        config = replace(DEFAULT, epochs=args.epochs, cpu=True)
        told = calibrate(compressed, dense, request, config, samples=samples).history[-1]
        timed("calibrating", began)
    names = ("hidden_state_error_before", "hidden_state_error_after", "epochs", "layer_epochs", "n_train", "n_held")
    row = {"cpu_seconds": seconds, **{name: told.get(name) for name in names}}
    print(json.dumps(row))
    args.json.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
