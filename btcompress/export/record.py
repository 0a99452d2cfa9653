"""What an exported layer was made of, as it stands in the file."""

from __future__ import annotations

from typing import Any

from btcompress.checkpoint import CompressedCheckpoint, RecurrentEntry

#: What the record is called in a file.
RECORD = "btcompress"


def record_of(result: CompressedCheckpoint, entry: RecurrentEntry) -> dict[str, Any]:
    """The layer, the dense checkpoint that it comes from, what was done since, and the forms of its matrices."""
    source = result.source
    matrices = {}
    for key in entry.matrix_keys:
        if key in result.matrices:
            part = result.matrices[key].shape.part
            matrices[key.removeprefix(entry.prefix)] = {
                "cp_rank": part.n_blocks,
                "tucker_ranks": list(part.ranks),
                "weight_error": result.matrices[key].weight_error,
            }
    return {
        "lstm": entry.name,
        "class": entry.class_name,
        "source": {"name": source.name, "sha256": source.sha256},
        "steps": [step["step"] for step in result.history],
        "matrices": matrices,
    }
