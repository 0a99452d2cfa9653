"""Results whose tensors are stored in fewer bits: used like any other, tied once, and trusted with nothing."""

import json
import math
import re
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
from btcompress import memory
from btcompress.checkpoint import (
    RoundedMatrix,
    is_compressed,
    read,
    read_compressed,
    write,
    writer,
)
from btcompress.checkpoint.others import others_stored_as
from btcompress.compression import Opened
from btcompress.errors import CheckpointError, MemoryLimitError, OutputError
from btcompress.finetune.readback import check_same_outputs
from btcompress.fit.rounding import nearest
from btcompress.packing import Integers, Packed
from btcompress.recipe import FactorizeStep
from forms import in_fewer_bits, stored_as
from test_checkpoint_file import (
    SHAPES,
    W,
    compress,
    dense,
    document_reader,
    drop,
    forge,
    put,
    version_of,
)

#: Every precision that numbers of float32 may be stored in.
PRECISIONS = {
    **{f"int{bits}": Integers(bits, 8) for bits in range(2, 9)},
    "int4 by rows": Integers(4, 2**40),
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
INT3 = PRECISIONS["int3"]
U = "lstm.weight_hh_l0"


class Model(nn.Module):
    """An LSTM, an embedding tied to the output layer, and another linear layer; sizes are unequal throughout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(11, 20)
        self.lstm = nn.LSTM(20, 12, batch_first=True)
        self.middle = nn.Linear(12, 20)
        self.head = nn.Linear(20, 11)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.middle(self.lstm(self.embedding(tokens))[0]))


INPUT = "lstm.weight_ih_l0"
ROUNDED = ("lstm.weight_hh_l0", "middle.weight", "head.weight")


def model_in(precision, dtype=torch.float32):
    """A model with block terms, rounded matrices and a rounded tied one, and biases in float16 where they are wider."""
    compressed = btcompress.factorize(Model().to(dtype), tucker_rank=2)
    return others_stored_as(in_fewer_bits(compressed, precision, dict.fromkeys(ROUNDED, precision)), torch.float16)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "model.bt.safetensors"
    write(small(), path)
    return path


def small(case="fused", precision=INT3, dtype=torch.float32, **state):
    """The result of the tests of the file, in fewer bits: block terms, a rounded matrix, and a bias."""
    compressed = compress(case, {**dense(dtype), **state}, dtype)
    compressed = in_fewer_bits(compressed, precision, {U: precision, "head.weight": precision})
    return others_stored_as(compressed, torch.float16)


def same_values(found, expected):
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# Values and sizes


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_tensors_have_exactly_the_values_that_are_stored(precision):
    compressed = model_in(precision)
    assert compressed.chosen == ("embedding.weight", INPUT, *ROUNDED)[1:]
    for name, how in compressed.stored.items():
        values = how.values() if isinstance(how, Packed) else compressed.tensors[name].to(how).float()
        assert torch.equal(compressed.tensors[name], values)
    original = Model().state_dict()
    for key in ROUNDED:
        assert not torch.equal(compressed.tensors[key], original[key])
        error = (compressed.tensors[key] - original[key]).norm() / original[key].norm()
        assert float(error) < 0.5
    kinds = {key: compressed.precisions_of_matrix(key) for key in compressed.chosen}
    assert kinds == dict.fromkeys(compressed.chosen, (precision,))


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("case", ["separate, padded", "separate, ordered", "low rank", "fused, order one"])
def test_bytes_are_counted_as_they_lie_in_the_file(tmp_path, case, precision):
    compressed = small(case, precision)
    write(compressed, tmp_path / "out")
    in_file = {name: tensor.nbytes for name, tensor in load_file(tmp_path / "out").items()}
    assert compressed.n_bytes == sum(in_file.values())
    for key in compressed.chosen:
        assert compressed.bytes_of_matrix(key) == sum(n for name, n in in_file.items() if name.startswith(key))


def test_a_result_that_is_stored_as_it_is_has_the_bytes_of_its_tensors():
    compressed = compress("separate, ordered")
    assert compressed.n_bytes == sum(tensor.nbytes for tensor in compressed.tensors.values())
    assert compressed.precisions_of_matrix(W) == (torch.float64,)
    assert compressed.chosen == (W,)


def test_an_order_that_sides_have_in_common_counts_once():
    compressed = compress("separate, ordered")
    order = compressed.tensors[f"{W}.gate_i.row_order"]
    shared = {f"{W}.gate_{gate}.row_order": order for gate in "ifgo"}
    fewer = replace(compressed, tensors={**compressed.tensors, **shared})
    assert compressed.bytes_of_matrix(W) - fewer.bytes_of_matrix(W) == 3 * order.nbytes


def test_bytes_of_the_dense_checkpoint_do_not_depend_on_how_it_is_stored():
    expected = sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in Model().state_dict().values()}.values())
    assert model_in(Integers(4)).dense_bytes == expected


def test_cores_and_factors_may_be_of_several_precisions():
    compressed = compress(dtype=torch.float32)
    mixed = {f"{W}.cores": torch.float16, f"{W}.factors.0": nearest(compressed.tensors[f"{W}.factors.0"], Integers(5))}
    compressed = compressed.with_tensors(stored=mixed)
    assert compressed.precisions_of_matrix(W) == (torch.float32, Integers(5), torch.float16)


# What the file stands for


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_every_precision_is_written_and_read_again(tmp_path, precision, dtype):
    if isinstance(precision, torch.dtype) and dtype.itemsize == 2:
        precision = Integers(8)
    compressed = small("separate, ordered", precision, dtype)
    write(compressed, tmp_path / "out", check=lambda again: check_same_outputs(compressed, again))
    found = read_compressed(tmp_path / "out")
    assert version_of(tmp_path / "out") == 4
    same_values(found.tensors, compressed.tensors)
    assert (found.matrices, found.rounded) == (compressed.matrices, compressed.rounded)
    assert found.stored.keys() == compressed.stored.keys()
    assert found.n_bytes == compressed.n_bytes
    write(found, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "out").read_bytes()
    write(small("separate, ordered", precision, dtype), tmp_path / "anew")
    assert (tmp_path / "anew").read_bytes() == (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_every_precision_loads_applies_and_becomes_dense(tmp_path, precision):
    compressed = model_in(precision)
    btcompress.save(compressed, tmp_path / "out")
    loaded, state = btcompress.load(tmp_path / "out"), btcompress.to_dense(tmp_path / "out")
    same_values(loaded.tensors, compressed.tensors)
    plain, applied = Model(), btcompress.apply(Model(), tmp_path / "out")
    plain.load_state_dict(state)
    assert applied.embedding.weight is applied.head.weight
    tokens = torch.randint(0, 11, (3, 7))
    torch.testing.assert_close(applied(tokens), plain(tokens))
    assert not torch.allclose(applied(tokens), Model()(tokens))
    assert {name: state[name].dtype for name in state} == {name: t.dtype for name, t in Model().state_dict().items()}


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_a_report_against_the_dense_model_calls_only_changes_changed(tmp_path, precision):
    torch.save(Model().state_dict(), tmp_path / "model.pt")
    dense_model, compressed = read(tmp_path / "model.pt"), model_in(precision)
    report = btcompress.report(compressed, against=dense_model)
    assert not report.untouched.changed
    trained = compressed.with_step({"step": "train"}, {"middle.bias": torch.ones(20)}, {"middle.bias": None})
    assert btcompress.report(trained, against=dense_model).untouched.changed == ("middle.bias",)
    still_half = compressed.with_step({"step": "train"}, {"middle.bias": torch.ones(20)})
    assert btcompress.report(still_half, against=dense_model).untouched.changed == ("middle.bias",)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_every_precision_stays_when_other_matrices_are_factorized(tmp_path, precision):
    btcompress.save(model_in(precision), tmp_path / "out")
    before = btcompress.load(tmp_path / "out")
    compressed = btcompress.factorize(
        replace_rounded(tmp_path / "out", tmp_path / "fewer", "middle.weight"),
        cp_rank=1,
        tucker_rank=2,
        matrices=("input", "recurrent", "linear"),
        allow_growth=True,
    )
    assert compressed.chosen == (INPUT, *ROUNDED)
    assert set(compressed.matrices) == {INPUT, "middle.weight"}
    assert set(compressed.rounded) == {"lstm.weight_hh_l0", "head.weight"}
    kept = before.stored.keys() - {"middle.weight"}
    assert compressed.stored.keys() == kept
    assert all(torch.equal(compressed.tensors[name], before.tensors[name]) for name in kept)
    told = " ".join(compressed.notices)
    assert f"{INPUT}: in block-term form already" in told
    assert "lstm.weight_hh_l0: rounded already" in told
    btcompress.save(compressed, tmp_path / "again")
    same_values(btcompress.load(tmp_path / "again").tensors, compressed.tensors)


def replace_rounded(path, target, key):
    """The same file with a rounded matrix that is stored as floats as it is, and was never chosen."""
    compressed = btcompress.load(path)
    rounded = {name: each for name, each in compressed.rounded.items() if name != key}
    stored = {name: how for name, how in compressed.stored.items() if name != key}
    btcompress.save(replace(compressed, rounded=rounded, stored=stored), target)
    return target


def test_what_is_all_chosen_already_is_told_so(tmp_path):
    btcompress.save(model_in(Integers(4)), tmp_path / "out")
    with pytest.raises(CheckpointError, match=f"{INPUT} are block terms and lstm.weight_hh_l0 are rounded already"):
        btcompress.factorize(tmp_path / "out", tucker_rank=1, matrices=("input", "recurrent"))


def test_an_opened_result_is_its_dense_form(tmp_path):
    compressed = model_in(Integers(4))
    btcompress.save(compressed, tmp_path / "out")
    opened = Opened.of(tmp_path / "out", FactorizeStep())
    same_values(opened.dense.tensors, compressed.dense_state_dict())


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("precision", [Integers(5, 9), torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_reader_in_the_document_reads_every_form_in_fewer_bits(tmp_path, case, precision, dtype):
    compare_with_document(small(case, precision, dtype), tmp_path / "out", dtype)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_the_reader_in_the_document_reads_every_precision(tmp_path, precision):
    conv = torch.randn(4, 3, 2, 5)
    compressed = small("separate", precision, torch.float32, conv=conv, tied=conv)
    compressed = compressed.with_tensors(stored={"conv": stored_as(conv, precision)})
    assert (compressed.stored["tied"] is compressed.stored["conv"]) or precision == torch.float16
    compare_with_document(compressed, tmp_path / "out", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_reader_in_the_document_reads_integers_of_small_dtypes(tmp_path, dtype):
    compare_with_document(small("fused", Integers(6), dtype), tmp_path / "out", dtype)


def compare_with_document(compressed, path, dtype):
    write(compressed, path)
    found, expected = document_reader()(path), compressed.dense_state_dict()
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        rounding = torch.finfo(dtype).eps if key == W else 0.0  # sums are in other orders
        wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_allclose(found[key], wide.numpy(), rtol=rounding, atol=1e-12 if key == W else 0.0)
        assert found[key].dtype == wide.numpy().dtype


def test_the_document_names_every_field_of_a_precision(written):
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    with safe_open(written, framework="pt") as file:
        about = json.loads(file.metadata()["btcompress"])
    records = (*about["precisions"].values(), *about["rounded"].values())
    assert {field for record in records for field in record} == {
        "bits",
        "group",
        "shape",
        "dtype",
        "stored",
        "weight_error",
        "svd_rank",
        "svd_error",
    }
    for field in ("precisions", "rounded", *(field for record in records for field in record)):
        assert f"`{field}`" in text


@pytest.mark.parametrize("case", SHAPES)
def test_a_result_that_is_stored_as_it_is_keeps_its_version_and_says_nothing_of_precision(tmp_path, case):
    write(compress(case), tmp_path / "out")
    assert version_of(tmp_path / "out") < 4
    assert "precisions" not in (tmp_path / "out").read_bytes().decode("latin-1")


# Tied tensors


def test_tied_tensors_are_rounded_and_stored_once_and_tied_again(tmp_path):
    compressed = model_in(Integers(4))
    assert compressed.stored["embedding.weight"] is compressed.stored["head.weight"]
    assert compressed.tensors["embedding.weight"] is compressed.tensors["head.weight"]
    write(compressed, tmp_path / "out")
    names = load_file(tmp_path / "out").keys()
    assert {"embedding.weight.codes", "head.weight.codes"} & names == {"embedding.weight.codes"}
    found = read_compressed(tmp_path / "out")
    assert found.tensors["embedding.weight"] is found.tensors["head.weight"]
    assert found.n_bytes == compressed.n_bytes
    assert (
        found.n_params == compressed.n_params == sum(p.numel() for p in btcompress.apply(Model(), found).parameters())
    )


def test_tied_tensors_cannot_be_stored_in_two_ways():
    compressed = model_in(Integers(4))
    stored = {name: how for name, how in compressed.stored.items() if name != "embedding.weight"}
    with pytest.raises(CheckpointError, match=r"head\.weight and embedding\.weight are one tensor"):
        replace(compressed, stored=stored)


def test_a_tensor_that_is_tied_no_more_may_be_stored_otherwise():
    compressed = model_in(Integers(4))
    free = compressed.with_tensors({"embedding.weight": torch.ones(11, 20)}, {"embedding.weight": None})
    assert "embedding.weight" not in free.stored
    assert free.stored["head.weight"] is compressed.stored["head.weight"]


# Changes


def test_new_values_need_to_be_said_how_they_are_stored():
    compressed = small()
    for name in (f"{W}.cores", U, "head.bias"):
        changed = {name: compressed.tensors[name] + math.pi}
        with pytest.raises(
            CheckpointError, match=re.escape(f"{name} is said to be stored as") + ".*its values are others"
        ):
            compressed.with_step({"step": "train"}, changed)
        with pytest.raises(CheckpointError, match=re.escape(name)):
            replace(compressed, tensors={**compressed.tensors, **changed})
        how = compressed.stored[name]
        if name == U:  # is a rounded matrix
            with pytest.raises(CheckpointError, match="rounded matrix, but is stored as it is"):
                compressed.with_step({"step": "train"}, changed, {name: None})
        else:
            free = compressed.with_step({"step": "train"}, changed, {name: None})
            assert name not in free.stored
        anew = stored_as(changed[name], getattr(how, "integers", how))
        again = compressed.with_step({"step": "train"}, stored={name: anew})
        assert again.stored[name] is anew
        assert [step["step"] for step in again.history] == ["factorize", "train"]


def test_values_follow_what_is_said_to_be_stored():
    compressed = compress(dtype=torch.float32)
    packed = nearest(compressed.tensors[f"{W}.cores"], Integers(2))
    after = compressed.with_tensors(stored={f"{W}.cores": packed, "head.bias": torch.bfloat16})
    assert torch.equal(after.tensors[f"{W}.cores"], packed.values())
    assert torch.equal(after.tensors["head.bias"], compressed.tensors["head.bias"].bfloat16().float())
    assert not torch.equal(after.tensors["head.bias"], compressed.tensors["head.bias"])


def other(packed, **fields):
    values = {name: getattr(packed, name) for name in ("integers", "shape", "dtype", "codes", "scales", "zeros")}
    return Packed(**{**values, **fields})


REFUSED = {
    "no tensor": (lambda c: {"x": torch.float16}, "x is said to be stored as float16, but is no tensor"),
    "an integer": (lambda c: {"a.count": torch.float16}, "a.count is said .* has dtype int64"),
    "no floats": (lambda c: {"head.bias": torch.int8}, "stored as int8, but its own dtype, torch.float32, is no wider"),
    "wider floats": (lambda c: {"head.bias": torch.float64}, "no wider"),
    "the same floats": (lambda c: {"head.bias": torch.float32}, "no wider"),
    "others": (lambda c: {"head.bias": torch.bfloat16}, "head.bias .* its values are others"),
    "another dtype": (lambda c: {U: other(c.stored[U], dtype=torch.float64)}, "integers are torch.float64"),
    "another shape": (
        lambda c: {
            "head.weight": other(
                c.stored["head.weight"],
                shape=(2, 1, 3),
                codes=torch.zeros(6, 1, dtype=torch.uint8),
                scales=torch.zeros(6, 1).half(),
                zeros=torch.zeros(6, 1).short(),
            )
        },
        re.escape("integers are torch.float32 of shape (2, 1, 3)"),
    ),
    "another code": (
        lambda c: {U: other(c.stored[U], codes=7 - c.stored[U].codes)},
        f"{U} .*as int3/8, .*values are others",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_true_of_the_tensors_is_refused(case):
    change, words = REFUSED[case]
    compressed = small()
    with pytest.raises(CheckpointError, match=words):
        replace(compressed, stored={**compressed.stored, **change(compressed)})


ROUNDED_REFUSED = {
    "no key": (lambda c: {"x": c.rounded[U]}, "x is said to be a rounded matrix, but is not a key"),
    "block terms": (lambda c: {W: c.rounded[U]}, f"{W} is said to be a rounded matrix, but is block terms"),
    "stored as it is": (lambda c: {"a.count": c.rounded[U]}, "a.count is said .* but is stored as it is"),
    "a vector": (lambda c: {"head.bias": c.rounded[U]}, "is no matrix"),
    "another shape": (lambda c: {U: replace(c.rounded[U], shape=(3, 12))}, "shape"),
    "another dtype": (lambda c: {U: replace(c.rounded[U], dtype=torch.float64)}, "dtype"),
    "another precision": (
        lambda c: {U: replace(c.rounded[U], precision=Integers(4))},
        "precision int4/32, but has int3/8",
    ),
}


@pytest.mark.parametrize("case", ROUNDED_REFUSED)
def test_what_is_not_true_of_rounded_matrices_is_refused(case):
    change, words = ROUNDED_REFUSED[case]
    compressed = small()
    with pytest.raises(CheckpointError, match=words):
        replace(compressed, rounded={**compressed.rounded, **change(compressed)})


def test_values_beyond_the_range_of_float16_are_refused():
    codes, zeros = torch.tensor([[3]], dtype=torch.uint8), torch.tensor([[0]], dtype=torch.int16)
    packed = Packed(Integers(2), (1, 1), torch.float16, codes, torch.full((1, 1), 60000.0).half(), zeros)
    compressed = compress(state={**dense(torch.float16), "one": torch.ones(1, 1).half()}, dtype=torch.float16)
    with pytest.raises(CheckpointError, match="beyond the range of float16"):
        compressed.with_tensors(stored={"one": packed})


@pytest.mark.parametrize("ending", ["codes", "scales", "zeros"])
def test_names_that_would_clash_in_the_file_are_refused(ending):
    with pytest.raises(CheckpointError, match=rf"two tensors would be named {U}\.{ending}"):
        small(**{f"{U}.{ending}": torch.ones(2)})


def test_a_matrix_of_no_rounding_is_no_rounded_one():
    with pytest.raises(CheckpointError, match="no matrix"):
        RoundedMatrix.of(torch.ones(3), torch.float16, 0.0)


# What was not chosen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_others_are_stored_in_half_the_bytes_where_their_numbers_allow_it(dtype):
    state = OrderedDict(dense(torch.float32))
    state |= {
        "large": torch.tensor([1.0, 1e30]),
        "endless": torch.tensor([1.0, torch.inf]),
        "tiny": torch.tensor([1e-9, 2e-9]),
        "nan": torch.tensor([torch.nan]),
        "half": torch.ones(2).half(),
        "wide": torch.ones(3, dtype=torch.float64),
        "zero": torch.zeros(2),
        "complex": torch.ones(2, dtype=torch.complex64),
        "tied": state["head.weight"],
    }
    before = compress(state=state, dtype=torch.float32)
    after = others_stored_as(before, dtype)
    fits = {U, "head.weight", "head.bias", "tied", "wide", "zero"}
    kept = {"endless", "nan"} | ({"large", "tiny"} if dtype == torch.float16 else set())
    assert set(after.stored) == fits | ({"large", "tiny"} - kept)
    assert all(how == dtype for how in after.stored.values())
    assert after.tensors["tied"] is after.tensors["head.weight"]
    assert all(after.tensors[name] is before.tensors[name] for name in before.tensors if name not in after.stored)
    assert after.notices[-1].startswith(f"Not stored as {str(dtype)[6:]}")
    assert all(name in after.notices[-1] for name in kept)
    assert others_stored_as(after, dtype).stored == after.stored


def test_others_leave_what_was_chosen_and_what_is_tied_to_it():
    compressed = in_fewer_bits(btcompress.factorize(Model(), tucker_rank=2), None, {"head.weight": Integers(4)})
    after = others_stored_as(compressed, torch.float16)
    assert f"{INPUT}.cores" not in after.stored
    assert after.stored["embedding.weight"] is compressed.stored["head.weight"]
    assert after.others == tuple(
        key for key in compressed.keys if key not in (INPUT, "embedding.weight", "head.weight")
    )


# Writing


def test_another_code_in_memory_is_found_before_anything_is_written(tmp_path):
    compressed = model_in(Integers(4))
    for key in ROUNDED[:2]:
        changed = other(compressed.stored[key], codes=(compressed.stored[key].codes + 1) % 16)
        different = compressed.with_tensors(stored={key: changed})
        with pytest.raises(OutputError, match=f"{key.split('.')[0]}.* gives other outputs"):
            write(compressed, tmp_path / "out", check=lambda _, found=different: check_same_outputs(compressed, found))
    assert list(tmp_path.iterdir()) == []


def test_an_lstm_of_rounded_matrices_alone_is_run_with_all_of_its_tensors():
    model = nn.LSTM(20, 12)
    plain = btcompress.factorize(nn.Sequential(model, nn.Linear(12, 20)), tucker_rank=2, matrices=("linear",))
    compressed = in_fewer_bits(plain, None, {"0.weight_hh_l0": INT3})
    check_same_outputs(compressed, compressed)
    changed = compressed.with_tensors({"0.bias_hh_l0": compressed.tensors["0.bias_hh_l0"] + 1})
    with pytest.raises(OutputError, match="0 gives other outputs"):
        check_same_outputs(compressed, changed)


def test_codes_that_are_unpacked_otherwise_than_they_were_packed_are_not_kept(tmp_path, monkeypatch):
    pack = writer.to_file

    def careless(name, tensor, how):
        if isinstance(how, Packed) and name == U:
            how = other(how, codes=how.codes ^ 1)
        return pack(name, tensor, how)

    monkeypatch.setattr(writer, "to_file", careless)
    with pytest.raises(OutputError, match=f"{U} came back"):
        write(small(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Distrust

P, F = ("precisions", U), ("precisions", "head.bias")
FORGED = {
    "precisions that are a list": (put("precisions", value=[]), "precisions"),
    "a precision that is a word": (put(*P, value="int3"), "precisions"),
    "no bits": (drop(*P, "bits"), f"precision of {U} is not in order.*stored"),
    **{f"{bits} bits": (put(*P, "bits", value=bits), f"precision of {U}.*bits") for bits in (1, 0, 9, -3, 2**70, 3.5)},
    "bits in words": (put(*P, "bits", value="3"), f"precision of {U}.*bits"),
    "other bits": (put(*P, "bits", value=4), rf"{U}\.codes is torch.uint8 of shape \(14,\), but 4 bits.*\(18,\)"),
    **{f"a group of {g}": (put(*P, "group", value=g), f"precision of {U}.*group") for g in (0, 7, -8, 2**41, 2**70)},
    "no group": (drop(*P, "group"), "group"),
    **{
        f"shape {shape}": (put(*P, "shape", value=shape), f"precision of {U}.*shape")
        for shape in ([], [0, 3], [-12, -3], [12, 2**70], [1] * 14, "12", [12.5, 3], None)
    },
    "a huge shape": (put(*P, "shape", value=[2**40, 2**40]), "which no tensor can"),
    "sizes that overflow": (put(*P, "shape", value=[2**40, 2**40, 2**40, 2**40]), "which no tensor can"),
    "a large shape": (put(*P, "shape", value=[2**30, 2**30]), rf"{U}\.codes is .* take"),
    "another shape": (put(*P, "shape", value=[3, 12]), rf"{U}\.scales is .* of shape \(12, 1\), but"),
    "one axis": (put(*P, "shape", value=[36]), r"\.scales is"),
    **{
        f"dtype {name}": (put(*P, "dtype", value=name), f"precision of {U}.*dtype|said to have dtype|rounded")
        for name in ("int8", "float8_e4m3fn", "load", 3, None)
    },
    "no dtype": (drop(*P, "dtype"), "dtype"),
    "an entry too many": (put("precisions", "x", value={"stored": "float16", "dtype": "float32"}), "x is missing"),
    "codes without entry": (drop(*P), "not accounted for|no precision of its own"),
    "an entry of an integer tensor": (
        put("precisions", "a.count", value={"stored": "float16", "dtype": "float32"}),
        "a.count is said to be stored as float16, but is torch.int64",
    ),
    "an entry of integers without codes": (
        lambda about: about["precisions"].update({"a.count": about["precisions"][U]}),
        r"a\.count\.codes is missing",
    ),
    "floats that are none": (put(*F, "stored", value="int8"), "precision of head.bias.*stored"),
    "other floats": (
        put(*F, "stored", value="bfloat16"),
        "head.bias is said to be stored as bfloat16, but is torch.float16",
    ),
    "floats that are as wide": (put(*F, "dtype", value="float16"), "precision of head.bias.*dtype"),
    "a rounded one without its error": (put("rounded", U, value={}), f"rounded {U} is not in order.*weight_error"),
    "a negative error": (put("rounded", U, "weight_error", value=-1.0), "weight_error"),
    "a rounded one that is stored as it is": (
        put("rounded", "a.count", value={"weight_error": 0.0}),
        "no precision of its own",
    ),
    "a rounded vector": (put("rounded", "head.bias", value={"weight_error": 0.0}), "head.bias is said .* is no matrix"),
    "a rounded one that is block terms": (put("rounded", W, value={"weight_error": 0.0}), "no precision of its own"),
    "a rounded core": (put("rounded", f"{W}.factors.0", value={"weight_error": 0.0}), "no matrix|not a key"),
    "an alias of codes": (put("aliases", value={"x": f"{U}.codes"}), "'x' cannot be another name"),
    "an alias that is stored": (put("aliases", value={U: "head.bias"}), "cannot be another name"),
    **{f"version {n}": (put("version", value=n), "no tensors in fewer bits") for n in (1, 2, 3)},
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_precisions_are_refused(written, case):
    change, words = FORGED[case]
    forge(written, change)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_compressed(written)
    assert str(written) in str(caught.value)


def refill(path, change):
    """Rewrite the file with its tensors changed in place, and its description as it is."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata=metadata)


def filled(ending, value):
    def change(tensors):
        tensors[f"{U}.{ending}"] = value(tensors[f"{U}.{ending}"])

    return change


def with_last(byte):
    def value(tensor):
        tensor[-1] |= byte
        return tensor

    return value


TENSORS = {
    "truncated codes": (
        filled("codes", lambda t: t[:-1].clone()),
        r"\.codes is .*\(13,\), but 3 bits.* take .*\(14,\)",
    ),
    "a byte too many": (filled("codes", lambda t: torch.cat([t, t[:1]])), r"\.codes is .*\(15,\)"),
    "codes of two axes": (filled("codes", lambda t: t[None]), r"\.codes is"),
    "codes of another dtype": (filled("codes", lambda t: t.to(torch.int8)), r"\.codes is torch.int8"),
    "no codes": (lambda tensors: tensors.pop(f"{U}.codes"), r"\.codes is missing"),
    "no scales": (lambda tensors: tensors.pop(f"{U}.scales"), r"\.scales is missing"),
    "no zeros": (lambda tensors: tensors.pop(f"{U}.zeros"), r"\.zeros is missing"),
    "bits beyond the codes": (filled("codes", with_last(0x80)), f"{U}, as integers of 3 bits: bits beyond"),
    "zeros that are truncated": (filled("zeros", lambda t: t[:-1].clone()), r"\.zeros is"),
    "zeros of another dtype": (filled("zeros", lambda t: t.short()), r"\.zeros is torch.int16"),
    "a negative scale": (filled("scales", lambda t: -t - 1), f"{U}, as integers of 3 bits: scales must be finite"),
    "an endless scale": (filled("scales", lambda t: t * torch.inf), "scales must be finite"),
    "a scale that is no number": (filled("scales", lambda t: t * torch.nan), "scales must be finite"),
    "wider scales": (filled("scales", lambda t: t.float()), r"\.scales is torch.float32"),
    "a scale for each row": (filled("scales", lambda t: t[:, 0].clone()), r"\.scales is"),
    "the tensor itself beside its codes": (lambda tensors: tensors.update({U: torch.ones(12, 3)}), "there twice"),
    "floats that are no numbers": (
        lambda tensors: tensors.update({"head.bias": torch.full((2,), torch.nan).half()}),
        "head.bias .*values are others",
    ),
    "floats of another dtype": (lambda tensors: tensors.update({"head.bias": torch.ones(2)}), "but is torch.float32"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_forged_packings_are_refused(written, case):
    change, words = TENSORS[case]
    refill(written, change)
    assert is_compressed(written)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_compressed(written)
    assert str(written) in str(caught.value)


def test_bits_beyond_the_zero_points_are_refused(tmp_path):
    compressed = small(odd=torch.ones(3, 3))
    write(compressed.with_tensors(stored={"odd": nearest(torch.ones(3, 3), Integers(3, 8))}), tmp_path / "out")
    refill(tmp_path / "out", lambda tensors: tensors["odd.zeros"].__setitem__(-1, 0xFF))
    with pytest.raises(CheckpointError, match="odd, as integers of 3 bits: bits beyond"):
        read_compressed(tmp_path / "out")


def test_a_group_beyond_all_sizes_takes_neither_time_nor_memory(written):
    forge(written, put(*P, "group", value=2**40))
    with memory.limited(10**6):
        assert torch.equal(read_compressed(written).tensors[U], small().tensors[U])


def test_values_that_memory_cannot_hold_are_refused_before_they_are_formed(written):
    with memory.limited(2000), pytest.raises(MemoryLimitError, match="fewer bits would take"):
        read_compressed(written)


def test_truncated_files_are_refused_wherever_they_end(written):
    content = written.read_bytes()
    for end in range(0, len(content), 97):
        written.write_bytes(content[:end])
        with pytest.raises(CheckpointError):
            read_compressed(written)


def test_fields_of_a_precision_that_are_not_known_are_passed_over(written):
    forge(written, put(*P, "more", value=3))
    same_values(read_compressed(written).tensors, small().tensors)
