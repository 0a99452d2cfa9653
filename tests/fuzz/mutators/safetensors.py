"""Mutations of ``.safetensors`` files: the header's JSON, what lies in its ``__metadata__``, its length, the data."""

import json
import struct

from fuzz.mutators import odd, raw

_DTYPES = (
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64", "I64", "I32", "I16", "I8"),
    *("U64", "U32", "U16", "U8", "BOOL", "f32", "", "F128"),
)


def mutate(data, rng):
    """One change anywhere in the file; plain damage where there is no header."""
    return _mutated(data, rng, _header)


def described(*keys):
    """A mutator that mostly changes the JSON texts under these keys of ``__metadata__``."""

    def change(text, rng):
        return _description(text, rng, keys) if rng.random() < 0.75 else _header(text, rng)

    return lambda data, rng: _mutated(data, rng, change)


def _mutated(data, rng, change):
    n = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + n], data[8 + n :]
    if rng.random() < 0.05 or not text.startswith(b"{"):
        return raw.mutate(data, rng)
    if rng.random() < 0.08:
        rest = raw.mutate(rest, rng)
    else:
        try:
            text = change(text.decode(), rng).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            text = raw.mutate(text, rng)
    if rng.random() < 0.9:
        text += b" " * (-len(text) % 8)
    n = len(text) if rng.random() < 0.97 else odd.number(rng) % 2**64
    return struct.pack("<Q", n) + text + rest


def _description(text, rng, keys):
    header = json.loads(text)
    key = rng.choice([key for key in keys if key in header["__metadata__"]])
    inner = header["__metadata__"][key]
    for _ in range(rng.choice((1, 1, 1, 2))):
        inner = (
            odd.edited_json(inner, rng) if rng.random() < 0.97 else raw.mutate(inner.encode(), rng).decode("latin-1")
        )
    header["__metadata__"][key] = inner
    return json.dumps(header, separators=(",", ":"))


def _header(text, rng):
    if rng.random() < 0.4:
        return odd.edited_json(text, rng)
    header = json.loads(text)
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    action = rng.randrange(8)
    if action == 0:
        entry["dtype"] = rng.choice(_DTYPES)
    elif action == 1:
        entry["shape"] = rng.choice(
            ([], [0], [1], entry["shape"][::-1], [*entry["shape"], 1], [2**40, 2**40], [2**62, 4])
        )
    elif action == 2:
        entry["shape"] = [odd.number(rng) for _ in entry["shape"]]
    elif action == 3:
        shift = rng.choice((-8, -4, -1, 1, 4, 8, 2**40))
        entry["data_offsets"] = [place + shift for place in entry["data_offsets"]]
    elif action == 4:
        entry["data_offsets"] = header[rng.choice([name for name in header if name != "__metadata__"])]["data_offsets"]
    elif action == 5:
        header[rng.choice(odd.NAMES)] = entry if rng.random() < 0.5 else header.pop(name)
    elif action == 6:
        header["__metadata__"] = rng.choice(
            ({}, {"a": "b"}, {"btcompress": "{}"}, {"a": 1}, None, [], {"format": "pt"})
        )
    else:
        return text[:-1] + "," + json.dumps({name: entry})[1:]
    return json.dumps(header, separators=(",", ":"))
