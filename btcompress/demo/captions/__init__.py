"""The task on captions: say which objects a drawn picture shows, and where."""

from btcompress.demo.captions.task import FULL, SMALL, Captions, Pictures

__all__ = ["FULL", "SMALL", "Captions", "Pictures"]
