"""Cheap tensor contractions: pairwise paths for any equation, and the chain that applies a block-term matrix."""

from btcompress.contraction.chain import MOVE_COST, Chain, plan_chain
from btcompress.contraction.letters import letters, operand_letters
from btcompress.contraction.paths import contract
from btcompress.contraction.prepared import Prepared, apply_chain, autocast, prepare_chain

__all__ = [
    "MOVE_COST",
    "Chain",
    "Prepared",
    "apply_chain",
    "autocast",
    "contract",
    "letters",
    "operand_letters",
    "plan_chain",
    "prepare_chain",
]
