"""Dense checkpoints for the code that the compressed ones were trained with."""

import os
import resource
import signal
from collections import OrderedDict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_model
from torch import nn

import btcompress
from btcompress.checkpoint import read, tensors
from btcompress.errors import CheckpointError, MemoryLimitError, OutputError
from btcompress.export import dense, export_dense
from btcompress.memory import limited

SETTINGS = {"cp_rank": 1, "tucker_rank": 3, "matrices": ("input", "recurrent")}


class Tagger(nn.Module):
    """A model as users have it: an embedding tied to its output, batch norm, two layers, both directions."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embedding = nn.Embedding(7, 6, dtype=dtype)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True, dtype=dtype)
        self.norm = nn.BatchNorm1d(10, dtype=dtype)
        self.middle = nn.Linear(10, 6, dtype=dtype)
        self.output = nn.Linear(6, 7, bias=False, dtype=dtype)
        self.output.weight = self.embedding.weight

    def forward(self, words):
        y, _ = self.lstm(self.embedding(words))
        return self.output(torch.tanh(self.middle(self.norm(y.mT).mT)))


def saved(tmp_path, value, name="model.pt"):
    torch.save(value, tmp_path / name)
    return tmp_path / name


def exported(tmp_path, value, name="dense.pt", **settings):
    """What is loaded of the dense checkpoint of a checkpoint's result, and the result."""
    source = saved(tmp_path, value)
    btcompress.save(btcompress.factorize(source, **{**SETTINGS, **settings}), tmp_path / "model.bt.safetensors")
    done = export_dense(tmp_path / "model.bt.safetensors", tmp_path / name)
    assert done.path == tmp_path / name
    assert done.n_bytes == (tmp_path / name).stat().st_size
    result = btcompress.load(tmp_path / "model.bt.safetensors")
    if name.endswith(".pt"):
        return torch.load(tmp_path / name, weights_only=True), result, done
    return load_file(tmp_path / name), result, done


# The original code


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_original_code_loads_it_and_computes_what_the_block_terms_do(tmp_path, dtype):
    checkpoint = {"state_dict": Tagger(dtype).state_dict(), "epoch": 3}
    loaded, result, done = exported(tmp_path, checkpoint)
    model, applied = Tagger(dtype), btcompress.apply(Tagger(dtype), result)
    model.load_state_dict(loaded["state_dict"], strict=True)
    assert loaded["epoch"] == 3
    assert done.notices == ()
    assert list(loaded["state_dict"]) == list(checkpoint["state_dict"])
    for key, tensor in checkpoint["state_dict"].items():
        found = loaded["state_dict"][key]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor) == (key not in result.matrices)
    words = torch.arange(14).reshape(2, 7) % 7
    outputs, expected = model.eval().double()(words), applied.eval().double()(words)
    # The applied model has cores and factors, whose product is rounded to the dtype in the dense one.
    torch.testing.assert_close(outputs, expected, rtol=0, atol=50 * torch.finfo(dtype).eps)


def test_tied_tensors_are_one_storage(tmp_path):
    model = Tagger()
    state = {**model.state_dict(), "again.weight_ih_l0": model.lstm.weight_ih_l0.detach()}
    loaded, result, _ = exported(tmp_path, {"state_dict": state})
    found = loaded["state_dict"]
    assert found["output.weight"].data_ptr() == found["embedding.weight"].data_ptr()
    assert "lstm.weight_ih_l0" in result.matrices
    n_bytes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found.values()}
    assert sum(n_bytes.values()) == sum(t.nbytes for key, t in found.items() if key not in ("output.weight",))


def test_a_factorized_matrix_that_was_tied_is_one_storage_again(tmp_path):
    lstm = nn.LSTM(6, 5)
    state = {f"{name}.{key}": value for name in ("encoder", "copy") for key, value in lstm.state_dict().items()}
    loaded, result, _ = exported(tmp_path, {"net": state})
    assert {"encoder.weight_ih_l0", "copy.weight_ih_l0"} <= result.matrices.keys()
    for key in lstm.state_dict():
        assert loaded["net"][f"encoder.{key}"].data_ptr() == loaded["net"][f"copy.{key}"].data_ptr()


