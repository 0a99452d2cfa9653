"""The only door to weight files: dense checkpoints in, compressed ones in and out, layers found by name."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.checkpoint.atomic import check_target, claimed, replacing
    from btcompress.checkpoint.compressed import CompressedCheckpoint, CompressedMatrix, RoundedMatrix
    from btcompress.checkpoint.layout import USUAL_TEXT, Layout
    from btcompress.checkpoint.linear import LinearEntry, find_linear
    from btcompress.checkpoint.names import OtherRecurrent, RecurrentEntry, find_recurrent, natural_key
    from btcompress.checkpoint.others import is_narrowed, others_stored_as
    from btcompress.checkpoint.reader import Checkpoint, from_state_dict, read
    from btcompress.checkpoint.recognise import is_compressed
    from btcompress.checkpoint.siblings import check_plain, oddity
    from btcompress.checkpoint.source import Source, digest
    from btcompress.checkpoint.tensors import find_aliases, same_bits
    from btcompress.checkpoint.tied import tied_layers
    from btcompress.checkpoint.writer import check_storable, read_compressed, record_bench, write, write_dense

__all__ = [
    "USUAL_TEXT",
    "Checkpoint",
    "CompressedCheckpoint",
    "CompressedMatrix",
    "Layout",
    "LinearEntry",
    "OtherRecurrent",
    "RecurrentEntry",
    "RoundedMatrix",
    "Source",
    "check_plain",
    "check_storable",
    "check_target",
    "claimed",
    "digest",
    "find_aliases",
    "find_linear",
    "find_recurrent",
    "from_state_dict",
    "is_compressed",
    "is_narrowed",
    "natural_key",
    "oddity",
    "others_stored_as",
    "read",
    "read_compressed",
    "record_bench",
    "replacing",
    "same_bits",
    "tied_layers",
    "write",
    "write_dense",
]

_load = on_first_use(
    __name__,
    {
        "USUAL_TEXT": "layout",
        "Checkpoint": "reader",
        "CompressedCheckpoint": "compressed",
        "CompressedMatrix": "compressed",
        "Layout": "layout",
        "LinearEntry": "linear",
        "OtherRecurrent": "names",
        "RecurrentEntry": "names",
        "RoundedMatrix": "compressed",
        "Source": "source",
        "check_plain": "siblings",
        "check_storable": "writer",
        "check_target": "atomic",
        "claimed": "atomic",
        "digest": "source",
        "find_aliases": "tensors",
        "find_linear": "linear",
        "find_recurrent": "names",
        "from_state_dict": "reader",
        "is_compressed": "recognise",
        "is_narrowed": "others",
        "natural_key": "names",
        "oddity": "siblings",
        "others_stored_as": "others",
        "read": "reader",
        "read_compressed": "writer",
        "record_bench": "writer",
        "replacing": "atomic",
        "same_bits": "tensors",
        "tied_layers": "tied",
        "write": "writer",
        "write_dense": "writer",
    },
)

if not TYPE_CHECKING:  # to a type checker, any name at all would be there
    __getattr__ = _load
