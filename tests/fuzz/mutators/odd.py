"""Values that no one meant: for JSON, YAML and numbers wherever they stand."""

import json

#: Whole numbers at the edges of what programs count with.
NUMBERS = (
    *(-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 33, 255, 256, 1000, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**40 + 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**25),
)

NAMES = (
    *(
        "",
        "items",
        "get",
        "keys",
        "detach",
        "shape",
        "__class__",
        "__metadata__",
        "btcompress",
        "state",
        "param_groups",
    ),
    *("lstm.weight_ih_l0", "weight_ih_l0", "weight_hh_l0", "weight_hh_l1", "weight_ih_l0_reverse", "weight_ih_l99999"),
    *(
        "a" * 300,
        ".",
        "..",
        "../../x",
        "a.b.c",
        "\x1b[31mred",
        "\u202egnp",
        "\ufeff",
        "naïve",
        "a\nb",
        "a\0b",
        "head.weight",
    ),
    *("data.pkl", "constants.pkl", "archive/data.pkl", "x.npy", "shard-2.safetensors", "x", "y", "lengths", "count"),
)

_JSON = (
    *(
        "null",
        "true",
        "false",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-0.0",
        "0.5",
        "1.0",
        "1e-320",
        "1" + "0" * 400,
    ),
    *("1" * 5000, '""', '"a"', '"float32"', '"bfloat16"', '"float8_e4m3fn"', '"int8"', '"identity"', '"full"'),
    *('"separate"', '"fused"', '"\\ud800"', '"\\u001b[2J"', "[]", "{}", "[[]]", "[null]", "[0]", "[1,1]", "[2.5]"),
    *('{"a":1}', "[" * 3000 + "]" * 3000, "[" + ",".join(["1"] * 15) + "]", "[" + ",".join(["2"] * 70) + "]"),
)
_HOLE = "@odd@"


def number(rng):
    """A whole number, at an edge or near nothing in particular."""
    return rng.choice(NUMBERS) if rng.random() < 0.8 else rng.randrange(2 ** rng.randrange(1, 70))


def json_text(rng):
    """The text of a JSON value, or of what some readers take for one."""
    if rng.random() < 0.4:
        return str(number(rng))
    return json.dumps(rng.choice(NAMES)) if rng.random() < 0.2 else rng.choice(_JSON)


def edited_json(text, rng):
    """A JSON text with one value, key or entry changed; raises ValueError or RecursionError where it is none."""
    value = json.loads(text)
    place = rng.choice(list(_places(value)) or [None])
    if place is None:
        return json_text(rng)
    owner, key = place
    action = rng.randrange(10)
    if action == 0:
        del owner[key]
    elif action == 1 and isinstance(owner, dict):
        owner[rng.choice(NAMES)] = owner.pop(key)
    elif action == 2 and isinstance(owner, list):
        owner.insert(key, owner[key])
    elif action == 3:
        other_owner, other = rng.choice(list(_places(value)))
        owner[key] = json.loads(json.dumps(other_owner[other]))
    elif action == 4 and isinstance(owner[key], int):
        owner[key] += rng.choice((-1, 1, owner[key]))
    elif action == 5 and isinstance(owner, list):
        rng.shuffle(owner)
    elif action == 6 and isinstance(owner, dict):
        return json.dumps(value).replace("{", "{" + json.dumps(key) + ":" + json_text(rng) + ",", 1)
    else:
        owner[key] = _HOLE
    return json.dumps(value, separators=(",", ":")).replace(f'"{_HOLE}"', json_text(rng))


def _places(value):
    """Every position in a tree of lists and mappings, as its owner and key."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else ()
    )
    for key, item in items:
        yield value, key
        yield from _places(item)
