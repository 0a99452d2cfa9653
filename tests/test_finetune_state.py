import json
import random
import re
import shutil
from collections import namedtuple
from contextlib import chdir

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from btcompress.errors import BTCompressError, OutputError
from btcompress.finetune import TrainConfig
from btcompress.finetune import state as states
from tuning import draw, saved_pair, tune

QUICK = TrainConfig(epochs=2, batch_size=4, learning_rate=5e-3, seed=1, cpu=True)


class StoppedError(Exception):
    pass


def stop(*_, **__):
    raise StoppedError


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder with a training that was interrupted after one epoch of two, and one that was not."""
    folder = tmp_path_factory.mktemp("interrupted")
    dense, compressed = saved_pair(folder, nn.LSTM(8, 4))
    np.savez(folder / "data.npz", x=draw(10, 3, 8))
    with chdir(folder):
        tune(folder, compressed, "data.npz", dense, QUICK, name="whole")
        with pytest.raises(StoppedError):
            tune(folder, compressed, "data.npz", dense, QUICK, name="cut", on_epoch=stop)
    return folder


@pytest.fixture
def folder(interrupted, tmp_path, monkeypatch):
    copy = shutil.copytree(interrupted, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


def go_on(folder, **more):
    arguments = (folder, folder / "model.bt.safetensors", "data.npz", folder / "model.pt", QUICK)
    return tune(*arguments, name="cut", **{"resume": True, **more})


def refusal_of(folder):
    """What going on with the state that lies there is refused with; None where it ends as it should."""
    state = (folder / "cut.state").read_bytes()
    try:
        go_on(folder)
    except BTCompressError as error:
        refusal = str(error)
    else:
        assert (folder / "cut").read_bytes() == (folder / "whole").read_bytes()
        (folder / "cut").unlink()
        return None
    assert not (folder / "cut").exists()
    assert (folder / "cut.state").read_bytes() == state
    assert "\n" not in refusal
    return refusal


DAMAGED = re.compile(r"cut\.state is damaged.*Start over with --force")


def test_any_damage_to_a_state_is_told_or_does_no_harm(folder):
    file, whole = folder / "cut.state", (folder / "cut.state").read_bytes()
    draws = random.Random(0)
    n_header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for case in range(300):
        changed = bytearray(whole)
        if case % 3 == 0:
            changed = changed[: draws.randrange(len(whole))]
        for _ in range(draws.choice([1, 1, 1, 8]) if case % 3 else 0):
            at = draws.randrange(n_header if case % 3 == 1 else len(whole))
            changed[at] ^= 1 << draws.randrange(8)
        if bytes(changed) == whole:
            continue
        file.write_bytes(changed)
        refusal = refusal_of(folder)
        assert refusal is None or DAMAGED.search(refusal) or "in the way" in refusal, refusal
        refused += refusal is not None
    assert refused > 290


def opened(path):
    with safe_open(path, framework="pt") as file:
        sealed = json.loads(file.metadata()["btcompress-training-state"])
    return sealed["record"], load_file(path)


def forge(path, record, tensors):
    """Write a state with a digest that is right, whatever it says."""
    text = msgspec.json.encode(record)
    sealed = msgspec.json.encode({"sha256": states._digest(text, tensors), "record": msgspec.Raw(text)})
    save_file(tensors, path, metadata={"btcompress-training-state": sealed.decode()})


def row(**changes):
    return lambda record, tensors: record["rows"][0].update(changes)


def record(**changes):
    return lambda record, tensors: record.update(changes)


def tensor(name, value):
    def change(record, tensors):
        tensors[name] = value if isinstance(value, torch.Tensor) else value(tensors[name])

    return change


FIRST = "network.layer.weight_hh_l0"
FORGERIES = {
    "another version": record(version=1),
    "no rows": lambda record, tensors: record.pop("rows"),
    "rows that are no list": record(rows={}),
    "an epoch beyond the last": lambda record, tensors: record.update(
        rows=[{**record["rows"][0], "epoch": n} for n in (1, 2, 3)]
    ),
    "an epoch out of order": row(epoch=2),
    "other epochs": row(epochs=7),
    "a metric that is text": row(metric="0.5"),
    "a metric that is null": row(metric=None),
    "a row without a loss": lambda record, tensors: record["rows"][0].pop("loss"),
    "a start that is null": record(before=None),
    "a scaler of zeros": record(scaler={"scale": 0.0, "growth": 0}),
    "a scaler of other fields": record(scaler={"scale": 1.0, "growth": 0, "more": 1}),
    "more fields": record(more=1),
    "no identity": record(identity={}),
    "an identity of its own": record(identity={"epochs": 2}),
    "a missing tensor": lambda record, tensors: tensors.pop(FIRST),
    "a tensor too many": tensor("network.more", torch.zeros(1)),
    "a tensor of no part": tensor("else", torch.zeros(1)),
    "another shape": tensor(FIRST, lambda value: value.reshape(-1).clone()),
    "another dtype": tensor(FIRST, lambda value: value.double()),
    "a best of another shape": tensor(FIRST.replace("network", "best"), lambda value: value[:1].clone()),
    "half an optimizer": lambda record, tensors: tensors.pop("optimizer.0.exp_avg"),
    "an optimizer of more parameters": lambda record, tensors: tensors.update(
        {f"optimizer.99.{name}": torch.zeros(()) for name in ("step", "exp_avg", "exp_avg_sq")}
    ),
    "an optimizer of no parameters": tensor("optimizer.x.step", torch.zeros(())),
    "a mean of another shape": tensor("optimizer.0.exp_avg", torch.zeros(3)),
    "steps not taken": tensor("optimizer.0.step", torch.tensor(1e6)),
    "steps below zero": tensor("optimizer.0.step", torch.tensor(-1.0)),
    "steps that are no number": tensor("optimizer.0.step", torch.tensor(float("nan"))),
    "steps of integers": tensor("optimizer.0.step", torch.tensor(1)),
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES)
def test_forged_state_that_does_not_fit_the_training_is_called_damaged(change, folder):
    told, tensors = opened(folder / "cut.state")
    change(told, tensors)
    forge(folder / "cut.state", told, tensors)
    assert DAMAGED.search(refusal_of(folder) or "")


def test_forging_without_a_change_goes_on(folder):
    forge(folder / "cut.state", *opened(folder / "cut.state"))
    assert refusal_of(folder) is None


def test_state_nested_without_end_is_called_damaged(folder):
    _, tensors = opened(folder / "cut.state")
    text = '{"sha256":"","record":' + "[" * 200_000 + "]" * 200_000 + "}"
    save_file(tensors, folder / "cut.state", metadata={"btcompress-training-state": text})
    assert DAMAGED.search(refusal_of(folder) or "")


def test_damaged_state_gives_way_to_force(folder):
    (folder / "cut.state").write_bytes((folder / "cut.state").read_bytes()[:400])
    go_on(folder, resume=False, force=True)
    assert (folder / "cut").read_bytes() == (folder / "whole").read_bytes()
    assert not (folder / "cut.state").exists()


@pytest.mark.parametrize("kind", ["file", "weights", "folder", "broken link"])
@pytest.mark.parametrize("ways", [{}, {"force": True}, {"resume": True}, {"force": True, "resume": True}], ids=str)
def test_what_lies_in_the_place_of_the_state_and_is_not_ours_is_never_touched(kind, ways, folder):
    place = folder / "cut.state"
    place.unlink()
    if kind == "folder":
        place.mkdir()
        (place / "state.pt").write_text("precious")
    elif kind == "broken link":
        place.symlink_to(folder / "nowhere")
    elif kind == "weights":
        save_file({"precious": torch.ones(1)}, place, metadata={"btcompress": "{}"})
    else:
        place.write_text("precious")
    before = sorted((path.name, path.is_file() and path.read_bytes()) for path in folder.rglob("*"))
    with pytest.raises(OutputError, match=r"cut\.state is in the way.*never removed"):
        go_on(folder, **{"resume": False, **ways})
    assert sorted((path.name, path.is_file() and path.read_bytes()) for path in folder.rglob("*")) == before


def test_nothing_to_resume_is_said(folder):
    (folder / "cut.state").unlink()
    with pytest.raises(BTCompressError, match=r"nothing to resume: .*cut\.state does not exist"):
        go_on(folder)


def test_state_of_another_training_is_refused_with_the_setting_in_short(folder):
    told, tensors = opened(folder / "cut.state")
    told["identity"]["freeze"] = ["x" * 100_000]
    forge(folder / "cut.state", told, tensors)
    refusal = refusal_of(folder)
    assert re.search(r"had freeze \['x+\.\.\., and now it is \[\]\. Resume", refusal)
    assert len(refusal) < 400


def test_training_killed_before_its_state_was_removed_is_finished_by_resume(folder, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(states.StateFile, "remove", stop)
        with pytest.raises(StoppedError):
            go_on(folder)
    assert (folder / "cut").read_bytes() == (folder / "whole").read_bytes()
    with pytest.raises(OutputError, match=r"lies in .*cut\.state, beside .*cut itself.*--resume.*--force.*both"):
        go_on(folder, resume=False)
    shutil.copytree(folder, folder / "forced")
    for place, ways in ((folder, {"resume": True}), (folder / "forced", {"resume": False, "force": True})):
        go_on(place, **ways)
        assert (place / "cut").read_bytes() == (folder / "whole").read_bytes()
        assert not (place / "cut.state").exists()


def test_complete_training_killed_before_its_result_is_finished_by_resume(folder, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("btcompress.finetune.finetuning.write", stop)
        with pytest.raises(StoppedError):
            go_on(folder)
    assert not (folder / "cut").exists()
    shutil.copytree(folder, folder / "taken")
    (folder / "taken" / "cut").write_text("precious")
    with pytest.raises(OutputError, match=r"already exists, and is another file than would be written"):
        go_on(folder / "taken")
    assert (folder / "taken" / "cut").read_text() == "precious"
    for place, ways in ((folder, {}), (folder / "taken", {"force": True})):
        go_on(place, **ways)
        assert (place / "cut").read_bytes() == (folder / "whole").read_bytes()
        assert not (place / "cut.state").exists()


def test_what_came_to_lie_in_the_place_of_the_result_is_refused_before_training_goes_on(folder):
    (folder / "cut").write_text("precious")
    epochs = []
    with pytest.raises(OutputError, match=r"already exists.*not what lay there.*--force beside --resume"):
        go_on(folder, on_epoch=epochs.append)
    assert (folder / "cut").read_text() == "precious"
    assert not epochs
    go_on(folder, force=True)
    assert (folder / "cut").read_bytes() == (folder / "whole").read_bytes()


def test_training_begun_with_force_is_resumed_without_and_replaces_what_lay_there_alone(folder):
    (folder / "cut").write_text("old")
    with pytest.raises(StoppedError):
        go_on(folder, resume=False, force=True, on_epoch=stop)
    (folder / "cut").write_text("new and precious")
    with pytest.raises(OutputError, match="not what lay there"):
        go_on(folder)
    (folder / "cut").write_text("old")
    go_on(folder)
    assert (folder / "cut").read_bytes() == (folder / "whole").read_bytes()


def test_too_little_room_on_the_disk_is_told_before_training(folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    for name in ("cut.state", "cut.metrics.jsonl"):
        (folder / name).unlink()
    with pytest.raises(OutputError, match=r"take up to .* of disk, but 1\.0 kB are free"):
        go_on(folder, resume=False, on_epoch=stop)
    assert not (folder / "cut.state").exists()
