"""A linear layer of 57,600 inputs by 1,024 outputs in block terms, against another library's block tensor train.

TensorLy-Torch is needed for this alone. Install it apart, so that nothing else changes, and run this alone on a quiet
machine:

    pip install --no-deps --target .peers tensorly-torch
    python tests/benchmarks/peers.py --peers .peers

Block terms have N=2 and R=4 (3,648 weights), block tensor trains the same mode sizes and a rank of 4 or 5 (2,912 and
4,200 weights), both a bias. Prediction is a call without gradients, training a call and the backward pass to all
parameters. Times are medians of calls that take turns in one process; the ratio is the peer's time over that of block
terms, above 1 where block terms are faster. One JSON line for each case. The dense layer stands beside them.
"""

import argparse
import json
import sys
from collections.abc import Callable

import torch
from timing import machine, median_seconds
from torch import Tensor, nn

from btcompress import BTLinear
from btcompress.shapes import BlockTermShape, MatrixShape

IN_MODES, OUT_MODES = (10, 12, 16, 30), (16, 4, 4, 4)
PEER_RANKS = (4, 5)
BATCHES = (1, 6, 96)


def layers(peers: str) -> dict[str, nn.Module]:
    """The layers by their names."""
    sys.path.append(peers)
    import tensorly
    from tltorch import FactorizedLinear

    tensorly.set_backend("pytorch")
    shape = BlockTermShape(IN_MODES, OUT_MODES, (4,) * 4, n_blocks=2)
    found: dict[str, nn.Module] = {
        "block terms": BTLinear(shape.in_size, shape.out_size, shape=MatrixShape(shape), method="factored"),
        "dense": nn.Linear(shape.in_size, shape.out_size),
    }
    for rank in PEER_RANKS:
        found[f"block tensor train, rank {rank}"] = FactorizedLinear(
            IN_MODES, OUT_MODES, factorization="blocktt", rank=rank
        )
    return found


def prediction(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            layer(x)

    return call


def training(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        layer.zero_grad()
        layer(x).square().mean().backward()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=".peers", help="where TensorLy-Torch was installed")
    parser.add_argument("--repeats", type=int, default=15, help="calls of each, of which the median counts")
    arguments = parser.parse_args()
    named = layers(arguments.peers)
    for batch in BATCHES:
        x = torch.randn(batch, 57_600, generator=torch.Generator().manual_seed(0))
        for kind in (prediction, training):
            calls = {name: kind(layer, x) for name, layer in named.items()}
            seconds = median_seconds(calls, arguments.repeats, "cpu")
            for name, layer in named.items():
                row = {
                    **machine("cpu"),
                    "rows": batch,
                    "kind": kind.__name__,
                    "layer": name,
                    "parameters": sum(parameter.numel() for parameter in layer.parameters()),
                    "seconds": seconds[name],
                    "ratio": seconds[name] / seconds["block terms"],
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
