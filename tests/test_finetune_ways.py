import copy
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.errors import BTCompressError, OutputError
from btcompress.finetune import TrainConfig
from tuning import SMALL, Classifier, draw, saved_pair, tune

KINDS = [["input"], ["recurrent"], ["linear"], ["input", "recurrent", "linear"]]


def npz(folder, name="data.npz", **arrays):
    np.savez(folder / name, **arrays)
    return folder / name


DISTILLED = {
    "deep": nn.LSTM(24, 6, num_layers=2, bidirectional=True, proj_size=4),
    "double": nn.LSTM(24, 6, bias=False).double(),
    "cell": nn.LSTMCell(24, 6),
    "bfloat16": nn.LSTM(24, 6).bfloat16(),
}
INPUT, RECURRENT = KINDS[:2]


# Every two of model, lengths and matrices meet.
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("name", "lengths", "matrices"),
    [
        ("deep", False, INPUT),
        ("deep", True, RECURRENT),
        ("double", True, INPUT),
        ("double", False, RECURRENT),
        ("cell", False, INPUT),
        ("cell", True, RECURRENT),
        ("bfloat16", True, INPUT),
        ("bfloat16", False, RECURRENT),
    ],
    ids=str,
)
def test_distilling_hidden_states_lowers_the_error_on_sequences_held_back(name, lengths, matrices, tmp_path):
    model = copy.deepcopy(DISTILLED[name])
    model.reset_parameters()
    if "input" not in matrices:
        with torch.no_grad():  # as drawn, they matter so little that next to nothing is lost
            for name, parameter in model.named_parameters():
                parameter.mul_(4 if name.startswith("weight_hh") else 1)
    dense, compressed = saved_pair(tmp_path, nn.ModuleDict({"rnn": model}), matrices=matrices)
    arrays = {"x": draw(400, 5, 24)} | ({"lengths": np.arange(400) % 5 + 1} if lengths else {})
    step = tune(tmp_path, compressed, npz(tmp_path, **arrays), dense, held_fraction=0.2)
    assert step["metric"] == "hidden-state error"
    assert 0 < step["after"] < 0.97 * step["before"]


def test_hidden_state_error_is_that_of_the_files_themselves(tmp_path):
    model = Classifier()
    dense, compressed = saved_pair(tmp_path, model)
    x = draw(200, 5, 24)
    step = tune(tmp_path, compressed, npz(tmp_path, x=x[20:]), dense, held=str(npz(tmp_path, "val.npz", x=x[:20])))

    def error(path):
        inputs = torch.from_numpy(x[:20])
        wanted = model.lstm(inputs)[0].detach()
        return float((btcompress.apply(Classifier(), path).lstm(inputs)[0].detach() - wanted).norm() / wanted.norm())

    assert step["before"] == pytest.approx(error(compressed), rel=1e-5)
    assert step["after"] == pytest.approx(error(tmp_path / "tuned.safetensors"), rel=1e-5)
    assert step["dense"] == 0.0


def test_only_the_named_lstm_changes(tmp_path):
    pair = nn.ModuleDict({"first": nn.LSTM(24, 6), "second": nn.LSTM(24, 8)})
    dense, compressed = saved_pair(tmp_path, pair)
    data = npz(tmp_path, x=draw(100, 3, 24))
    with pytest.raises(BTCompressError, match=r"first \(24 inputs\), second \(24 inputs\).*--layer"):
        tune(tmp_path, compressed, data, dense)
    tune(tmp_path, compressed, data, dense, layer="second")
    before, after = btcompress.load(compressed).tensors, btcompress.load(tmp_path / "tuned.safetensors").tensors
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("second.")}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("arguments", [{}, {"bidirectional": True}, {"proj_size": 4}], ids=str)
@pytest.mark.parametrize(
    ("y", "metric"),
    [
        (np.arange(40) % 3, "accuracy"),
        (np.arange(200).reshape(40, 5) % 3, "accuracy"),
        (draw(40, 3, seed=1), "mean squared error"),
        (draw(40, 5, 3, seed=1), "mean squared error"),
    ],
    ids=["classes", "classes each step", "values", "values each step"],
)
def test_labels_of_every_kind_are_learned(y, metric, arguments, tmp_path):
    _, compressed = saved_pair(tmp_path, Classifier(**arguments))
    x = draw(40, 5, 24)
    marks = y if y.dtype.kind == "f" else np.eye(3)[y] * 2
    x[..., :3] += marks if marks.ndim == 3 else marks[:, None]
    data = npz(tmp_path, x=x, y=y, lengths=np.arange(40) % 3 + 3)
    config = TrainConfig(epochs=5, batch_size=8, learning_rate=2e-2, seed=1, cpu=True)
    losses = []
    step = tune(tmp_path, compressed, data, config=config, on_epoch=lambda epoch: losses.append(epoch.loss))
    assert step["metric"] == metric
    assert step["dense"] is None
    assert min(losses) < 0.9 * losses[0]
    assert step["after"] >= step["before"] if metric == "accuracy" else step["after"] < step["before"]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("matrices", KINDS[1:], ids=",".join)
