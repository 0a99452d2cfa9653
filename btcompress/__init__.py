"""Compress trained LSTMs, GRUs and RNNs by block-term tensor decomposition of their weight matrices."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.benching import bench
    from btcompress.blockterm import BlockTerm
    from btcompress.calibration import SampleInputs
    from btcompress.checkpoint import CompressedCheckpoint
    from btcompress.checkpoint import write as save
    from btcompress.compression import compress, factorize, plan_for
    from btcompress.errors import BTCompressError
    from btcompress.export import GraphRequest, export_dense, export_graphs, export_onnx, export_program
    from btcompress.fit import FitOptions
    from btcompress.hub import HubMixin
    from btcompress.models import apply, load, to_dense
    from btcompress.nn import BTGRU, BTLSTM, BTRNN, BTGRUCell, BTLinear, BTLSTMCell, BTRNNCell
    from btcompress.recipe import DenseStep, FactorizeStep, FineTuneStep, Recipe
    from btcompress.recorder import recording
    from btcompress.reporting import report
    from btcompress.running import run
    from btcompress.shapes import BlockTermShape
    from btcompress.tuning import pin, tune

__version__ = "0.1.0"

__all__ = [
    "BTGRU",
    "BTLSTM",
    "BTRNN",
    "BTCompressError",
    "BTGRUCell",
    "BTLSTMCell",
    "BTLinear",
    "BTRNNCell",
    "BlockTerm",
    "BlockTermShape",
    "CompressedCheckpoint",
    "DenseStep",
    "FactorizeStep",
    "FineTuneStep",
    "FitOptions",
    "GraphRequest",
    "HubMixin",
    "Recipe",
    "SampleInputs",
    "apply",
    "bench",
    "compress",
    "export_dense",
    "export_graphs",
    "export_onnx",
    "export_program",
    "factorize",
    "load",
    "pin",
    "plan_for",
    "recording",
    "report",
    "run",
    "save",
    "to_dense",
    "tune",
]

#: Where each public name lives; loaded on first use, so that importing the package does not import torch.
_HOMES = {
    "BTGRU": "nn",
    "BTLSTM": "nn",
    "BTRNN": "nn",
    "BTCompressError": "errors",
    "BTGRUCell": "nn",
    "BTLSTMCell": "nn",
    "BTLinear": "nn",
    "BTRNNCell": "nn",
    "BlockTerm": "blockterm",
    "BlockTermShape": "shapes",
    "CompressedCheckpoint": "checkpoint",
    "FitOptions": "fit",
    "GraphRequest": "export",
    "HubMixin": "hub",
    "FactorizeStep": "recipe",
    "FineTuneStep": "recipe",
    "DenseStep": "recipe",
    "Recipe": "recipe",
    "SampleInputs": "calibration",
    "apply": "models",
    "bench": "benching",
    "compress": "compression",
    "run": "running",
    "export_dense": "export",
    "export_graphs": "export",
    "export_onnx": "export",
    "export_program": "export",
    "factorize": "compression",
    "load": "models",
    "pin": "tuning",
    "plan_for": "compression",
    "recording": "recorder",
    "report": "reporting",
    "save": "checkpoint:write",
    "to_dense": "models",
    "tune": "tuning",
}


_load = on_first_use(__name__, _HOMES)

if not TYPE_CHECKING:  # to a type checker, any name at all would be there
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
