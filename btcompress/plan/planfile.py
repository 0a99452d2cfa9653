"""Plan files: YAML that people read, edit and keep."""

from __future__ import annotations

import reprlib
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
import yaml

from btcompress import memory
from btcompress.checkpoint import Checkpoint, replacing
from btcompress.errors import BTCompressError, ShapeError
from btcompress.orders import check_orders
from btcompress.packing import MOST_BITS, Integers, Precision, precision_of, precision_text
from btcompress.plan.choice import Fallback, Plan, PlannedMatrix, PlannedRounding, growth
from btcompress.plan.plainyaml import load
from btcompress.plan.priced import ChosenForm, PricedPlan
from btcompress.results import LeftDense
from btcompress.shapes import MAX_ORDER, MAX_SIZE, Core, Gates, MatrixShape
from btcompress.text import listed, printable, valid_unicode

_VERSION = 1
_HEADER = """\
# The form of each matrix, as btcompress plan chose it. Edit and keep it, then:
#     btcompress factorize {name} --plan THIS_FILE
# precision: how numbers are stored, as int4/32 (4 bits, a scale for each 32 columns) or float16; may go.
# predicted: for reading only. otherwise: what is taken where the fit's weight error comes out above; may go.
# row_order, column_order: true gives the rows, or the columns, the best order that is found for them.
# A matrix with "dense: true", or that is not listed, stays as it is; with a precision, it is rounded.
"""
_ADVICE = "Give a file that btcompress plan --save-plan wrote, or mend it."
#: Characters of the reason why a matrix stays dense.
_MOST_REASON = 1000
#: Names, of those that there are, in a message.
_MOST_SHOWN = 20
_ORDERS = ("row_order", "column_order")
_FIELDS = ("in_modes", "out_modes", "gates", "cp_rank", "tucker_ranks", "core", *_ORDERS)
_OTHER_FIELDS = ("size", "dense", "precision", "reason", "predicted", "otherwise")


def save_plan(priced: PricedPlan, path: Path, *, name: str, sha256: str | None) -> None:
    """Write a plan whole or not at all.

    Args:
        priced: the plan.
        path: the file; one that exists is replaced.
        name: of the checkpoint.
        sha256: digest of the checkpoint.

    Raises:
        OutputError: the file cannot be written.
    """
    name = valid_unicode(name)
    fallbacks = {planned.name: planned.fallback for planned in priced.plan.matrices}
    value = {
        "version": _VERSION,
        "checkpoint": {"name": name, "sha256": sha256},
        "wish": str(priced.wish),
        "matrices": {form.name: _entry(form, fallbacks.get(form.name)) for form in priced.forms},
    }
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    with replacing(path) as temporary:
        temporary.write_text(_HEADER.format(name=printable(name)) + text, encoding="utf-8")


def read_plan(path: Path, checkpoint: Checkpoint, chosen: Plan, *, allow_growth: bool = False) -> Plan:
    """Read a plan file for a checkpoint; nothing in it is trusted.

    Args:
        path: the file.
        checkpoint: what is to be factorized.
        chosen: every matrix that can be, as :func:`make_plan` finds them; its shapes do not matter.
        allow_growth: also factorize a matrix that this makes larger.

    Raises:
        BTCompressError: it cannot be read, is no plan, or does not fit the checkpoint.
    """
    value = _load(path)
    known = {target.name: target.shape for target in chosen.matrices}
    known |= {name: known[first] for name, first in chosen.twins.items() if first in known}
    matrices: list[PlannedMatrix] = []
    rounded: list[PlannedRounding] = []
    left_dense = list(chosen.left_dense)
    notices: list[str] = []
    listed_matrices = _mapping(value.get("matrices"), f"{path}: matrices")
    for name, entry in listed_matrices.items():
        if chosen.twins.get(name) in listed_matrices:
            continue  # it is that of its first name
        if name not in known:
            raise BTCompressError(
                f"{path}: {_shown(name)} is no matrix of {checkpoint.source.name} that can be factorized. It has "
                f"{listed([*known], _MOST_SHOWN)}."
            )
        where = f"{path}: {name}"
        fields = _entry_fields(entry, where)
        precision = _precision(fields, checkpoint.tensors[name].dtype, where)
        if fields.get("dense") and precision is not None:
            rounded.append(PlannedRounding(name, (known[name].out_size, known[name].in_size), precision))
            continue
        if fields.get("dense"):
            left_dense.append(LeftDense(name, fields.get("reason") or "the plan says so"))
            continue
        asked = _shape(fields, known[name], where)
        shape = asked.limited()
        if shape != asked:
            ranks = ",".join(map(str, shape.part.ranks))
            notices.append(f"{name}: Tucker ranks lowered to {ranks}, the most that its modes can hold.")
        if shape.n_params >= shape.dense_params and not allow_growth:
            left_dense.append(LeftDense(name, growth(shape)))
        else:
            _check_memory(shape, where)
            fallback = _fallback(fields, known[name], checkpoint.tensors[name].dtype, where)
            matrices.append(PlannedMatrix(name, shape, fallback, precision))
    notices += _differences(value, checkpoint, path)
    return replace(
        chosen,
        matrices=tuple(matrices),
        left_dense=tuple(left_dense),
        notices=tuple(notices),
        rounded=tuple(rounded),
    )


