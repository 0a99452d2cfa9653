"""The options that commands share, and what their texts mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from btcompress.cli.completing import layers, listed_words, matrices, words
from btcompress.cli.environment import variable
from btcompress.kinds import MatrixKind
from btcompress.seeds import MAX_SEED

if TYPE_CHECKING:
    from btcompress.calibration import SampleInputs
    from btcompress.recipe import FactorizeStep

#: Headings of ``--help``.
TAKE, SMALL, INPUTS, EFFORT, OUTPUT = "What to take", "How small", "Sample inputs", "Effort", "Output"
TEACH = "What to learn"

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Dense checkpoint: .safetensors (or its index), or what torch saved; or a result, to factorize further.",
        show_default=False,
    ),
]
CPRank = Annotated[
    int | None,
    typer.Option(
        "--cp-rank",
        "-n",
        min=1,
        help="CP rank N: Tucker blocks summed per matrix. Default: 1.",
        show_default=False,
        rich_help_panel=SMALL,
    ),
]
TuckerRank = Annotated[
    str | None,
    typer.Option(
        "--tucker-rank",
        "-r",
        metavar="R[,R...]",
        help="Tucker rank R: one for all modes, or one per mode. Default: 4.",
        show_default=False,
        rich_help_panel=SMALL,
    ),
]
Bits = Annotated[
    str | None,
    typer.Option(
        "--bits",
        metavar="B",
        help="Store the numbers of the chosen matrices in 2 to 8 bits, or as float16 or bfloat16; without ranks and "
        "wishes the matrices stay dense. auto: choose for each, the default with a wish in bytes.",
        autocompletion=words("auto", *"2345678", "float16", "bfloat16"),
        show_default=False,
        rich_help_panel=SMALL,
    ),
]
Group = Annotated[
    int | None,
    typer.Option(
        "--group",
        metavar="G",
        help="With --bits of 2 to 8: columns that share a scale and a zero point. Default: 32.",
        show_default=False,
        rich_help_panel=SMALL,
    ),
]
Matrices = Annotated[
    str,
    typer.Option(
        metavar="KIND[,KIND...]",
        help="Kinds of matrices: input (weight_ih of an LSTM, GRU or RNN), recurrent (its weight_hh and weight_hr), "
        "linear layers.",
        autocompletion=listed_words("input", "recurrent", "linear"),
        rich_help_panel=TAKE,
    ),
]
Container = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which state dict to read where the file holds several.",
        show_default=False,
        rich_help_panel=TAKE,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        envvar=variable("strict"),
        help="Refuse a checkpoint that holds more than weights, rather than leave objects out.",
        rich_help_panel=TAKE,
    ),
]
Scale = Annotated[
    str,
    typer.Option(help="What to multiply inputs by: a number, or a fraction like 1/255.", rich_help_panel=INPUTS),
]
LSTMOption = Annotated[
    str | None,
    typer.Option(
        "--lstm",
        metavar="NAME",
        help="The recurrent layer that the sample inputs are for, instead of NAME= before a file.",
        autocompletion=layers,
        show_default=False,
        rich_help_panel=INPUTS,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        max=MAX_SEED,
        envvar=variable("seed"),
        help="Seed of every random draw.",
        rich_help_panel=EFFORT,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        envvar=variable("device"),
        help="Where to compute: cpu, cuda, cuda:1, ...",
        autocompletion=words("cpu", "cuda"),
        rich_help_panel=EFFORT,
    ),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace files that exist.", rich_help_panel=OUTPUT)]
SaveRecipe = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write down in YAML what this command does, for btcompress run.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.", rich_help_panel=OUTPUT)]


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What to take of a checkpoint, how small, and on which sample inputs: options that plan and factorize have."""

    model: Model
    matrices: Matrices = "input"
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            metavar="PATTERN",
            help="Matrices to take, by key or layer name; * and ? match, a leading ! leaves out. Repeatable. "
            "Default: all.",
            autocompletion=matrices,
            show_default=False,
            rich_help_panel=TAKE,
        ),
    ] = None
    allow_nonfinite: Annotated[
        bool,
        typer.Option(
            "--allow-nonfinite",
            help="Leave matrices dense that hold NaN or infinity; else they are refused.",
            rich_help_panel=TAKE,
        ),
    ] = False
    nonlinearity: Annotated[
        str | None,
        typer.Option(
            metavar="tanh|relu",
            help="That of plain RNNs, which a file of weights does not say. Default: tanh.",
            autocompletion=words("tanh", "relu"),
            show_default=False,
            rich_help_panel=TAKE,
        ),
    ] = None
    container: Container = None
    strict: Strict = False
    target_ratio: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Choose forms and ranks: parameters before over after, at least X; or bytes, and bits too (--of).",
            show_default=False,
            rich_help_panel=SMALL,
        ),
    ] = None
    max_params: Annotated[
        int | None,
        typer.Option(
            metavar="P",
            help="Choose forms and ranks: at most P parameters after.",
            show_default=False,
            rich_help_panel=SMALL,
        ),
    ] = None
    max_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Choose forms, ranks and bits: at most so many bytes after, such as 400k or 1.5M.",
            show_default=False,
            rich_help_panel=SMALL,
        ),
    ] = None
    max_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="Choose forms and ranks: weight error of every matrix at most E. Also beside those.",
            show_default=False,
            rich_help_panel=SMALL,
        ),
    ] = None
    max_activation_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="Choose forms and ranks: activation error of every matrix at most E on the sequences held back of "
            "--calibration. Also beside the first three.",
            show_default=False,
            rich_help_panel=SMALL,
        ),
    ] = None
    of: Annotated[
        Literal["matrices", "model", "bytes", "file"],
        typer.Option(
            help="What a wish is of: parameters of the chosen matrices or of the whole model; bytes of these matrices "
            "or of the whole file. --max-bytes is in bytes with any of them.",
            rich_help_panel=SMALL,
        ),
    ] = "matrices"
    bits: Bits = None
    group: Group = None
    others: Annotated[
        Literal["float16", "bfloat16"] | None,
        typer.Option(
            help="Store all other floats, those of matrices that were not chosen and of vectors, so. Default: as they "
            "are.",
            show_default=False,
            rich_help_panel=SMALL,
        ),
    ] = None
    in_modes: Annotated[
        str | None,
        typer.Option(
            metavar="I,I,...",
            help="Input mode sizes, for the matrices whose inputs they multiply to. Default: chosen.",
            show_default=False,
            rich_help_panel=SMALL,
        ),
    ] = None
    out_modes: Annotated[
        str | None,
        typer.Option(
            metavar="J,J,...",
            help="Output mode sizes, gates included when fused. Default: chosen.",
            show_default=False,
            rich_help_panel=SMALL,
        ),
    ] = None
    order: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of modes. Default: what suits the matrix's size.",
            show_default=False,
            rich_help_panel=SMALL,
        ),
    ] = None
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,...",
            help="Shape that was flattened to the input, such as 120,160,3; modes follow its axes.",
            show_default=False,
            rich_help_panel=SMALL,
        ),
    ] = None
    gates: Annotated[
        Literal["fused", "separate"],
        typer.Option(help="One block-term form for all four gates, or one for each.", rich_help_panel=SMALL),
    ] = "fused"
    objective: Annotated[
        Literal["size", "speed"],
        typer.Option(
            help="With speed, mode sizes are chosen among about equally small ones by the time of their product, and a "
            "wish weighs the time of forms beside their errors.",
            rich_help_panel=SMALL,
        ),
    ] = "size"
    order_units: Annotated[
        bool,
        typer.Option(
            "--order-units",
            help="Reorder rows and columns, or the hidden units of a layer, where that is worth the integers it takes.",
            rich_help_panel=SMALL,
        ),
    ] = False
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LAYER=]FILE",
            help="Sequences of the inputs of a recurrent or linear layer, without labels, as btcompress.recording "
            "writes them, or MODULE:FACTORY: forms are chosen and fitted by what they give on these. Repeatable.",
            show_default=False,
            rich_help_panel=INPUTS,
        ),
    ] = None
    lstm: LSTMOption = None
    scale: Scale = "1"
    seed: Seed = 0
    device: Device = "cpu"

    def step(self, **more: object) -> FactorizeStep:
        """The job that they say, with what other options add."""
        from btcompress.recipe import FactorizeStep

        wishes = ("target_ratio", "max_params", "max_bytes", "max_error", "max_activation_error", "of")
        stored = ("bits", "group", "others")
        taken = ("allow_nonfinite", "nonlinearity", "container", "strict")
        same = (*wishes, *stored, *taken, "order", "gates", "objective", "order_units", "seed", "device")
        sizes = {name: getattr(self, name) for name in ("in_modes", "out_modes", "input_shape")}
        fields: dict[str, object] = {
            **{name: getattr(self, name) for name in same},
            **{name: None if text is None else numbers(text) for name, text in sizes.items()},
            "matrices": kinds(self.matrices),
            "layers": tuple(self.layer or ()),
            "calibration": given_inputs("--calibration", self.calibration, self.scale, self.lstm),
        }
        return FactorizeStep(**{**fields, **more})  # type: ignore[arg-type]  # checked when it is made


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 8,20,20,18.") from None


