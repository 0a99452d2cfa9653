"""The fit, sweep by sweep from each start: of a matrix that is two blocks and noise, and of a real one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from looks import COLOURS, DARK, GREY, LARGE, SMALL

from btcompress.demo.pictures import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from btcompress import BlockTermShape
    from btcompress.fit.sweeps import Blocks

#: As the fit has it: random starts on the corner of the core and sweeps there, and those after which one start goes on.
_CORNER_STARTS, _CORNER_SWEEPS, _RACE = 3, 8, 5
_SWEEPS, _TOLERANCE = 40, 1e-5
#: Modes and ranks of the made matrix, and the norm of its noise over that of its two blocks.
_MADE, _NOISE = ((5, 5, 6), (12, 10, 5), (4, 4, 4)), 0.3


def measure_fitting(matrix: Tensor, shape: BlockTermShape, seed: int) -> dict[str, Any]:
    """The weight errors of a real matrix and of a made one.

    Args:
        matrix: shape ``(out_size, in_size)``.
        shape: its form, of several blocks.
        seed: of what is made, and of random starts.
    """
    from btcompress import BlockTermShape
    from btcompress.fit.measures import low_rank_errors

    two = BlockTermShape(*_MADE, n_blocks=2)
    rank = min(shape.n_params // sum(matrix.shape), *matrix.shape)
    return {
        "made": {"form": _words(two), **_errors(_two_blocks(two, seed), two, seed)},
        "real": {
            "form": _words(shape),
            **_errors(matrix, shape, seed),
            "low_rank": {"rank": rank, "error": float(low_rank_errors(matrix)[rank - 1]) if rank else 1.0},
        },
    }


def _errors(matrix: Tensor, shape: BlockTermShape, seed: int) -> dict[str, list[float]]:
    """The weight errors of the two starts that a fit races, and after each joint sweep from there."""
    import torch

    from btcompress.fit import largest
    from btcompress.fit.hosvd import compress, leading_corner
    from btcompress.fit.start import greedy_deflation, random_blocks
    from btcompress.fit.sweeps import expanded, sweep_until_stable

    compressed = compress(matrix, shape, largest(matrix), torch.device("cpu"))
    core, ranks, n_blocks = compressed.core, shape.ranks, shape.n_blocks

    def errors(start: Blocks) -> list[float]:
        found = [sweep_until_stable(core, start, 0, _TOLERANCE).error]
        sweep_until_stable(core, start, _SWEEPS, _TOLERANCE, lambda sweep: found.append(sweep.error))
        return [math.sqrt(compressed.missed + (1 - compressed.missed) * error**2) for error in found]

    corner, bases = leading_corner(core, tuple(n_blocks * rank for rank in ranks))
    generator = torch.Generator().manual_seed(seed)
    draws = [random_blocks(corner, ranks, n_blocks, generator) for _ in range(_CORNER_STARTS)]
    tries = [sweep_until_stable(corner, draw, _CORNER_SWEEPS, _TOLERANCE) for draw in draws]
    best = min(tries, key=lambda each: each.error)
    return {"greedy": errors(greedy_deflation(core, ranks, n_blocks)), "random": errors(expanded(best.blocks, bases))}


def _two_blocks(shape: BlockTermShape, seed: int) -> Tensor:
    import torch

    from btcompress import BlockTerm

    generator = torch.Generator().manual_seed(seed)
    normal = [torch.randn(size, generator=generator, dtype=torch.float64) for size in shape.tensor_shapes]
    exact = BlockTerm.of(shape, normal).to_dense()
    noise = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    return exact + _NOISE * noise * exact.norm() / noise.norm()


def _words(shape: BlockTermShape) -> str:
    return f"{shape.out_size} x {shape.in_size}, order {shape.order}, N={shape.n_blocks}, R={shape.ranks[0]}"


def draw_fitting(measured: dict[str, Any], name: str) -> Figure:
    """Draw the weight error against joint sweeps.

    Args:
        measured: as :func:`measure_fitting` gives it.
        name: of the real matrix.
    """
    drawing = figure((8.4, 3.6))
    panels = drawing.subplots(1, 2)
    titles = {"made": "a made matrix, two blocks and noise", "real": f"{name}, {measured['key']}"}
    lines = {"greedy": "from one block after another", "random": "from the best of random starts"}
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        for errors, label, colour, marker in zip(
            (measured[kind][line] for line in lines), lines.values(), COLOURS[:2], "os", strict=True
        ):
            axes.plot(range(len(errors)), errors, marker=marker, markersize=3, linewidth=1.2, color=colour, label=label)
        axes.axvline(_RACE, color=GREY, linewidth=1, zorder=0)
        axes.set(xlabel="joint sweeps", xlim=(-0.8, _SWEEPS + 0.8))
        axes.set_title(f"{title}\n{measured[kind]['form']}", fontsize=LARGE)
        axes.grid(alpha=0.3)
    made, real = panels
    made.set(ylabel="weight error", ylim=(0, None))
    _level(made, _NOISE / math.hypot(1, _NOISE), "the noise", below=True)
    low_rank = measured["real"]["low_rank"]
    _level(real, low_rank["error"], f"as large, low rank {low_rank['rank']}")
    made.legend(fontsize=SMALL, loc="lower right")
    return drawing


def _level(axes: Any, error: float, name: str, *, below: bool = False) -> None:  # noqa: ANN401 - matplotlib's
    axes.axhline(error, color=DARK, linestyle="--", linewidth=1)
    side = "top" if below else "bottom"
    axes.text(_SWEEPS, error, f"{name}: {error:.3f}", ha="right", va=side, fontsize=SMALL, color=DARK)
