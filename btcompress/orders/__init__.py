"""Orders of rows and columns in which a matrix fits better, its own or those that several have in common."""

from btcompress.orders.ordering import check_orders, fit_ordered, obstacle_to_orders
from btcompress.orders.unitorders import share_orders

__all__ = ["check_orders", "fit_ordered", "obstacle_to_orders", "share_orders"]