def _entry(form: ChosenForm, fallback: Fallback | None) -> dict[str, Any]:
    size, point = {"size": list(form.size)}, form.point
    if point is None:
        return {**size, "dense": True, "reason": form.reason}
    if point.shape is None:
        entry: dict[str, Any] = {**size, "dense": True}
    else:
        data = point.shape.to_dict()
        entry = {**size, **{name: data[name] for name in _FIELDS if name in data}}
    if point.precision is not None:
        entry["precision"] = precision_text(point.precision)
    what = "weighted_activation_error" if form.curve.on_inputs else "weight_error"
    entry["predicted"] = {"params": point.n_params, "bytes": form.n_bytes, what: point.error}
    if point.activation_error is not None:
        entry["predicted"]["activation_error"] = point.activation_error
    if form.low_rank is not None and form.low_rank.shape is not None:
        low_rank = {"rank": form.low_rank.shape.part.ranks[0], "error": form.low_rank.error}
        entry["predicted"] |= {f"{'low_rank' if form.curve.on_inputs else 'svd'}_{k}": v for k, v in low_rank.items()}
    if fallback is not None:
        shape = fallback.shape
        instead = {"dense": True} if shape is None else {"low_rank": shape.part.ranks[0], "gates": shape.gates}
        stored = {} if fallback.precision is None else {"precision": precision_text(fallback.precision)}
        entry["otherwise"] = {"above_error": fallback.max_error, **instead, **stored}
    return entry


def _load(path: Path) -> dict[str, Any]:
    value = load(path, _ADVICE)
    # In Python true and 1.0 are 1 as well.
    if not isinstance(value, dict) or value.get("version") != _VERSION or type(value["version"]) is not int:
        raise BTCompressError(f"{path} is no plan of version {_VERSION}. {_ADVICE}")
    if "matrices" not in value:
        raise BTCompressError(f"{path} is a plan without matrices. {_ADVICE}")
    return value


def _entry_fields(entry: object, where: str) -> dict[str, Any]:
    fields = _mapping(entry, where)
    unknown = sorted(fields.keys() - {*_FIELDS, *_OTHER_FIELDS})
    if unknown:
        raise BTCompressError(
            f"{where}: there is no field {textwrap.shorten(unknown[0], 40)}. There are {', '.join(_FIELDS)}, "
            "precision and dense."
        )
    if not isinstance(fields.get("dense", False), bool):
        raise BTCompressError(f"{where}: dense must be true or false, but {_shown(fields['dense'])} was given.")
    orders = [fields.get(name, False) for name in _ORDERS]
    if not all(isinstance(order, bool) for order in orders):
        given = " and ".join(map(_shown, orders))
        raise BTCompressError(f"{where}: {' and '.join(_ORDERS)} must be true or false, but {given} were given.")
    reason = fields.get("reason")
    if reason is not None and not (isinstance(reason, str) and reason.isprintable() and len(reason) <= _MOST_REASON):
        raise BTCompressError(
            f"{where}: reason must be a line of at most {_MOST_REASON} characters, but {_shown(reason)} was given."
        )
    return fields


def _check_memory(shape: MatrixShape, where: str) -> None:
    """Refuse a form that could not be fitted here: the padded matrix and the block terms in double precision."""
    n_entries = max(shape.part.padded_in * shape.part.padded_out, shape.part.n_params)
    memory.require(
        8 * n_entries,
        f"{where}: a form of these modes and ranks",
        "Give modes nearer to the matrix's size, or lower ranks.",
    )