def test_labels_train_every_factorized_matrix(matrices, tmp_path):
    dense, compressed = saved_pair(tmp_path, Classifier(proj_size=4), matrices=matrices)
    x = draw(60, 5, 24)
    y = draw(60, 3, seed=1)
    x[..., :3] += y[:, None] * 2
    step = tune(tmp_path, compressed, npz(tmp_path, x=x, y=y), dense)
    before, after = btcompress.load(compressed), btcompress.load(tmp_path / "tuned.safetensors")
    assert step["best_epoch"] > 0
    assert all(not torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)
    assert after.matrices.keys() == before.matrices.keys() != set()
    applied = btcompress.apply(Classifier(proj_size=4), after)
    inputs = torch.from_numpy(draw(3, 5, 24, seed=2))
    formed = Classifier(proj_size=4)
    formed.load_state_dict(btcompress.to_dense(after))
    torch.testing.assert_close(applied(inputs), formed(inputs), atol=1e-5, rtol=1e-4)


def test_dense_lstm_has_nothing_to_learn_from_its_own_hidden_states(tmp_path):
    dense, compressed = saved_pair(tmp_path, Classifier(), matrices=["linear"])
    with pytest.raises(BTCompressError, match="lstm has no compressed matrices"):
        tune(tmp_path, compressed, npz(tmp_path, x=draw(20, 3, 24)), dense)


def test_steps_beyond_the_length_of_a_sequence_count_for_nothing(tmp_path):
    _, compressed = saved_pair(tmp_path, Classifier())
    x, y, lengths = draw(24, 5, 24), np.arange(120).reshape(24, 5) % 3, np.arange(24) % 5 + 1
    padding = np.arange(5) >= lengths[:, None]
    tune(tmp_path, compressed, npz(tmp_path, x=x, y=y, lengths=lengths), name="a")
    tune(
        tmp_path,
        compressed,
        npz(tmp_path, x=np.where(padding[..., None], 99, x), y=np.where(padding, -7, y), lengths=lengths),
        name="b",
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("labels", [False, True], ids=["hidden states", "labels"])
def test_without_lengths_all_steps_count_in_data_and_in_val_alike(labels, tmp_path):
    dense, compressed = saved_pair(tmp_path, Classifier())
    x, y = draw(40, 5, 24), np.arange(200).reshape(40, 5) % 3
    train = {"x": x[:24], "lengths": np.arange(24) % 5 + 1} | ({"y": y[:24]} if labels else {})
    held = {"x": x[24:]} | ({"y": y[24:]} if labels else {})
    data, teacher = npz(tmp_path, **train), None if labels else dense
    for name, lengths in (("without", {}), ("with", {"lengths": np.full(16, 5)})):
        val = npz(tmp_path, f"{name}.npz", **held, **lengths)
        tune(tmp_path, compressed, data, teacher, held=str(val), name=name)
    first, second = (btcompress.load(tmp_path / name).history[-1] for name in ("without", "with"))
    for key in ("before", "after"):
        assert first[key] == pytest.approx(second[key], rel=1e-5)


def test_teacher_of_logits_is_measured_and_followed(tmp_path):
    model = Classifier()
    dense, compressed = saved_pair(tmp_path, model)
    x = draw(60, 5, 24)
    y = model(torch.from_numpy(x)).argmax(1).numpy()
    config = TrainConfig(epochs=4, batch_size=8, learning_rate=1e-2, distill=1.0, cpu=True)
    step = tune(tmp_path, compressed, npz(tmp_path, x=x, y=(y + 1) % 3), dense, config)
    assert step["dense"] == 0.0  # every label is wrong on purpose
    applied = btcompress.apply(Classifier(), tmp_path / "tuned.safetensors")
    start = btcompress.apply(Classifier(), compressed)
    inputs, wanted = torch.from_numpy(x), model(torch.from_numpy(x)).softmax(1)
    assert (applied(inputs).softmax(1) - wanted).norm() < (start(inputs).softmax(1) - wanted).norm() or (
        step["best_epoch"] == 0
    )


def with_more(**children):
    model = Classifier()
    for name, child in children.items():
        model.add_module(name, child)
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (with_more(other=nn.Linear(6, 2)), "are head, other"),
        (with_more(norm=nn.LayerNorm(6)), "more beside them: norm.weight, norm.bias"),
        (nn.ModuleDict({"lstm": nn.LSTM(24, 6)}), "are none"),
    ],
    ids=["two heads", "more", "no head"],
)
def test_files_that_are_not_one_lstm_and_one_head_are_refused_by_name(model, words, tmp_path):
    _, compressed = saved_pair(tmp_path, model)
    with pytest.raises(BTCompressError, match=words):
        tune(tmp_path, compressed, npz(tmp_path, x=draw(20, 3, 24), y=np.zeros(20, int)))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": draw(20, 3, 23), "y": np.zeros(20, int)}, r"\(3, 23\).*\(T, 24\)"),
        ({"x": draw(20, 3, 24), "y": np.full(20, 3)}, "from 3 to 3.*tells 3 apart"),
        ({"x": draw(20, 3, 24), "y": np.full(20, -1)}, "from -1 to -1"),
        ({"x": draw(20, 3, 24), "y": np.zeros((20, 4), int)}, r"\(\d+, 3, 3\).*\(\d+, 4\)"),
        ({"x": draw(20, 3, 24), "y": draw(20, 2)}, r"\(\d+, 3\).*\(\d+, 2\)"),
        ({"x": draw(20, 3, 24), "y": np.full((20, 3), np.nan)}, "NaN"),
        ({"x": draw(20, 3, 24)}, "--teacher"),
    ],
    ids=["inputs", "class above", "class below", "steps", "values", "nan", "nothing to learn"],
)
def test_data_that_do_not_fit_the_model_are_refused_and_nothing_is_written(arrays, words, tmp_path):
    _, compressed = saved_pair(tmp_path, Classifier())
    with pytest.raises(BTCompressError, match=words):
        tune(tmp_path, compressed, npz(tmp_path, **arrays))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "model.bt.safetensors", "model.pt"]


