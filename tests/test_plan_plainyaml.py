"""Plan files that nobody vouches for: what safe_load reads too, or one line, at once."""

import os
import random
import time

import pytest
import yaml

from btcompress.errors import BTCompressError
from btcompress.plan.plainyaml import load

PLAN = """\
# The form of each matrix, as btcompress plan chose it.
version: 1
checkpoint: {name: model.pt, sha256: 0af1e23b45c6d7e8}
wish: a ratio of at least 8 for the matrices
matrices:
  lstm.weight_ih_l0:
    size: [32, 18]
    in_modes: [3, 6]
    gates: fused
    cp_rank: 2
    tucker_ranks: [2, 2]
    row_order: true
    predicted: {params: 120, weight_error: 0.5412, svd_rank: 2, svd_error: 1.0e-05}
    otherwise: {above_error: .5, low_rank: 2}
  'lstm.weight_hh_l0': {size: [32, 8], dense: true, reason: "no room"}
"""
N_MUTANTS = 1000
HOSTILE = {
    "alias": "a: &x 1\nb: *x",
    "anchor alone": "a: &x 1",
    "merge": "a: {b: 1}\n<<: {c: 2}",
    "merge bomb": "a: &a {x: 1}\nb: &b {<<: [*a, *a]}",
    "tag of truth": "a: !!bool x",
    "tag of an empty number": "a: !!int",
    "tag of a set": "a: !!set {x}",
    "tag of Python": "a: !!python/object/apply:os.system ['true']",
    "tag of one's own": "a: !x 1",
    "no tag": "a: ! 1",
    "digits": f"a: {'9' * 5000}",
    "nineteen digits": f"a: {'9' * 19}",
    "digits behind the point": f"a: 0.{'9' * 5000}",
    "twice": "a: 1\na: 2",
    "twice in other words": "a: 1\n'a': 2",
    "a key that is a list": "? [1]\n: 2",
    "deep lists": "[" * 100_000,
    "deep mappings": "{a: " * 100_000,
    "deep blocks": "- " * 100_000,
    "long list": f"[{'a,' * 100_000}]",
    "half a character": 'a: "\\ud800"',
    "an escape beyond Unicode": 'a: "\\UFFFFFFFF"',
    "two documents": "a: 1\n---\nb: 2",
    "control characters": "a: \x07",
    "nothing but zeros": "\0" * 1000,
    "cut off": "a: [1",
    "tabs": "a:\n\t- 1",
}


def loaded(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load(path, "Mend it.")


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_not_plain_is_refused_at_once_with_its_line(case, tmp_path):
    started = time.perf_counter()
    with pytest.raises(BTCompressError, match=r"plan\.yaml is no plain YAML \(line \d+: .*\)\. Mend it\.") as caught:
        loaded(tmp_path / "plan.yaml", HOSTILE[case])
    assert time.perf_counter() - started < 2
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_lines_are_counted_as_editors_do(tmp_path):
    for content in ("a: 1\nb: 2\nc: !x", b"a: 1\nb: 2\nc: \xff", "a: 1\nb: 2\nc: \x07", "\ufeffa: 1\nb: 2\na: 3"):
        with pytest.raises(BTCompressError, match="line 3"):
            loaded(tmp_path / "plan.yaml", content)


def test_values_are_what_they_look_like(tmp_path):
    text = (
        "yes",
        "no",
        "on",
        "Off",
        "010",
        "0x10",
        "0b1",
        "1_000",
        "1:30",
        "2020-01-01",
        "1e5",
        "=",
        "-.5",
        "12:30:45",
    )
    value = loaded(
        tmp_path / "plan.yaml", f"text: [{', '.join(text)}]\nrest: [-3, +4, 0, 1.5, .5, true, False, ~, null, ]"
    )
    assert value["text"] == list(text)
    assert value["rest"] == [-3, 4, 0, 1.5, 0.5, True, False, None, None]
    assert [type(each) for each in value["rest"][:4]] == [int, int, int, float]


@pytest.mark.parametrize(
    "start", ["", "\ufeff", "---\n", "%YAML 1.1\n---\n"], ids=["plain", "BOM", "marker", "directive"]
)
def test_a_plan_is_read_as_safe_load_does(start, tmp_path):
    assert loaded(tmp_path / "plan.yaml", start + PLAN) == yaml.safe_load(PLAN)


def test_what_safe_dump_writes_is_read_again(tmp_path):
    words = [
        "yes",
        "010",
        "0x1F",
        "1e5",
        "1.5",
        "-.5",
        "1:30",
        "2020-01-01",
        "null",
        "~",
        "",
        "<<",
        "=",
        "&a",
        "*a",
        "!b",
    ]
    value = {
        "matrices": {f"{word}x": {word: [word]} for word in words},
        "digest": ["0" * 64, "1" * 64, "0891", "12e34", "1234e5678"],
        "numbers": [0, 1, -1, 10**17, 0.1, 1e-5, 1e22, 2**-30, 0.1 + 0.2, float("inf")],
        "odd": ["a\x07b\x1b[31m", "é", "😀", "a\nb", " a ", "\t", "'", '"', "#", ": "],
    }
    for flow in (None, True, False):
        text = yaml.safe_dump(value, sort_keys=False, default_flow_style=flow, width=120, allow_unicode=True)
        assert loaded(tmp_path / "plan.yaml", text) == value


def agree(ours, theirs):
    """Whether two readings are one, but for what is text to us and YAML 1.1's number, truth or date to the other."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return len(ours) == len(theirs) and all(map(agree, (*ours, *ours.values()), (*theirs, *theirs.values())))
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(agree, ours, theirs))
    if isinstance(ours, str) and not isinstance(theirs, str):
        return ours not in ("true", "false", "null", "1")
    return type(ours) is type(theirs) and (ours == theirs or ours != ours)


def test_damaged_plans_are_read_as_safe_load_does_or_refused(tmp_path):
    chance = random.Random(0)
    pieces = [
        *HOSTILE.values(),
        "*x",
        "&x ",
        "!!int ",
        "<<: ",
        "1:30",
        "yes",
        "9" * 30,
        "\t",
        "'",
        '"',
        "|",
        ">",
        "[",
        "}",
    ]
    n_read = 0
    for _ in range(N_MUTANTS):
        text = PLAN
        for _ in range(chance.choice((1, 1, 2, 3))):
            start = chance.randrange(len(text) + 1)
            end = start + chance.choice((0, 1, 1, 2, 20))
            other = chance.randrange(len(text) + 1)
            put = chance.choice((chance.choice(pieces)[:50], chr(chance.randrange(256)), text[other : other + 5], ""))
            text = text[:start] + put + text[end:]
        try:
            ours = loaded(tmp_path / "plan.yaml", text)
        except BTCompressError:
            continue
        assert agree(ours, yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))), text
        n_read += 1
    assert n_read > 100


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path, tmp_path / "nowhere", tmp_path / ("n" * 300)):
        with pytest.raises(BTCompressError, match="cannot be read"):
            load(path, "Mend it.")


def test_files_too_large_for_a_plan_are_not_read_on(tmp_path):
    with (tmp_path / "plan.yaml").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BTCompressError, match="too large"):
        load(tmp_path / "plan.yaml", "Mend it.")
