"""Results in forms that run without this package."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.export.graphfiles import export_graphs
    from btcompress.export.program import ExportedProgram, export_program
    from btcompress.export.request import ExportedGraph, GraphRequest

__all__ = ["ExportedGraph", "ExportedProgram", "GraphRequest", "export_graphs", "export_program"]

__getattr__ = on_first_use(
    __name__,
    {
        "ExportedGraph": "request",
        "ExportedProgram": "program",
        "GraphRequest": "request",
        "export_graphs": "graphfiles",
        "export_program": "program",
    },
)
