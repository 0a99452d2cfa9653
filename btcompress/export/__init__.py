"""Results in forms that run without this package."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.export.graphfiles import export_graphs
    from btcompress.export.network import export_onnx
    from btcompress.export.request import ExportedGraph, GraphRequest

__all__ = ["ExportedGraph", "GraphRequest", "export_graphs", "export_onnx"]

__getattr__ = on_first_use(
    __name__,
    {
        "ExportedGraph": "request",
        "GraphRequest": "request",
        "export_graphs": "graphfiles",
        "export_onnx": "network",
    },
)
