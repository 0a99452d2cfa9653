"""What was exported: each file with its size, how it is written, and how far it is off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from btcompress.display.console import make_console
from btcompress.display.tables import NumberTable, show_lists, show_table
from btcompress.memory import size_text

if TYPE_CHECKING:
    from btcompress.export import DenseExport, ExportedGraph, ExportedProgram

    Exported = ExportedGraph | ExportedProgram | DenseExport

#: What is not known of a file, or does not apply to it.
_NOTHING = "-"


def show_exported(files: Sequence[Exported]) -> None:
    """Print a row for each file, then what to know of them."""
    console, told = make_console(), [file.to_dict() for file in files]
    show_table(console, _table(told))
    lists = {
        title: [_sentence(file, text, len(files)) for file in told for text in file.get(name, ())]
        for title, name in (("Note", "notices"), ("Warning", "warnings"))
    }
    show_lists(console, lists)


def _table(files: Sequence[Mapping[str, Any]]) -> NumberTable:
    in_integers = any(file.get("int8_error") is not None for file in files)
    errors = ["error beside\nthe module", *["error of\nintegers"] * in_integers]
    table = NumberTable("", ["file", "tensors in\nthe result"], errors)
    for file in files:
        own = file.get("tensor_bytes")
        cells = [size_text(file["n_bytes"]), _NOTHING if own is None else size_text(own), _error(file.get("error"))]
        if in_integers:
            cells.append(_error(file["int8_error"]))
        table.add_row([_name(file), *_form_lines(file.get("forms", {}))], *cells)
    return table


def _name(file: Mapping[str, Any]) -> str:
    return file["lstm"] or "(top)" if "lstm" in file else "whole checkpoint"


def _error(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1e}"


def _form_lines(forms: Mapping[str, str]) -> Iterator[str]:
    """How layers are written, those that are written alike on one line."""
    for form in dict.fromkeys(forms.values()):
        how = "Scan over steps" if form == "scan" else f"{form.upper()} operator"
        yield f"  {', '.join(suffix for suffix, own in forms.items() if own == form)}: {how}"


def _sentence(file: Mapping[str, Any], text: str, n_files: int) -> str:
    """A sentence, with the layer that it is of where there are several."""
    return text if n_files == 1 else f"{_name(file)}: {text}"
