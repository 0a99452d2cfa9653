"""Random block-term forms for tests."""

import torch

from btcompress.blockterm import BlockTerm
from btcompress.shapes import BlockTermShape

UNEVEN = BlockTermShape((2, 3, 5), (7, 4, 3), (3, 2, 4), n_blocks=3)


def random_form(shape, generator, dtype=torch.float64):
    def draw(size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    orders = [torch.randperm(size, generator=generator).int() for size in shape.order_sizes.values()]
    return BlockTerm.of(shape, [draw(size) for size in shape.tensor_shapes], orders)
