"""The task on images: digits that a recurrent variational autoencoder draws in steps."""

from btcompress.demo.images.drawings import ImageSet, make_images
from btcompress.demo.images.model import DrawingModel
from btcompress.demo.images.task import FULL, SMALL, Images

__all__ = ["FULL", "SMALL", "DrawingModel", "ImageSet", "Images", "make_images"]
