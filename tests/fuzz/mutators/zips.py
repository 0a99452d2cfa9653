"""Mutations of zip archives: what they hold, and every place where they say what that is."""

import bz2
import io
import lzma
import struct
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from functools import cache

from fuzz.mutators import npy, odd, pickles, raw

_MOST_MEMBERS = 64
_BOMB_BYTES = 1 << 26


@dataclass
class _Member:
    """One member: the bytes as they lie in the file, and what is said of them in both places.

    Attributes:
        name: as bytes.
        lying: the bytes in the file.
        method: how they are compressed.
        crc: of the content.
        size: of the content.
        extra: the extra field of the local header.
        local: fields of the local header that differ from the truth.
        central: fields of the central directory that differ from the truth.
        at: where the central directory says it lies, instead of where it does.
    """

    name: bytes
    lying: bytes
    method: int
    crc: int
    size: int
    extra: bytes = b""
    local: dict = field(default_factory=dict)
    central: dict = field(default_factory=dict)
    at: int | None = None


def mutate(data, rng):
    """One or two changes of an archive; plain damage where the bytes are none."""
    members = _members(data)
    if not members or rng.random() < 0.06:
        return raw.mutate(data, rng)
    tail = {}
    for _ in range(rng.choice((1, 1, 1, 1, 2))):
        if members:
            rng.choice(_CHANGES)(members, rng, tail)
    return _built(members, tail)


def _members(data):
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [_member(data, info) for info in archive.infolist()[:_MOST_MEMBERS]]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError, OSError, IndexError):
        return []


def _member(data, info):
    at = info.header_offset + 26
    n_name, n_extra = struct.unpack("<HH", data[at : at + 4])
    start = at + 4 + n_name + n_extra
    extra = data[at + 4 + n_name : start]
    lying = data[start : start + info.compress_size]
    return _Member(info.orig_filename.encode(), lying, info.compress_type, info.CRC, info.file_size, extra)


def _built(members, tail):
    out = bytearray(tail.get("before", b""))
    central = bytearray()
    for each in members:
        at = len(out)
        truth = {
            "version": 20,
            "flags": 0x800,
            "method": each.method,
            "crc": each.crc,
            "stored": len(each.lying),
            "size": each.size,
            "name": each.name,
            "extra": each.extra,
        }
        local = {**truth, **each.local}
        out += b"PK\x03\x04" + _common(local) + local["name"] + local["extra"] + each.lying
        said = {**truth, "extra": b"", **each.central}
        central += b"PK\x01\x02" + struct.pack("<H", 20) + _common(said)
        place = at if each.at is None else each.at
        central += struct.pack("<HHHII", 0, 0, 0, 0, place % 2**32) + said["name"] + said["extra"]
    start, n = len(out), tail.get("count", len(members)) % 2**16
    out += central
    if tail.get("zip64"):
        record = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, n, n, len(central), start)
        out += b"PK\x06\x06" + record + b"PK\x06\x07" + struct.pack("<IQI", 0, start + len(central), 1)
    comment = tail.get("comment", b"")
    start = (start + tail.get("shift", 0)) % 2**32
    if tail.get("zip64"):
        start = 2**32 - 1
    out += b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, n, n, len(central), start, len(comment)) + comment
    return bytes(out)


def _common(said):
    numbers = (said[name] % 2**32 for name in ("crc", "stored", "size"))
    lengths = len(said["name"]) % 2**16, len(said["extra"]) % 2**16
    head = struct.pack("<HHHHH", said["version"], said["flags"], said["method"] % 2**16, 0, 33)
    return head + struct.pack("<IIIHH", *numbers, *lengths)


def _content(member):
    """What a member holds, or what lies in the file where that cannot be unpacked."""
    if member.method == zipfile.ZIP_DEFLATED:
        try:
            return zlib.decompressobj(-15).decompress(member.lying, 1 << 22)
        except zlib.error:
            pass
    return member.lying


def _hold(member, content, method=zipfile.ZIP_STORED):
    """Give a member another content, truly described."""
    member.method, member.crc, member.size = method, zlib.crc32(content), len(content)
    member.lying = _COMPRESS[method](content)


def _deflate(content):
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def _lzma(content):
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1}])
    return b"\x09\x04\x05\x00]\x00\x00\x80\x00" + packer.compress(content) + packer.flush()


_COMPRESS = {0: bytes, 8: _deflate, 12: bz2.compress, 14: _lzma}


@cache
def _bomb():
    """64 MB of zeros, deflated, and their checksum."""
    content = bytes(_BOMB_BYTES)
    return _deflate(content), zlib.crc32(content)


