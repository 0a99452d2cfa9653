"""What to know of a factorization: orders and what they cost, and why nothing could be done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from btcompress.blockterm import BlockTerm
from btcompress.checkpoint import Checkpoint
from btcompress.plan import Plan

#: Names of the objects in which torch's quantized layers keep their weights.
_PACKED = ("_all_weight_values", "_packed_params", "_packed_weight_ih", "_packed_weight_hh")
_SIDE_WORDS = {"row_order": "rows", "column_order": "columns"}


def orders_told(parts: Mapping[str, Sequence[BlockTerm]], *, also_without: bool) -> Iterator[str]:
    """What the orders of matrices are and cost; ``also_without``: and which matrices have none."""
    held = [
        (name, _SIDE_WORDS[side], order)
        for name, forms in parts.items()
        for form in forms
        for side, order in zip(form.shape.order_sizes, form.orders, strict=True)
    ]
    holders: dict[int, dict[tuple[str, str], int]] = {}
    for name, side, order in held:
        holders.setdefault(order.data_ptr(), {})[name, side] = len(order)
    for name in parts:
        own = [(side, order) for owner, side, order in held if owner == name and len(holders[order.data_ptr()]) == 1]
        if own:
            sides = " and ".join(dict.fromkeys(side for side, _ in own))
            n_integers = sum(len(order) for _, order in own)
            yield f"{name}: its {sides} are in an order of their own, {n_integers:,} integers that count as parameters."
        elif also_without and name not in {owner for owner, _, _ in held}:
            yield f"{name}: its rows and columns stay in their order, as no other pays."
    for sharing in holders.values():
        if len(sharing) > 1:
            who = ", ".join(f"the {side} of {name}" for name, side in sharing)
            yield f"One order of units holds for {who}: {max(sharing.values()):,} integers that count once."


def nothing_to_do(checkpoint: Checkpoint, plan: Plan) -> str:
    """Why a plan has no matrix, and what to do about it."""
    name = checkpoint.source.name
    if plan.left_dense:
        reasons = "; ".join(f"{left.name}: {left.reason}" for left in plan.left_dense)
        return f"{name}: no matrix is worth factorizing. {reasons}."
    if plan.recurrent:
        return (
            f"{name}: the kinds of matrices ({', '.join(plan.kinds)}) and the layer patterns leave no matrix to "
            "factorize. Ask for more kinds, or loosen the patterns."
        )
    if any(name in notice for notice in checkpoint.notices for name in _PACKED):
        return (
            f"{name} is of a quantized model: the weights of its recurrent layers are packed in objects that are no "
            "tensors. Use the float checkpoint from before quantization."
        )
    others = "; ".join(f"{other.name or 'the checkpoint'}: {other.reason}" for other in plan.others)
    found = f" What looks alike: {others}." if others else ""
    if "linear" in plan.kinds:
        what, advice = "neither a recurrent nor a linear layer that was chosen", "an LSTM, GRU, RNN or a linear layer"
    else:
        what, advice = "no LSTM, GRU or plain RNN", "one, or ask for linear matrices"
    return (
        f"{name} holds {what}, only {len(checkpoint.tensors)} tensors of other layers.{found} "
        f"Give a checkpoint with {advice}."
    )
