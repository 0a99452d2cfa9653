"""Which of the state dicts in one file are the model's: those with weights, and of copies the one that was trained.

Trainers write statistics, scores, the states of samplers and of losses beside a model, and averages of its weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.nn.parameter import is_lazy

from btcompress.checkpoint.tensors import Unheld
from btcompress.checkpoint.wrappers import matched
from btcompress.text import listed

#: Keys of weights of recurrent layers, however they are stored.
_RECURRENT = re.compile(r"(?:.*\.)?weight_(?:ih|hh|hr)(?:[_.].*)?", re.DOTALL)
#: Keys of other matrices of a model.
_MATRIX = re.compile(r"(?:.*\.)?(?:weight|(?:recurrent_)?kernel)", re.DOTALL)

#: Words in the path of a state dict that is an average of weights over training.
_AVERAGE_WORDS = frozenset({"ema", "swa", "average", "averaged", "avg", "polyak", "shadow", "slow"})
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")

StateDict = Mapping[str, Tensor | Unheld]


def with_weights(state_dicts: Mapping[str, StateDict]) -> list[str]:
    """The paths of those that hold weights; where none does, of all that hold more than single numbers, else of all.

    Weights are recurrent layers, and matrices with the names that layers give them.

    Args:
        state_dicts: the tensors of each by key, by path.
    """
    ranks = {path: _rank(each) for path, each in state_dicts.items()}
    highest = max(ranks.values(), default=0)
    return [path for path, rank in ranks.items() if rank == highest]


def averages(state_dicts: Mapping[str, StateDict]) -> dict[str, str]:
    """The paths of averages of weights, each with the path of the state dict that was averaged.

    An average has a word for it in its path (``ema_model_state_dict``), and no tensor that the other, which has no such
    word, has not in the same shape; single numbers apart, such as how many were averaged.

    Args:
        state_dicts: the tensors of each by key, by path.
    """
    named = [path for path in state_dicts if _AVERAGE_WORDS & {word.lower() for word in _WORD.findall(path)}]
    trained = [path for path in state_dicts if path not in named]
    found = {}
    for path in named:
        for other in trained:
            if _is_within(state_dicts[path], state_dicts[other]):
                found[path] = other
                break
    return found


def copies_told(copies: Mapping[str, str]) -> Iterator[str]:
    """What a user should know about averages that are left out."""
    for trained in dict.fromkeys(copies.values()):
        own = [path for path, other in copies.items() if other == trained]
        yield (
            f"Left out, averages of the weights in {trained}, which are taken: {listed(own)}. To take an average "
            f"instead, name it (--container {own[0]})."
        )


def _rank(state_dict: StateDict) -> int:
    if any(_is_weight(key, each) for key, each in state_dict.items()):
        return 2
    return 0 if all(_is_number(each) for each in state_dict.values()) else 1


def _is_weight(key: str, tensor: Tensor | Unheld) -> bool:
    if _RECURRENT.fullmatch(key):
        return True
    if isinstance(tensor, Tensor) and not is_lazy(tensor) and tensor.dim() < 2:
        return False
    return _MATRIX.fullmatch(key) is not None


def _is_number(tensor: Tensor | Unheld) -> bool:
    return isinstance(tensor, Tensor) and not is_lazy(tensor) and tensor.numel() <= 1


def _is_within(average: StateDict, trained: StateDict) -> bool:
    own = {key: tensor for key, tensor in average.items() if not _is_number(tensor)}
    names = matched(own, trained)
    return len(names) == len(own) and all(_shape(own[key]) == _shape(trained[names[key]]) for key in own)


def _shape(tensor: Tensor | Unheld) -> tuple[int, ...] | None:
    """The shape, where there is one to compare."""
    if isinstance(tensor, Unheld) or is_lazy(tensor) or tensor.is_nested:
        return None
    return tuple(tensor.shape)
