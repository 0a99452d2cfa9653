from pathlib import Path

import pytest
import torch

from btcompress import BTCompressError, factorize
from btcompress.checkpoint import RecurrentEntry, from_state_dict
from btcompress.export.targets import chosen_lstms, targets

A, B, TOP = (RecurrentEntry(prefix, "lstm", 3, 2) for prefix in ("enc.a.", "b.", ""))


@pytest.fixture(scope="module")
def compressed():
    lstms = {"first": torch.nn.LSTM(6, 4), "second.cell": torch.nn.LSTMCell(4, 4), "third": torch.nn.LSTM(4, 4)}
    state = {f"{name}.{key}": value for name, lstm in lstms.items() for key, value in lstm.state_dict().items()}
    return factorize(from_state_dict(state), layers=("first.*", "second.cell.*"), cp_rank=1, tucker_rank=2)


def test_all_lstms_with_chosen_matrices_are_exported(compressed):
    assert [entry.name for entry in chosen_lstms(compressed, None)] == ["first", "second.cell"]


def test_a_named_lstm_is_exported_whatever_its_matrices_are(compressed):
    assert [entry.name for entry in chosen_lstms(compressed, "third")] == ["third"]
    with pytest.raises(BTCompressError, match=r"no LSTM named 'fourth'.*first, second.cell, third"):
        chosen_lstms(compressed, "fourth")


def test_one_lstm_has_the_path_itself():
    assert targets(Path("a/out.pt2"), [A]) == [Path("a/out.pt2")]


def test_several_lstms_have_their_names_before_the_ending():
    expected = ["a/my.out.enc.a.pt2", "a/my.out.b.pt2", "a/my.out.pt2"]
    assert targets(Path("a/my.out.pt2"), [A, B, TOP]) == [Path(each) for each in expected]


def test_names_of_lstms_lead_to_no_other_folder():
    hostile = RecurrentEntry("/../../x\n.", "lstm", 3, 2)
    assert targets(Path("a/out.onnx"), [A, hostile])[1] == Path("a/out._.._.._x_.onnx")


def test_two_lstms_never_share_a_file():
    with pytest.raises(BTCompressError, match=r"several LSTMs would be written to a/out\.B_\.pt2"):
        targets(Path("a/out.pt2"), [RecurrentEntry("B/.", "lstm", 3, 2), RecurrentEntry("b_.", "lstm", 3, 2)])
