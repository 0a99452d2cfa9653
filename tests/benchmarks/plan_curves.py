"""The curves of a checkpoint's matrices, parameters against weight error, as JSON and as a picture.

    python tests/benchmarks/plan_curves.py model.pt curves.json [curves.png] [--input-shape 120,160,3]

The JSON has for each matrix every point that no other form beats, and every plain low-rank form, with the
seconds that pricing took. The picture needs matplotlib, which is no dependency of this project.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import btcompress
from btcompress.shapes import MatrixShape


def kind(shape: MatrixShape) -> str:
    """What a form is, in words."""
    part = shape.part
    if part.is_low_rank:
        name = "low rank"
    elif part.core == "identity":
        name = "Kronecker products"
    else:
        name = f"block terms of order {part.order}"
    return f"{name}, separate gates" if shape.gates == "separate" else name


def draw(matrices: list[dict], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(matrices), figsize=(5 * len(matrices), 4), squeeze=False, sharey=True)
    for matrix, axis in zip(matrices, axes[0], strict=True):
        for name, style in (("low_rank", "-"), ("curve", ".")):
            points = matrix[name]
            axis.plot(
                [matrix["params"] / point["params"] for point in points],
                [point["weight_error"] for point in points],
                style,
                label={"low_rank": "low rank", "curve": "best form"}[name],
            )
        axis.set(xscale="log", title=matrix["name"], xlabel="weights ratio", ylim=(0, 1))
        axis.legend()
    axes[0][0].set_ylabel("weight error")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("png", type=Path, nargs="?")
    parser.add_argument("--input-shape", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--layer", action="append", default=[])
    arguments = parser.parse_args()
    began = time.perf_counter()
    # The curves do not depend on the wish.
    plan = btcompress.plan_for(
        arguments.model, max_error=0.5, input_shape=arguments.input_shape, layers=arguments.layer
    )
    seconds = time.perf_counter() - began
    matrices = [
        {
            "name": form.name,
            "size": form.size,
            "params": form.curve.dense_params,
            **{
                name: [
                    {"params": point.n_params, "weight_error": point.error, "kind": kind(point.shape)}
                    | point.shape.to_dict()
                    for point in getattr(form.curve, points)
                ]
                for name, points in (("curve", "points"), ("low_rank", "low_rank"))
            },
        }
        for form in plan.forms
    ]
    result = {"model": arguments.model.name, "seconds": seconds, "threads": torch.get_num_threads()}
    arguments.json.write_text(json.dumps({**result, "matrices": matrices}, indent=1) + "\n")
    print(json.dumps(result))
    if arguments.png is not None:
        try:
            draw(matrices, arguments.png)
        except ImportError:
            print("matplotlib is not installed, so there is no picture.")


if __name__ == "__main__":
    main()