def test_what_is_tied_no_longer_is_said(tmp_path):
    lstm = nn.LSTM(6, 5)
    state = {f"{name}.{key}": value for name in ("encoder", "copy") for key, value in lstm.state_dict().items()}
    loaded, _, done = exported(tmp_path, state, layers=["encoder"])
    assert done.notices == (
        "Tied in the dense checkpoint, and different tensors by now: copy.weight_hh_l0, copy.weight_ih_l0.",
    )
    assert loaded["copy.weight_ih_l0"].data_ptr() != loaded["encoder.weight_ih_l0"].data_ptr()
    assert torch.equal(loaded["copy.weight_ih_l0"], lstm.weight_ih_l0)


def lightning():
    """A checkpoint as PyTorch Lightning writes it."""
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(1, 3, dtype=torch.int64)).sum().backward()
    optimizer.step()
    return {
        "epoch": 4,
        "global_step": 1000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict((f"model.{key}", value) for key, value in model.state_dict().items()),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 5, "done": 4}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'loss', 'mode': 'min'}": {
                "monitor": "loss",
                "best_model_score": torch.tensor(0.25),
                "best_k_models": {"checkpoints/a.ckpt": torch.tensor(0.25)},
                "best_model_path": "checkpoints/a.ckpt",
                "kth_value": torch.tensor(0.25),
            },
            "EarlyStopping": {"wait_count": 0, "best_score": torch.tensor(float("inf")), "patience": 3},
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"gamma": 0.5, "milestones": {3: 1}, "_last_lr": [1e-3], "last_epoch": 4}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"hidden": 5, "layers": 2, "lr": 1e-3, "sizes": (1, 2), "words": ["a", "b"], "tag": None},
    }


def test_a_checkpoint_of_a_trainer_has_all_that_was_plain(tmp_path):
    original = lightning()
    loaded, result, done = exported(tmp_path, original)
    assert all(key.startswith("model.") for key in result.keys)
    assert done.notices == ()
    for key in ("epoch", "global_step", "pytorch-lightning_version", "loops", "lr_schedulers", "hyper_parameters"):
        assert loaded[key] == original[key]
    assert list(loaded) == [key for key in original if key != "optimizer_states"]
    (name, stopping) = original["callbacks"]
    assert loaded["callbacks"][name] == original["callbacks"][name]
    assert loaded["callbacks"][stopping] == {"wait_count": 0, "patience": 3}
    said = " ".join(result.notices)
    assert "optimizer states: optimizer_states.0" in said
    assert f"beside the state dicts: callbacks.{stopping}.best_score" in said


def test_several_state_dicts_come_back_at_their_places(tmp_path):
    encoder, decoder = nn.LSTM(6, 5).state_dict(), nn.LSTM(5, 4).state_dict()
    loaded, _, _ = exported(tmp_path, {"nets": [encoder, {"net": decoder, "steps": 3}]})
    assert list(loaded) == ["nets"]
    assert list(loaded["nets"][0]) == list(encoder)
    assert list(loaded["nets"][1]["net"]) == list(decoder)
    assert loaded["nets"][1]["steps"] == 3


def test_a_module_that_was_pickled_whole_becomes_its_state_dict(tmp_path):
    loaded, _, _ = exported(tmp_path, Tagger())
    Tagger().load_state_dict(loaded, strict=True)


def test_finetuned_and_rounded_results_keep_all_of_it(tmp_path):
    source = saved(tmp_path, {"state_dict": Tagger().state_dict(), "epoch": 3})
    compressed = btcompress.factorize(source, matrices=("input", "recurrent"), bits=4)
    export_dense(compressed, tmp_path / "dense.pt")
    loaded = torch.load(tmp_path / "dense.pt", weights_only=True)
    assert loaded["epoch"] == 3
    assert all(torch.equal(loaded["state_dict"][key], compressed.tensors[key]) for key in compressed.keys)


# Safetensors


