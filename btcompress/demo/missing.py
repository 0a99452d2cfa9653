"""What is said where a package that the demonstration needs is not installed."""

from __future__ import annotations

from btcompress.errors import BTCompressError


def missing(what: str, package: str, extra: str = "demo") -> BTCompressError:
    """The error that names a missing package.

    Args:
        what: needs it.
        package: as it is called where it is installed from.
        extra: of this package, which installs it.
    """
    return BTCompressError(
        f"{what} needs the package {package}, which is not installed. Run pip install 'btcompress[{extra}]'."
    )
