"""Cheap tensor contractions: pairwise paths for any equation, and the chain that applies a block-term matrix."""

from btcompress.contraction.chain import MOVE_COST, Chain, plan_chain
from btcompress.contraction.letters import letters, operand_letters
from btcompress.contraction.paths import contract
from btcompress.contraction.prepared import Prepared, apply_chain, autocast, autocasts, prepare_chain
from btcompress.contraction.watching import is_captured, is_watched, own_sizes

__all__ = [
    "MOVE_COST",
    "Chain",
    "Prepared",
    "apply_chain",
    "autocast",
    "autocasts",
    "contract",
    "is_captured",
    "is_watched",
    "letters",
    "operand_letters",
    "own_sizes",
    "plan_chain",
    "prepare_chain",
]
