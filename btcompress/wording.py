"""How forms, precisions, ranks, ratios, agreements, benches and numbers that are worse are written, wherever shown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from btcompress.text import listed

if TYPE_CHECKING:
    from btcompress.results import Agreement, UntouchedReport
    from btcompress.timings import BenchCase, BenchReport, Machine

#: What stands behind a number that is worse than its yardstick.
MARK = "!"
#: Metrics from here on are written with an exponent.
_LONG = 1e6
#: What the ways to run a layer are called.
_WAYS = {
    "dense_onednn": "dense, oneDNN",
    "dense_native": "dense, torch's own",
    "dense_cudnn": "dense, cuDNN",
    "int8": "dense, dynamic int8",
    "block_terms": "block terms",
    "onnx_dense": "ONNX, dense",
    "onnx_dense_int8": "ONNX, dense, int8",
    "onnx_block_terms": "ONNX, block terms",
    "onnx_block_terms_int8": "ONNX, block terms, int8",
    "onnx_block_terms_int8_lstm": "ONNX, int8, LSTM operator",
}
_MILLISECONDS = 1e3


class Worse(str):
    """A number that is worse than what it is held against: it is shown in red, with a mark behind it."""

    __slots__ = ()


def worse_if(condition: bool, number: str) -> str:
    """The number, marked as worse where it is."""
    return Worse(number) if condition else number


def legend(numbers: Iterable[str], worse: str) -> str:
    """What the mark means, where any of these numbers has it; ``worse`` says what they are worse than."""
    return f"{MARK} {worse}" if any(isinstance(number, Worse) for number in numbers) else ""


def form_lines(
    name: str,
    size: tuple[int, int],
    out_modes: Sequence[int],
    in_modes: Sequence[int],
    gates: str,
    core: str,
    orders: Collection[str] = (),
) -> list[str]:
    """The first cell of a matrix's row: what it is, and in what form.

    Args:
        name: its key.
        size: rows and columns.
        out_modes: of its block terms.
        in_modes: likewise.
        gates: ``"fused"`` or ``"separate"``.
        core: ``"full"`` or ``"identity"``; ``"none"`` for a dense matrix.
        orders: the sides that have one.
    """
    form, ordered = _form(out_modes, in_modes, gates, core), _ordered(orders)
    lines = [name, f"  {size[0]} x {size[1]}", f"  as {form}"]
    return [*lines, f"  {ordered}"] if ordered else lines


def form_text(
    out_modes: Sequence[int], in_modes: Sequence[int], gates: str, core: str, orders: Collection[str] = ()
) -> str:
    """The same form on one line; arguments as those of :func:`form_lines`."""
    form, ordered = _form(out_modes, in_modes, gates, core), _ordered(orders)
    return f"{form}, {ordered}" if ordered else form


def _form(out_modes: Sequence[int], in_modes: Sequence[int], gates: str, core: str) -> str:
    if core == "none":
        return "dense"
    each = "4 gates, each " if gates == "separate" else ""
    modes = " by ".join(",".join(map(str, sizes)) for sizes in (out_modes, in_modes))
    if core == "identity":
        low_rank = len(in_modes) == 2 and (in_modes[1], out_modes[0]) == (1, 1)
        modes = "low rank" if low_rank else f"{modes} without a core"
    return each + modes


def _ordered(orders: Collection[str]) -> str:
    sides = " and ".join({"row_order": "rows", "column_order": "columns"}[side] for side in orders)
    return f"{sides} in order" if sides else ""


def agreements(of_columns: Sequence[Agreement | None]) -> Iterator[tuple[str, list[str]]]:
    """A row of decisions on steps and one of those at the ends, as far as any of the columns has them."""
    for name, count, what in (("steps", "n_steps", "steps"), ("ends", "n_ends", "sequence ends")):
        shares = [None if each is None else getattr(each, name) for each in of_columns]
        if any(share is not None for share in shares):
            n = max(getattr(each, count) for each in of_columns if each is not None)
            cells = ["not measured" if share is None else f"{share:.1%}" for share in shares]
            yield f"decides as the dense one, of {n:,} {what}", cells


def error_of(lstm: str) -> str:
    """What a row of hidden-state errors begins with."""
    return f"hidden-state error{f' of {lstm}' if lstm else ''}"


def error_text(error: float | None) -> str:
    """An error of a matrix, where it was measured."""
    return "not measured" if error is None else f"{error:.3f}"


def rank_text(ranks: Sequence[int]) -> str:
    """One rank if all are equal, else all of them."""
    return str(ranks[0]) if len(set(ranks)) == 1 else ",".join(map(str, ranks))


def ratio_text(value: float) -> str:
    """A ratio in three digits."""
    return f"{value:,.0f}x" if value >= 1000 else f"{value:.3g}x" if value >= 10 else f"{value:.2f}x"


def precision_words(precision: str, columns: int) -> str:
    """A precision as it is shown: one of whole rows by that name."""
    return ", ".join(_words(each, columns) for each in precision.split(", "))


def _words(precision: str, columns: int) -> str:
    kind, slash, group = precision.partition("/")
    return f"{kind} by rows" if slash and int(group) >= columns else precision


def metric_text(value: float) -> str:
    """The value of a metric."""
    return f"{value:.4f}" if abs(value) < _LONG else f"{value:.3g}"


def untouched_text(untouched: UntouchedReport) -> str:
    """How many tensors are still the dense checkpoint's, and which are not."""
    n_changed = len(untouched.changed)
    n_tensors = untouched.same + untouched.rounded + n_changed
    same = f"{untouched.same} of {n_tensors} tensors are the dense checkpoint's, bit for bit"
    if untouched.rounded:
        same += f", and {untouched.rounded} more once rounded to what they are stored as"
    if not n_changed:
        return f"{same}."
    return f"{same}; {'trained since' if untouched.trained else 'other than there'}: {listed(untouched.changed)}."


def way_text(way: str) -> str:
    """What a way to run a layer is called; one that a later version measured, as the file calls it."""
    return _WAYS.get(way, way)


def case_text(case: BenchCase) -> str:
    """What was run: a layer in a mode, at a batch size and a number of steps."""
    steps = f"{case.steps:,} step{'s' * (case.steps > 1)}"
    return ", ".join(part for part in (case.lstm, case.mode, f"batch {case.batch:,}", steps) if part)


def milliseconds_text(seconds: float) -> str:
    """Milliseconds in three digits, of long times all before the point."""
    milliseconds = seconds * _MILLISECONDS
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:#.3g}"


def machine_text(machine: Machine) -> str:
    """What times are of."""
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)}"
    where = f"on {machine.name}" if machine.device == "cpu" else f"on {machine.device}, {machine.name}"
    versions = f"torch {machine.torch}"
    if machine.onnxruntime is not None:
        versions += f", ONNX Runtime {machine.onnxruntime}"
    return f"{where}, {threads}, {versions}; all ways of a case took turns."


def left_out_texts(bench: BenchReport) -> list[str]:
    """Which ways were not measured and why, each once."""
    found = {(case.mode, each.way, each.reason): None for case in bench.cases for each in case.left_out}
    return [f"{way_text(way)}, in {mode}: {reason}." for mode, way, reason in found]