def scale_of(text: str) -> float:
    """A number other than 0, or a fraction such as 1/255."""
    from btcompress.errors import BTCompressError
    from btcompress.recipe.plain import scale_of as parsed

    try:
        return parsed(text)
    except BTCompressError:
        raise typer.BadParameter(
            f"--scale {text!r} is not a number other than 0, or a fraction such as 1/255."
        ) from None


def tucker_rank_of(text: str) -> int | tuple[int, ...]:
    """A Tucker rank for all modes, or one per mode."""
    ranks = numbers(text)
    return ranks[0] if len(ranks) == 1 else ranks


def kinds(text: str) -> tuple[MatrixKind, ...]:
    """Kinds of matrices between commas."""
    return cast(tuple[MatrixKind, ...], tuple(part.strip() for part in text.split(",")))


def given_inputs(option: str, texts: list[str] | None, scale: str, lstm: str | None) -> tuple[SampleInputs, ...]:
    """Sample inputs, as an option gives them, once or several times.

    Raises:
        BTCompressError: there are none, and yet it is said how to take them; or one layer is named for several.
    """
    from dataclasses import replace

    from btcompress.errors import BTCompressError
    from btcompress.recipe.steps import sample_inputs

    if not texts:
        if lstm is not None or scale != "1":
            raise BTCompressError(
                f"--scale and --lstm say how to take sequences, but there are none. Give {option} FILE."
            )
        return ()
    inputs = tuple(sample_inputs(text, scale_of(scale)) for text in texts)
    if lstm is None:
        return inputs
    if len(inputs) > 1 or inputs[0].layer is not None:
        raise BTCompressError(f"--lstm names one layer for one file. Write {option} NAME=FILE for each instead.")
    return (replace(inputs[0], layer=lstm),)
