"""The command that factorizes a checkpoint, and calibrates the result if asked to."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from btcompress.cli.options import (
    JSON,
    AllowGrowth,
    Calibration,
    Container,
    GatesOption,
    GivenCPRank,
    GivenTuckerRank,
    InModes,
    InputShape,
    Layers,
    LSTMOption,
    Matrices,
    MaxActivationError,
    MaxError,
    MaxParams,
    Model,
    OfOption,
    Order,
    OrderUnits,
    OutModes,
    Scale,
    Seed,
    Strict,
    TargetRatio,
    calibration_request,
    kinds,
    make_wish,
    refuse,
    shape_request,
    usable,
)
from btcompress.cli.planning import gathered, opened, planned_from_file, priced
from btcompress.cli.reports import show_result
from btcompress.cli.targets import reserved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from btcompress.calibration import CalibrationRequest
    from btcompress.checkpoint import Checkpoint, CompressedCheckpoint
    from btcompress.fit import FitOptions, Samples


def factorize(
    model: Model,
    cp_rank: GivenCPRank = None,
    tucker_rank: GivenTuckerRank = None,
    target_ratio: TargetRatio = None,
    max_params: MaxParams = None,
    max_error: MaxError = None,
    max_activation_error: MaxActivationError = None,
    of: OfOption = "matrices",
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Do as this plan says, which btcompress plan --save-plan wrote."),
    ] = None,
    in_modes: InModes = None,
    out_modes: OutModes = None,
    order: Order = None,
    input_shape: InputShape = None,
    gates: GatesOption = "fused",
    matrices: Matrices = "input",
    layer: Layers = None,
    allow_growth: AllowGrowth = False,
    container: Container = None,
    strict: Strict = False,
    calibration: Calibration = None,
    calibration_epochs: Annotated[
        int,
        typer.Option(min=0, help="Passes over these sequences at most, once the matrices are fitted to them."),
    ] = 10,
    calibration_lr: Annotated[float, typer.Option(help="Learning rate at its peak while calibrating.")] = 3e-3,
    lstm: LSTMOption = None,
    scale: Scale = "1",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Result file. Default: MODEL with .bt.safetensors for its ending.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the result file if it exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show mode sizes and parameters; fit and write nothing.")
    ] = False,
    restarts: Annotated[int, typer.Option(min=0, help="Further random starts of each fit; the best is kept.")] = 0,
    max_sweeps: Annotated[int, typer.Option(min=0, help="Most joint least-squares sweeps of a fit.")] = 100,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="Where to fit: cpu, cuda, cuda:1, ...")] = "cpu",
    order_units: OrderUnits = False,
    json: JSON = False,
) -> None:
    """Write matrices of a checkpoint in block-term form: of its LSTMs, and of linear layers if asked to."""
    from btcompress import display, factorization, plan, reporting
    from btcompress.checkpoint import write
    from btcompress.finetune.readback import check_same_outputs
    from btcompress.fit import FitOptions

    ranks, sizes = (cp_rank, tucker_rank), (in_modes, out_modes, order, input_shape)
    wish = make_wish(target_ratio, max_params, max_error, max_activation_error, of, ranks=ranks, plan_file=plan_file)
    if plan_file is not None:
        refuse("--plan says it all", *ranks, *sizes, *(layer or ()), None if gates == "fused" else gates)
    request = shape_request(1 if cp_rank is None else cp_rank, tucker_rank or "4", *sizes, gates)
    options = FitOptions(max_sweeps=max_sweeps, restarts=restarts, seed=seed, device=usable(device))
    sequences = calibration_request(calibration, scale, lstm, train=calibration_epochs > 0)
    checkpoint = opened(model, container, strict=strict)
    target = output or _beside(model, checkpoint.source.name)
    kept = None if dry_run else target
    with reserved(kept, checkpoint, sequences=calibration, plan_file=plan_file, force=force):
        if plan_file is not None:
            planned = planned_from_file(plan_file, checkpoint, request, allow_growth)
        else:
            growth = allow_growth or wish is not None
            planned = plan.make_plan(checkpoint, request, layer or (), matrices=kinds(matrices), allow_growth=growth)
        samples = gathered(checkpoint, sequences, seed, planned)
        if wish is not None:
            planned = priced(
                checkpoint, planned, wish, request, samples, seed, options.device, order_units=order_units
            ).plan
        if dry_run:
            show = display.show_inventory_json if json else display.show_plan
            show(checkpoint, planned)
            return
        asked = None if plan_file is not None else wish or request
        # A plan that was priced says itself which sides have an order: further ones are not in its budget.
        search = order_units and asked is request
        with display.fit_progress() as on_progress:
            compressed = factorization.factorize_as_planned(
                checkpoint, planned, asked, options, on_progress, order_units=search
            )
        if sequences is not None:
            compressed = _calibrated(
                compressed, checkpoint, sequences, samples, calibration_epochs, calibration_lr, options
            )
        write(compressed, target, force=force, check=partial(check_same_outputs, compressed))
    show_result(reporting.report(compressed, bytes_after=target.stat().st_size), target, json=json)


def _calibrated(
    compressed: CompressedCheckpoint,
    checkpoint: Checkpoint,
    sequences: CalibrationRequest,
    samples: Mapping[str, Samples] | None,
    epochs: int,
    learning_rate: float,
    options: FitOptions,
) -> CompressedCheckpoint:
    from btcompress import display
    from btcompress.calibration import calibrate
    from btcompress.finetune import TrainConfig

    cpu = options.device == "cpu"
    training = TrainConfig(epochs=max(epochs, 1), learning_rate=learning_rate, seed=options.seed, cpu=cpu)
    with display.calibration_progress() as on_progress:
        return calibrate(compressed, checkpoint, sequences, training, on_progress, samples)


def _beside(model: Path, name: str) -> Path:
    """The default result file: beside the checkpoint, named after it; ``name`` is that of the one in a folder."""
    # The recorded name of a file is valid Unicode, and its real one need not be.
    folder, name = (model, name) if model.is_dir() else (model.parent, model.name)
    return folder / f"{Path(name.removesuffix('.index.json')).stem}.bt.safetensors"
