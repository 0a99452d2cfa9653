"""Fit every matrix of a plan, round it, measure that, and put it in the place of the dense matrix."""

from btcompress.factorization.planned import OnProgress, Weights, factorize_as_planned, open_weights

__all__ = ["OnProgress", "Weights", "factorize_as_planned", "open_weights"]
