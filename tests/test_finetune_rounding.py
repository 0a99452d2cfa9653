"""Training through the rounding of tensors in fewer bits."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.calibration.errors import hidden_state_error
from btcompress.checkpoint import read_compressed
from btcompress.checkpoint.compressed import CompressedCheckpoint
from btcompress.factorization import open_weights
from btcompress.finetune.blocks import balance
from btcompress.finetune.data import open_data
from btcompress.finetune.networks import choose_lstm, student_of
from btcompress.finetune.rounding import Rounding
from btcompress.fit import nearest
from btcompress.packing import Integers, Packed, from_rows
from tuning import SMALL, Classifier, draw, saved_pair, tune

INT3 = Integers(3, 8)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def stored_in(compressed, how, names=None):
    """A result with tensors of its LSTM's or linear layers' matrices in integers or floats."""
    own = [name for name in compressed.tensors if "weight" in name] if names is None else names
    stored = {name: nearest(compressed.tensors[name], how) if isinstance(how, Integers) else how for name in own}
    dense = [name for name in own if name in compressed.keys]
    about = {
        name: btcompress.checkpoint.RoundedMatrix.of(compressed.tensors[name], stored[name], 0.1) for name in dense
    }
    return compressed.with_tensors(stored=stored, rounded=about)


def packed_pair(folder, model, how=INT3, names=None, **arguments):
    """Write a model dense, and compressed in few bits; the two paths."""
    dense, path = saved_pair(folder, model, **arguments)
    packed = folder / "packed.safetensors"
    btcompress.save(stored_in(btcompress.load(path), how, names), packed)
    return dense, packed


def saved(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


class StoppedError(Exception):
    pass


def interrupting(after):
    def on_epoch(epoch):
        if epoch.epoch == after:
            raise StoppedError

    return on_epoch


class FakeRounding(torch.autograd.Function):
    """``scale (code - zero / 2)``, written out with its gradients."""

    @staticmethod
    def forward(ctx, places, growth, packed):
        n, group = packed.codes.shape[1], packed.integers.group
        owners = torch.arange(n) // group
        scales = (packed.scales.float() * (1 + growth)).half().float()
        along = places.add(packed.zeros[:, owners] / 2).round().clamp(0, packed.integers.most)
        along = along - packed.zeros[:, owners] / 2
        ctx.save_for_backward(places + packed.zeros[:, owners] / 2, along, scales[:, owners], packed.scales.float())
        ctx.owners, ctx.most = owners, packed.integers.most
        return along * scales[:, owners]

    @staticmethod
    def backward(ctx, gradient):
        raw, along, scales, start = ctx.saved_tensors
        inside = (raw > -0.5) & (raw < ctx.most + 0.5)
        of_scales = torch.zeros_like(start).index_add_(1, ctx.owners, gradient * along)
        return gradient * scales * inside, of_scales * start, None


@pytest.mark.parametrize("model", ["lstm", "block terms", "separate gates", "cell"])
@pytest.mark.parametrize("bits", [2, 5])
def test_values_and_gradients_are_those_of_rounding_written_out(model, bits):
    torch.manual_seed(0)
    module = nn.LSTMCell(20, 6) if model == "cell" else nn.LSTM(20, 6, num_layers=2, bidirectional=True)
    if model in ("lstm", "cell"):
        compressed = CompressedCheckpoint.of(open_weights(module), {}, {})
    else:
        gates = "separate" if model == "separate gates" else "fused"
        compressed = btcompress.factorize(module, gates=gates, cp_rank=2, tucker_rank=2, allow_growth=True)
    compressed = stored_in(compressed, Integers(bits, 8))
    network = student_of(compressed, choose_lstm(compressed, None))
    rounding = Rounding(network, compressed.stored)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name, moved in rounding.state().items():
            # Some places fall beyond the range, and scales between the numbers that float16 has.
            size = 0.1 if name.endswith("growth") else 1.5
            moved.add_(size * torch.randn(moved.shape, generator=generator))
    rounding.put()
    x = torch.from_numpy(draw(3, 4, 20))
    network(x)[0].square().sum().backward()
    given = {name: tensor.detach().clone() for name, tensor in network.file_tensors().items()}
    rounding.take_gradients()

    leaves = {name: moved.clone().requires_grad_() for name, moved in rounding.state().items()}
    inner = {name: network._inner(name) for name in given}
    values = {}
    for name, packed in compressed.stored.items():
        rows = FakeRounding.apply(leaves[f"{name}.places"], leaves[f"{name}.growth"], packed)
        values[f"layer.{inner[name]}"] = from_rows(rows, packed.shape)
        torch.testing.assert_close(values[f"layer.{inner[name]}"], given[name], rtol=0, atol=0)
    reference = copy.deepcopy(network)
    torch.func.functional_call(reference, values, (x,))[0].square().sum().backward()
    moved = dict(rounding._moved())
    assert leaves.keys() == moved.keys()
    assert len(leaves) == 2 * len(compressed.stored)
    for name, leaf in leaves.items():
        torch.testing.assert_close(moved[name].grad, leaf.grad, rtol=1e-4, atol=1e-6)
    assert all(each.parameter.grad is None for each in rounding._held)


def test_training_starts_from_the_values_stored_and_balancing_leaves_them(tmp_path):
    _, path = packed_pair(tmp_path, nn.LSTM(24, 6), Integers(4, 8))
    compressed = btcompress.load(path)
    network = student_of(compressed, choose_lstm(compressed, None))
    balance(network, [network.file_tensors()[name] for name in compressed.stored])
    rounding = Rounding(network, compressed.stored)
    rounding.put()
    for name, tensor in network.file_tensors().items():
        assert torch.equal(tensor, compressed.tensors[name])
    assert len(rounding) == len(compressed.stored)
    for name, how in rounding.stored().items():
        assert torch.equal(how.codes, compressed.stored[name].codes)
        assert torch.equal(how.scales, compressed.stored[name].scales)


@pytest.mark.parametrize("how", [Integers(3, 8), torch.float16], ids=str)
def test_result_is_stored_as_its_input_was_and_gives_what_was_measured(how, tmp_path):
    dense, path = packed_pair(tmp_path, nn.LSTM(24, 6), how)
    data = saved(tmp_path, x=draw(60, 5, 24))
    step = tune(tmp_path, path, data, dense, held=str(data))
    before, after = btcompress.load(path), read_compressed(tmp_path / "tuned.safetensors")
    assert step["best_epoch"] > 0
    assert step["after"] < step["before"]
    assert after.stored.keys() == before.stored.keys() != set()
    for name, stored in after.stored.items():
        kinds = [each.integers if isinstance(each, Packed) else each for each in (stored, before.stored[name])]
        assert kinds == [how, how]
        assert not torch.equal(after.tensors[name], before.tensors[name])
    entry = choose_lstm(after, None)
    error = hidden_state_error(after, btcompress.checkpoint.read(dense), entry, open_data(str(data)), SMALL.batch_size)
    assert error == step["after"]


@pytest.mark.parametrize("after", [1, 2])
def test_resumed_training_ends_in_the_bytes_of_an_uninterrupted_one(after, tmp_path):
    dense, path = packed_pair(tmp_path, nn.LSTM(24, 6, num_layers=2))
    data = saved(tmp_path, x=draw(60, 5, 24))

    tune(tmp_path, path, data, dense, name="whole")
    with pytest.raises(StoppedError):
        tune(tmp_path, path, data, dense, name="cut", on_epoch=interrupting(after))
    tune(tmp_path, path, data, dense, name="cut", resume=True)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def undone(folder, path, data, dense, name, **options):
    """Train at a rate that makes a file of few bits worse; the rows."""
    config = replace(SMALL, epochs=5, learning_rate=0.5, warmup=0.0)
    tune(folder, path, data, dense, config, name, **options)
    return [json.loads(line) for line in (folder / f"{name}.metrics.jsonl").read_text().splitlines()]


def test_epochs_that_made_things_worse_are_undone_and_those_after_them_take_smaller_steps(tmp_path):
    dense, path = packed_pair(tmp_path, nn.LSTM(24, 6), tucker_rank=20)
    data = saved(tmp_path, x=draw(60, 5, 24))
    rows = undone(tmp_path, path, data, dense, "whole")
    best = step = btcompress.load(tmp_path / "whole").history[-1]["before"]
    setbacks = 0
    for number, row in enumerate(rows, 1):
        planned = 0.5 * 0.5 * (1 + np.cos(np.pi * number / 5))
        assert row["learning_rate"] == pytest.approx(planned / 2**setbacks, abs=1e-12)
        setbacks += row["metric"] > 1.05 * best
        best = min(best, row["metric"])
    assert setbacks >= 2
    assert btcompress.load(tmp_path / "whole").history[-1]["after"] == best <= step


@pytest.mark.parametrize("after", [1, 2, 4])
def test_training_resumed_once_an_epoch_was_undone_ends_in_the_same_bytes(after, tmp_path):
    dense, path = packed_pair(tmp_path, nn.LSTM(24, 6), tucker_rank=20)
    data = saved(tmp_path, x=draw(60, 5, 24))
    undone(tmp_path, path, data, dense, "whole")
    with pytest.raises(StoppedError):
        undone(tmp_path, path, data, dense, "cut", on_epoch=interrupting(after))
    undone(tmp_path, path, data, dense, "cut", resume=True)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_frozen_tensors_keep_their_codes_and_all_others_are_trained(tmp_path):
    dense, path = packed_pair(tmp_path, nn.LSTM(24, 6, num_layers=2))
    config = replace(SMALL, freeze=("weight_ih_l0*",))
    tune(tmp_path, path, saved(tmp_path, x=draw(60, 5, 24)), dense, config)
    before, after = btcompress.load(path), btcompress.load(tmp_path / "tuned.safetensors")
    for name, how in before.stored.items():
        same = torch.equal(how.codes, after.stored[name].codes) and torch.equal(how.scales, after.stored[name].scales)
        assert same == name.startswith("weight_ih_l0")


@pytest.mark.parametrize("config", [{"accumulate": 3}, {"precision": "bf16"}, {"weight_decay": 0.1}], ids=str)
def test_ways_of_computing_go_through_the_rounding(config, tmp_path):
    dense, path = packed_pair(tmp_path, nn.LSTM(24, 6))
    data = saved(tmp_path, x=draw(60, 5, 24))
    step = tune(tmp_path, path, data, dense, replace(SMALL, epochs=12, **config))
    assert step["after"] < step["before"]
    assert btcompress.load(tmp_path / "tuned.safetensors").stored.keys() == btcompress.load(path).stored.keys()


def test_parts_of_a_batch_change_rounding_only(tmp_path):
    dense, path = packed_pair(tmp_path, nn.LSTM(24, 6).double())
    data = saved(tmp_path, x=draw(61, 5, 24).astype(np.float64))
    for parts in (1, 3):
        tune(tmp_path, path, data, dense, replace(SMALL, accumulate=parts), name=str(parts))
    first, second = (btcompress.load(tmp_path / name) for name in ("1", "3"))
    for name, how in first.stored.items():
        assert torch.equal(how.codes, second.stored[name].codes)


def test_two_processes_end_in_the_codes_of_one(tmp_path, run):
    dense, path = packed_pair(tmp_path, nn.LSTM(24, 6).double())
    data = saved(tmp_path, x=draw(39, 5, 24).astype(np.float64))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "btcompress"]
    given = ["finetune", path, "--data", data, "--teacher", dense, "--epochs", "3", "--batch-size", "8", "--cpu"]
    run(*given, "-o", tmp_path / "one.safetensors")
    line = [sys.executable, *launcher, *given, "-o", tmp_path / "two.safetensors"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (btcompress.load(tmp_path / name) for name in ("one.safetensors", "two.safetensors"))
    start = btcompress.load(path)
    for name, how in first.stored.items():
        assert torch.equal(how.codes, second.stored[name].codes)
        assert not torch.equal(how.scales, start.stored[name].scales)


def test_weight_decay_of_places_shrinks_values_and_not_codes(tmp_path):
    _, path = packed_pair(tmp_path, nn.LSTM(24, 6), Integers(8, 8))
    config = replace(SMALL, weight_decay=20.0, learning_rate=1e-3, epochs=1, patience=0)
    compressed = btcompress.load(path)
    network = student_of(compressed, choose_lstm(compressed, None))
    rounding = Rounding(network, compressed.stored)
    optimizer = torch.optim.AdamW(rounding.groups(config.peak, config.weight_decay))
    for _, parameter in rounding._moved():
        parameter.grad = torch.zeros_like(parameter)
    before = rounding.state()
    before = {name: tensor.clone() for name, tensor in before.items()}
    optimizer.step()
    for name, tensor in rounding.state().items():
        share = 1.0 if name.endswith("growth") else 1 - 1e-3 * 20.0
        torch.testing.assert_close(tensor, before[name] * share)


class Tied(nn.Module):
    """An embedding tied to the head, an LSTM, and a layer that the file keeps in floats."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 16)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.between = nn.Linear(16, 16)
        self.head = nn.Linear(16, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.between(self.lstm(self.embedding(x))[0]))


