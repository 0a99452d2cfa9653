"""The commands that show what factorizing would do: plan and inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from btcompress.cli.options import (
    JSON,
    Calibration,
    Container,
    CPRank,
    GatesOption,
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
    TuckerRank,
    calibration_request,
    kinds,
    shape_request,
    usable,
)
from btcompress.cli.targets import reserved
from btcompress.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from btcompress.calibration import CalibrationRequest
    from btcompress.checkpoint import Checkpoint
    from btcompress.fit import Samples
    from btcompress.modes import ShapeRequest
    from btcompress.plan import Plan, PricedPlan, Wish


def plan_command(
    model: Model,
    target_ratio: TargetRatio = None,
    max_params: MaxParams = None,
    max_error: MaxError = None,
    max_activation_error: MaxActivationError = None,
    of: OfOption = "matrices",
    in_modes: InModes = None,
    out_modes: OutModes = None,
    order: Order = None,
    input_shape: InputShape = None,
    gates: GatesOption = "fused",
    matrices: Matrices = "input",
    layer: Layers = None,
    container: Container = None,
    strict: Strict = False,
    calibration: Calibration = None,
    lstm: LSTMOption = None,
    scale: Scale = "1",
    save_plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the plan as YAML, to edit and give to factorize --plan."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the plan file if it exists.")] = False,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")] = "cpu",
    order_units: OrderUnits = False,
    json: JSON = False,
) -> None:
    """Show which form of each matrix meets a wish at the least loss, and what else there is."""
    from btcompress import display, plan

    wish = plan.Wish(target_ratio, max_params, max_error, of, max_activation_error)
    sequences = calibration_request(calibration, scale, lstm)
    request = shape_request(1, "4", in_modes, out_modes, order, input_shape, gates)
    device = usable(device)
    checkpoint = opened(model, container, strict=strict)
    written = () if save_plan is None else (save_plan,)
    with reserved(save_plan, checkpoint, sequences=calibration, force=force):
        chosen = plan.make_plan(checkpoint, request, layer or (), matrices=kinds(matrices), allow_growth=True)
        samples = gathered(checkpoint, sequences, seed, chosen)
        result = priced(checkpoint, chosen, wish, request, samples, seed, device, order_units=order_units)
        for file in written:
            plan.save_plan(result, file, name=checkpoint.source.name, sha256=checkpoint.source.sha256)
    with display.having_written(*written):
        show = display.show_priced_plan_json if json else display.show_priced_plan
        show(checkpoint, result)
        for file in () if json else written:
            display.show_written(file)


def inspect(
    model: Model,
    cp_rank: CPRank = 1,
    tucker_rank: TuckerRank = "4",
    matrices: Matrices = "input",
    container: Container = None,
    strict: Strict = False,
    json: JSON = False,
) -> None:
    """Show what a checkpoint holds: its LSTMs, and what each matrix would cost at these ranks."""
    from btcompress import display, plan

    request = shape_request(cp_rank, tucker_rank)
    checkpoint = opened(model, container, strict=strict)
    planned = plan.make_plan(checkpoint, request, matrices=kinds(matrices))
    show = display.show_inventory_json if json else display.show_inventory
    show(checkpoint, planned)


def opened(model: Path, container: str | None, *, strict: bool) -> Checkpoint:
    """Read a dense checkpoint, and show meanwhile that it is being read."""
    from btcompress import display
    from btcompress.checkpoint import read

    with display.working(f"reading {model}"):
        return read(model, container, strict=strict)


def planned_from_file(plan_file: Path, checkpoint: Checkpoint, request: ShapeRequest, allow_growth: bool) -> Plan:
    """The plan in a file for a checkpoint, any of whose matrices may be in it."""
    from btcompress import plan

    every = plan.make_plan(checkpoint, request, matrices=KINDS, allow_growth=True)
    return plan.read_plan(plan_file, checkpoint, every, allow_growth=allow_growth)


def gathered(
    checkpoint: Checkpoint, sequences: CalibrationRequest | None, seed: int, chosen: Plan
) -> dict[str, Samples] | None:
    """Samples of what the matrices of a plan meet on the sequences; None without these."""
    if sequences is None:
        return None
    from btcompress import calibration, display

    names = ", ".join(inputs.data for inputs in sequences.inputs)
    with display.working(f"running the dense layers over {names}"):
        return calibration.gather_samples(checkpoint, sequences, seed, [each.name for each in chosen.matrices])


def priced(
    checkpoint: Checkpoint,
    chosen: Plan,
    wish: Wish,
    request: ShapeRequest,
    samples: Mapping[str, Samples] | None,
    seed: int,
    device: torch.device | str,
    *,
    order_units: bool = False,
) -> PricedPlan:
    """The plan of matrices chosen that meets a wish, with its progress on show."""
    from btcompress import display, plan

    with display.pricing_progress() as on_progress:
        return plan.meet(
            checkpoint,
            chosen,
            wish,
            request,
            samples=samples,
            order_units=order_units,
            seed=seed,
            device=device,
            on_progress=on_progress,
        )
