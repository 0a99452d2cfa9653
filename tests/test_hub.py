import copy
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from torch import nn

import btcompress
from btcompress import hub
from btcompress.checkpoint.compressed import part_names
from btcompress.errors import BTCompressError, CheckpointError, OutputError
from btcompress.hub import HubMixin, card, weights
from btcompress.hub import config as configs
from btcompress.memory import size_text
from btcompress.nn import BTLSTM, BTLinear, BTLSTMCell
from btcompress.packing import Integers
from roundedresults import in_bits

W0, U0, W1 = "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_ih_l1"


@pytest.fixture(autouse=True)
def nothing_is_uploaded_or_fetched(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", refuse)
    monkeypatch.setattr("huggingface_hub._snapshot_download.HfApi", refuse)


class Layers(nn.Module):
    """Embedding tied to the decoder, two-layer bidirectional LSTM, cell and linear layer; all sizes unequal."""

    def __init__(self, hidden: int = 10, words: int = 21, rate: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(words, 12)
        self.lstm = nn.LSTM(12, hidden, num_layers=2, bidirectional=True, batch_first=True, dropout=rate)
        self.cell = nn.LSTMCell(2 * hidden, 14)
        self.out = nn.Linear(14, 12)
        self.decoder = nn.Linear(12, words, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, words):
        state = None
        for step in self.lstm(self.embedding(words))[0].unbind(1):
            state = self.cell(step, state)
        return self.decoder(self.out(state[0]))


class Tagger(Layers, HubMixin, tags=["tagging"]):
    pass


class Written(nn.Module, HubMixin):
    """Block-term layers from the start, of shapes that follow from its arguments."""

    def __init__(self, rank: int = 2):
        super().__init__()
        self.lstm = BTLSTM(12, 10, bidirectional=True, cp_rank=rank, matrices=("input", "recurrent"))
        self.cell = BTLSTMCell(20, 6)
        self.out = BTLinear(6, 8)

    def forward(self, frames):
        return self.out(self.cell(self.lstm(frames)[0][-1])[0])


WORDS = torch.tensor([[3, 1, 20, 7, 0], [2, 2, 11, 5, 19]])
ALL = {"matrices": ("input", "recurrent", "linear"), "layer": ("*", "!decoder", "!embedding")}


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(3)
    return Layers(hidden=9)


@pytest.fixture(scope="module")
def compressed(dense):
    return btcompress.factorize(dense, tucker_rank=2, allow_growth=True, matrices=("input", "recurrent", "linear"))


def few_bits(compressed):
    """W of both directions in 4 bits, U as block terms in 8, the embedding in halves."""
    tied = dict.fromkeys(("embedding.weight", "decoder.weight"), torch.float16)
    return in_bits(compressed, {W0: Integers(4, 8), U0: torch.float16, W1: Integers(8, 16)}, tied)


FORMS = {"as they are": lambda compressed: compressed, "in few bits": few_bits}


@pytest.mark.parametrize("form", FORMS)
def test_network_is_the_same_bit_for_bit_after_saving_and_loading(form, compressed, tmp_path):
    model = btcompress.apply(Tagger(hidden=9), FORMS[form](compressed)).eval()
    model.save_pretrained(tmp_path / "tagger")
    loaded = Tagger.from_pretrained(tmp_path / "tagger")
    assert torch.equal(loaded(WORDS), model(WORDS))
    assert not loaded.training
    assert loaded.decoder.weight is loaded.embedding.weight
    kinds = {"lstm": BTLSTM, "cell": BTLSTMCell, "out": BTLinear}
    assert {name: type(getattr(loaded, name)) for name in kinds} == kinds
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_the_file_of_the_result_that_was_applied(form, compressed, tmp_path):
    applied = FORMS[form](compressed)
    btcompress.save(applied, tmp_path / "whole.safetensors")
    model = btcompress.apply(Tagger(hidden=9), applied)
    model.save_pretrained(tmp_path / "tagger")
    file = tmp_path / "tagger" / "model.safetensors"
    assert file.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    # Loaded and saved again, it is still that file.
    Tagger.from_pretrained(tmp_path / "tagger").save_pretrained(tmp_path / "again")
    names = ("model.safetensors", "config.json", "README.md")
    assert all((tmp_path / "again" / n).read_bytes() == (tmp_path / "tagger" / n).read_bytes() for n in names)
    assert sorted(path.name for path in (tmp_path / "tagger").iterdir()) == sorted(names)
    # And without the mixin it is a result as any other.
    plain = btcompress.apply(Layers(hidden=9), file).eval()
    assert torch.equal(plain(WORDS), model.eval()(WORDS))


def test_matrices_in_4_bits_take_4_bits_in_the_folder_too(tmp_path):
    compressed = btcompress.factorize(nn.LSTM(64, 60), matrices=("input", "recurrent"), bits=4)
    lstm = btcompress.apply(nn.LSTM(64, 60), compressed)
    hub.save_pretrained(lstm, tmp_path, config={"input_size": 64, "hidden_size": 60})
    n_bytes = (tmp_path / "model.safetensors").stat().st_size
    assert n_bytes < compressed.n_bytes + 3000 < sum(each.nbytes for each in lstm.state_dict().values()) / 4
    loaded = hub.from_pretrained(nn.LSTM, tmp_path)
    assert all(torch.equal(tensor, lstm.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_result_from_a_file_with_a_prefix_is_written_without_it(dense, tmp_path):
    wrapped = {f"model.{name}": tensor for name, tensor in dense.state_dict().items()}
    compressed = btcompress.factorize(wrapped, tucker_rank=2, allow_growth=True)
    model = btcompress.apply(Tagger(hidden=9), compressed, prefix="model.").eval()
    model.save_pretrained(tmp_path)
    assert btcompress.load(tmp_path / "model.safetensors").matrices.keys() == {
        key.removeprefix("model.") for key in compressed.matrices
    }
    assert torch.equal(Tagger.from_pretrained(tmp_path)(WORDS), model(WORDS))


def cells_of(text, first):
    """The cells of the table row that begins with this, without the marks of Markdown, and of what is worse."""
    rows = [re.sub(r"\\(.)", r"\1", line) for line in text.splitlines()]
    (row,) = [row for row in rows if row.startswith(f"| {first} |")]
    return [cell.strip().removesuffix("!") for cell in row.strip("|").split("|")]


@pytest.mark.parametrize("form", FORMS)
def test_card_holds_the_numbers_of_the_report(form, compressed, tmp_path):
    btcompress.apply(Tagger(hidden=9), FORMS[form](compressed)).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    file = tmp_path / "model.safetensors"
    report = btcompress.report(btcompress.load(file), bytes_after=file.stat().st_size).to_dict()
    assert len(report["matrices"]) > 5
    for row in report["matrices"]:
        cells = cells_of(text, row["name"])
        assert cells[1] == f"{row['shape'][0]} x {row['shape'][1]}"
        assert f"{row['weight_error']:.3f}" in cells
        if form == "in few bits":
            assert cells[5].split(" ")[0].startswith(row["precision"].split("/")[0])
            assert cells[6:8] == [size_text(row["bytes_before"]), size_text(row["bytes_after"])]
        else:
            assert cells[5:7] == [f"{row['params_before']:,}", f"{row['params_after']:,}"]
    model = report["model"]
    assert cells_of(text, "parameters")[1:3] == [f"{model['params_before']:,}", f"{model['params_after']:,}"]
    assert cells_of(text, "bytes")[1:3] == [size_text(model["bytes_before"]), size_text(model["bytes_after"])]
    assert json.dumps(compressed.history[0], sort_keys=True) in text
    data = huggingface_hub.ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "btcompress"
    assert {"tagging", "btcompress"} <= set(data.tags)


def test_section_of_a_card_is_renewed_and_the_rest_of_it_kept(compressed, tmp_path):
    model = btcompress.apply(Tagger(hidden=9), compressed)
    model.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    own = "Trained by me | on words.\n"
    before = path.read_text()
    path.write_text(before.replace(card.BEGIN, own + card.BEGIN).replace("0.", "9.") + own)
    model.save_pretrained(tmp_path)
    assert path.read_text() == before.replace(card.BEGIN, own + card.BEGIN) + own
    path.write_text(own)  # and a card without its place is left as it is
    model.save_pretrained(tmp_path)
    assert path.read_text() == own


def test_names_from_elsewhere_are_no_markup_in_a_card():
    from btcompress.reporting.markdown import table

    text = table(["matrix", "N"], [["a|b [x](y) <b>\n**c**", "1"]])
    assert text.splitlines()[2] == r"| a\|b \[x\](y) \<b\>\\n\*\*c\*\* | 1 |"


def test_matrices_that_were_trained_since_are_told_of_and_saved_as_they_are(compressed, tmp_path):
    few = few_bits(compressed)
    model = btcompress.apply(Tagger(hidden=9), few)
    with torch.no_grad():
        model.lstm.get_submodule("weight_ih_l1").factors.tensors()[0].mul_(1.5)
        model.out.bias.add_(1)
    model.eval().save_pretrained(tmp_path)
    loaded = btcompress.load(tmp_path / "model.safetensors")
    assert loaded.history[-1] == {"step": "changed in memory", "matrices": [W1]}
    changed = part_names(W1, few.matrices[W1].shape)[0]
    assert set(few.stored) - set(loaded.stored) == {name for name in changed if name.endswith("factors.0")}
    assert "Changed in memory since" in (tmp_path / "README.md").read_text()
    assert torch.equal(Tagger.from_pretrained(tmp_path)(WORDS), model(WORDS))


def test_part_of_a_network_that_was_applied_has_its_table_in_the_card(compressed, tmp_path):
    class Whole(nn.Module, HubMixin):
        def __init__(self):
            super().__init__()
            self.tagger = Layers(hidden=9)
            self.scale = nn.Parameter(torch.ones(3))

    model = Whole()
    btcompress.apply(model.tagger, compressed)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert f"{compressed.matrices[W0].weight_error:.3f}" in cells_of(text, W0)
    assert "tagger of this network was made from" in text
    assert not btcompress.checkpoint.is_compressed(tmp_path / "model.safetensors")
    assert torch.equal(Whole.from_pretrained(tmp_path).tagger(WORDS), model.eval().tagger(WORDS))


def test_block_terms_without_a_record_are_plain_tensors_and_have_no_errors(tmp_path, generator):
    model = Written(rank=3).eval()
    model.save_pretrained(tmp_path)
    frames = torch.randn(4, 2, 12, generator=generator)
    assert torch.equal(Written.from_pretrained(tmp_path)(frames), model(frames))
    # The class may make other shapes of other arguments, or be dense: it gets those that were saved.
    assert torch.equal(Written.from_pretrained(tmp_path, rank=1)(frames), model(frames))
    text = (tmp_path / "README.md").read_text()
    assert "no errors are known" in text
    shape = model.lstm.shapes["weight_ih_l0"]
    assert cells_of(text, W0)[5:7] == [f"{shape.dense_params:,}", f"{shape.n_params:,}"]
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys()


def test_tied_tensors_are_written_once_and_tied_again(tmp_path):
    model = Tagger()
    model.save_pretrained(tmp_path)
    assert "decoder.weight" not in safetensors.torch.load_file(tmp_path / "model.safetensors")
    loaded = Tagger.from_pretrained(tmp_path)
    assert loaded.decoder.weight is loaded.embedding.weight
    assert torch.equal(loaded(WORDS), model.eval()(WORDS))
    # safetensors' own loader understands it.
    other = Tagger()
    safetensors.torch.load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(other.eval()(WORDS), model(WORDS))


def modules():
    lstm = BTLSTM(
        12, 10, 2, batch_first=True, dropout=0.25, bidirectional=True, gates="separate", matrices=("input", "recurrent")
    )
    return {
        "lstm": (lstm, torch.randn(3, 5, 12)),
        "projected": (BTLSTM(12, 10, proj_size=4, bias=False, method="factored"), torch.randn(5, 3, 12)),
        "halves": (BTLSTM(12, 10, dtype=torch.bfloat16), torch.randn(5, 3, 12, dtype=torch.bfloat16)),
        "cell": (BTLSTMCell(12, 10, keeps_formed=False), torch.randn(3, 12)),
        "linear": (BTLinear(12, 10, bias=False, dtype=torch.float64), torch.randn(3, 12, dtype=torch.float64)),
    }


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", ["lstm", "projected", "halves", "cell", "linear"])
def test_modules_of_this_package_are_the_same_after_saving_and_loading(name, tmp_path):
    module, inputs = modules()[name]
    module.save_pretrained(tmp_path)
    loaded = type(module).from_pretrained(tmp_path)
    assert repr(loaded) == repr(module)
    assert vars(loaded).keys() == vars(module).keys()
    arguments = ("method", "keeps_formed", "dropout", "batch_first")
    assert all(getattr(loaded, each, None) == getattr(module, each, None) for each in arguments)
    with torch.no_grad():
        ours, theirs = module.eval()(inputs), loaded(inputs)
    ours, theirs = (each if isinstance(each, torch.Tensor) else each[0] for each in (ours, theirs))
    assert torch.equal(ours, theirs)
    assert not loaded.training


def test_applied_layer_alone_is_saved_as_the_result_that_it_is(tmp_path):
    compressed = btcompress.factorize(nn.LSTM(12, 10), tucker_rank=2, allow_growth=True)
    lstm = btcompress.apply(nn.LSTM(12, 10), compressed)
    lstm.save_pretrained(tmp_path)
    assert btcompress.load(tmp_path / "model.safetensors").matrices == compressed.matrices
    assert f"{compressed.matrices['weight_ih_l0'].weight_error:.3f}" in (tmp_path / "README.md").read_text()
    loaded = BTLSTM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, lstm.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_networks_without_the_mixin_are_saved_and_loaded_by_functions(compressed, tmp_path):
    model = btcompress.apply(Layers(hidden=9), compressed).eval()
    hub.save_pretrained(model, tmp_path, config={"hidden": 9})
    assert torch.equal(hub.from_pretrained(Layers, tmp_path)(WORDS), model(WORDS))
    hub.save_pretrained(model, tmp_path)  # nobody knows its arguments then, but whoever loads it
    assert torch.equal(hub.from_pretrained(Layers, tmp_path, hidden=9)(WORDS), model(WORDS))
    with pytest.raises(CheckpointError, match="weight_ih is 56 x 14"):
        hub.from_pretrained(Layers, tmp_path, hidden=7)
    with pytest.raises(BTCompressError, match="widht"):
        hub.from_pretrained(Layers, tmp_path, widht=9)


def test_classes_with_the_hubs_own_mixin_keep_their_arguments_and_coders(compressed, tmp_path):
    class Size:
        def __init__(self, value):
            self.value = value

    class Own(Layers, huggingface_hub.PyTorchModelHubMixin, coders={Size: (lambda size: size.value, Size)}):
        def __init__(self, size: Size, rate: float = 0.5):
            super().__init__(hidden=size.value, rate=rate)

    model = btcompress.apply(Own(Size(9)), compressed).eval()
    hub.save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["size"] == 9
    loaded = hub.from_pretrained(Own, tmp_path)
    assert type(loaded) is Own
    assert loaded.lstm.dropout == 0.5
    assert torch.equal(loaded(WORDS), model(WORDS))


@dataclass
class Settings:
    hidden: int = 10


@pytest.mark.parametrize("kind", ["dataclass", "dict", "any"])
def test_classes_that_take_a_config_or_anything_get_no_section(kind, compressed, tmp_path):
    class FromDataclass(Layers, HubMixin):
        def __init__(self, config: Settings):
            super().__init__(config.hidden)

    class FromDict(Layers, HubMixin):
        def __init__(self, config: dict):
            super().__init__(**config)

    class FromAny(Layers, HubMixin):
        def __init__(self, **arguments):
            super().__init__(**arguments)

    model = {
        "dataclass": lambda: FromDataclass(Settings(9)),
        "dict": lambda: FromDict({"hidden": 9}),
        "any": lambda: FromAny(hidden=9),
    }[kind]()
    btcompress.apply(model, compressed).save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(WORDS), model.eval()(WORDS))


def saved_lstm(folder):
    torch.manual_seed(0)
    BTLSTM(12, 10, 2, matrices=("input", "recurrent"), gates="separate").save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def changed(*path, value):
    def change(config):
        inner = config
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value

    return change


SHAPE = ("btcompress", "matrices", "weight_ih_l0")
DAMAGES = {
    "rank beyond memory": changed(*SHAPE, "tucker_ranks", value=[2**39, 2**39]),
    "modes beyond memory": changed(*SHAPE, "in_modes", value=[2**39, 2**39]),
    "many modes": changed(*SHAPE, "in_modes", value=[1] * 10**4),
    "negative": changed(*SHAPE, "cp_rank", value=-1),
    "not a number": changed(*SHAPE, "cp_rank", value="2"),
    "no shape": changed(*SHAPE, value=[]),
    "stranger": changed("btcompress", "matrices", "weight_ih_l7", value={}),
    "version": changed("btcompress", "version", value=2),
    "section": changed("btcompress", value="here"),
    "layers without end": changed("num_layers", value=10**9),
    "hidden beyond memory": changed("hidden_size", value=2**39),
    "other bias": changed("bias", value=False),
    "method": changed("method", value="import os"),
    "dropout": changed("dropout", value=7),
    "no size": lambda config: config.pop("input_size"),
    "order that is not there": changed(*SHAPE, "row_order", value=True),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_config_is_refused_before_memory_is_taken(damage, tmp_path):
    config = saved_lstm(tmp_path)
    DAMAGES[damage](config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        BTLSTM.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10**5, "\udcff", '{"input_size": ' + "9" * 5000 + "}", "null"])
def test_config_that_is_no_json_object_is_refused(text, tmp_path):
    saved_lstm(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    for load in (BTLSTM.from_pretrained, Tagger.from_pretrained):
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load(tmp_path)


def test_orders_that_are_none_are_refused(tmp_path, generator):
    from btcompress.shapes import BlockTermShape, MatrixShape

    shape = MatrixShape(BlockTermShape((4, 3), (8, 5), (2, 2), n_gates=4).ordered(("row_order",)))
    cell = BTLSTMCell(12, 10, shapes={"weight_ih": shape})
    cell.save_pretrained(tmp_path)
    assert torch.equal(BTLSTMCell.from_pretrained(tmp_path).weight_ih.row_order, cell.weight_ih.row_order)
    cell.weight_ih.row_order[0] = 10**6
    cell.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="order"):
        BTLSTMCell.from_pretrained(tmp_path)


def test_files_that_were_not_written_together_are_refused(compressed, tmp_path):
    btcompress.apply(Tagger(hidden=9), compressed).save_pretrained(tmp_path / "one")
    saved_lstm(tmp_path / "two")
    with pytest.raises(CheckpointError, match="input_size"):
        BTLSTM.from_pretrained(tmp_path / "one")
    with pytest.raises(CheckpointError, match="block-term layer at the model itself"):
        Tagger.from_pretrained(tmp_path / "two")
    (tmp_path / "one" / "model.safetensors").replace(tmp_path / "two" / "model.safetensors")
    with pytest.raises(CheckpointError, match="other shapes"):
        BTLSTM.from_pretrained(tmp_path / "two")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Tagger.from_pretrained(tmp_path / "one")


def test_damaged_bytes_end_in_an_error_that_tells_or_in_a_module(tmp_path, generator):
    saved_lstm(tmp_path)
    for name in ("config.json", "model.safetensors"):
        whole = (tmp_path / name).read_bytes()
        refused = 0
        for _ in range(60):
            data = bytearray(whole)
            for place in torch.randint(min(len(data), 4000), (3,), generator=generator).tolist():
                data[place] = int(torch.randint(256, (), generator=generator))
            (tmp_path / name).write_bytes(data)
            try:
                assert isinstance(BTLSTM.from_pretrained(tmp_path), BTLSTM)
            except BTCompressError:
                refused += 1
        assert refused > 20
        (tmp_path / name).write_bytes(whole)


def test_folder_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(BTCompressError, match="is no folder"):
        BTLSTM.from_pretrained(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Tagger.from_pretrained(tmp_path)


def test_other_files_of_a_folder_stay_and_a_failed_save_changes_nothing(compressed, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    model = btcompress.apply(Tagger(hidden=9), compressed)
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"notes.txt", "model.safetensors", "config.json", "README.md"}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with torch.no_grad():
        model.out.bias.add_(1)
    monkeypatch.setattr(huggingface_hub.ModelCard, "save", full)
    (tmp_path / "README.md").unlink()
    with pytest.raises(OutputError, match="No space left"):
        model.save_pretrained(tmp_path)
    del before["README.md"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_state_that_no_file_can_hold_is_refused(tmp_path):
    class Odd(nn.Module, HubMixin):
        def get_extra_state(self):
            return {"steps": 3}

    with pytest.raises(CheckpointError, match="_extra_state"):
        Odd().save_pretrained(tmp_path)


def test_copies_know_nothing_of_what_was_applied(compressed, tmp_path):
    model = copy.deepcopy(btcompress.apply(Tagger(hidden=9), compressed)).eval()
    model.save_pretrained(tmp_path)
    assert "no errors are known" in (tmp_path / "README.md").read_text()
    assert torch.equal(Tagger.from_pretrained(tmp_path)(WORDS), model(WORDS))
    assert weights.shapes_of(model) == configs.shapes_in(configs.read_config(tmp_path / "config.json"), tmp_path)


def test_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "hub.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    names = {}
    exec("\n".join(blocks), names)
    assert isinstance(names["loaded"].lstm, BTLSTM)
    assert {path.name for path in tmp_path.iterdir()} == {"tagger", "lstm", "plain"}


def test_layers_of_classes_of_their_own_are_kept(tmp_path):
    class Doubled(BTLSTM):
        def forward(self, frames, hx=None):
            return super().forward(2 * frames, hx)

    class Own(nn.Module, HubMixin):
        def __init__(self):
            super().__init__()
            self.lstm = Doubled(12, 10)

    model = Own()
    model.save_pretrained(tmp_path)
    assert type(Own.from_pretrained(tmp_path).lstm) is Doubled


def test_wrappers_are_no_part_of_what_is_saved(compressed, tmp_path):
    model = btcompress.apply(Tagger(hidden=9), compressed).eval()
    hub.save_pretrained(nn.DataParallel(model), tmp_path)
    assert btcompress.load(tmp_path / "model.safetensors").keys == compressed.keys
    assert torch.equal(Tagger.from_pretrained(tmp_path)(WORDS), model(WORDS))


def test_repositories_are_fetched_by_the_hubs_client(compressed, tmp_path, monkeypatch):
    model = btcompress.apply(Tagger(hidden=9), compressed).eval()
    model.save_pretrained(tmp_path / "snapshot")
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("btcompress.hub.mixin.snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(Tagger.from_pretrained("someone/tagger", revision="v2")(WORDS), model(WORDS))
    assert (asked["name"], asked["revision"]) == ("someone/tagger", "v2")
    assert asked["allow_patterns"] == ["config.json", "model.safetensors"]


def test_what_a_record_says_cannot_end_the_section(compressed, tmp_path):
    told = compressed.with_step({"step": "evil", "text": f"{card.END} and more"})
    model = btcompress.apply(Tagger(hidden=9), told)
    for _ in range(2):
        model.save_pretrained(tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert (text.count(card.BEGIN), text.count(card.END), text.count("evil")) == (1, 1, 1)


def test_modules_do_not_import_the_hub():
    script = "import sys, btcompress.nn, btcompress.models; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
