"""Result files: what is written is read again, whole or not at all, and trusted with nothing."""

import json
import math
import os
import re
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import btcompress
from btcompress.blockterm import BlockTerm
from btcompress.checkpoint import (
    Checkpoint,
    CompressedCheckpoint,
    CompressedMatrix,
    claimed,
    find_recurrent,
    from_state_dict,
    is_compressed,
    read,
    read_compressed,
    write,
    writer,
)
from btcompress.errors import CheckpointError, OutputError
from btcompress.shapes import BlockTermShape, MatrixShape

W = "lstm.weight_ih_l0"

#: Matrices of 12 rows (4 gates of 3) and 10 columns, with unequal ranks throughout.
SHAPES = {
    "fused": MatrixShape(BlockTermShape((2, 5), (4, 3), (3, 2), n_blocks=3, n_gates=4)),
    "fused, padded columns": MatrixShape(BlockTermShape((3, 4), (4, 3), (2, 3), 2, in_size=10, n_gates=4)),
    "fused, padded rows and columns": MatrixShape(
        BlockTermShape((3, 2, 2), (8, 2, 1), (2, 3, 1), 2, in_size=10, out_size=12, n_gates=4)
    ),
    "fused, order one": MatrixShape(BlockTermShape((10,), (12,), (4,), n_gates=4)),
    "low rank": MatrixShape(BlockTermShape.low_rank(12, 10, 3, n_gates=4)),
    "separate, low rank": MatrixShape(BlockTermShape.low_rank(3, 10, 2), "separate"),
    "Kronecker products, padded": MatrixShape(
        BlockTermShape((3, 4), (4, 3), (5, 5), in_size=10, n_gates=4, core="identity")
    ),
    "ordered rows and columns, padded": MatrixShape(
        BlockTermShape(
            (3, 2, 2), (8, 2, 1), (2, 3, 1), 2, in_size=10, out_size=12, n_gates=4, row_order=True, column_order=True
        )
    ),
    "ordered rows, Kronecker products": MatrixShape(
        BlockTermShape((2, 5), (4, 3), (5, 5), n_gates=4, core="identity", row_order=True)
    ),
    "separate, ordered": MatrixShape(
        BlockTermShape((5, 2), (1, 3), (2, 3), 2, row_order=True, column_order=True), "separate"
    ),
    "separate": MatrixShape(BlockTermShape((5, 2), (1, 3), (2, 3), n_blocks=2), "separate"),
    "separate, padded": MatrixShape(BlockTermShape((3, 4), (2, 2), (3, 2), 2, in_size=10, out_size=3), "separate"),
}


