"""Weights that are stored otherwise are read as the plain ones that the model computes with at inference."""

import json
import re
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

import btcompress
from btcompress import memory
from btcompress.checkpoint import OtherRecurrent, RecurrentEntry, find_recurrent, from_state_dict, read
from btcompress.errors import MemoryLimitError
from btcompress.finetune.user import build_student, build_teacher

N, H = 5, 3
HH, IH, BIAS = "weight_hh_l0", "weight_ih_l0", "bias_hh_l0"
SMALL = {"cp_rank": 1, "tucker_rank": 1, "max_sweeps": 1, "allow_growth": True}


def norm(module, name, dim):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = nn.utils.weight_norm(module, name, dim)
    stretched(getattr(module, f"{name}_g"))
    return module


def new_norm(module, name, dim):
    module = parametrizations.weight_norm(module, name, dim)
    stretched(module.parametrizations[name].original0)
    return module


def stretched(norms):
    """Norms that are no longer those of the weights beside them, as after training."""
    with torch.no_grad():
        norms.mul_(torch.rand_like(norms) + 0.5)


def twice(module):
    return prune.l1_unstructured(new_norm(module, IH, 0), HH, 0.5)


#: How a module of torch is altered, and of which parameters.
ALTERED = {
    "weight norm by rows": lambda module: norm(module, HH, 0),
    "weight norm by columns": lambda module: norm(module, IH, 1),
    "weight norm of the whole": lambda module: norm(module, HH, None),
    "weight norm of a bias": lambda module: norm(module, BIAS, 0),
    "parametrized weight norm by rows": lambda module: new_norm(module, IH, 0),
    "parametrized weight norm by columns": lambda module: new_norm(module, HH, 1),
    "parametrized weight norm of the whole": lambda module: new_norm(module, HH, None),
    "spectral norm": lambda module: nn.utils.spectral_norm(module, HH),
    "spectral norm by columns": lambda module: nn.utils.spectral_norm(module, IH, dim=1),
    "parametrized spectral norm": lambda module: parametrizations.spectral_norm(module, HH),
    "parametrized spectral norm by columns": lambda module: parametrizations.spectral_norm(module, IH, dim=1),
    "pruning": lambda module: prune.l1_unstructured(module, HH, 0.5),
    "pruning of a bias": lambda module: prune.l1_unstructured(module, BIAS, 0.5),
    "pruning of rows, twice": lambda module: prune.ln_structured(
        prune.random_unstructured(module, IH, 0.3), IH, 0.3, 2, 0
    ),
    "two ways": twice,
}


def trained_a_little(module, *inputs):
    """The module after a call in training, which moves the vectors of a spectral norm, and then in eval mode."""
    module.train()(*inputs)
    return module.eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_plain_weights_compute_what_the_altered_ones_do(alter, dtype):
    inputs = torch.randn(4, N, dtype=dtype)
    module = trained_a_little(alter(nn.LSTM(N, H, dtype=dtype)), inputs)
    checkpoint = from_state_dict(module.state_dict())
    plain = nn.LSTM(N, H, dtype=dtype)
    plain.load_state_dict(checkpoint.tensors)
    expected = module(inputs)[0]
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter, getattr(module, name), check_layout=False)
    if dtype != torch.bfloat16:  # where weights that differ in the last digit give other hidden states
        torch.testing.assert_close(plain(inputs)[0], expected)
    assert "formed as the model does at inference" in " ".join(checkpoint.notices)
    (entry,) = find_recurrent(checkpoint.tensors)
    assert isinstance(entry, RecurrentEntry)
    assert checkpoint.source.n_params == sum(each.numel() for each in plain.parameters())


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(N, H), lambda: nn.LSTMCell(N, H), lambda: nn.LSTM(N, H, 2, proj_size=2)]
)
def test_cells_projections_and_linear_layers_are_read_alike(make):
    torch.manual_seed(1)
    module, plain = make(), make()
    for name in [name for name, _ in module.named_parameters() if "weight" in name]:
        new_norm(module, name, 0)
    state = {f"a.b.{key}": value for key, value in module.state_dict().items()}
    folded = from_state_dict(state).tensors
    plain.load_state_dict({key.removeprefix("a.b."): value for key, value in folded.items()})
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter, getattr(module, name))


class Salesforce(nn.Module):
    """Raw weights in the layer itself."""

    def __init__(self):
        super().__init__()
        self.module = nn.LSTM(N, H)
        raw = self.module._parameters.pop(HH)
        self.module.flatten_parameters = lambda: None
        self.module.register_parameter(f"{HH}_raw", nn.Parameter(raw.data))

    def forward(self, inputs):
        raw = getattr(self.module, f"{HH}_raw")
        setattr(self.module, HH, functional.dropout(raw, 0.5, self.training))
        return self.module(inputs)


