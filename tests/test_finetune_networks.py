from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.checkpoint import from_state_dict
from btcompress.finetune.data import Batch
from btcompress.finetune.networks import Recurrent, RecurrentWithHead, choose_lstm, find_head
from btcompress.finetune.tasks import HiddenStates, Labels
from tuning import SMALL, Classifier, draw, saved_pair, tune


def full_rank(model, matrices):
    return btcompress.factorize(model, tucker_rank=1000, allow_growth=True, matrices=matrices)


def built(model, *, dense, matrices=("input",)):
    """The network that the checkpoint of a model gives, dense or block-term, for the first way and the second."""
    compressed = full_rank(model, matrices)
    entry = choose_lstm(compressed, None)
    shapes = {key: matrix.shape for key, matrix in compressed.matrices.items()}
    tensors = from_state_dict(model.state_dict()).tensors if dense else compressed.tensors
    shapes = {} if dense else shapes
    recurrent = Recurrent(entry, tensors, shapes, torch.float64)
    return recurrent, RecurrentWithHead(recurrent, find_head(compressed, entry), tensors, shapes, per_step=False)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("matrices", [["input"], ["recurrent"], ["linear"], ["input", "recurrent", "linear"]], ids=str)
@pytest.mark.parametrize("dense", [True, False], ids=["teacher", "student"])
def test_network_built_from_a_file_computes_what_the_model_does(dense, matrices):
    model = Classifier(num_layers=2, proj_size=4).double()
    recurrent, whole = built(model, dense=dense, matrices=matrices)
    tensors = model.state_dict() if dense else full_rank(model, matrices).tensors
    assert whole.file_tensors().keys() == tensors.keys()
    x = torch.from_numpy(draw(4, 5, 24)).double()
    hidden, (h, c) = model.lstm(x)
    for ours, theirs in zip(recurrent(x), (hidden, h, c), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(whole(x), model(x))


def test_lengths_end_each_sequence_where_it_would_end_alone():
    recurrent, whole = built(Classifier(num_layers=2, bidirectional=True).double(), dense=False)
    x, lengths = torch.from_numpy(draw(3, 5, 24)).double(), torch.tensor([2, 5, 3])
    for row, n in enumerate(lengths.tolist()):
        alone = recurrent(x[row : row + 1, :n])
        together = recurrent(x, lengths)
        torch.testing.assert_close(together[0][row, :n], alone[0][0])
        assert not together[0][row, n:].any()
        for states, own in zip(together[1:], alone[1:], strict=True):
            torch.testing.assert_close(states[:, row], own[:, 0])
        torch.testing.assert_close(whole(x, lengths)[row], whole(x[row : row + 1, :n])[0])


def test_loss_is_the_relative_error_of_hidden_sequence_and_final_states():
    teacher, student = (nn.LSTM(24, 6, 2, batch_first=True).double() for _ in range(2))
    recurrent, _ = built(nn.ModuleDict({"lstm": teacher, "head": nn.Linear(6, 2)}), dense=True)
    x = torch.from_numpy(draw(4, 5, 24)).double()
    flat = []
    for lstm in (teacher, student):
        hidden, (h, c) = lstm(x)
        flat.append(torch.cat([hidden.flatten(), h.flatten(), c.flatten()]))
    hidden, (h, c) = student(x)
    total, weight = HiddenStates(recurrent).loss((hidden, h, c), Batch(x))
    torch.testing.assert_close(total / weight, (flat[0] - flat[1]).square().sum() / flat[0].square().sum())


def test_loss_with_a_teacher_mixes_task_and_distillation():
    scores, taught = (torch.from_numpy(draw(4, 3, seed=seed)).double() for seed in (1, 2))
    y = torch.tensor([0, 2, 1, 1])

    class Teacher(nn.Module):
        def forward(self, x, lengths, state):
            return taught

    total, weight = Labels("classes", Teacher(), 3.0, 0.25).loss(scores, Batch(torch.zeros(4, 1), y))
    task = -scores.log_softmax(1)[range(4), y].mean()
    p, q = (taught / 3).softmax(1), (scores / 3).softmax(1)
    distillation = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(total / weight, 0.75 * task + 0.25 * distillation)


def test_scale_between_cores_and_factors_does_not_matter(tmp_path):
    dense, compressed = saved_pair(tmp_path, nn.LSTM(24, 6).double())
    np.savez(tmp_path / "data.npz", x=draw(40, 5, 24))
    loaded = btcompress.load(compressed)
    key = "weight_ih_l0"
    skewed = {f"{key}.cores": loaded.tensors[f"{key}.cores"] * 1e3}
    skewed[f"{key}.factors.0"] = loaded.tensors[f"{key}.factors.0"] / 1e3
    btcompress.save(replace(loaded, tensors=loaded.tensors | skewed), tmp_path / "skewed")
    plain = tune(tmp_path, compressed, tmp_path / "data.npz", dense, SMALL, name="a")
    other = tune(tmp_path, tmp_path / "skewed", tmp_path / "data.npz", dense, SMALL, name="b")
    assert other["after"] == pytest.approx(plain["after"], rel=1e-6)