def test_frozen_tensors_stay_and_patterns_must_match(tmp_path):
    _, compressed = saved_pair(tmp_path, Classifier())
    data = npz(tmp_path, x=draw(20, 3, 24), y=np.arange(20) % 3)

    def config(*freeze):
        return TrainConfig(epochs=2, batch_size=4, freeze=freeze, cpu=True)

    tune(tmp_path, compressed, data, config=config("lstm.*"))
    before, after = btcompress.load(compressed).tensors, btcompress.load(tmp_path / "tuned.safetensors").tensors
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("lstm."))
    with pytest.raises(BTCompressError, match=r"'lstn\.\*' matches none of .*head\.bias"):
        tune(tmp_path, compressed, data, config=config("lstn.*"), name="other")
    with pytest.raises(BTCompressError, match="nothing to train"):
        tune(tmp_path, compressed, data, config=config("*"), name="other")


def test_accumulating_parts_of_a_batch_changes_rounding_only(tmp_path):
    dense, compressed = saved_pair(tmp_path, nn.LSTM(24, 6).double())
    data = npz(tmp_path, x=draw(21, 5, 24), lengths=np.arange(21) % 5 + 1)
    for name, accumulate in (("a", 1), ("b", 3)):
        config = TrainConfig(epochs=2, batch_size=8, accumulate=accumulate, cpu=True)
        tune(tmp_path, compressed, data, dense, config, name=name)
    first, second = (btcompress.load(tmp_path / name).tensors for name in "ab")
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-6, atol=1e-9)


def test_early_stopping_keeps_the_best_state_and_never_a_worse_one(tmp_path):
    dense, compressed = saved_pair(tmp_path, nn.LSTM(24, 6), tucker_rank=100)
    config = TrainConfig(epochs=9, batch_size=8, learning_rate=1.0, patience=2, cpu=True)
    step = tune(tmp_path, compressed, npz(tmp_path, x=draw(20, 3, 24)), dense, config)
    assert (step["epochs"], step["best_epoch"]) == (4, 0)
    assert step["after"] == pytest.approx(step["before"], rel=1e-6)
    report = btcompress.report(btcompress.load(tmp_path / "tuned.safetensors"))
    assert any("nothing better" in text for text in report.advice)


