"""Names of files whose bytes are not UTF-8, which Python holds as surrogates."""

import json
import os
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from btcompress import cli

ODD = os.fsdecode(b"m\xff")


def save_safetensors(state_dict, file):
    file.write(safetensors.torch.save(state_dict))


SAVES = {
    "archive": torch.save,
    "legacy": partial(torch.save, _use_new_zipfile_serialization=False),
    "safetensors": save_safetensors,
}


@pytest.fixture(params=SAVES)
def folder(tmp_path, request):
    """A folder with a model and data under such names, and the model under a plain one."""
    state_dict = nn.ModuleDict({"lstm": nn.LSTM(16, 8)}).state_dict()
    try:
        with (tmp_path / f"{ODD}.npy").open("wb") as file:
            np.save(file, np.random.default_rng(0).normal(size=(12, 5, 16)).astype(np.float32))
    except OSError:
        pytest.skip("this file system takes no such names")
    torch.save(state_dict, tmp_path / "plain.pt")
    with (tmp_path / f"{ODD}.pt").open("wb") as file:
        SAVES[request.param](state_dict, file)
    return tmp_path


def header(path):
    """The description in a result's header, as any reader of JSON takes it."""
    data = path.read_bytes()
    text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")].decode("utf-8"))["__metadata__"]["btcompress"]
    return json.loads(text)


def test_the_default_result_keeps_the_bytes_of_the_name_and_records_valid_text(folder, run):
    out, _ = run("factorize", folder / f"{ODD}.pt")
    assert out.endswith("/m\\xff.bt.safetensors\n")
    assert header(folder / f"{ODD}.bt.safetensors")["source"]["name"] == "m\\xff.pt"
    told = run("factorize", folder / f"{ODD}.pt", "--force", "--json")[0]
    assert not any("\ud800" <= each <= "\udfff" for each in str(json.loads(told)))


def test_all_that_is_written_and_read_beside_a_model_may_have_such_a_name(folder, run):
    plan, data, result = (folder / f"{ODD}.{ending}" for ending in ("yaml", "npy", "safetensors"))
    run("plan", folder / f"{ODD}.pt", "--max-error", "0.9", "--save-plan", plan)
    assert "name: m\\xff.pt" in plan.read_text(encoding="utf-8")
    run("factorize", folder / "plain.pt", "--plan", plan, "-o", result)
    assert header(result)["source"]["name"] == "plain.pt"
    calibrate = ("--calibration", data, "--calibration-epochs", "1")
    run("factorize", folder / "plain.pt", "--tucker-rank", "2", *calibrate)
    run("finetune", folder / "plain.bt.safetensors", "--teacher", folder / "plain.pt", "--data", data, "--epochs", "1",
        "-o", folder / f"{ODD}.tuned")  # fmt: skip
    assert header(folder / f"{ODD}.tuned")["history"][-1]["step"] == "finetune"
    run("report", folder / f"{ODD}.tuned", "--against", folder / f"{ODD}.pt")


@pytest.mark.parametrize("option", ["--plan", "--calibration"])
def test_files_of_such_names_that_are_missing_are_one_line(option, folder, run):
    _, err = run("factorize", folder / "plain.pt", option, folder / os.fsdecode(b"none\xff.npy"), code=2)
    assert err.startswith("Error: ")
    assert "none\\xff.npy" in err
    assert err.count("\n") == 1


def test_a_line_break_in_a_name_adds_nothing_to_a_plan(folder, run):
    model = folder / "a\nversion: 7\nb.pt"
    (folder / "plain.pt").rename(model)
    run("plan", model, "--max-error", "0.9", "--save-plan", folder / "p.yaml")
    run("factorize", model, "--plan", folder / "p.yaml", "-o", folder / "result")
    assert header(folder / "result")["source"]["name"] == model.name


def test_the_default_result_of_a_folder_is_named_after_its_checkpoint(folder):
    assert cli.factorizing._beside(folder, "plain.pt") == folder / "plain.bt.safetensors"
