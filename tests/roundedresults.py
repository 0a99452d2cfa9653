"""Results in fewer bits for tests, made from the parts of a factorization."""

from btcompress.checkpoint import RoundedMatrix
from btcompress.checkpoint.compressed import part_names
from btcompress.fit.rounding import nearest


def in_bits(compressed, precisions, others=None):
    """A result with matrices in other precisions: block terms as such, and dense matrices rounded.

    Args:
        compressed: with block terms.
        precisions: integers, or a floating dtype, by the key of the matrix.
        others: likewise for tensors that are not chosen, by name.
    """
    stored, rounded = dict(others or {}), {}
    for key, precision in precisions.items():
        matrix = compressed.matrices.get(key)
        names = [key] if matrix is None else [name for names in part_names(key, matrix.shape) for name in names]
        for name in names:
            tensor = compressed.tensors[name]
            if tensor.is_floating_point():
                stored[name] = nearest(tensor, precision) if hasattr(precision, "bits") else precision
        if matrix is None:
            rounded[key] = RoundedMatrix.of(compressed.tensors[key], stored[key], 0.5)
    return compressed.with_tensors(stored=stored, rounded=rounded)
