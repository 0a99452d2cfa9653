"""What calibrating wins at several ratios: hidden-state error on sequences held back, as JSON and as a picture.

    python tests/benchmarks/calibration_curve.py model.pt inputs.npz curve.json curve.png

All matrices of the LSTM, ``W`` and ``U``, are planned at each ratio. *Weights*: planned on the weights, and fitted to
them. *Inputs*: planned on the inputs, and fitted to them without any training. *Calibrated*: trained after that to
give the dense hidden states. Activation errors are of each matrix planned on the inputs: fitted to the weights, to the
inputs, and calibrated.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from btcompress import factorize, plan_for
from btcompress.calibration import DEFAULT, CalibrationRequest, SampleInputs, calibrate, gather_samples
from btcompress.factorization import open_weights

KINDS = ("input", "recurrent")
NAMES = {"weights": "fitted to the weights", "inputs": "fitted to the inputs", "calibrated": "calibrated"}


def main() -> None:
    """Read the arguments, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--ratios", type=float, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dense = open_weights(args.model)
    config = replace(DEFAULT, seed=args.seed)
    fit, train = (CalibrationRequest((SampleInputs(str(args.inputs)),), train=train) for train in (False, True))
    samples = gather_samples(dense, fit, args.seed)
    rows = []
    for ratio in args.ratios:
        on_weights, on_inputs = (
            factorize(args.model, plan=plan_for(args.model, target_ratio=ratio, matrices=KINDS, samples=given))
            for given in (None, samples)
        )
        row = {"ratio": ratio, "forms": {key: m.shape.to_dict() for key, m in on_inputs.matrices.items()}}
        step = calibrate(on_weights, dense, fit, config, samples=samples).history[-1]
        row["weights"] = step["hidden_state_error_before"]
        for name, request in (("inputs", fit), ("calibrated", train)):
            step = calibrate(on_inputs, dense, request, config, samples=samples).history[-1]
            row[name] = step["hidden_state_error_after"]
        row["activation_errors"] = {
            "weights": step["activation_errors_before"],
            "inputs": step["activation_errors_refitted"],
            "calibrated": step["activation_errors"],
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    args.json.write_text(json.dumps({"model": args.model.name, "seed": args.seed, "rows": rows}, indent=1) + "\n")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, label in NAMES.items():
        axes.plot(args.ratios, [row[name] for row in rows], marker=".", label=label)
    axes.set(xscale="log", xlabel="ratio of all LSTM matrices", ylabel="hidden-state error", ylim=(0, None))
    axes.set_xticks(args.ratios, [f"{ratio:g}" for ratio in args.ratios])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.png, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