class Fastai1(nn.Module):
    """Raw weights beside the layer, which keeps those of the last call."""

    def __init__(self):
        super().__init__()
        self.module = nn.LSTM(N, H)
        self.register_parameter(f"{HH}_raw", nn.Parameter(getattr(self.module, HH).data.clone()))

    def forward(self, inputs):
        dropped = functional.dropout(getattr(self, f"{HH}_raw"), 0.5, self.training)
        self.module._parameters[HH] = nn.Parameter(dropped.data)
        return self.module(inputs)

    def reset(self):
        pass


class Fastai2(Fastai1):
    """Raw weights beside a layer without them."""

    def __init__(self):
        super().__init__()
        self.module._parameters.pop(HH)
        self.module.flatten_parameters = lambda: None

    def forward(self, inputs):
        setattr(self.module, HH, functional.dropout(getattr(self, f"{HH}_raw"), 0.5, self.training))
        return self.module(inputs)


class Torchnlp(nn.LSTM):
    """Raw weights in the layer itself, which keeps those of the last call as well."""

    def __init__(self):
        super().__init__(N, H)
        self.register_parameter(f"{HH}_raw", nn.Parameter(self._parameters[HH].data.clone()))

    def forward(self, inputs):
        self._parameters[HH] = nn.Parameter(functional.dropout(getattr(self, f"{HH}_raw"), 0.5, self.training).data)
        return super().forward(inputs)


def stack(kind):
    return nn.ModuleDict({"rnns": nn.ModuleList([kind()])})


@pytest.mark.parametrize(
    ("kind", "prefix", "copy"),
    [
        (Salesforce, "rnns.0.module.", False),
        (Fastai1, "rnns.0.module.", True),
        (Fastai2, "rnns.0.module.", False),
        (Torchnlp, "rnns.0.", True),
    ],
)
def test_weight_drop_is_read_as_the_raw_weights_and_a_dropped_out_copy_is_left_out(kind, prefix, copy):
    model = stack(kind)
    layer, inputs = model["rnns"][0], torch.randn(4, N)
    layer.train()(inputs)
    state = model.state_dict()
    raw = next(value for key, value in state.items() if key.endswith("_raw"))
    if copy:
        assert not torch.equal(state[f"{prefix}{HH}"], raw)
    checkpoint = from_state_dict(state)
    plain = nn.LSTM(N, H)
    plain.load_state_dict({key.removeprefix(prefix): value for key, value in checkpoint.tensors.items()})
    assert torch.equal(getattr(plain, HH), raw)
    torch.testing.assert_close(plain(inputs)[0], layer.eval()(inputs)[0])
    told = " ".join(checkpoint.notices)
    assert f"Stored by weight drop, and formed as the model does at inference: {prefix}{HH}." in told
    assert (f"copy of the same name that weight drop made in training: {prefix}{HH}." in told) == copy


@pytest.mark.parametrize("kind", [Salesforce, Fastai1, Fastai2, lambda: nn.LSTM(N, H)])
def test_a_result_of_weight_drop_is_applied_to_the_model_with_it_and_without(kind):
    result = btcompress.factorize(stack(Fastai1).state_dict(), **SMALL)
    model = btcompress.apply(stack(kind), result).eval()
    plain, inputs = nn.LSTM(N, H), torch.randn(4, N)
    plain.load_state_dict(
        {key.removeprefix("rnns.0.module."): value for key, value in btcompress.to_dense(result).items()}
    )
    torch.testing.assert_close(model["rnns"][0](inputs)[0], plain(inputs)[0])


@pytest.mark.parametrize("kind", [Salesforce, Fastai1, Fastai2])
def test_a_layer_that_stays_dense_keeps_its_weight_drop(kind):
    source = nn.ModuleDict({"rnns": nn.ModuleList([kind()]), "head": nn.Linear(H, 2)})
    result = btcompress.factorize(source.state_dict(), matrices=("linear",), **SMALL)
    model = nn.ModuleDict({"rnns": nn.ModuleList([kind()]), "head": nn.Linear(H, 2)})
    layer, inputs = btcompress.apply(model, result).eval()["rnns"][0], torch.randn(4, N)
    assert type(layer) is kind
    torch.testing.assert_close(layer(inputs)[0], source.eval()["rnns"][0](inputs)[0])


def test_a_network_of_the_user_teaches_with_plain_weights():
    source = nn.Sequential(Fastai1(), new_norm(nn.Linear(H, 2), "weight", 0))
    result = btcompress.factorize(source.state_dict(), matrices=("linear",), **SMALL)

    def made():
        return nn.Sequential(Fastai1(), new_norm(nn.Linear(H, 2), "weight", 0))

    student = build_student("x:made", made, result)
    teacher = build_teacher("x:made", made, from_state_dict(source.state_dict()), student).model.eval()
    inputs = torch.randn(4, N)
    torch.testing.assert_close(teacher[0](inputs)[0], source.eval()[0](inputs)[0])
    torch.testing.assert_close(teacher[1].weight, source[1].weight)