def block_terms(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    part = shape.part
    return tuple(
        BlockTerm.of(
            part,
            [draw(size) for size in part.tensor_shapes],
            [torch.randperm(size, generator=generator).int() for size in part.order_sizes.values()],
        )
        for _ in range(shape.n_parts)
    )


def dense(dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    shapes = {W: (12, 10), "lstm.weight_hh_l0": (12, 3), "head.weight": (2, 3), "head.bias": (2,)}
    state = OrderedDict(
        (k, torch.randn(size, dtype=torch.float64, generator=generator).to(dtype)) for k, size in shapes.items()
    )
    state["a.count"] = torch.tensor(3)
    state["nothing"] = torch.empty(0, 4)
    return state


def compress(case="fused", state=None, dtype=torch.float64):
    shape = SHAPES[case]
    checkpoint = from_state_dict(dense(dtype) if state is None else state, "model")
    matrix = CompressedMatrix(shape, dtype, weight_error=0.25, svd_rank=1, svd_error=0.5)
    parts = block_terms(shape, dtype=dtype)
    return CompressedCheckpoint.of(checkpoint, {W: matrix}, {W: parts}, [{"step": "factorize", "seed": 3}], ["said"])


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "model.bt.safetensors"
    write(compress(), path)
    return path


# Values


@pytest.mark.parametrize("case", SHAPES)
def test_the_dense_matrix_is_that_of_its_parts_stacked(case):
    compressed = compress(case)
    expected = torch.cat([part.to_dense() for part in block_terms(SHAPES[case])])
    state = compressed.dense_state_dict()
    assert list(state) == list(dense())
    torch.testing.assert_close(state[W], expected, rtol=1e-12, atol=1e-12)
    assert_equal({k: t for k, t in state.items() if k != W}, {k: t for k, t in dense().items() if k != W})


def test_the_dense_matrix_is_summed_in_float64_and_rounded_once():
    compressed = compress(dtype=torch.bfloat16)
    parts = [part.to(torch.float64) for part in compressed.parts(W)]
    assert torch.equal(compressed.dense_state_dict()[W], torch.cat([part.to_dense() for part in parts]).bfloat16())


@pytest.mark.parametrize("case", SHAPES)
def test_parameters_are_counted_on_the_tensors(case):
    compressed = compress(case)
    others = sum(tensor.numel() for key, tensor in dense().items() if key != W)
    assert compressed.n_params == others + SHAPES[case].n_params
    assert compressed.source.n_params == others + 120


def test_the_outline_has_the_dense_shapes_without_values():
    outline = compress("separate").outline()
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in outline.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in dense().items()
    }
    assert list(outline) == list(dense())
    assert outline[W].is_meta
    biases = {f"lstm.bias_{side}_l0": torch.ones(12) for side in ("ih", "hh")}
    (entry,) = find_recurrent({**outline, **biases})
    assert entry.input_keys == (W,)


def test_a_step_adds_to_the_history_and_replaces_only_the_tensors_given():
    before = compress()
    after = before.with_step({"step": "train"}, {"head.bias": torch.zeros(2, dtype=torch.float64)})
    assert [step["step"] for step in after.history] == ["factorize", "train"]
    assert len(before.history) == 1
    assert torch.equal(after.tensors["head.bias"], torch.zeros(2, dtype=torch.float64))
    assert not torch.equal(before.tensors["head.bias"], after.tensors["head.bias"])
    assert after.tensors["head.weight"] is before.tensors["head.weight"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{W}.cores": None}, "cores is missing"),
        ({"head.bias": None}, "head.bias is missing"),
        ({"more": torch.ones(2)}, "more is not accounted for"),
        ({W: torch.ones(12, 10)}, "not accounted for"),
        ({f"{W}.cores": torch.ones(3, 2, 3)}, "shape (3, 2, 3)"),
        ({f"{W}.factors.1": torch.ones(3, 5, 3, 2, dtype=torch.int32)}, "torch.int32"),
    ],
)
def test_tensors_that_do_not_fit_their_matrices_are_refused(change, words):
    compressed = compress()
    tensors = {name: tensor for name, tensor in {**compressed.tensors, **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=re.escape(words)):
        replace(compressed, tensors=tensors)


def test_names_that_would_clash_are_refused():
    with pytest.raises(CheckpointError, match=r"two tensors would be named lstm\.weight_ih_l0\.cores"):
        compress(state={**dense(), f"{W}.cores": torch.ones(2)})


def test_a_matrix_that_is_no_key_is_refused():
    with pytest.raises(CheckpointError, match="not a key"):
        replace(compress(), keys=("head.weight",))


# Round trip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", SHAPES)
def test_what_is_written_is_read_again(tmp_path, case, dtype):
    compressed = compress(case, dtype=dtype)
    write(compressed, tmp_path / "out")
    found = read_compressed(str(tmp_path / "out"))
    assert found.tensors.keys() == compressed.tensors.keys()
    assert_equal({name: found.tensors[name] for name in compressed.tensors}, compressed.tensors)
    for name in ("matrices", "keys", "source", "history", "notices"):
        assert getattr(found, name) == getattr(compressed, name)
    assert_equal(found.dense_state_dict(), compressed.dense_state_dict())
    assert found.n_params == compressed.n_params
    assert found.files == ((tmp_path / "out").resolve(),)


def test_the_same_value_gives_the_same_bytes(tmp_path):
    write(compress(), tmp_path / "a")
    write(compress(), tmp_path / "b")
    write(read_compressed(tmp_path / "a"), tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_the_header_has_one_key_of_sorted_json(written):
    with safe_open(written, framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["btcompress"]
    text = metadata["btcompress"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path):
    state = dense()
    state["tied.weight"] = state["a.first"] = state["head.weight"]
    compressed = compress(state=state)
    write(compressed, tmp_path / "out")
    stored = load_file(tmp_path / "out")
    assert {"head.weight", "tied.weight", "a.first"} & stored.keys() == {"head.weight"}
    found = read_compressed(tmp_path / "out")
    assert found.tensors["tied.weight"].data_ptr() == found.tensors["head.weight"].data_ptr()
    assert found.n_params == compressed.n_params == compress().n_params
    assert_equal(found.dense_state_dict(), compressed.dense_state_dict())
    write(found, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "out").read_bytes()


def test_one_block_term_used_twice_is_stored_once(tmp_path):
    shape = SHAPES["separate"]
    parts = block_terms(shape)
    checkpoint = from_state_dict({**dense(), "other.weight_ih": torch.ones(12, 10, dtype=torch.float64)})
    matrix = CompressedMatrix(shape, torch.float64, 0.25, 1, 0.5)
    both = (W, "other.weight_ih")
    compressed = CompressedCheckpoint.of(checkpoint, dict.fromkeys(both, matrix), dict.fromkeys(both, parts))
    write(compressed, tmp_path / "out")
    assert f"{W}.gate_i.cores" in load_file(tmp_path / "out")
    assert "other.weight_ih.gate_i.cores" not in load_file(tmp_path / "out")
    assert_equal(read_compressed(tmp_path / "out").dense_state_dict(), compressed.dense_state_dict())


def test_views_of_large_memory_are_written_alone(tmp_path):
    large = torch.arange(1_000_000, dtype=torch.float64)
    state = dense()
    state["slice"] = large[5:9]
    state["overlap"] = large[7:12]
    state["strided"] = large[::100_000]
    state["transposed"] = large[:6].reshape(2, 3).T
    state["half of storage"] = large[500_000:500_006]
    write(compress(state=state), tmp_path / "out")
    assert (tmp_path / "out").stat().st_size < 10_000
    found = read_compressed(tmp_path / "out").tensors
    for name in ("slice", "overlap", "strided", "transposed", "half of storage"):
        assert torch.equal(found[name], state[name])


def test_parameters_and_tensors_with_gradients_are_written_as_values(tmp_path):
    compressed = compress()
    trained = {name: torch.nn.Parameter(tensor) for name, tensor in compressed.tensors.items() if "cores" in name}
    write(compressed.with_step({"step": "train"}, trained), tmp_path / "out")
    assert torch.equal(read_compressed(tmp_path / "out").tensors[f"{W}.cores"], compressed.tensors[f"{W}.cores"])


def test_tensors_that_the_file_cannot_hold_are_refused_and_nothing_is_left(tmp_path):
    compressed = compress().with_step({}, {"head.bias": torch.ones(2, dtype=torch.complex128)})
    with pytest.raises(CheckpointError, match=r"head\.bias has dtype complex128"):
        write(compressed, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# The document


def document_reader():
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    return names["read_dense"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("case", SHAPES)
def test_the_reader_in_the_document_gives_the_dense_state_dict(tmp_path, case, dtype):
    state = dense(dtype)
    state["tied"] = state["head.weight"]
    compressed = compress(case, state, dtype)
    write(compressed, tmp_path / "out")
    found = document_reader()(tmp_path / "out")
    expected = compressed.dense_state_dict()
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        # Both sum in float64, in different orders, and round once.
        rounding, summing = (torch.finfo(dtype).eps, 1e-12) if key == W else (0.0, 0.0)
        np.testing.assert_allclose(found[key], tensor.numpy(), rtol=rounding, atol=summing)
        assert found[key].dtype == tensor.numpy().dtype


def test_the_reader_in_the_document_reads_an_order_that_several_names_stand_for(tmp_path):
    compressed = compress("separate, ordered")
    order = compressed.tensors[f"{W}.gate_i.row_order"]
    shared = {f"{W}.gate_{gate}.row_order": order for gate in "ifgo"}
    compressed = replace(compressed, tensors={**compressed.tensors, **shared})
    write(compressed, tmp_path / "out")
    assert set(load_file(tmp_path / "out")) & set(shared) == {f"{W}.gate_i.row_order"}
    np.testing.assert_allclose(document_reader()(tmp_path / "out")[W], compressed.dense_state_dict()[W], atol=1e-12)
    opened = read_compressed(tmp_path / "out")
    assert len({id(opened.tensors[name]) for name in shared}) == 1
    assert opened.n_params == compressed.n_params == compress("separate, ordered").n_params - 3 * len(order)


def test_the_document_names_every_field_of_the_metadata(written):
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    with safe_open(written, framework="pt") as file:
        about = json.loads(file.metadata()["btcompress"])
    for field in (*about, *about["source"], *about["matrices"][W]):
        assert f"`{field}`" in text


# Writing whole or not at all


def test_an_existing_file_is_only_replaced_by_force(written):
    before = written.read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        write(compress("separate"), written)
    assert written.read_bytes() == before
    write(compress("separate"), written, force=True)
    assert read_compressed(written).matrices[W].shape == SHAPES["separate"]


def save_shards(folder):
    state = dense()
    save_file({key: tensor for key, tensor in state.items() if "lstm" in key}, folder / "1.safetensors")
    save_file({key: tensor for key, tensor in state.items() if "lstm" not in key}, folder / "2.safetensors")
    weight_map = {key: f"{1 if 'lstm' in key else 2}.safetensors" for key in state}
    (folder / "index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder / "index.json"


def test_what_was_read_is_never_overwritten_even_by_force(tmp_path):
    checkpoint = read(save_shards(tmp_path))
    shape = SHAPES["fused"]
    matrix = CompressedMatrix(shape, torch.float64, 0.25, 1, 0.5)
    compressed = CompressedCheckpoint.of(checkpoint, {W: matrix}, {W: block_terms(shape)})
    (tmp_path / "symlink").symlink_to(tmp_path / "1.safetensors")
    os.link(tmp_path / "2.safetensors", tmp_path / "hardlink")
    (tmp_path / "folder").mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name in (*before, "folder/../index.json"):
        with pytest.raises(OutputError, match="never overwritten"):
            write(compressed, tmp_path / name, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    write(compressed, tmp_path / "out")
    with pytest.raises(OutputError, match="never overwritten"):
        write(read_compressed(tmp_path / "out"), tmp_path / "out", force=True)


@pytest.mark.parametrize("force", [False, True])
def test_targets_that_cannot_be_written_are_refused(tmp_path, monkeypatch, force):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name, words in (("none/out", "not a folder"), ("folder", "not a regular file"), ("fifo", "not a regular file")):
        with pytest.raises(OutputError, match=words):
            write(compress(), tmp_path / name, force=force)
    with pytest.raises(OutputError, match="could not be written"):
        write(compress(), tmp_path / ("x" * 300), force=force)
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)
    with pytest.raises(OutputError, match="not writable"):
        write(compress(), tmp_path / "out", force=force)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "folder"]


def test_a_dangling_link_counts_as_an_existing_file(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="already exists"):
        write(compress(), tmp_path / "out")


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(28, "No space left on device"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ZeroDivisionError(), ZeroDivisionError),
    ],
)
def test_a_failure_half_way_leaves_everything_as_it_was(written, monkeypatch, failure, raised):
    before = written.read_bytes()

    def fail(path, tensors, metadata):
        path.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(writer, "write_tensors", fail)
    with pytest.raises(raised):
        write(compress("separate"), written, force=True)
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


@pytest.mark.parametrize("name", [f"{W}.cores", "head.bias"])
def test_what_comes_back_from_the_disk_otherwise_is_not_kept(written, monkeypatch, name):
    before = written.read_bytes()
    honest = writer.write_tensors

    def careless(path, tensors, metadata):
        digests = honest(path, tensors, metadata)
        honest(path, {**tensors, name: tensors[name] + 1}, metadata)
        return digests

    monkeypatch.setattr(writer, "write_tensors", careless)
    with pytest.raises(OutputError, match=re.escape(f"{name} came back")):
        write(compress("separate" if name == "head.bias" else "fused"), written, force=True)
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


def test_a_failure_to_reach_the_disk_leaves_everything_as_it_was(written, monkeypatch):
    before = written.read_bytes()

    def fail(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        write(compress("separate"), written, force=True)
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


WRITER = """
import sys, time
from pathlib import Path
from btcompress.checkpoint.atomic import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_writes_is_not(written):
    before = written.read_bytes()
    with subprocess.Popen([sys.executable, "-c", WRITER, written], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        during = set(written.parent.rglob("*"))
        with pytest.raises(OutputError, match="another btcompress is writing"):
            write(compress("separate"), written, force=True)
        assert set(written.parent.rglob("*")) == during
        assert len(during) == 4  # the old file, the lock, and a folder with what is being written
        process.kill()
    assert written.read_bytes() == before
    write(compress("separate"), written, force=True)
    assert list(written.parent.iterdir()) == [written]
    assert written.read_bytes() != before


def test_one_process_may_claim_again_what_it_holds(tmp_path):
    with claimed(tmp_path / "out"), claimed(tmp_path / "out"):
        write(compress(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_of_the_file_follows_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write(compress(), tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o666 & ~umask


# Recognising, and distrust


def test_results_are_recognised_and_not_taken_for_dense_checkpoints(written, tmp_path):
    assert is_compressed(written)
    assert is_compressed(str(written))
    with pytest.raises(CheckpointError, match="compressed already"):
        read(written)
    save_file(dict(dense()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not is_compressed(tmp_path / "model.safetensors")
    assert not is_compressed(tmp_path)
    assert not is_compressed(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="not a compressed checkpoint"):
        read_compressed(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_compressed(tmp_path / "absent")


def test_a_result_beside_its_source_does_not_hide_it_in_a_folder(written):
    save_file(dict(dense()), written.parent / "model.safetensors")
    assert isinstance(read(written.parent), Checkpoint)
    (written.parent / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="compressed already"):
        read(written.parent)


def test_truncated_results_are_refused_wherever_they_end(written):
    content = written.read_bytes()
    for end in (*range(30), *range(30, len(content), 61), len(content) - 1):
        written.write_bytes(content[:end])
        assert not is_compressed(written)
        with pytest.raises(CheckpointError):
            read_compressed(written)


def forge(path, change):
    """Rewrite the file with its description changed in place, or replaced by what the change gives."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["btcompress"])
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    changed = change(about)
    text = changed if isinstance(changed, str) else json.dumps(about)
    save_file(tensors, path, metadata={"btcompress": text})


def put(*place, value):
    def change(about):
        for step in place[:-1]:
            about = about[step]
        about[place[-1]] = value

    return change


def drop(*place):
    def change(about):
        for step in place[:-1]:
            about = about[step]
        del about[place[-1]]

    return change


M = ("matrices", W)
FORGED = {
    "not JSON": (lambda about: "{", "not JSON"),
    "deep JSON": (lambda about: "[" * 100_000, "cannot be read"),
    "a huge number": (lambda about: '{"version": ' + "9" * 5000 + "}", "more digits"),
    "no object": (lambda about: "[]", "Expected `object`"),
    "a later version": (put("version", value=6), "has format version 6.*Update btcompress"),
    "no such core": (put(*M, "core", value="round"), f"{W} is not in order.*core"),
    "a core that is a number": (put(*M, "core", value=3), f"{W} is not in order.*core"),
    "an identity core of several blocks": (put(*M, "core", value="identity"), "one block of order 2"),
    "no such version": (put("version", value=0), "Make the file again"),
    "a version in words": (put("version", value="1"), "version"),
    **{f"no {name}": (drop(name), name) for name in ("version", "keys", "matrices", "aliases", "source", "history")},
    **{f"{name} a number": (put(name, value=3), name) for name in ("keys", "matrices", "aliases", "source", "notices")},
    "a key that is a number": (put("keys", 0, value=3), "keys"),
    "a key too many": (lambda about: about["keys"].append("more"), "more is missing"),
    "a key too few": (lambda about: about["keys"].remove("head.bias"), "head.bias is not accounted for"),
    "a key twice": (lambda about: about["keys"].append("head.bias"), "two tensors would be named head.bias"),
    "a step that is a word": (put("history", value=["x"]), "history"),
    "an alias of nothing": (put("aliases", value={"x": "y"}), "'x' cannot be another name"),
    "an alias of itself": (put("aliases", value={"x": "x"}), "'x' cannot be another name"),
    "aliases in a circle": (put("aliases", value={"x": "y", "y": "x"}), "cannot be another name"),
    "an alias of a stored tensor": (put("aliases", value={"head.bias": "head.weight"}), "cannot be another name"),
    "an alias of a list": (put("aliases", value={"x": ["head.bias"]}), "aliases"),
    "no source name": (drop("source", "name"), "`name`"),
    "a digest that is a number": (put("source", "sha256", value=3), "sha256"),
    "a matrix of nothing": (put("matrices", value={"x": {}}), "x is not in order.*missing"),
    "a matrix that is a list": (put(*M, value=[]), "Expected `object`.*matrices"),
    "a matrix elsewhere": (lambda about: about["matrices"].update(x=about["matrices"][W]), "x is not a key"),
    "other modes": (put(*M, "in_modes", value=[5, 2]), "has shape"),
    "other ranks": (put(*M, "tucker_ranks", value=[2, 3]), "has shape"),
    "fewer modes": (put(*M, "in_modes", value=[10]), "same length"),
    "modes in words": (put(*M, "in_modes", value=["2", "5"]), "in_modes"),
    "fractional modes": (put(*M, "in_modes", value=[2.5, 4]), "in_modes"),
    "no modes": (put(*M, "in_modes", value=[]), "in_modes"),
    "a thousand modes": (put(*M, "in_modes", value=[2] * 1000), "in_modes"),
    "huge modes": (put(*M, "in_modes", value=[10**300, 5]), "in_modes"),
    "a negative size": (put(*M, "in_size", value=-3), "in_size"),
    "too large a size": (put(*M, "in_size", value=11), "cover"),
    "other gates": (put(*M, "gates", value="separate"), "is missing"),
    "unknown gates": (put(*M, "gates", value="none"), "gates"),
    "an order that is a word": (put(*M, "row_order", value="yes"), "row_order"),
    "an order that is missing": (put(*M, "row_order", value=True), r"row_order is missing"),
    "an integer dtype": (put(*M, "dtype", value="int8"), "no floating-point type"),
    "a dtype that is a function": (put(*M, "dtype", value="load"), "no floating-point type"),
    "no weight error": (drop(*M, "weight_error"), "weight_error"),
    "a weight error that is no number": (put(*M, "weight_error", value=float("nan")), "not JSON"),
    "a negative weight error": (put(*M, "weight_error", value=-0.1), "weight_error"),
    "endless parameters": (put("source", "n_params", value=10**400), "more digits"),
    "parameters beyond 64 bits": (put("source", "n_params", value=10**30), "n_params"),
    "an endless number in a field that is not known": (put("more", value=10**1000), "more digits"),
    "more parameters than keys have": (put("source", "n_params", value=10**9), "1,000,000,000 parameters"),
    "no gates": (put(*M, "n_gates", value=0), "n_gates"),
    "gates that divide nothing": (put(*M, "n_gates", value=7), "do not divide into 7 gates"),
    "a step without a name": (put("history", value=[{"left_dense": []}]), "step 1 of its history.*`step`"),
    "a training without its fields": (put("history", value=[{"step": "finetune"}]), "step 1 of its history.*metric"),
    "a calibration without its fields": (put("history", value=[{"step": "calibrate"}]), "step 1 of its history.*lstm"),
    "errors in words": (
        put("history", value=[{"step": "x", "activation_errors": {"a": "b"}}]),
        "step 1.*activation",
    ),
    "what is left dense in words": (put("history", value=[{"step": "x", "left_dense": ["a"]}]), "step 1.*left_dense"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_descriptions_are_refused(written, case):
    change, words = FORGED[case]
    forge(written, change)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_compressed(written)
    assert str(written) in str(caught.value)


def test_fields_that_are_not_known_are_passed_over(written):
    forge(written, put("more", value={"x": 1}))
    assert_equal(read_compressed(written).dense_state_dict(), compress().dense_state_dict())


def version_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["btcompress"])["version"]


@pytest.mark.parametrize("case", SHAPES)
def test_only_files_with_identity_cores_or_orders_need_a_later_version(tmp_path, case):
    write(compress(case), tmp_path / "out")
    without_orders = 2 if SHAPES[case].part.core == "identity" else 1
    assert version_of(tmp_path / "out") == (3 if SHAPES[case].part.order_sizes else without_orders)


def test_files_of_the_first_version_name_no_core_and_are_still_read(written):
    forge(written, drop(*M, "core"))
    assert_equal(read_compressed(written).dense_state_dict(), compress().dense_state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("version", value=1), "no identity cores"),
        (put(*M, "tucker_ranks", value=[2**30, 2**30]), "more than its modes can hold"),
    ],
    ids=["of the first version", "larger than any matrix needs"],
)
def test_forged_identity_cores_are_refused(tmp_path, change, words):
    write(compress("low rank"), tmp_path / "out")
    forge(tmp_path / "out", change)
    with pytest.raises(CheckpointError, match=words):
        read_compressed(tmp_path / "out")


@pytest.mark.parametrize(
    "made",
    [(nn.GRU(9, 4), {"gates": "separate"}), (nn.RNN(9, 4).state_dict(), {"nonlinearity": "relu"})],
    ids=["separate gates", "nonlinearity"],
)
def test_what_grus_and_plain_rnns_need_is_of_a_version_of_its_own(tmp_path, made):
    module, options = made
    btcompress.save(btcompress.factorize(module, tucker_rank=1, max_sweeps=1, **options), tmp_path / "out")
    assert version_of(tmp_path / "out") == 5
    forge(tmp_path / "out", put("version", value=4))
    with pytest.raises(CheckpointError, match="version 4, in which there are no separate gates of a GRU"):
        btcompress.load(tmp_path / "out")


@pytest.mark.parametrize("version", [1, 2])
def test_orders_in_a_file_of_an_earlier_version_are_refused(tmp_path, version):
    write(compress("separate, ordered"), tmp_path / "out")
    forge(tmp_path / "out", put("version", value=version))
    with pytest.raises(CheckpointError, match="no orders of rows or columns"):
        read_compressed(tmp_path / "out")


@pytest.mark.parametrize(
    "order",
    [
        torch.tensor([0, 1, 1]),
        torch.tensor([1, 2, 3]),
        torch.tensor([-1, 0, 1]),
        torch.tensor([0, 1]),
        torch.tensor([[0, 1, 2]]),
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([0, 1, 2], dtype=torch.uint8),
    ],
    ids=["twice", "from one on", "negative", "too short", "two axes", "floating-point", "bytes"],
)
def test_orders_that_do_not_name_every_row_once_are_refused(tmp_path, order):
    path = tmp_path / "out"
    write(compress("ordered rows, Kronecker products"), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({**load_file(path), f"{W}.row_order": order}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"row_order has shape .* an order was expected"):
        read_compressed(path)


def test_orders_are_read_in_either_width(tmp_path):
    compressed = compress("ordered rows, Kronecker products")
    wide = replace(
        compressed, tensors={**compressed.tensors, f"{W}.row_order": compressed.tensors[f"{W}.row_order"].long()}
    )
    write(wide, tmp_path / "out")
    assert_equal(read_compressed(tmp_path / "out").dense_state_dict(), compressed.dense_state_dict())


def test_a_missing_tensor_is_refused(written):
    with safe_open(written, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(written).items() if "factors.1" not in name}
    save_file(tensors, written, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"factors\.1 is missing"):
        read_compressed(written)


def test_results_are_memory_sized_not_dense_sized(tmp_path):
    shape = MatrixShape(BlockTermShape((40, 50), (4, 30), (2, 3), n_gates=4))
    state = {W: torch.zeros(120, 2000), "head.weight": torch.zeros(2, 30)}
    matrix = CompressedMatrix(shape, torch.float32, 0.0, 0, 1.0)
    parts = block_terms(shape, dtype=torch.float32)
    compressed = CompressedCheckpoint.of(from_state_dict(state), {W: matrix}, {W: parts})
    write(compressed, tmp_path / "out")
    stored = 4 * (shape.n_params + 60)
    assert stored <= (tmp_path / "out").stat().st_size < stored + 2000
    assert math.prod((120, 2000)) * 4 > 10 * (tmp_path / "out").stat().st_size
