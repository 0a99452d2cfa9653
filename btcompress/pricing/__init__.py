"""What a matrix costs and loses in its forms and precisions: by its entries, in orders, or by outputs on inputs."""

from btcompress.pricing.bitcurves import BitCurve, Room, obstacle_to, precisions_for, price_in_bits
from btcompress.pricing.curves import Curve, FormsWithCore, Point, price, stored
from btcompress.pricing.inputcurves import price_on_inputs
from btcompress.pricing.ordercurves import price_in_orders

__all__ = [
    "BitCurve",
    "Curve",
    "FormsWithCore",
    "Point",
    "Room",
    "obstacle_to",
    "precisions_for",
    "price",
    "price_in_bits",
    "price_in_orders",
    "price_on_inputs",
    "stored",
]