def test_metrics_file_has_one_row_an_epoch(tmp_path):
    dense, compressed = saved_pair(tmp_path, nn.LSTM(24, 6))
    step = tune(tmp_path, compressed, npz(tmp_path, x=draw(200, 3, 24)), dense)
    rows = [json.loads(line) for line in (tmp_path / "tuned.metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    metrics = [step["before"], *(row["metric"] for row in rows)]
    assert metrics[step["best_epoch"]] == min(metrics) < step["before"]
    assert step["after"] == pytest.approx(min(metrics), rel=1e-6)


def test_existing_results_and_inputs_are_not_overwritten(tmp_path):
    dense, compressed = saved_pair(tmp_path, nn.LSTM(24, 6))
    data = npz(tmp_path, x=draw(20, 3, 24))
    (tmp_path / "tuned.safetensors").write_text("precious")
    with pytest.raises(OutputError, match="--force"):
        tune(tmp_path, compressed, data, dense)
    with pytest.raises(OutputError, match="never overwritten"):
        tune(tmp_path, compressed, data, dense, name=dense.name, force=True)
    tune(tmp_path, compressed, data, dense, force=True)
    assert btcompress.load(tmp_path / "tuned.safetensors").history[-1]["step"] == "finetune"


def test_metrics_of_an_earlier_training_are_not_overwritten(tmp_path):
    dense, compressed = saved_pair(tmp_path, nn.LSTM(24, 6))
    data = npz(tmp_path, x=draw(20, 3, 24))
    metrics = tmp_path / "tuned.metrics.jsonl"
    metrics.write_text("precious")
    with pytest.raises(OutputError, match=r"tuned\.metrics\.jsonl already exists.*--force"):
        tune(tmp_path, compressed, data, dense)
    assert metrics.read_text() == "precious"
    assert not (tmp_path / "tuned.safetensors").exists()
    tune(tmp_path, compressed, data, dense, force=True)
    assert json.loads(metrics.read_text().splitlines()[0])["epoch"] == 1


@pytest.mark.parametrize(
    "values",
    [{"epochs": 0}, {"learning_rate": 0.0}, {"warmup": 1.5}, {"batch_size": -1}, {"clip": float("nan")}],
    ids=str,
)
def test_settings_outside_their_range_are_refused(values):
    with pytest.raises(BTCompressError, match=next(iter(values))):
        TrainConfig(**values)


USER_CODE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(7, 24)
        self.lstm = nn.LSTM(24, 6, batch_first=True)
        self.head = nn.Linear(6, 3)
        self.tied = self.head

    def forward(self, x):
        return self.head(self.lstm(self.embed(x).tanh())[0][:, -1])

def wrapped():
    net = nn.Module()
    net.module = Net()
    net.forward = net.module.forward
    return net

def data():
    x = torch.randn(90, 4, 7, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(x, x[:, -1, :3].argmax(-1))

def loss(outputs, y):
    return cross_entropy(outputs, y)

def nothing():
    return None

number = 3
"""


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "theirs.py").write_text(USER_CODE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    sys.modules.pop("theirs", None)


@pytest.fixture
def user_files(user_code, tmp_path):
    sys.path.insert(0, str(user_code))
    from theirs import Net

    return saved_pair(tmp_path, Net())


@pytest.mark.parametrize("factory", ["theirs:Net", "theirs:wrapped"])
def test_network_of_the_user_is_trained_with_matrices_of_every_kind(factory, user_code, tmp_path):
    sys.path.insert(0, str(user_code))
    from theirs import Net

    dense, compressed = saved_pair(tmp_path, Net(), matrices=KINDS[-1], tucker_rank=1)
    loaded = btcompress.load(compressed)
    assert set(loaded.matrices) == {"embed.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"}
    assert {left["name"] for left in loaded.history[0]["left_dense"]} == {"head.weight", "tied.weight"}
    step = tune(tmp_path, compressed, "theirs:data", dense, model=factory, folder=user_code, loss="theirs:loss")
    assert step["after"] < step["before"]
    result = btcompress.load(tmp_path / "tuned.safetensors")
    assert result.n_params == loaded.n_params
    changed = {name for name in loaded.tensors if not torch.equal(loaded.tensors[name], result.tensors[name])}
    assert changed == set(loaded.tensors)
    assert torch.equal(result.tensors["head.weight"], result.tensors["tied.weight"])


@pytest.mark.parametrize("options", [{}, {"loss": "theirs:loss"}], ids=["default loss", "own loss"])
@pytest.mark.parametrize("factory", ["theirs:Net", "theirs:wrapped"])
def test_network_of_the_user_is_trained_on_data_of_the_user(options, factory, user_code, user_files, tmp_path):
    dense, compressed = user_files
    step = tune(tmp_path, compressed, "theirs:data", dense, model=factory, folder=user_code, **options)
    assert step["metric"] == ("loss" if options else "accuracy")
    assert step["dense"] is not None
    from theirs import Net

    result = btcompress.load(tmp_path / "tuned.safetensors")
    btcompress.apply(Net(), result)
    assert result.n_params == btcompress.load(compressed).n_params
    if options:
        assert step["after"] < step["before"]


@pytest.mark.parametrize("train", [False, True], ids=["in val", "in data"])
def test_network_of_the_user_is_not_called_with_lengths_on_one_part_only(train, user_code, user_files, tmp_path):
    arrays = {"x": draw(20, 4, 7), "y": np.arange(20) % 3}
    some = npz(tmp_path, "some.npz", **arrays, lengths=np.full(20, 4))
    none = npz(tmp_path, "none.npz", **arrays)
    data, held = (some, none) if train else (none, some)
    with pytest.raises(BTCompressError, match=r"some\.npz has lengths and .*none\.npz has none"):
        tune(tmp_path, user_files[1], data, held=str(held), model="theirs:Net", folder=user_code)


@pytest.mark.parametrize(
    ("way", "rate"), [("hidden states", 1e-2), ("labels", 1e-2), ("own model", 1e-3)], ids=lambda value: str(value)
)
def test_without_a_learning_rate_each_way_takes_its_own_and_records_it(way, rate, user_code, tmp_path):
    sys.path.insert(0, str(user_code))
    from theirs import Net

    dense, compressed = saved_pair(tmp_path, Net() if way == "own model" else Classifier())
    arrays = {"x": draw(20, 4, 7 if way == "own model" else 24)}
    arrays |= {} if way == "hidden states" else {"y": np.arange(20) % 3}
    data = npz(tmp_path, **arrays)
    options = {"model": "theirs:Net", "folder": user_code} if way == "own model" else {}
    plain = TrainConfig(epochs=2, batch_size=4, cpu=True)
    for name, config in (("default", plain), ("given", replace(plain, learning_rate=rate))):
        step = tune(tmp_path, compressed, data, dense if way == "hidden states" else None, config, name, **options)
        assert (step["way"], step["config"]["learning_rate"]) == (way, rate)
    assert (tmp_path / "default").read_bytes() == (tmp_path / "given").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "theirs.Net"}, "package.module:function"),
        ({"model": "nowhere.at_all:Net"}, "no module nowhere"),
        ({"model": "theirs:Missing"}, "Missing is not in that module"),
        ({"model": "theirs:number"}, "number is not a function or class"),
        ({"model": "theirs:nothing"}, "gave NoneType"),
        ({"model": "theirs:Net", "loss": "theirs:nowhere"}, "nowhere is not in that module"),
        ({"loss": "theirs:loss"}, "--model"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_references_are_refused_in_words(options, words, user_code, user_files, tmp_path):
    with pytest.raises(BTCompressError, match=words):
        tune(tmp_path, user_files[1], "theirs:data", folder=user_code, config=SMALL, **options)


def test_errors_inside_user_code_keep_their_own_kind(user_code, user_files, tmp_path):
    (user_code / "broken.py").write_text("import something_that_is_not_installed")
    with pytest.raises(ModuleNotFoundError, match="something_that_is_not_installed"):
        tune(tmp_path, user_files[1], "theirs:data", folder=user_code, model="broken:Net")


def test_trainings_of_one_process_may_differ_in_precision(tmp_path):
    model = nn.LSTM(24, 6)
    dense, compressed = saved_pair(tmp_path, model)
    data = npz(tmp_path, x=draw(40, 5, 24))
    after = {}
    for n, precision in enumerate(("no", "bf16", "no")):
        config = replace(SMALL, precision=precision)
        after[n] = tune(tmp_path, compressed, data, dense, config, f"{n}.safetensors")["after"]
    assert after[0] == after[2]
    assert after[1] != after[0]
    assert after[1] == pytest.approx(after[0], rel=5e-2)
