"""The fit against greedy deflation on the full tensor, at 57,600 x 1,024: time and error in one run.

Run it alone on a quiet machine:

    python tests/benchmarks/fit_speed.py

The matrix is an exact block-term matrix (N=2, R=4, order 4) plus white noise of the same Frobenius norm, in
float32. Greedy deflation fits one block after another to the residual with TensorLy's Tucker (HOOI, SVD
start, its default tolerance) on the full order-4 tensor. One JSON line per seed, then the medians.
"""

import argparse
import json
import statistics
import time

import tensorly
import torch
from tensorly.decomposition import tucker

from btcompress.blockterm import BlockTerm
from btcompress.fit import fit, weight_error
from btcompress.shapes import BlockTermShape

SHAPE = BlockTermShape((8, 20, 20, 18), (16, 4, 4, 4), (4, 4, 4, 4), n_blocks=2, n_gates=4)


def noisy_matrix(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    cores = torch.randn(SHAPE.core_shape, generator=generator)
    factors = tuple(torch.randn(size, generator=generator) for size in SHAPE.factor_shapes)
    signal = BlockTerm(SHAPE, cores, factors).to_dense()
    noise = torch.randn(signal.shape, generator=generator)
    return signal / signal.norm() + noise / noise.norm()


def greedy_deflation(matrix: torch.Tensor) -> float:
    """Weight error of greedy deflation on the full tensor."""
    tensor = matrix.reshape(*SHAPE.out_modes, *SHAPE.in_modes)
    residual = tensor.permute([axis for k in range(4) for axis in (4 + k, k)]).reshape(SHAPE.mode_sizes)
    norm = residual.norm()
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        for _ in range(SHAPE.n_blocks):
            core, factors = tucker(residual, rank=list(SHAPE.ranks), init="svd")
            residual = residual - tensorly.tucker_to_tensor((core, factors))
    return float(residual.norm() / norm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="fits per seed, of which the median counts")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        matrix = noisy_matrix(seed)
        seconds = []
        for _ in range(arguments.repeats):
            began = time.perf_counter()
            fitted = fit(matrix, SHAPE)
            seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        greedy_error = greedy_deflation(matrix)
        greedy_seconds = time.perf_counter() - began
        rows.append(
            {
                "seed": seed,
                "fit_seconds": statistics.median(seconds),
                "greedy_seconds": greedy_seconds,
                "ratio": greedy_seconds / statistics.median(seconds),
                "fit_error": weight_error(matrix, (fitted.value,)),
                "greedy_error": greedy_error,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    print(
        json.dumps({"median": {key: statistics.median(row[key] for row in rows) for key in rows[0] if key != "seed"}})
    )


if __name__ == "__main__":
    main()
