"""Mutations of YAML: values, lines, and what YAML can do that plans have no need of."""

import re

from fuzz.mutators import odd, raw

_VALUES = (
    *("!!bool x", "!!bool yes", "!!int", "!!int ''", "!!float x", "!!float ''", "!!null x", "!!timestamp 2001-99-99"),
    *(
        "2001-02-30",
        "2001-01-01",
        "2001-12-14t21:59:43.10-05:00",
        "99999-01-01",
        "!!binary '*'",
        "!!binary ====",
        "!!set {a}",
    ),
    *(
        "!!python/object/apply:fuzz.canary.ring []",
        "!!python/name:fuzz.canary.ring",
        "!x y",
        "!!omap [a]",
        "!!pairs [1]",
    ),
    *(
        "1:30",
        "1:1:1:1:1",
        "190:20:30.15",
        ":".join(["59"] * 3000),
        "0x1F",
        "0b11",
        "010",
        "0o17",
        "1_000",
        "+.inf",
        ".nan",
    ),
    *(
        "'",
        '"',
        '"\\x"',
        "[",
        "{",
        "[1, 2",
        "{a: 1",
        "? a",
        "- -",
        "*missing",
        "&a [*a]",
        "&a {b: *a}",
        "|",
        ">",
        "%",
        "@",
        "`",
    ),
    *(
        "~",
        "null",
        "yes",
        "no",
        "on",
        "true",
        "false",
        "''",
        "fused",
        "separate",
        "identity",
        "full",
        "[]",
        "{}",
        "[1]",
    ),
    *(
        "[0]",
        "[-1]",
        "[1.0]",
        "[true]",
        "['1']",
        "[2, 3, 3]",
        "[[2]]",
        "{1: 2}",
        "{null: 1}",
        "{[1]: 2}",
        "{{a: 1}: 2}",
    ),
    *("9" * 5000, "-" + "9" * 400, "1" + "0" * 400 + ".0", "1e400", "1.0e+400", "-.inf", "0.0", "-0.0", "2.5", "1e3"),
    *("[" * 100 + "]" * 100, "[" * 2000, "a" * 10000, "\x07", "\ud7ff", "\ufeff", "\x85", "\u2028", "a: b: c", "# c"),
)
#: Few bytes that stand for many: aliases, and merges that copy.
_ALIASES = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(24)
)
_MERGES = "m0: &m0 {k: 1}\n" + "".join(f"m{n + 1}: &m{n + 1} {{<<: [*m{n}, *m{n}], k{n}: 1}}\n" for n in range(26))
_BOMBS = (
    _ALIASES,
    _MERGES,
    "---\n",
    "...\n---\n",
    "%YAML 9.9\n---\n",
    "%TAG ! tag:x,1:\n---\n",
    "\ufeff",
    "\t",
    "x: " + "{y: " * 500 + "1" + "}" * 500 + "\n",
)


def mutate(data, rng):
    """One or two changes of a YAML text; plain damage at times."""
    if rng.random() < 0.08:
        return raw.mutate(data, rng)
    text = data.decode("utf-8", "replace")
    for _ in range(rng.choice((1, 1, 1, 2))):
        text = rng.choice(_CHANGES)(text, rng)
    return text.encode(rng.choice(("utf-8",) * 20 + ("utf-16", "utf-8-sig")), "replace")


def _value(text, rng):
    """Another value for a key or an item of a list."""
    places = [match.span(1) for match in re.finditer(r"(?<=[:\[,-] )([^\s,\[\]{}][^\n,\[\]{}]*|\[[^\n]*?\])", text)]
    if not places:
        return text + "a: b\n"
    start, end = rng.choice(places)
    value = rng.choice(_VALUES) if rng.random() < 0.7 else str(odd.number(rng))
    return text[:start] + value + text[end:]


def _key(text, rng):
    places = [match.span(1) for match in re.finditer(r"^\s*([\w.]+):", text, re.MULTILINE)]
    if not places:
        return text
    start, end = rng.choice(places)
    other_start, other_end = rng.choice(places)
    keys = (
        text[other_start:other_end],
        "<<",
        "version",
        "matrices",
        "dense",
        "otherwise",
        "1",
        "~",
        "''",
        "? [a]",
        "row_order",
    )
    return text[:start] + rng.choice(keys) + text[end:]


def _line(text, rng):
    lines = text.splitlines(keepends=True) or [""]
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    action = rng.randrange(5)
    if action == 0:
        del lines[at]
    elif action == 1:
        lines.insert(other, lines[at])
    elif action == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif action == 3:
        lines[at] = rng.choice(("  ", " ", "\t", "- ", "? ")) + lines[at]
    else:
        lines[at] = lines[at].removeprefix(rng.choice(("  ", " ")))
    return "".join(lines)


def _bomb(text, rng):
    bomb = rng.choice(_BOMBS)
    return bomb + text if rng.random() < 0.6 else text + bomb


def _anchor(text, rng):
    """An entry that is merged into the others, or stands for them."""
    text = re.sub(r"^(  \S+:)$", r"\1 &it", text, count=1, flags=re.MULTILINE)
    return text + rng.choice(("  other: *it\n", "  other: {<<: *it}\n", "  other: {<<: [*it, *it], cp_rank: 2}\n"))


_CHANGES = (*(_value,) * 8, _key, _key, _line, _line, _line, _bomb, _anchor)