def _shape(fields: Mapping[str, Any], known: MatrixShape, where: str) -> MatrixShape:
    """The form that an entry describes, for the matrix that it is for."""
    numbers = {
        name: _numbers(fields.get(name), f"{where}: {name}") for name in ("in_modes", "out_modes", "tucker_ranks")
    }
    (cp_rank,) = _numbers([fields.get("cp_rank", 1)], f"{where}: cp_rank")
    gates, core = fields.get("gates", "fused"), fields.get("core", "full")
    for name, given, allowed in (("gates", gates, get_args(Gates)), ("core", core, get_args(Core))):
        if given not in allowed:
            raise BTCompressError(
                f"{where}: {name} must be one of {', '.join(allowed)}, but {_shown(given)} was given."
            )
    n_gates = known.n_gates
    if gates == "separate" and n_gates == 1:
        raise BTCompressError(f"{where}: the matrix has no gates to separate. Set gates to fused.")
    n_parts = n_gates if gates == "separate" else 1
    data = {
        **numbers,
        "cp_rank": cp_rank,
        "gates": gates,
        "core": core,
        "in_size": known.in_size,
        "out_size": known.out_size // n_parts,
        "n_gates": n_gates // n_parts,
        "n_separate": n_parts if gates == "separate" else 4,
        **{name: fields[name] for name in _ORDERS if name in fields},
    }
    try:
        shape = MatrixShape.from_dict(data)
        check_orders(shape)
        return shape
    except ShapeError as error:
        raise ShapeError(f"{where}: {error}") from error


def _precision(fields: Mapping[str, Any], dtype: torch.dtype, where: str) -> Precision | None:
    """The precision that an entry names; None where it names none, or that of the matrix itself."""
    value = fields.get("precision")
    if value is None:
        return None
    try:
        # Of anything else than a text or a few bits there is no telling how long it is as a text.
        readable = isinstance(value, str) or (isinstance(value, int) and abs(value) <= MOST_BITS)
        precision = precision_of(value if readable else reprlib.repr(value))
    except BTCompressError as error:
        raise BTCompressError(f"{where}: {error}") from error
    if precision == dtype:
        return None
    if not isinstance(precision, Integers) and precision.itemsize >= dtype.itemsize:
        raise BTCompressError(
            f"{where}: precision {precision_text(precision)} takes no fewer bytes than the matrix's own "
            f"{precision_text(dtype)}. Name a smaller one, or leave it out."
        )
    return precision


def _fallback(fields: Mapping[str, Any], known: MatrixShape, dtype: torch.dtype, where: str) -> Fallback | None:
    if fields.get("otherwise") is None:
        return None
    where = f"{where}: otherwise"
    otherwise = _mapping(fields["otherwise"], where)
    limit = otherwise.get("above_error")
    if not isinstance(limit, int | float) or isinstance(limit, bool) or not 0 <= limit <= 1:
        raise BTCompressError(f"{where}: above_error must be a number from 0 to 1, but {_shown(limit)} was given.")
    precision = _precision(otherwise, dtype, where)
    if otherwise.get("dense") is True:
        return Fallback(float(limit), None, precision)
    (rank,) = _numbers([otherwise.get("low_rank")], f"{where}: low_rank")
    gates = otherwise.get("gates", "fused")
    rows = known.out_size // (known.n_gates if gates == "separate" else 1)
    low_rank = {"in_modes": [known.in_size, 1], "out_modes": [1, rows], "tucker_ranks": [rank, rank]}
    shape = _shape({**low_rank, "core": "identity", "gates": gates}, known, where)
    return Fallback(float(limit), shape.limited(), precision)


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise BTCompressError(f"{where} must be a mapping of names to values, but {_shown(value)} was given.")
    return value


def _numbers(value: object, where: str) -> list[int]:
    numbers = value if isinstance(value, list) else []
    if not 1 <= len(numbers) <= MAX_ORDER or not all(
        isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MAX_SIZE for number in numbers
    ):
        raise BTCompressError(f"{where} must be whole numbers of at least 1, but {_shown(value)} was given.")
    return numbers


def _shown(value: object) -> str:
    """The beginning of a value, as a file can hold long ones."""
    return reprlib.repr(value)


def _differences(value: Mapping[str, Any], checkpoint: Checkpoint, path: Path) -> Iterator[str]:
    about = value.get("checkpoint")
    ours, theirs = (about.get("sha256") if isinstance(about, dict) else None), checkpoint.source.sha256
    if None not in (ours, theirs) and ours != theirs:
        yield f"{path.name} was made for another file than {checkpoint.source.name}: their digests differ."
