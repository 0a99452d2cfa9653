"""Whether a result that was written computes what the one in memory does: one forward pass of each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear

from btcompress.blockterm import BlockTerm
from btcompress.checkpoint import CompressedCheckpoint, RecurrentEntry
from btcompress.errors import OutputError
from btcompress.finetune.networks import student_of

_N_SEQUENCES, _N_STEPS = 2, 3


def check_same_outputs(compressed: CompressedCheckpoint, again: CompressedCheckpoint) -> None:
    """Run every recurrent and linear layer with a chosen matrix on random inputs, as it is and as it was read back.

    Args:
        compressed: the result in memory.
        again: the same, read back from its file.

    Raises:
        OutputError: an output differs in any bit.
    """
    pairs = zip(_outputs(compressed), _outputs(again), strict=True)
    differing = [name for (name, ours), (_, theirs) in pairs if not torch.equal(ours.nan_to_num(), theirs.nan_to_num())]
    if differing:
        raise OutputError(
            f"{differing[0]} gives other outputs once it is written and read back, so nothing was replaced. Try again, "
            "and on another disk."
        )


@torch.no_grad()
def _outputs(compressed: CompressedCheckpoint) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rest = set(compressed.chosen)
    for entry in compressed.recurrent():
        if isinstance(entry, RecurrentEntry) and not rest.isdisjoint(entry.matrix_keys):
            student = student_of(compressed, entry).eval()
            dtype = next(student.parameters()).dtype
            x = torch.randn(_N_SEQUENCES, _N_STEPS, entry.input_size, generator=generator, dtype=dtype)
            yield entry.name, student(x)[0]
            rest -= {*entry.matrix_keys}
    for key in sorted(rest):
        rounded = compressed.rounded.get(key)
        n_inputs = compressed.matrices[key].shape.in_size if rounded is None else rounded.shape[1]
        x = torch.randn(_N_SEQUENCES, n_inputs, generator=generator)
        if rounded is not None:
            yield key, linear(x, compressed.tensors[key].to(x.dtype, copy=True))
            continue
        # In memory of their own, as modules have it: products depend in their last digits on where numbers lie.
        parts = (
            BlockTerm.of(part.shape, [tensor.to(x.dtype, copy=True) for tensor in part.tensors], part.orders)
            for part in compressed.parts(key)
        )
        yield key, torch.cat([part.matmul(x) for part in parts], dim=-1)