FACTORY = """
import torch
from test_finetune_rounding import Tied

def data():
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randint(9, (6,), generator=generator)} for _ in range(40)]
"""


def test_network_of_ones_own_is_trained_through_the_rounding_of_embeddings_and_tied_heads(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "own_tied.py").write_text(FACTORY)
    dense, path = saved_pair(tmp_path, Tied(), matrices=["input"])
    names = ["lstm.weight_hh_l0", "embedding.weight", "lstm.weight_ih_l0.factors.0"]
    packed = btcompress.load(path)
    stored = {name: nearest(packed.tensors[name], Integers(4, 8)) for name in names}
    path = tmp_path / "packed.safetensors"
    btcompress.save(packed.with_tensors(stored=stored), path)
    x = np.random.default_rng(0).integers(0, 9, size=(40, 6))
    tune(tmp_path, path, "own_tied:data", dense, model="own_tied:Tied", folder=tmp_path)
    before, after = btcompress.load(path), btcompress.load(tmp_path / "tuned.safetensors")
    assert after.stored.keys() == before.stored.keys() == {*names, "head.weight"}
    assert torch.equal(after.tensors["head.weight"], after.tensors["embedding.weight"])
    for name in names:
        assert isinstance(after.stored[name], Packed)
        assert not torch.equal(after.tensors[name], before.tensors[name])
    applied = btcompress.apply(Tied(), after)
    formed = Tied()
    formed.load_state_dict(btcompress.to_dense(after))
    torch.testing.assert_close(applied(torch.from_numpy(x)), formed(torch.from_numpy(x)), atol=1e-5, rtol=1e-4)


