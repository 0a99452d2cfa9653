"""The errors that a user can cause and mend; everything else is a defect and keeps its traceback."""

#: Exit code of a command that a user ended with Ctrl-C, as shells give it.
INTERRUPTED = 130


class BTCompressError(Exception):
    """A request that cannot be met; the text says what was given, what is true and what to do."""


class ShapeError(BTCompressError):
    """Mode sizes, ranks or tensor shapes that do not fit together."""


class CheckpointError(BTCompressError):
    """A weight file that cannot be read, is refused, or holds something other than expected."""


class OutputError(BTCompressError):
    """A result that cannot be written where it was asked for."""


class MemoryLimitError(BTCompressError):
    """Something that would take more memory than there is, or than was allowed."""


class DivergedError(BTCompressError):
    """A training whose loss or tensors are no longer numbers."""


def missing(what: str, package: str, extra: str) -> BTCompressError:
    """The error that names a missing package.

    Args:
        what: needs it.
        package: as it is called where it is installed from.
        extra: of this package, which installs it.
    """
    return BTCompressError(
        f"{what} needs the package {package}, which is not installed. Run pip install 'btcompress[{extra}]'."
    )
