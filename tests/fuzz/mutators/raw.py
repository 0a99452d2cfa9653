"""Mutations of bytes whose structure is not looked at."""


def mutate(data, rng):
    """One or a few plain damages: bits, bytes, runs, cuts."""
    data = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        _DAMAGES[rng.randrange(len(_DAMAGES))](data, min(at, len(data) - 1), rng)
        if not data:
            return b""
    return bytes(data)


def _bit(data, at, rng):
    data[at] ^= 1 << rng.randrange(8)


def _byte(data, at, rng):
    data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(data, at, rng):
    del data[at:]


def _remove(data, at, rng):
    del data[at : at + rng.choice((1, 2, 8, 64, 512))]


def _insert(data, at, rng):
    data[at:at] = bytes(rng.choice((0, 0xFF, rng.randrange(256))) for _ in range(rng.choice((1, 2, 8, 64))))


def _repeat(data, at, rng):
    data[at:at] = data[at : at + rng.choice((1, 4, 16, 256))]


def _move(data, at, rng):
    other = rng.randrange(len(data))
    run = rng.choice((1, 4, 16, 64))
    data[at : at + run] = data[other : other + run]


def _number(data, at, rng):
    width = rng.choice((2, 4, 8))
    value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), rng.randrange(2 ** (8 * width))))
    data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))


_DAMAGES = (_bit, _bit, _byte, _byte, _cut, _remove, _insert, _repeat, _move, _number)
