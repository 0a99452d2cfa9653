"""Checks that are broken on purpose, for the tests of what watches over them."""

import ctypes
import time
import zlib


def fails(_data, _folder):
    """Raise what no reader should, whatever the file."""
    raise KeyError("missing")


def dies_now_and_then(data, folder):
    """Take the whole process down on a few files."""
    (folder / "data.npy").write_bytes(data)
    if zlib.crc32(data) % 30 == 0:
        ctypes.string_at(0)


def waits(data, folder):
    """Wait for what never comes; that takes no time of the processor."""
    (folder / "data.npy").write_bytes(data)
    time.sleep(10**6)