def network(alter=lambda module, name: module):
    return nn.ModuleDict({"lstm": alter(nn.LSTM(N, H), HH), "head": alter(nn.Linear(H, 2), "weight")})


@pytest.mark.parametrize("matrices", [("input", "recurrent"), ("linear",)])
@pytest.mark.parametrize(
    "alter",
    [
        lambda module, name: norm(module, name, 0),
        lambda module, name: new_norm(module, name, 0),
        nn.utils.spectral_norm,
        parametrizations.spectral_norm,
        lambda module, name: prune.l1_unstructured(module, name, 0.5),
        lambda module, name: module,
    ],
)
def test_a_result_is_applied_to_the_altered_model_and_to_a_plain_one(alter, matrices):
    result = btcompress.factorize(network(alter).state_dict(), matrices=matrices, **SMALL)
    inputs = torch.randn(4, N)
    outputs = []
    for model in (btcompress.apply(network(alter), result), btcompress.apply(network(), result)):
        hidden, _ = model.eval()["lstm"](inputs)
        outputs.append(model["head"](hidden))
        assert not any(re.search("parametrizations|_(orig|mask|[guv])$", key) for key in model.state_dict())
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("mask", [torch.ones(4 * H, H), torch.eye(4 * H, H), torch.eye(4 * H, H).bool()])
def test_a_mask_beside_plain_weights_is_applied_and_kept(mask):
    state = {**nn.LSTM(N, H).state_dict(), f"{HH}_mask": mask}
    checkpoint = from_state_dict(state)
    assert list(checkpoint.tensors) == list(state)
    assert torch.equal(checkpoint.tensors[HH], state[HH] * mask)
    assert checkpoint.tensors[f"{HH}_mask"] is not None
    assert bool(checkpoint.notices) != bool(mask.eq(1).all())
    (entry,) = find_recurrent(checkpoint.tensors)
    assert isinstance(entry, RecurrentEntry)


@pytest.mark.parametrize("mask", [torch.ones(H), torch.full((4 * H, H), 2.0), torch.zeros(4 * H, 1)])
def test_a_mask_that_is_none_of_the_weights_changes_nothing(mask):
    state = {**nn.LSTM(N, H).state_dict(), f"{HH}_mask": mask}
    checkpoint = from_state_dict(state)
    assert torch.equal(checkpoint.tensors[HH], state[HH])
    assert isinstance(find_recurrent(checkpoint.tensors)[0], RecurrentEntry)
    if not mask.eq(1).all():
        assert HH in " ".join(checkpoint.notices)


def test_a_layer_with_a_mask_is_swapped_with_it():
    model = nn.ModuleDict({"lstm": nn.LSTM(N, H)})
    model["lstm"].register_buffer(f"{HH}_mask", torch.eye(4 * H, H))
    applied = btcompress.apply(model, btcompress.factorize(model.state_dict(), **SMALL))
    assert isinstance(applied["lstm"], btcompress.BTLSTM)


def without(key, state):
    return {name: value for name, value in state.items() if name != key}


MATRIX = torch.randn(4 * H, H, generator=torch.Generator().manual_seed(0))
#: What does not fit.
MISFITS = {
    "norms of another size": {f"{HH}_v": MATRIX, f"{HH}_g": torch.ones(5, 1)},
    "a norm for each entry": {f"{HH}_v": MATRIX, f"{HH}_g": torch.ones(4 * H, H)},
    "norms of more axes": {f"{HH}_v": MATRIX, f"{HH}_g": torch.ones(4 * H, 1, 1)},
    "no norms": {f"{HH}_v": MATRIX},
    "norms of integers": {f"{HH}_v": MATRIX, f"{HH}_g": torch.ones(4 * H, 1).int()},
    "integers": {f"{HH}_v": MATRIX.int(), f"{HH}_g": torch.ones(4 * H, 1)},
    "three axes": {f"{HH}_v": torch.ones(4 * H, H, 1), f"{HH}_g": torch.ones(4 * H, 1, 1)},
    "one number": {f"{HH}_v": torch.tensor(1.0), f"{HH}_g": torch.tensor(1.0)},
    "nothing": {f"{HH}_v": torch.ones(0, H), f"{HH}_g": torch.ones(0, 1)},
    "vectors of another size": {f"{HH}_orig": MATRIX, f"{HH}_u": torch.ones(4 * H), f"{HH}_v": torch.ones(4)},
    "vectors of a bias": {f"{HH}_orig": MATRIX[0], f"{HH}_u": torch.ones(H), f"{HH}_v": torch.ones(0)},
    "vectors of more axes": {f"{HH}_orig": MATRIX, f"{HH}_u": torch.ones(4 * H, 1), f"{HH}_v": torch.ones(H, 1)},
    "a vector missing": {f"{HH}_orig": MATRIX, f"{HH}_u": torch.ones(4 * H)},
    "a mask of a row": {f"{HH}_orig": MATRIX, f"{HH}_mask": torch.ones(H)},
    "a complex mask": {f"{HH}_orig": MATRIX, f"{HH}_mask": torch.ones(4 * H, H).cfloat()},
    "an original alone": {f"{HH}_orig": MATRIX},
    "another parametrization": {f"parametrizations.{HH}.original": MATRIX, f"parametrizations.{HH}.0.base": MATRIX},
    "several": {
        f"parametrizations.{HH}.original0": torch.ones(4 * H, 1),
        f"parametrizations.{HH}.original1": MATRIX,
        f"parametrizations.{HH}.1._u": torch.ones(4 * H),
    },
}


