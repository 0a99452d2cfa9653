"""Modules that hold their weight matrices in block-term form and take the place of torch's own."""

from btcompress.nn.cell import BTLSTMCell
from btcompress.nn.linear import BTLinear
from btcompress.nn.lstm import BTLSTM
from btcompress.nn.weight import BTWeight

__all__ = ["BTLSTM", "BTLSTMCell", "BTLinear", "BTWeight"]
