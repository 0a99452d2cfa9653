"""What was exported: each file with its size, how it is written, and how far it is off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from btcompress.display.console import make_console
from btcompress.display.tables import NumberTable, show_list, show_table
from btcompress.memory import size_text

if TYPE_CHECKING:
    from btcompress.export import DenseExport, ExportedGraph, ExportedProgram

    Exported = ExportedGraph | ExportedProgram | DenseExport

#: What is not known of a file, or does not apply to it.
_NOTHING = "-"


def show_exported(files: Sequence[Exported]) -> None:
    """Print a row for each file, then what to know of them."""
    console = make_console()
    show_table(console, _table(files))
    for title, name in (("Note", "notices"), ("Warning", "warnings")):
        texts = [(file, text) for file in files for text in getattr(file, name, ())]
        show_list(console, title, list(dict.fromkeys(_told(file, text, len(files)) for file, text in texts)))


def _table(files: Sequence[Exported]) -> NumberTable:
    headers = ["", "file", "tensors in\nthe result", "error beside\nthe module"]
    in_integers = any(_number(file, "int8_error") != _NOTHING for file in files)
    table = NumberTable([*headers, "error of\nintegers"] if in_integers else headers)
    for file in files:
        own = getattr(file, "tensor_bytes", None)
        cells = [size_text(file.n_bytes), _NOTHING if own is None else size_text(own), _number(file, "error")]
        if in_integers:
            cells.append(_number(file, "int8_error"))
        table.add_row([_name(file), *_form_lines(getattr(file, "forms", {}))], *cells)
    return table


def _name(file: Exported) -> str:
    name = getattr(file, "lstm", None)
    return "whole checkpoint" if name is None else name or "(top)"


def _number(file: Exported, name: str) -> str:
    value = getattr(file, name, None)
    return _NOTHING if value is None else f"{value:.1e}"


def _form_lines(forms: Mapping[str, str]) -> Iterator[str]:
    """How layers are written, those that are written alike on one line."""
    operators = {"lstm": "LSTM operator", "scan": "Scan over steps"}
    for form in dict.fromkeys(forms.values()):
        yield f"  {', '.join(suffix for suffix, own in forms.items() if own == form)}: {operators.get(form, form)}"


def _told(file: Exported, text: str, n_files: int) -> str:
    """A sentence, with the LSTM that it is of where there are several."""
    return text if n_files == 1 else f"{_name(file)}: {text}"
