"""The options that commands share, and what their texts mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from btcompress.errors import BTCompressError
from btcompress.kinds import MatrixKind, check_kinds
from btcompress.modes import ShapeRequest
from btcompress.seeds import MAX_SEED

if TYPE_CHECKING:
    from btcompress.calibration import CalibrationRequest
    from btcompress.plan import Wish

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Dense checkpoint: .safetensors (or its index), or a state dict saved by torch.",
        show_default=False,
    ),
]
CPRank = Annotated[int, typer.Option("--cp-rank", "-n", min=1, help="CP rank N: Tucker blocks summed per matrix.")]
GivenCPRank = Annotated[
    int | None,
    typer.Option("--cp-rank", "-n", min=1, help="CP rank N: Tucker blocks summed per matrix. Default: 1."),
]
TuckerRank = Annotated[
    str,
    typer.Option("--tucker-rank", "-r", metavar="R[,R...]", help="Tucker rank R: one for all modes, or one per mode."),
]
GivenTuckerRank = Annotated[
    str | None,
    typer.Option(
        "--tucker-rank",
        "-r",
        metavar="R[,R...]",
        help="Tucker rank R: one for all modes, or one per mode. Default: 4.",
    ),
]
TargetRatio = Annotated[
    float | None,
    typer.Option(metavar="X", help="Choose forms and ranks: parameters before over after, at least X."),
]
MaxParams = Annotated[int | None, typer.Option(metavar="P", help="Choose forms and ranks: at most P parameters after.")]
MaxError = Annotated[
    float | None,
    typer.Option(
        metavar="E", help="Choose forms and ranks: weight error of every matrix at most E. Also beside those."
    ),
]
MaxActivationError = Annotated[
    float | None,
    typer.Option(
        metavar="E",
        help="Choose forms and ranks: activation error of every matrix at most E on the sequences held back of "
        "--calibration. Also beside the first two.",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|MODULE:FACTORY",
        help="Sequences of an LSTM's inputs, without labels: forms are chosen and fitted by what the matrices give on "
        "them.",
        show_default=False,
    ),
]
LSTMOption = Annotated[
    str | None,
    typer.Option(
        "--lstm",
        metavar="NAME",
        help="The LSTM that the sequences are inputs of, where there are several.",
        show_default=False,
    ),
]
OfOption = Annotated[
    Literal["matrices", "model"],
    typer.Option(help="Whether ratio and parameters are those of the chosen matrices or of the whole model."),
]
InModes = Annotated[
    str | None,
    typer.Option(
        metavar="I,I,...", help="Input mode sizes, for the matrices whose inputs they multiply to. Default: chosen."
    ),
]
OutModes = Annotated[
    str | None,
    typer.Option(metavar="J,J,...", help="Output mode sizes, gates included when fused. Default: chosen."),
]
Order = Annotated[int | None, typer.Option(min=1, help="Number of modes. Default: what suits the matrix's size.")]
OrderUnits = Annotated[
    bool,
    typer.Option(
        "--order-units/--no-order-units",
        help="Reorder rows and columns, or an LSTM's hidden units, where that is worth the integers it takes.",
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        metavar="S,S,...", help="Shape that was flattened to the input, such as 120,160,3; modes follow its axes."
    ),
]
GatesOption = Annotated[
    Literal["fused", "separate"], typer.Option(help="One block-term form for all four gates, or one for each.")
]
Matrices = Annotated[
    str,
    typer.Option(
        metavar="KIND[,KIND...]",
        help="Kinds of matrices: input (an LSTM's weight_ih), recurrent (its weight_hh and weight_hr), linear layers.",
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        metavar="PATTERN",
        help="Matrices to take, by key or layer name; * and ? match, a leading ! leaves out. Repeatable. Default: all.",
    ),
]
Scale = Annotated[str, typer.Option(help="What to multiply inputs by: a number, or a fraction like 1/255.")]
AllowGrowth = Annotated[bool, typer.Option("--allow-growth", help="Also factorize a matrix that this makes larger.")]
Container = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which state dict to read where the file holds several.")
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse a checkpoint that holds more than weights, rather than leave objects out."),
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of every random draw.")]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 8,20,20,18.") from None


def scale_of(text: str) -> float:
    """A number other than 0, or a fraction such as 1/255."""
    above, _, below = text.partition("/")
    try:
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not value or not math.isfinite(value):
        raise typer.BadParameter(f"--scale {text!r} is not a number other than 0, or a fraction such as 1/255.")
    return value


def tucker_rank_of(text: str) -> int | tuple[int, ...]:
    """A Tucker rank for all modes, or one per mode."""
    ranks = numbers(text)
    return ranks[0] if len(ranks) == 1 else ranks


def shape_request(
    cp_rank: int,
    tucker_rank: str,
    in_modes: str | None = None,
    out_modes: str | None = None,
    order: int | None = None,
    input_shape: str | None = None,
    gates: Literal["fused", "separate"] = "fused",
) -> ShapeRequest:
    """The shapes that the options ask for."""
    sizes = (None if text is None else numbers(text) for text in (in_modes, out_modes, input_shape))
    given_in, given_out, given_shape = sizes
    return ShapeRequest(cp_rank, tucker_rank_of(tucker_rank), given_in, given_out, order, given_shape, gates)


def kinds(text: str) -> tuple[MatrixKind, ...]:
    """Kinds of matrices between commas."""
    return check_kinds(cast(tuple[MatrixKind, ...], tuple(part.strip() for part in text.split(","))))


def make_wish(
    target_ratio: float | None,
    max_params: int | None,
    max_error: float | None,
    max_activation_error: float | None,
    of: Literal["matrices", "model"],
    *,
    ranks: tuple[object, ...],
    plan_file: Path | None,
) -> Wish | None:
    """The wish that the options make, if any, which leaves the ranks to the planner."""
    from btcompress.plan import Wish

    if all(each is None for each in (target_ratio, max_params, max_error, max_activation_error)):
        if of == "model":
            raise BTCompressError("--of says what a ratio is of. Give --target-ratio or --max-params with it.")
        return None
    refuse("a wish leaves the ranks to be chosen", *ranks, plan_file)
    return Wish(target_ratio, max_params, max_error, of, max_activation_error)


def refuse(reason: str, *options: object) -> None:
    """Refuse options, of which any that is not None contradicts what others say."""
    if any(option is not None for option in options):
        raise BTCompressError(
            f"{reason}, but options that say otherwise were given as well. Give one of: a wish (--target-ratio, "
            "--max-params, --max-error, --max-activation-error), --plan, or ranks and what goes with them."
        )


def usable(device: str) -> str:
    """The name of a device, once it is sure that it can compute here; of several GPUs, training then takes this one."""
    from btcompress.devices import check_device

    check_device(device)
    if device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(device)
    return device


def calibration_request(
    sequences: str | None, scale: str, lstm: str | None, *, train: bool = True
) -> CalibrationRequest | None:
    """What to calibrate on, as the options say; None without sequences, which other options then must not tell of."""
    if sequences is None:
        if lstm is not None or scale != "1":
            raise BTCompressError(
                "--scale and --lstm say how to take sequences, but there are none. Give --calibration."
            )
        return None
    from btcompress.calibration import CalibrationRequest, SampleInputs

    return CalibrationRequest((SampleInputs(sequences, lstm, scale_of(scale)),), train=train)
