import pytest
import torch
from torch import nn

import btcompress
from btcompress.checkpoint import from_state_dict
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.modes import ShapeRequest
from btcompress.plan import make_plan


class Speller(nn.Module):
    """Embedding, projected LSTM, cell, two linear layers, one of them without a bias."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(15, 24)
        self.lstm = nn.LSTM(24, 20, 2, proj_size=16)
        self.cell = nn.LSTMCell(16, 12)
        self.dense = nn.Linear(12, 18)
        self.scores = nn.Linear(18, 15, bias=False)


INPUT = ["lstm.weight_ih_l0", "lstm.weight_ih_l1", "cell.weight_ih"]
U = ["lstm.weight_hh_l0", "lstm.weight_hh_l1", "cell.weight_hh"]
P = ["lstm.weight_hr_l0", "lstm.weight_hr_l1"]


def planned(*layers, model=None, **arguments):
    request = ShapeRequest(1, 2, gates=arguments.pop("gates", "fused"))
    state = (model or Speller()).state_dict()
    return make_plan(from_state_dict(state), request, layers, allow_growth=True, **arguments)


def names(plan):
    return {matrix.name for matrix in plan.matrices}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["input"], INPUT),
        (["recurrent"], U + P),
        (["linear"], ["dense.weight"]),
        (["linear", "recurrent", "input"], [*INPUT, *U, *P, "dense.weight"]),
    ],
    ids=str,
)
def test_kinds_say_which_matrices_are_taken(kinds, expected):
    plan = planned(matrices=kinds)
    assert names(plan) == set(expected)
    assert set(plan.kinds) == set(kinds)


def test_input_matrices_alone_are_the_default():
    assert names(planned()) == set(INPUT)


def test_only_matrices_with_gates_have_their_gates_kept_together_or_apart():
    fused, separate = (planned(matrices=["input", "recurrent", "linear"], gates=g) for g in ("fused", "separate"))
    gates = {matrix.name: matrix.shape.part.n_gates for matrix in fused.matrices}
    parts = {matrix.name: matrix.shape.n_parts for matrix in separate.matrices}
    assert gates == parts == {**dict.fromkeys(INPUT + U, 4), **dict.fromkeys([*P, "dense.weight"], 1)}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["lstm"], ["lstm.weight_hh_l0", "lstm.weight_hh_l1", *P]),
        (["*_hr_*"], P),
        (["dense"], ["dense.weight"]),
        (["*", "scores.weight"], [*U, *P, "dense.weight", "scores.weight"]),
        (["!lstm"], ["cell.weight_hh", "dense.weight"]),
        (["!*weight_ih*", "!embedding", "!cell"], ["lstm.weight_hh_l0", "lstm.weight_hh_l1", *P, "dense.weight"]),
        (["scores.weight"], ["scores.weight"]),
    ],
    ids=str,
)
def test_patterns_choose_among_the_kinds_asked_for(layers, expected):
    assert names(planned(*layers, matrices=["recurrent", "linear"])) == set(expected)


@pytest.mark.parametrize(
    ("layers", "kinds", "words"),
    [
        (["*_hh_*"], ["input"], r"'\*_hh_\*'\. lstm\.weight_hh_l0 does, but is recurrent: add that"),
        (["dense"], ["input"], r"dense\.weight does, but is linear"),
        (["scores"], ["linear"], r"scores\.weight does, but has no bias .*: name it exactly"),
        (["*bedding.weight"], ["linear"], r"embedding\.weight does, but has no bias"),
        (["nothing"], ["linear"], r"The matrices are dense\.weight;"),
        (["!nothing"], ["linear"], r"'nothing'\. The matrices are dense\.weight;"),
    ],
    ids=str,
)
def test_patterns_that_match_nothing_are_refused_with_what_they_could_have_matched(layers, kinds, words):
    with pytest.raises(CheckpointError, match=words):
        planned(*layers, matrices=kinds)


def test_pattern_for_a_kind_that_the_checkpoint_has_none_of_is_refused():
    with pytest.raises(CheckpointError, match="There is no linear matrix"):
        planned("head", model=nn.LSTM(6, 5), matrices=["linear"])


@pytest.mark.parametrize("kinds", [["hidden"], [], ["input", "all"], "input,recurrent"], ids=str)
def test_unknown_kinds_are_refused(kinds):
    with pytest.raises(BTCompressError, match="the kinds of matrices are input, recurrent, linear, but"):
        planned(matrices=kinds)


def test_matrices_that_may_be_embeddings_are_named_in_a_notice():
    notices = [notice for notice in planned(matrices=["linear"]).notices if "embedding" in notice]
    assert len(notices) == 1
    assert "embedding.weight, scores.weight" in notices[0]
    assert not any("may be embeddings" in notice for notice in planned().notices)


def test_tied_weights_stay_dense_and_say_so_even_where_named():
    model = Speller()
    model.output = nn.Linear(24, 15)
    model.output.weight = model.embedding.weight
    for layers in ([], ["output"], ["output.weight", "embedding.weight", "dense"]):
        plan = planned(*layers, model=model, matrices=["linear"])
        assert {"output.weight", "embedding.weight"}.isdisjoint(names(plan))
        left = {each.name: each.reason for each in plan.left_dense}
        assert "tied to embedding.weight" in left["output.weight"]


def test_modes_go_to_matrices_of_every_kind_that_they_fit():
    request = ShapeRequest(1, 2, in_modes=(4, 5), out_modes=(3, 6))
    state = nn.ModuleDict({"lstm": nn.LSTM(20, 5), "head": nn.Linear(20, 18)}).state_dict()
    plan = make_plan(from_state_dict(state), request, matrices=["input", "linear"], allow_growth=True)
    shapes = {matrix.name: matrix.shape.part for matrix in plan.matrices}
    assert shapes["lstm.weight_ih_l0"].in_modes == shapes["head.weight"].in_modes == (4, 5)
    assert shapes["head.weight"].out_modes == (3, 6) != shapes["lstm.weight_ih_l0"].out_modes


@pytest.mark.parametrize("gates", ["fused", "separate"])
def test_dense_weights_come_back_at_full_rank_from_matrices_of_every_kind(gates, tmp_path):
    model = Speller().double()
    kinds = ["input", "recurrent", "linear"]
    compressed = btcompress.factorize(model, tucker_rank=10**4, gates=gates, allow_growth=True, matrices=kinds)
    assert set(compressed.matrices) == {*INPUT, *U, *P, "dense.weight"}
    btcompress.save(compressed, tmp_path / "model.bt.safetensors")
    dense = btcompress.to_dense(tmp_path / "model.bt.safetensors")
    assert list(dense) == list(model.state_dict())
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(dense[key], tensor, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kinds", [["recurrent"], ["linear"], ["input", "recurrent", "linear"]], ids=",".join)
def test_all_else_passes_bit_for_bit_and_errors_are_those_of_the_tensors(kinds):
    state = Speller().state_dict()
    compressed = btcompress.factorize(state, tucker_rank=2, allow_growth=True, matrices=kinds)
    dense = btcompress.to_dense(compressed)
    assert all(torch.equal(dense[key], state[key]) for key in state if key not in compressed.matrices)
    rows = btcompress.report(compressed, against=from_state_dict(state)).matrices
    assert {row.name for row in rows} == set(compressed.matrices)
    for row in rows:
        difference = (dense[row.name].double() - state[row.name].double()).norm() / state[row.name].double().norm()
        assert row.weight_error == pytest.approx(float(difference), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "kinds", "words"),
    [
        (
            nn.ParameterDict({"weight_ih_l0": torch.ones(20, 6)}),
            ["linear"],
            "neither a recurrent nor a linear layer that was chosen.*weight_hh_l0 missing",
        ),
        (nn.Linear(60, 50), ["input"], "holds no LSTM.*or ask for linear matrices"),
        (nn.LSTM(6, 5), ["linear"], r"the kinds of matrices \(linear\) and the layer patterns leave no matrix"),
    ],
    ids=["incomplete", "linear", "lstm"],
)
def test_checkpoints_without_a_matrix_of_the_kinds_are_refused(model, kinds, words):
    with pytest.raises(CheckpointError, match=words):
        btcompress.factorize(model, matrices=kinds)
