"""What block terms are held against: other forms of a matrix at equal size."""

from btcompress.yardsticks.otherforms import OtherForm, low_rank_form, structured_forms
from btcompress.yardsticks.svd import SVDYardstick, truncated_svd

__all__ = ["OtherForm", "SVDYardstick", "low_rank_form", "structured_forms", "truncated_svd"]
