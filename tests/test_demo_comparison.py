"""Laws of what is trained beside block terms in the demonstration."""

import pytest
import torch

from btcompress.demo import Size, Training, comparison
from btcompress.demo.comparison import Comparison
from btcompress.demo.rivals import target_shape
from btcompress.demo.trainforms import Trained
from btcompress.demo.video import Video
from btcompress.errors import DivergedError
from btcompress.modes import ShapeRequest

DENSE, TUNING, SCRATCH = Training(6, 1e-3), Training(2, 1e-2), Training(3, 1e-2)
TASK = Video(6, 8, Size(20, 10, 4, 1, 1, dense=DENSE, tuning=TUNING, scratch=SCRATCH))
#: What is trained how.
RIVALS = {
    "tensor train, then fine-tuned": TUNING,
    "tensor train from scratch": SCRATCH,
    "low rank, then fine-tuned": TUNING,
    "low rank from scratch": SCRATCH,
    "fewer hidden units from scratch": DENSE,
    "rounded, then fine-tuned": Training(4, 0.3 * 1e-3),
}


@pytest.fixture
def compared(tmp_path):
    told = []
    dense = TASK.model()
    target = target_shape(TASK, dense, ShapeRequest(1, 1))
    made = Comparison(TASK, dense, target, tmp_path / "train.npz", 5, lambda *state: told.append(state))
    return made, told


def test_each_form_is_trained_in_a_folder_of_its_own_as_what_it_is_compared_with(compared, tmp_path, monkeypatch):
    made, told = compared
    calls = []

    def train_form(task, form, data, training, seed, folder, *, on_epoch):
        assert (task, data, seed) == (TASK, tmp_path / "train.npz", 5)
        assert folder.is_dir()
        assert list(folder.iterdir()) == []
        on_epoch(len(calls))
        calls.append((form, training, folder))
        return Trained(torch.nn.Identity(), (0.25, 0.5))

    monkeypatch.setattr(comparison, "train_form", train_form)
    rivals = list(made.rivals())
    assert [rival.name for rival in rivals] == list(RIVALS)
    assert [training for _, training, _ in calls] == list(RIVALS.values())
    assert [(rival.n_weights, rival.n_bytes) for rival in rivals] == [
        (form.n_params, form.n_bytes) for form, _, _ in calls
    ]
    assert all(rival.curve == (0.25, 0.5) for rival in rivals)
    assert told == [state for place, name in enumerate(RIVALS) for state in ((name, None), (name, place))]
    assert len({folder for _, _, folder in calls}) == len(calls)
    assert list(tmp_path.iterdir()) == []


def test_a_form_whose_training_diverges_has_no_model_and_stops_no_other(compared, monkeypatch):
    made, _ = compared

    def train_form(*arguments, **_):
        if arguments[3] == TUNING:
            raise DivergedError("no longer a number")
        return Trained(torch.nn.Identity(), (0.5,))

    monkeypatch.setattr(comparison, "train_form", train_form)
    for rival in made.rivals():
        assert (rival.model is None) == (rival.curve == ()) == (RIVALS[rival.name] == TUNING)