def test_a_safetensors_file_holds_one_plain_state_dict_and_says_what_it_lacks(tmp_path):
    checkpoint = {"state_dict": Tagger().state_dict(), "epoch": 3}
    loaded, result, done = exported(tmp_path, checkpoint, "dense.safetensors")
    assert sorted(loaded) == sorted(checkpoint["state_dict"])
    Tagger().load_state_dict(loaded, strict=True)
    assert all(torch.equal(loaded[key], tensor) for key, tensor in btcompress.to_dense(result).items())
    assert done.notices == (
        "Left out, as a .safetensors file holds tensors alone: epoch.",
        "Written under each of their names, tied tensors: output.weight.",
        "Written as one plain state dict, what lay in containers: state_dict.",
    )
    with safe_open(tmp_path / "dense.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_safetensors_file_is_one_again_with_the_names_in_its_header(tmp_path):
    model = Tagger()
    save_model(model, tmp_path / "model.safetensors", {"format": "pt", "labels": "a b"})
    compressed = btcompress.factorize(tmp_path / "model.safetensors", **SETTINGS)
    btcompress.save(compressed, tmp_path / "a.safetensors")
    done = export_dense(tmp_path / "a.safetensors", tmp_path / "dense.safetensors")
    assert done.notices == ()
    with (
        safe_open(tmp_path / "dense.safetensors", "pt") as file,
        safe_open(tmp_path / "model.safetensors", "pt") as old,
    ):
        assert file.metadata() == old.metadata()
        assert sorted(file.keys()) == sorted(old.keys())
    load_model(Tagger(), tmp_path / "dense.safetensors", strict=True)
    done = export_dense(tmp_path / "a.safetensors", tmp_path / "dense.pt")
    (removed,) = model.state_dict().keys() - compressed.keys
    assert done.notices == (f"Left out, as a .pt file has no header: {', '.join(sorted(['labels', removed]))}.",)


def test_several_state_dicts_have_their_paths_before_their_keys(tmp_path):
    encoder, decoder = nn.LSTM(6, 5).state_dict(), nn.LSTM(5, 4).state_dict()
    loaded, _, done = exported(tmp_path, {"a": encoder, "b": decoder}, "dense.safetensors")
    assert sorted(loaded) == sorted([*(f"a.{key}" for key in encoder), *(f"b.{key}" for key in decoder)])
    assert done.notices == ("Written as one plain state dict, what lay in containers: a, b.",)


# Files


@pytest.mark.parametrize("name", ["dense.pt", "dense.safetensors"])
def test_the_same_result_gives_the_same_bytes(tmp_path, name):
    checkpoint = {**lightning(), "text": "loss", "other": "".join(["lo", "ss"])}
    exported(tmp_path, checkpoint, name)
    first = (tmp_path / name).read_bytes()
    in_memory = btcompress.factorize(saved(tmp_path, checkpoint), **SETTINGS)
    (tmp_path / "else").mkdir()
    export_dense(in_memory, tmp_path / "else" / f"other{name}")
    assert (tmp_path / "else" / f"other{name}").read_bytes() == first


@pytest.mark.parametrize("name", ["dense.pth", "dense", "dense.pt.zip", "dense.PT"])
def test_other_endings_are_refused_by_name(tmp_path, name):
    with pytest.raises(OutputError, match=r"\.pt or \.safetensors"):
        export_dense(btcompress.factorize(nn.LSTM(6, 5).state_dict(), **SETTINGS), tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_is_replaced_by_force_alone_and_an_input_never(tmp_path, suffix):
    name = f"dense{suffix}"
    _, _, _ = exported(tmp_path, {"state_dict": Tagger().state_dict()}, name)
    result = tmp_path / "model.bt.safetensors"
    before = (tmp_path / name).read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        export_dense(result, tmp_path / name)
    (tmp_path / name).write_bytes(b"x")
    export_dense(result, tmp_path / name, force=True)
    assert (tmp_path / name).read_bytes() == before
    os.link(result, tmp_path / f"link{suffix}")
    with pytest.raises(OutputError, match="never overwritten"):
        export_dense(result, tmp_path / f"link{suffix}", force=True)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_disk_that_is_full_leaves_no_file(tmp_path, suffix):
    compressed = btcompress.factorize(nn.LSTM(60, 50).state_dict(), **SETTINGS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            export_dense(compressed, tmp_path / f"dense{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: {**content, "epoch": 4},
        lambda content: {**content, "epoch": 3.0},
        lambda content: {"epoch": 3},
        lambda content: {**content, "more": None},
        lambda content: {"epoch": 3, "state_dict": list(content["state_dict"].values())},
        lambda content: {"epoch": 3, "state_dict": {key: t + (t != 0) for key, t in content["state_dict"].items()}},
        lambda content: {"epoch": 3, "state_dict": {key: t.clone() for key, t in content["state_dict"].items()}},
    ],
)
def test_what_comes_back_otherwise_is_found_and_replaces_nothing(tmp_path, monkeypatch, damage):
    checkpoint = {"epoch": 3, "state_dict": Tagger().state_dict()}
    compressed = btcompress.factorize(saved(tmp_path, checkpoint), **SETTINGS)
    (tmp_path / "dense.pt").write_bytes(b"before")
    monkeypatch.setattr(dense, "_save", lambda content, path: torch.save(damage(content), path))
    with pytest.raises(OutputError, match="came back from the disk"):
        export_dense(compressed, tmp_path / "dense.pt", force=True)
    monkeypatch.setattr(dense, "_save", lambda _, path: path.write_bytes(b"PK\x03\x04 cut off"))
    with pytest.raises(OutputError, match="all of it came back"):
        export_dense(compressed, tmp_path / "dense.pt", force=True)
    assert (tmp_path / "dense.pt").read_bytes() == b"before"


@pytest.mark.parametrize("name", ["dense.pt", "dense.safetensors"])
def test_a_dense_form_that_no_memory_holds_is_refused_before_it_is_formed(tmp_path, name):
    compressed = btcompress.factorize(nn.LSTM(200, 50).state_dict(), **SETTINGS)
    with limited(100_000), pytest.raises(MemoryLimitError, match="dense form"):
        export_dense(compressed, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_views_of_one_storage_are_saved_alone(tmp_path):
    whole = torch.randn(100_000)
    state = {**nn.LSTM(6, 5).state_dict(), "part": whole[10:20], "turned": whole[:6].reshape(2, 3).T}
    done = export_dense(btcompress.factorize(state, **SETTINGS), tmp_path / "dense.pt")
    assert done.n_bytes < 20_000
    loaded = torch.load(tmp_path / "dense.pt", weights_only=True)
    assert torch.equal(loaded["part"], state["part"])
    assert torch.equal(loaded["turned"], state["turned"])


@pytest.mark.parametrize("dtype", sorted(tensors.HELD_DTYPES, key=str))
def test_every_dtype_that_a_result_holds_is_written(tmp_path, dtype):
    state = {**nn.LSTM(6, 5).state_dict(), "odd": torch.ones(3).to(dtype), "none": torch.empty(0, 2).to(dtype)}
    export_dense(btcompress.factorize(state, **SETTINGS), tmp_path / "dense.pt")
    loaded = torch.load(tmp_path / "dense.pt", weights_only=True)
    assert loaded["odd"].dtype == loaded["none"].dtype == dtype
    assert tensors.same_bits(loaded["odd"], state["odd"])


def test_a_file_that_is_no_result_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a compressed checkpoint"):
        export_dense(saved(tmp_path, Tagger().state_dict()), tmp_path / "dense.pt")


def test_it_reads_as_the_checkpoint_that_was_compressed(tmp_path):
    checkpoint = {"state_dict": Tagger().state_dict(), "epoch": 3, "best": torch.tensor(0.5)}
    exported(tmp_path, checkpoint)
    old, new = read(tmp_path / "model.pt"), read(tmp_path / "dense.pt")
    assert (new.layout, new.notices, list(new.tensors)) == (old.layout, old.notices, list(old.tensors))
