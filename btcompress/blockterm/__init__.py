"""The block-term form of a matrix, and the product with it."""

from btcompress.blockterm.form import BlockTerm, init_scale, params_of, slab_entries
from btcompress.blockterm.product import Product

__all__ = ["BlockTerm", "Product", "init_scale", "params_of", "slab_entries"]
