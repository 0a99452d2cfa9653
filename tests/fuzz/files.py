"""What all checks share: putting bytes in a folder, comparing what was read, and saying that it is wrong."""

import re
from contextlib import contextmanager


class WrongAnswerError(Exception):
    """What was read is not what the file holds.

    Args:
        what: is wrong, in words that all cases of the same fault share.
        detail: of this case.
    """

    def __init__(self, what, detail=""):
        super().__init__(what, detail)
        self.what = what


@contextmanager
def reading():
    """An independent reading; where it cannot read what was accepted, the file should have been refused."""
    try:
        yield
    except (WrongAnswerError, MemoryError):
        raise
    except Exception as error:
        raise WrongAnswerError(f"accepted what an independent reading refuses: {said(error)}") from error


def said(error):
    """The beginning of what an error says, without what differs from case to case."""
    text = re.sub(r"\d+", "0", f"{type(error).__name__}, {error}")
    return re.sub(r"(['\"]).*?\1", "'...'", " ".join(text.split()))[:60]


def placed(folder, name, data):
    """The bytes as a new file; never over one that may still be mapped."""
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def same(found, expected, what):
    """Compare what was read with what an independent reading finds; two NaN are the same."""
    if found != expected and not (found != found and expected != expected):
        shown = f"{found!r}"[:200], f"{expected!r}"[:200]
        raise WrongAnswerError(f"{what} is not what an independent reading finds", f"{shown[0]} is not {shown[1]}")
