"""Modules that hold their weight matrices in block-term form and take the place of torch's own."""

from btcompress.nn.cell import BTGRUCell, BTLSTMCell, BTRNNCell
from btcompress.nn.gru import BTGRU
from btcompress.nn.linear import BTLinear
from btcompress.nn.lstm import BTLSTM
from btcompress.nn.rnn import BTRNN
from btcompress.nn.weight import BTWeight

__all__ = ["BTGRU", "BTLSTM", "BTRNN", "BTGRUCell", "BTLSTMCell", "BTLinear", "BTRNNCell", "BTWeight"]
