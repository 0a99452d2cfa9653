"""What block terms and bits are held against: other forms of a matrix at equal size, and the matrix rounded alone."""

from btcompress.yardsticks.otherforms import OtherForm, low_rank_form, structured_forms
from btcompress.yardsticks.roundings import (
    INT4,
    QUICK_ENTRIES,
    Rounding,
    fed_back_rounding,
    int8_by_rows,
    parts_in_8_bits,
    rounded_alone,
    rounding_curves,
    roundings_of,
    same_integers_within,
)
from btcompress.yardsticks.svd import SVDYardstick, errors_of_ranks, singular_values, truncated_svd

__all__ = [
    "INT4",
    "QUICK_ENTRIES",
    "OtherForm",
    "Rounding",
    "SVDYardstick",
    "errors_of_ranks",
    "fed_back_rounding",
    "int8_by_rows",
    "low_rank_form",
    "parts_in_8_bits",
    "rounded_alone",
    "rounding_curves",
    "roundings_of",
    "same_integers_within",
    "singular_values",
    "structured_forms",
    "truncated_svd",
]
