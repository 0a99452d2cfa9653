"""The three cells, by their names."""

from __future__ import annotations

from btcompress.nn.celltype import CellType
from btcompress.nn.grutype import GRU
from btcompress.nn.lstmtype import LSTM
from btcompress.nn.rnntype import RNN
from btcompress.shapes import Cell, Nonlinearity


def cell_type(name: Cell, nonlinearity: Nonlinearity = "tanh") -> CellType:
    """What a layer computes at each step.

    Args:
        name: of the cell.
        nonlinearity: of a plain RNN.
    """
    if name == "rnn":
        return RNN[nonlinearity]
    return LSTM if name == "lstm" else GRU
