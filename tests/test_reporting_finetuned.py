import pytest
from torch import nn

import btcompress
from btcompress.checkpoint import from_state_dict
from btcompress.results import Agreement, InputsReport

STEP = {
    "step": "finetune",
    "metric": "accuracy",
    "higher_is_better": True,
    "dense": None,
    "before": 0.25,
    "after": 0.75,
    "epochs": 4,
    "best_epoch": 3,
    "n_train": 90,
    "n_held": 10,
    "cancellation": 1.5,
}
CALIBRATION = {
    "step": "calibrate",
    "lstm": "",
    "hidden_state_error_before": 0.75,
    "hidden_state_error_after": 0.25,
    "activation_errors": {"weight_ih_l0": 0.375},
    "epochs": 4,
    "n_train": 90,
    "n_held": 10,
    "cancellation": 1.5,
}


@pytest.fixture(scope="module")
def compressed():
    return btcompress.factorize(nn.LSTM(64, 32), tucker_rank=2)


def test_every_training_in_the_history_is_reported_in_order(compressed):
    trained = compressed.with_step(STEP).with_step({**STEP, "before": 0.75, "after": 0.875, "way": "labels"})
    report = btcompress.report(trained)
    assert [training.after for training in report.finetuned] == [0.75, 0.875]
    told = {name: value for name, value in STEP.items() if name != "step"}
    assert report.to_dict()["finetuned"][0] == {
        **told,
        "agreement_before": None,
        "agreement_after": None,
        "learning_curves": (),
    }


def test_weight_errors_give_no_advice_once_the_tensors_are_trained(compressed):
    assert any("Next to nothing is kept" in text for text in btcompress.report(compressed).advice)
    for step in (STEP, {**CALIBRATION, "hidden_state_error_after": 0.03}):
        assert not btcompress.report(compressed.with_step(step)).advice


def test_matrices_that_were_not_calibrated_are_still_of_unknown_effect():
    model = nn.ModuleDict({"a": nn.LSTM(64, 32), "b": nn.LSTM(48, 32)})
    both = btcompress.factorize(model, tucker_rank=2)
    step = {**CALIBRATION, "lstm": "a", "hidden_state_error_after": 0.03, "activation_errors": {"a.weight_ih_l0": 0.1}}
    (line,) = btcompress.report(both.with_step(step)).advice
    assert "the weight errors of b.weight_ih_l0 (up to" in line
    second = {**step, "lstm": "b", "activation_errors": {"b.weight_ih_l0": 0.2}}
    report = btcompress.report(both.with_step(step).with_step(second))
    assert not report.advice
    assert [row.activation_error for row in report.matrices] == [0.1, 0.2]
    again = {**second, "activation_errors": {"b.weight_ih_l0": 0.05}}
    assert [row.activation_error for row in btcompress.report(both.with_step(second).with_step(again)).matrices] == [
        None,
        0.05,
    ]
    assert not btcompress.report(both.with_step(step).with_step(STEP)).advice


AGREEMENT = {"steps": 0.995, "ends": None, "n_steps": 5_320, "n_ends": 0}


@pytest.mark.parametrize(
    ("agreement", "error", "words"),
    [
        ({**AGREEMENT, "steps": 0.995}, 0.9, None),
        (
            {**AGREEMENT, "steps": 0.95},
            0.01,
            "the dense model's in 95.0% of 5,320 steps, on the sequences held back. Measure",
        ),
        ({**AGREEMENT, "ends": 0.5, "n_ends": 160}, 0.01, "99.5% of 5,320 steps and 50.0% of 160 sequence ends"),
        ({**AGREEMENT, "steps": 0.5}, 0.01, "Do not use it as it is"),
        (None, 0.01, None),
        (None, 0.2, "The hidden states are off by 0.200 of their size on the sequences held back"),
        (None, 0.9, "The hidden states are off by 0.900 of their size on the sequences held back"),
    ],
)
@pytest.mark.parametrize("kind", ["calibrated", "fine-tuned"])
def test_advice_goes_by_the_decisions_or_else_by_the_hidden_states(kind, agreement, error, words, compressed):
    """Whatever the weight errors are: here they are above 0.9, and say nothing."""
    step = {**CALIBRATION, "hidden_state_error_after": error, "agreement_after": agreement}
    if kind == "fine-tuned":
        metric = {"metric": "hidden-state error", "higher_is_better": False, "before": 1.0, "after": error}
        step = {**STEP, **metric, "agreement_after": agreement}
    advice = btcompress.report(compressed.with_step(step)).advice
    assert len(advice) == (words is not None)
    assert words is None or words in advice[0]


def test_what_was_measured_on_the_inputs_given_goes_before_what_was_held_back(compressed):
    class Measure:
        def __call__(self, forms):
            return {}

        def samples(self, key):
            return None

        def reports(self):
            return (InputsReport("", 25, 0.5, Agreement(0.6, None, 250, 0)),)

    lstm = nn.LSTM(64, 32)
    dense = from_state_dict(lstm.state_dict())
    own = btcompress.factorize(lstm, tucker_rank=2).with_step({**CALIBRATION, "hidden_state_error_after": 0.3})
    report = btcompress.report(own, against=dense, on_inputs=Measure())
    (line,) = [line for line in report.advice if "decisions" in line or "hidden states" in line]
    assert "60.0% of 250 steps, on the inputs given" in line
    assert report.to_dict()["on_inputs"] == [
        {
            "lstm": "",
            "n_sequences": 25,
            "hidden_state_error": 0.5,
            "agreement": {"steps": 0.6, "ends": None, "n_steps": 250, "n_ends": 0},
            "rounded": (),
        }
    ]


def test_every_calibration_is_reported_with_the_activation_errors_of_the_last_step(compressed):
    calibrated = compressed.with_step(CALIBRATION)
    report = btcompress.report(calibrated)
    assert [each.hidden_state_error_after for each in report.calibrated] == [0.25]
    assert report.to_dict()["calibrated"][0]["n_held"] == 10
    assert report.matrices[0].activation_error == 0.375
    assert btcompress.report(calibrated.with_step(STEP)).matrices[0].activation_error is None
    assert btcompress.report(compressed).matrices[0].activation_error is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"best_epoch": 0}, "made nothing better"), ({"cancellation": 250.0}, "add up to 250 times")],
    ids=["no better", "cancelling"],
)
def test_latest_training_that_went_wrong_is_called_so(changed, words, compressed):
    bad = {**STEP, **changed}
    assert any(words in text for text in btcompress.report(compressed.with_step(bad)).advice)
    assert not any(words in text for text in btcompress.report(compressed.with_step(bad).with_step(STEP)).advice)


@pytest.mark.parametrize(
    ("higher_is_better", "dense", "warns"),
    [(True, None, True), (True, 0.76, True), (True, 0.75, False), (False, 0.74, True), (False, 0.75, False)],
)
def test_other_decisions_than_the_dense_model_s_are_no_loss_where_labels_say_they_are_as_good(
    higher_is_better, dense, warns, compressed
):
    step = {
        **STEP,
        "higher_is_better": higher_is_better,
        "dense": dense,
        "agreement_after": {**AGREEMENT, "steps": 0.5},
    }
    assert (
        any("Do not use it as it is" in text for text in btcompress.report(compressed.with_step(step)).advice) == warns
    )
