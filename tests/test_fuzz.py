"""Files that mutators damaged: a right answer or a ``BTCompressError``; and whoever says so can be wrong no more."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import btcompress
from btcompress.checkpoint import reader
from btcompress.finetune.data import Arrays
from fuzz import campaign, canary, limits, readings
from fuzz.cases import case, judge
from fuzz.targets import SCHEDULE, TARGETS

CORPUS = sorted(path for path in (Path(__file__).parent / "fuzz" / "corpus").iterdir() if path.suffix == ".bin")


@pytest.fixture
def sample():
    """A sound file of a kind, the first."""
    return lambda kind: next(iter(TARGETS[kind].samples().values()))


def test_ten_thousand_damaged_files_are_read_right_or_refused(tmp_path):
    found = campaign.run(10_000, processes=2, keep=tmp_path)
    assert not found.groups
    assert found.cases == 10_000
    for kind, outcomes in found.kinds.items():
        # A reader that refused everything, or mutators that spoil everything, would show nothing.
        assert outcomes["right"] > 0.02 * sum(outcomes.values()), kind
        assert outcomes["refused"] > 0.2 * sum(outcomes.values()), kind


def test_what_once_failed_is_read_right_or_refused():
    found = campaign.replay(CORPUS)
    assert not found.groups
    assert found.cases == len(CORPUS) > 0


@pytest.mark.parametrize("kind", TARGETS)
def test_sound_files_are_read_right(kind, tmp_path):
    verdicts = {name: judge(kind, data, tmp_path) for name, data in TARGETS[kind].samples().items()}
    assert not [verdict.fault.text for verdict in verdicts.values() if verdict.fault]
    # What torch does not load safely may be refused.
    refused = {name for name, verdict in verdicts.items() if verdict.outcome == "refused"}
    assert all(name == "counted" or "protocol" in name for name in refused)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_seed_and_a_number_always_make_the_same_case(kind):
    assert case(3, 7, (kind,)) == case(3, 7, (kind,))
    assert len({case(3, number, (kind,))[1] for number in range(50)}) > 40


def test_every_kind_takes_its_turns():
    assert {kind: SCHEDULE.count(kind) for kind in TARGETS} == {kind: target.weight for kind, target in TARGETS.items()}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["torch", "legacy"])
def test_the_two_independent_readings_of_sound_files_agree(kind):
    for name, data in TARGETS[kind].samples().items():
        if name != "counted" and not name.endswith(("protocol 4", "protocol 5")):
            assert readings.by_parts(data) == readings.by_torch(data), name


# The instrument shows what is broken


def broken(monkeypatch, kind, check):
    monkeypatch.setitem(TARGETS, kind, replace(TARGETS[kind], check=check))


def changed(tensors):
    """The tensors, of which one has another first bit."""
    name = next(name for name, tensor in tensors.items() if tensor.numel())
    other = tensors[name].clone()
    other.view(-1).view(torch.uint8)[0] ^= 1
    return {**tensors, name: other}


def group(kind, data, folder, **options):
    verdict = judge(kind, data, folder, **options)
    assert verdict.outcome == "fault"
    return verdict.fault.group


@pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors", "index"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed, "values"),
        (lambda tensors: dict(list(tensors.items())[1:]), "list of tensors"),
        (lambda tensors: {f"x{name}": tensor for name, tensor in tensors.items()}, "list of tensors"),
        (lambda tensors: {name: tensor.double() for name, tensor in tensors.items()}, "dtype or shape"),
    ],
    ids=["one bit", "one missing", "renamed", "another dtype"],
)
def test_a_reader_of_checkpoints_that_gives_something_else_is_caught(kind, change, said, sample, tmp_path, monkeypatch):
    flatten = reader.flatten
    if kind == "index":
        shards = reader._read_shards

        def broken(*given, **named):
            flat, checksums = shards(*given, **named)
            return replace(flat, tensors=change(flat.tensors)), checksums

        monkeypatch.setattr(reader, "_read_shards", broken)
    else:
        monkeypatch.setattr(reader, "flatten", lambda *a: replace(flatten(*a), tensors=change(flatten(*a).tensors)))
    assert said in group(kind, sample(kind), tmp_path)


@pytest.mark.parametrize("name", ["integers", "integers by rows", "floats"])
def test_a_reader_of_tensors_in_fewer_bits_that_gives_something_else_is_caught(name, tmp_path, monkeypatch):
    data, dense = TARGETS["compressed"].samples()[name], btcompress.to_dense
    assert judge("compressed", data, tmp_path).outcome == "right"

    def changed(value):
        found = dense(value)
        return {
            **found,
            "head.weight": found["head.weight"].nextafter(torch.tensor(9.0, dtype=found["head.weight"].dtype)),
        }

    monkeypatch.setattr(btcompress, "to_dense", changed)
    assert "a tensor in fewer bits" in group("compressed", data, tmp_path)


def test_a_reader_of_results_that_gives_something_else_is_caught(sample, tmp_path, monkeypatch):
    data, load, dense = sample("compressed"), btcompress.load, btcompress.to_dense
    monkeypatch.setattr(btcompress, "to_dense", lambda value: {k: t + 1e-3 for k, t in dense(value).items()})
    assert "docs/format.md" in group("compressed", data, tmp_path)
    monkeypatch.setattr(btcompress, "load", lambda path: replace(load(path), history=()))
    assert "history" in group("compressed", data, tmp_path)
    monkeypatch.setattr(btcompress, "load", lambda path: replace(load(path), tensors=changed(load(path).tensors)))
    assert group("compressed", data, tmp_path)


def test_a_reader_of_plans_that_gives_something_else_is_caught(sample, tmp_path, monkeypatch):
    from fuzz import targets

    read_plan = targets.read_plan

    def other(*arguments):
        found = read_plan(*arguments)
        first, *rest = found.matrices
        return replace(found, matrices=(replace(first, shape=first.shape.ordered(("row_order",))), *rest))

    monkeypatch.setattr(targets, "read_plan", other)
    assert "orders" in group("plan", sample("plan"), tmp_path)
    monkeypatch.setattr(targets, "read_plan", lambda *a: replace(read_plan(*a), matrices=()))
    assert "list of matrices" in group("plan", sample("plan"), tmp_path)


@pytest.mark.parametrize("kind", ["npz", "npy", "data"])
def test_a_reader_of_sequences_that_gives_something_else_is_caught(kind, sample, tmp_path, monkeypatch):
    batch = Arrays.batch
    monkeypatch.setattr(Arrays, "batch", lambda self, rows: replace(batch(self, rows), x=batch(self, rows).x * 1.0001))
    assert "x is not what" in group(kind, sample(kind), tmp_path)
    monkeypatch.setattr(Arrays, "batch", lambda self, rows: replace(batch(self, rows), y=torch.zeros(len(rows))))
    assert "y" in group(kind, sample(kind), tmp_path)


@pytest.mark.parametrize("kind", ["npz", "data"])
@pytest.mark.parametrize("name", ["states", "recorded"])
def test_a_reader_that_gives_other_states_or_lengths_is_caught(kind, name, tmp_path, monkeypatch):
    data, batch = TARGETS[kind].samples()[name], Arrays.batch
    monkeypatch.setattr(
        Arrays, "batch", lambda self, rows: replace(batch(self, rows), state=batch(self, rows).state[::-1])
    )
    assert "h0" in group(kind, data, tmp_path)
    monkeypatch.setattr(Arrays, "batch", lambda self, rows: replace(batch(self, rows), lengths=None, state=None))
    assert "absence" in group(kind, data, tmp_path)


def raising(_data, _folder):
    {}["missing"]


def hanging(_data, _folder):
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


def growing(_data, _folder):
    np.ones(3 * 2**30, np.uint8)


def growing_in_secret(_data, _folder):
    try:
        growing(_data, _folder)
    except MemoryError as error:
        raise btcompress.BTCompressError("too large") from error


def swelling(_data, _folder):
    np.ones(limits.GROWTH + 2**20, np.uint8)


def running(_data, _folder):
    canary.ring()


def leaving(_data, _folder):
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (raising, "KeyError"),
        (hanging, "OutOfTime"),
        (growing, "MemoryError"),
        (growing_in_secret, "MemoryError"),
        (swelling, "TooMuchError"),
        (running, "ExecutedError"),
        (leaving, "SystemExit"),
    ],
)
def test_whatever_is_neither_right_nor_refused_is_a_fault(check, said, tmp_path, monkeypatch):
    broken(monkeypatch, "npy", check)
    monkeypatch.setattr(limits, "GROWTH", 2**26)
    limits.forget_peak()
    with limits.capped():
        assert said in group("npy", b"", tmp_path, seconds=0.5)


def test_faults_of_one_kind_are_one_group_and_their_inputs_are_kept(tmp_path):
    found = campaign.run(300, kinds=("torch",), processes=1, keep=tmp_path / "kept", check="fails")
    (only,) = found.groups
    assert found.groups[only] == found.faults == found.cases == 300
    kept = sorted((tmp_path / "kept").glob("*.bin"))
    assert 1 <= len(kept) <= 3
    assert all(only in path.with_suffix(".txt").read_text() for path in kept)


def test_a_case_that_kills_the_process_is_a_fault_and_the_rest_go_on(tmp_path):
    found = campaign.run(40, kinds=("npy",), processes=1, keep=tmp_path, check="dies_now_and_then")
    assert found.cases == 40
    assert 0 < found.faults < 20
    assert all("SIGSEGV" in name for name in found.groups)
    assert list(tmp_path.glob("*.bin"))


def test_a_case_that_waits_for_good_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "_PATIENCE", 2)
    found = campaign.run(2, kinds=("npy",), processes=2, keep=tmp_path, check="waits")
    assert found.cases == found.faults == 2
    assert all("hung" in name for name in found.groups)
