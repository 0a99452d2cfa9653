"""Mutations of pickles, opcode by opcode."""

import pickletools
import struct

from fuzz.mutators import odd, raw

#: What a file could name instead of what it does: what torch loads, what it must not, and what no one has.
_GLOBALS = (
    *(
        "os system",
        "fuzz.canary ring",
        "builtins eval",
        "builtins exec",
        "builtins getattr",
        "posix system",
        "torch.nn.modules.rnn LSTM",
    ),
    *("builtins bytearray", "builtins set", "builtins complex", "builtins list", "_codecs encode", "torch Size"),
    *("collections OrderedDict", "collections Counter", "collections defaultdict", "argparse Namespace"),
    *("pathlib PosixPath", "numpy.core.multiarray _reconstruct", "numpy dtype", "lightning.callbacks ModelCheckpoint"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor", "torch._utils _rebuild_parameter"),
    *(
        "torch._utils _rebuild_parameter_with_state",
        "torch._utils _rebuild_qtensor",
        "torch._utils _rebuild_sparse_tensor",
    ),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_nested_tensor", "torch._tensor Tensor"),
    *("torch._utils _rebuild_wrapper_subclass", "torch._tensor _rebuild_from_type_v2", "torch device", "torch float32"),
    *("torch.serialization _get_layout", "torch.storage UntypedStorage", "torch.storage TypedStorage", "torch Tensor"),
    *("torch.nn.parameter Parameter", "torch.nn.parameter UninitializedParameter", "torch float8_e4m3fn"),
    *(
        f"torch {name}Storage"
        for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte")
    ),
    *(f"torch {name}Storage" for name in ("Bool", "ComplexFloat", "ComplexDouble", "QInt8", "QInt32", "Odd")),
    *("a b", " ", "é ü", "x" * 500 + " y", "__builtin__ reduce", "torch.loads x", "__main__ Model"),
)


def mutate(data, rng):
    """One change of one or a few opcodes; plain damage where the bytes are no pickle."""
    ops = _split(data)
    if len(ops) < 3 or rng.random() < 0.05:
        return raw.mutate(data, rng)
    if rng.random() < _ENDLESS:
        ops = _endless_key(ops, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if len(ops) < 3:
            break
        ops = rng.choice(_CHANGES)(ops, rng) or ops
    return b"".join(code for _, _, code in ops)


def _split(data):
    """The opcodes as name, argument and bytes; a rest that cannot be read belongs to the last."""
    ops, places = [], []
    try:
        for op, argument, at in pickletools.genops(data):
            places.append(at)
            ops.append((op.name, argument))
    except (ValueError, IndexError, OverflowError, UnicodeError, struct.error, RecursionError):
        pass  # the last opcode has the rest as its bytes
    ends = [*places[1:], len(data)] if places else []
    return [(*op, data[at:end]) for op, at, end in zip(ops, places, ends, strict=True)]


def _is_number(op):
    return isinstance(op[1], int) and ("INT" in op[0] or "LONG" in op[0]) and "PUT" not in op[0] and "GET" not in op[0]


def _of(ops, test):
    return [n for n, op in enumerate(ops) if test(op)]


def integer(value):
    """The opcode of a whole number."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    size = value.bit_length() // 8 + 1
    head = b"\x8a" + bytes([size]) if size < 256 else b"\x8b" + struct.pack("<I", size)
    return head + value.to_bytes(size, "little", signed=True)


def _text(value):
    text = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(text)) + text


def _put(ops, at, name, code):
    return [*ops[:at], (name, None, code), *ops[at + 1 :]]


def _insert(ops, at, code):
    return [*ops[:at], ("", None, code), *ops[at:]]


def _numbers(ops, rng):
    places = _of(ops, _is_number)
    if places:
        at = rng.choice(places)
        value = odd.number(rng) if rng.random() < 0.6 else int(ops[at][1]) + rng.choice((-1, 1, 2, int(ops[at][1])))
        return _put(ops, at, "LONG1", integer(value))
    return None


def _globals(ops, rng):
    places = _of(ops, lambda op: op[0] == "GLOBAL")
    if places:
        other = rng.choice(_GLOBALS) if rng.random() < 0.8 else str(ops[rng.choice(places)][1])
        return _put(ops, rng.choice(places), "GLOBAL", b"c" + other.replace(" ", "\n", 1).encode() + b"\n")
    return None


def _texts(ops, rng):
    places = _of(ops, lambda op: op[0] in ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINUNICODE8"))
    if places:
        value = rng.choice(odd.NAMES) if rng.random() < 0.6 else str(ops[rng.choice(places)][1])
        return _put(ops, rng.choice(places), "BINUNICODE", _text(value))
    return None


def _lone_surrogate(ops, rng):
    places = _of(ops, lambda op: op[0] == "BINUNICODE")
    return _put(ops, rng.choice(places), "BINUNICODE", _text("\ud800")) if places else None


def _memos(ops, rng):
    places = _of(ops, lambda op: "PUT" in op[0] or "GET" in op[0])
    if not places:
        return None
    at = rng.choice(places)
    index = rng.choice((0, 1, 2, 255, 2**16, 2**24, 2**28, 2**31 - 1, 2**32 - 1, rng.randrange(64)))
    return _put(ops, at, "LONG_BINPUT", (b"r" if "PUT" in ops[at][0] else b"j") + struct.pack("<I", index))


def _delete(ops, rng):
    at = rng.randrange(1, len(ops))
    return [*ops[:at], *ops[at + rng.choice((1, 1, 1, 4, 16)) :]]


def _repeat(ops, rng):
    at = rng.randrange(len(ops))
    end = at + rng.choice((1, 1, 2, 8, 40))
    return [*ops[:end], *ops[at:end], *ops[end:]]


def _swap(ops, rng):
    at, other = rng.randrange(len(ops)), rng.randrange(len(ops))
    ops = list(ops)
    ops[at], ops[other] = ops[other], ops[at]
    return ops


def _protocol(ops, rng):
    return _put(ops, 0, "PROTO", b"\x80" + bytes([rng.choice((0, 1, 2, 3, 4, 5, 6, 255))]))


def _entry(ops, rng):
    """One more entry in the outermost mapping, just before the end."""
    return _insert(ops, len(ops) - 1, _text(rng.choice(odd.NAMES)) + rng.choice(_VALUES) + b"s")


def _endless_key(ops, rng):
    """A key of few bytes whose hash takes for ever."""
    return _insert(ops, len(ops) - 1, _DOUBLED + rng.choice(_VALUES) + b"s")


def _expanded(ops, rng):
    """A matrix that claims more than its storage holds, by strides of 0."""
    places = [n for n in range(len(ops) - 2) if ops[n + 2][0] == "TUPLE2" and all(map(_is_number, ops[n : n + 2]))]
    if len(places) < 2:
        return None
    at = rng.randrange(len(places) - 1)
    sizes = 4 * 2 ** rng.randrange(40), 2 ** rng.randrange(40)
    for place, pair in ((places[at], sizes), (places[at + 1], (0, 0))):
        for n, value in enumerate(pair):
            ops = _put(ops, place + n, "LONG1", integer(value))
    return ops


def _attributes(ops, rng):
    """Attributes that shadow methods."""
    name = rng.choice(("items", "get", "keys", "detach", "shape", "__iter__", "_metadata", "__class__", "__reduce__"))
    code = b"}" + _text(name) + rng.choice(_VALUES) + b"sb"
    return _insert(ops, rng.choice((len(ops) - 1, rng.randrange(1, len(ops)))), code)


def _anywhere(ops, rng):
    return _insert(ops, rng.randrange(1, len(ops)), rng.choice(_VALUES))


def _wrapped(ops, rng):
    """The whole value inside lists or tuples."""
    code = rng.choice((b"\x85", b"]" + b"\x86", b"N\x86"))
    return _insert(ops, len(ops) - 1, code * rng.choice((1, 2, 40, 500)))


#: A tuple of itself twice, and so on: by the memo, as not every reader knows the opcode that doubles.
_DOUBLED = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(196, 256))
_VALUES = (
    *(b"N", b"\x88", b"]", b"}", b")", b"K\x03", b"G\x7f\xf8" + b"\0" * 6, b"(dK\x01K\x02s", b"]K\x01a", b"C\x03abc"),
    *(b"]" * 100 + b"a" * 99, b"]" * 3000 + b"a" * 2999, _DOUBLED, b"K\x01" + b"2\x86" * 25),
    b"cbuiltins\nbytearray\n" + integer(25 * 10**9) + b"\x85R",
    b"cbuiltins\nbytearray\n" + integer(10**7) + b"\x85R",
    b"ccollections\nCounter\n}" + _text("a") + integer(2**40) + b"s\x85R",
    b"cargparse\nNamespace\n)\x81}" + _text("a") + b"K\x01sb",
    *(b"cfuzz.canary\nring\n)R", b"cfuzz.canary\nring\n)\x81", b"(ifuzz.canary\nring\n", b"(cfuzz.canary\nring\no"),
    b"c__main__\nConfig\n)\x81",
    b"\x8b" + struct.pack("<I", 2000) + b"\x7f" * 2000,
    b"B" + struct.pack("<I", 100) + b"b" * 100,
    b"\x8e" + struct.pack("<Q", 2**40),
    b"ctorch\nSize\n]K\x02a\x85R",
    b"ctorch\ndevice\n" + _text("cuda:7") + b"\x85R",
    b"ctorch\nfloat32\n",
)
#: Rare, as a reader that falls for it takes the worker's patience with it.
_ENDLESS = 0.002
_CHANGES = (
    *(_numbers, _numbers, _numbers, _numbers, _globals, _globals, _texts, _texts, _lone_surrogate, _memos, _delete),
    *(_repeat, _swap, _protocol, _entry, _entry, _attributes, _anywhere, _wrapped, _expanded),
)