@pytest.mark.parametrize("stored", MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_left_as_it_is_and_refused(stored):
    state = {**without(HH, nn.LSTM(N, H).state_dict()), **stored}
    checkpoint = from_state_dict(state)
    assert list(checkpoint.tensors) == list(state)
    assert all(torch.equal(checkpoint.tensors[key], state[key]) for key in state)
    (entry,) = find_recurrent(checkpoint.tensors)
    assert isinstance(entry, OtherRecurrent)
    assert f"{HH} is not stored as such but made from" in entry.reason
    assert any(key in entry.reason for key in stored)


def test_convolutions_stay_as_they_are():
    state = {**nn.LSTM(N, H).state_dict(), "conv.weight_v": torch.ones(2, 3, 4), "conv.weight_g": torch.ones(2, 1, 1)}
    checkpoint = from_state_dict(state)
    assert list(checkpoint.tensors) == list(state)
    assert not checkpoint.notices


def test_tied_weights_stay_one():
    state = norm(nn.LSTM(N, H), HH, 0).state_dict()
    tied = {f"{prefix}.{key}": value for prefix in "ab" for key, value in state.items()}
    folded = from_state_dict(tied)
    assert folded.tensors[f"a.{HH}"] is folded.tensors[f"b.{HH}"]
    assert folded.source.n_params == sum(each.numel() for each in nn.LSTM(N, H).parameters())


def test_more_than_the_memory_has_is_refused():
    state = {f"{HH}_v": torch.ones(1).expand(1 << 20, 1 << 20), f"{HH}_g": torch.ones(1 << 20, 1)}
    with memory.limited(10**6), pytest.raises(MemoryLimitError, match=f"the plain form of {HH}_v"):
        from_state_dict(state)


@pytest.mark.parametrize("alter", [*list(ALTERED.values())[:9:4], lambda module: Fastai1()])
def test_a_file_in_containers_comes_back_as_one_of_plain_weights(alter, tmp_path):
    model = nn.ModuleDict({"rnn": alter(nn.LSTM(N, H)), "head": nn.Linear(H, 2)})
    torch.save({"epoch": 3, "net": {"state": model.state_dict()}}, tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert checkpoint.layout is not None
    checkpoint.layout.check(list(checkpoint.tensors))
    result = btcompress.factorize(tmp_path / "a.pt", **SMALL)
    btcompress.export_dense(result, tmp_path / "b.pt")
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert found["epoch"] == 3
    assert list(found["net"]["state"]) == list(checkpoint.tensors)


def test_what_is_made_of_nested_dicts_comes_back_as_one_plain_state_dict():
    state = new_norm(nn.LSTM(N, H), HH, 0).state_dict()
    inner = {key.rpartition(".")[2]: value for key, value in state.items() if "parametrizations" in key}
    outer = {key: value for key, value in state.items() if "parametrizations" not in key}
    checkpoint = from_state_dict({"net": {**outer, "parametrizations": {HH: inner}}, "epoch": 3})
    assert HH in checkpoint.tensors
    assert checkpoint.layout is None
    assert any(notice.startswith("Left out, the layout of the file (the place of") for notice in checkpoint.notices)


def test_shards_are_folded_together(tmp_path):
    state = norm(nn.LSTM(N, H), HH, 0).state_dict()
    shards = {"1.safetensors": [f"{HH}_g"], "2.safetensors": [key for key in state if key != f"{HH}_g"]}
    for name, keys in shards.items():
        save_file({key: state[key] for key in keys}, tmp_path / name)
    weight_map = {key: name for name, keys in shards.items() for key in keys}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(read(tmp_path).tensors[HH], from_state_dict(state).tensors[HH])
