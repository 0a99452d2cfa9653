"""Results in forms that run without this package."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.export.dense import DenseExport, export_dense
    from btcompress.export.graphfiles import export_graphs
    from btcompress.export.network import export_onnx
    from btcompress.export.program import ExportedProgram, export_program
    from btcompress.export.request import ExportedGraph, GraphRequest

__all__ = [
    "DenseExport",
    "ExportedGraph",
    "ExportedProgram",
    "GraphRequest",
    "export_dense",
    "export_graphs",
    "export_onnx",
    "export_program",
]

_load = on_first_use(
    __name__,
    {
        "DenseExport": "dense",
        "ExportedGraph": "request",
        "ExportedProgram": "program",
        "GraphRequest": "request",
        "export_dense": "dense",
        "export_graphs": "graphfiles",
        "export_onnx": "network",
        "export_program": "program",
    },
)

if not TYPE_CHECKING:  # to a type checker, any name at all would be there
    __getattr__ = _load