def test_labels_train_a_dense_file_of_few_bits(tmp_path):
    torch.manual_seed(0)
    model = Classifier()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    compressed = CompressedCheckpoint.of(open_weights(model), {}, {})
    names = ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]
    path = tmp_path / "model.bt.safetensors"
    btcompress.save(stored_in(compressed, Integers(4, 8), names), path)
    x = draw(80, 5, 24)
    step = tune(tmp_path, path, saved(tmp_path, x=x, y=(x[:, 0, 0] > 0).astype(int)), config=replace(SMALL, epochs=6))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "tuned.metrics.jsonl").read_text().splitlines()]
    assert min(losses) < 0.9 * losses[0]
    after = btcompress.load(tmp_path / "tuned.safetensors")
    assert after.rounded.keys() == set(names) == after.stored.keys()
    assert step["epochs"] == 6


def test_state_holds_what_the_tensors_are_rounded_from(tmp_path):
    dense, path = packed_pair(tmp_path, nn.LSTM(24, 6))
    seen = {}

    def look(epoch):
        if epoch.epoch == 1:
            seen.update(btcompress.checkpoint.safetensorsfiles.read_tensors(tmp_path / "tuned.safetensors.state")[0])

    tune(tmp_path, path, saved(tmp_path, x=draw(60, 5, 24)), dense, replace(SMALL, epochs=2), on_epoch=look)
    moved = {name for name in seen if name.startswith("moved.")}
    assert moved == {f"moved.{name}.{kind}" for name in btcompress.load(path).stored for kind in ("places", "growth")}
    assert {f"best_{name}" for name in moved} <= seen.keys()
