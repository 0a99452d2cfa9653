"""What a matrix costs and loses in each of its forms: by its entries, in orders, or by its outputs on sample inputs."""

from btcompress.pricing.curves import Curve, FormsWithCore, Point, price
from btcompress.pricing.inputcurves import price_on_inputs
from btcompress.pricing.ordercurves import price_in_orders

__all__ = ["Curve", "FormsWithCore", "Point", "price", "price_in_orders", "price_on_inputs"]
