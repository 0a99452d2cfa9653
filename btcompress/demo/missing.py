"""What is said where a package that the demonstration needs is not installed."""

from __future__ import annotations

from btcompress import errors


def missing(what: str, package: str, extra: str = "demo") -> errors.BTCompressError:
    """The error that names a missing package; arguments as those of :func:`btcompress.errors.missing`."""
    return errors.missing(what, package, extra)
