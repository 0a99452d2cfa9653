"""Mutations of ``.npy`` files: the header's text, its length and version, the data."""

import re
import struct

from fuzz.mutators import odd, raw

_MAGIC = b"\x93NUMPY"
_TYPES = (
    *("'<f4'", "'>f4'", "'<f8'", "'<f2'", "'|O'", "'|V4'", "'<U5'", "'|S3'", "'<M8[s]'", "'|b1'", "'<c8'", "'|u1'"),
    *(
        "'<i8'",
        "'>i4'",
        "'<u8'",
        "'<f16'",
        "''",
        "'x'",
        "4",
        "None",
        "[('a', '<f4')]",
        "[('a', '|O')]",
        "('<f4', (2,))",
    ),
    *("'<f4,<f4'", "'<U0'", "'|V0'", "'|S0'", "{'names': [], 'formats': []}", "'<m8'", "'f4'", "[('a', '<f4')] * 3"),
)
_SHAPES = (
    *("()", "(0,)", "(1,)", "(-1,)", "(2, 3)", "(4, 5, 6)", "(4, 5, 6, 1)", "(4.0, 5, 6)", "(True, 5, 6)", "[4, 5, 6]"),
    *(
        "(4, 5, 0)",
        "(2**40, 5, 6)",
        "None",
        "4",
        "('a',)",
        "(1,) * 70",
        "(" + "1, " * 70 + ")",
        "(-4, -5, 6)",
        "((4,),)",
    ),
    *(
        "(1099511627776, 1, 1)",
        "(9223372036854775807, 2, 2)",
        "(99999999999999999999, 1, 1)",
        "(0, 99999999999, 99999)",
    ),
    *("(4, 5, 6", "(4, 5, 06)", "(1e3, 1, 1)", "(2, 5, 6)", "(5, 4, 6)", "(" * 300, "(" * 3000, "(4,5,6) if 1 else 0"),
)


def mutate(data, rng):
    """One change of the header or the data; plain damage where the bytes are no ``.npy``."""
    if not data.startswith(_MAGIC) or len(data) < 12 or rng.random() < 0.2:
        return raw.mutate(data, rng)
    width = 2 if data[6] == 1 else 4
    start = 8 + width
    end = start + int.from_bytes(data[8:start], "little")
    text, rest = data[start:end].decode("latin-1"), data[end:]
    action = rng.randrange(12)
    if action < 3:
        text = re.sub(r"'descr': .*?, 'fortran", lambda _: f"'descr': {rng.choice(_TYPES)}, 'fortran", text, count=1)
    elif action < 6:
        text = re.sub(r"'shape': .*\)", lambda _: f"'shape': {rng.choice(_SHAPES)}", text, count=1)
    elif action == 6:
        text = text.replace("False", rng.choice(("True", "1", "None", "'x'")))
    elif action == 7:
        text = raw.mutate(text.encode("latin-1"), rng).decode("latin-1")
    elif action == 8:
        text = rng.choice(
            ("", "{}", "[", "(" * 5000, "{'a'", "1", "{'descr': '<f4'}", "'" * 4, "\0", " " * 70000, "9" * 5000)
        )
    elif action == 9:
        rest = rest[: rng.randrange(len(rest) + 1)] if rng.random() < 0.5 else rest + bytes(rng.randrange(100))
    elif action == 10 and rng.random() < 0.2:
        text, rest = text.replace("<f4", "|O"), b"cfuzz.canary\nring\n)R."
    elif action == 10:
        rest = raw.mutate(rest, rng)
    else:
        return data[:6] + bytes([rng.choice((0, 1, 2, 3, 4, 255)), rng.choice((0, 1, 255))]) + data[8:]
    encoded = text.encode("latin-1", "replace")
    n = len(encoded) if rng.random() < 0.9 else odd.number(rng)
    if len(encoded) > 65535 and width == 2:
        encoded = encoded[:65535]
    return data[:8] + struct.pack("<H" if width == 2 else "<I", n % 2 ** (8 * width)) + encoded + rest
