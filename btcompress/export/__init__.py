"""Results in forms that run without this package."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.export.dense import DenseExport, export_dense

__all__ = ["DenseExport", "export_dense"]

__getattr__ = on_first_use(__name__, {"DenseExport": "dense", "export_dense": "dense"})