def _edit(members, rng, tail):
    """Change a content and describe it truly: what most damages must get past."""
    pickled = [each for each in members if each.name.endswith(b".pkl")]
    member = rng.choice(pickled) if pickled and rng.random() < 0.8 else rng.choice(members)
    change = raw.mutate
    if member.name.endswith(b".pkl"):
        change = pickles.mutate
    elif member.name.endswith(b".npy"):
        change = npy.mutate
    _hold(member, change(_content(member), rng), member.method if member.method in _COMPRESS else 0)


def _compress(members, rng, tail):
    for member in members if rng.random() < 0.5 else [rng.choice(members)]:
        _hold(member, _content(member), rng.choice((8, 8, 8, 12, 14)))


def _resize(members, rng, tail):
    member = rng.choice(members)
    content = _content(member)
    by = rng.choice((1, 4, 8, 64, len(content)))
    _hold(member, content[:-by] if rng.random() < 0.6 else content + content[:by])


def _double(members, rng, tail):
    member = replace(rng.choice(members))
    _hold(member, raw.mutate(_content(member), rng))
    members.insert(rng.randrange(len(members) + 1), member)


def _rename(members, rng, tail):
    member = rng.choice(members)
    names = (
        *(name.encode("utf-8", "replace") for name in odd.NAMES),
        b"\xff\xfe",
        member.name.upper(),
        member.name + b"/",
    )
    member.name = rng.choice(names) if rng.random() < 0.6 else rng.choice(members).name
    if rng.random() < 0.3:
        member.name = member.name.replace(b"/", rng.choice((b"\\", b"//", b"/./")))


def _reorder(members, rng, tail):
    rng.shuffle(members)


def _remove(members, rng, tail):
    members.remove(rng.choice(members))


def _field(members, rng, tail):
    """A checksum, size, method or flag that is not true, in one place or both."""
    member = rng.choice(members)
    name = rng.choice(("crc", "stored", "size", "method", "flags", "version"))
    true = {"crc": member.crc, "stored": len(member.lying), "size": member.size, "method": member.method}.get(name, 0)
    value = true + rng.choice((-8, -1, 1, 4, 8)) if rng.random() < 0.5 else odd.number(rng)
    if name in ("flags", "version", "method"):
        value = rng.choice((0, 1, 8, 9, 12, 14, 45, 63, 99, 0x808, 0x840, 0x2000, 0xFFFF))
    where = rng.randrange(3)
    if where != 1:
        member.local[name] = value
    if where != 0:
        member.central[name] = value


def _mismatch(members, rng, tail):
    """Names and places in the two directories that do not agree."""
    member = rng.choice(members)
    other = rng.choice(members)
    if rng.random() < 0.5:
        rng.choice((member.local, member.central))["name"] = other.name
    else:
        member.at = rng.choice((0, 1, 64, 2**31, odd.number(rng) % 2**32))


def _zip64(members, rng, tail):
    tail["zip64"] = True
    member = rng.choice(members)
    sizes = [member.size, len(member.lying)] if rng.random() < 0.6 else [odd.number(rng) % 2**64 for _ in range(2)]
    member.central |= {"size": 2**32 - 1, "stored": 2**32 - 1, "extra": struct.pack("<HHQQ", 1, 16, *sizes)}


def _surroundings(members, rng, tail):
    name = rng.choice(("comment", "before", "count", "shift"))
    tail[name] = {
        "comment": bytes(rng.choice((1, 100, 65535))),
        "before": b"PK\x03\x04" + bytes(rng.choice((1, 60, 4096))),
        "count": odd.number(rng),
        "shift": rng.choice((-1, 1, 64, -64, 2**31)),
    }[name]


def _extra(members, rng, tail):
    member = rng.choice(members)
    extra = rng.choice((b"", b"\x01\0\x04\0abcd", b"up\x05\0\x01abcd", b"\xff" * 7, bytes(300)))
    rng.choice((member.local, member.central))["extra"] = extra


def _grow(members, rng, tail):
    """A member that unpacks to 64 MB, or that says so."""
    member = rng.choice(members)
    if rng.random() < 0.5:
        size = rng.choice((_BOMB_BYTES, 2**32 - 2))
        member.local["size"] = member.central["size"] = size
        return
    member.lying, member.crc = _bomb()
    member.method, member.size = 8, rng.choice((_BOMB_BYTES, member.size))


def _broken_stream(members, rng, tail):
    member = rng.choice(members)
    _hold(member, _content(member), 8)
    member.lying = raw.mutate(member.lying, rng)


#: Changes of a content weigh most; what is large is rare, because it takes long.
_CHANGES = (
    *(_edit,) * 28,
    *(_compress, _resize, _double, _rename, _reorder, _remove, _field, _field, _mismatch, _zip64, _surroundings) * 2,
    *(_compress, _resize, _extra, _broken_stream, _broken_stream, _grow),
)
