"""Grammars of other projects' keys: recurrent layers brought into the names and the order of torch."""

from btcompress.dialects.converting import Conversion, convert, converted
from btcompress.dialects.found import Converted, Dialect, Found, Refused

__all__ = ["Conversion", "Converted", "Dialect", "Found", "Refused", "convert", "converted"]
