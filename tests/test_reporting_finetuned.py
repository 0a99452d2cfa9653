import pytest
from torch import nn

import btcompress

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
    assert report.to_dict()["finetuned"][0] == {**told, "agreement_before": None, "agreement_after": None}


def test_weight_errors_give_no_advice_once_the_tensors_are_trained(compressed):
    assert any("Next to nothing is kept" in text for text in btcompress.report(compressed).advice)
    for step in (STEP, CALIBRATION):
        assert not btcompress.report(compressed.with_step(step)).advice


def test_every_calibration_is_reported_with_the_activation_errors_of_the_last_step(compressed):
    calibrated = compressed.with_step(CALIBRATION)
    report = btcompress.report(calibrated)
    assert [each.hidden_state_error_after for each in report.calibrated] == [0.25]
    assert report.to_dict()["calibrated"][0]["n_held"] == 10
    assert report.matrices[0].activation_error == 0.375
    assert btcompress.report(calibrated.with_step(STEP)).matrices[0].activation_error is None
    assert btcompress.report(compressed).matrices[0].activation_error is None


def test_calibration_that_leaves_half_is_called_so(compressed):
    bad = {**CALIBRATION, "hidden_state_error_after": 0.5}
    assert any("off by 0.500" in text for text in btcompress.report(compressed.with_step(bad)).advice)
    assert not btcompress.report(compressed.with_step(bad).with_step(STEP)).advice


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"best_epoch": 0}, "made nothing better"), ({"cancellation": 250.0}, "add up to 250 times")],
    ids=["no better", "cancelling"],
)
def test_latest_training_that_went_wrong_is_called_so(changed, words, compressed):
    bad = {**STEP, **changed}
    assert any(words in text for text in btcompress.report(compressed.with_step(bad)).advice)
    assert not any(words in text for text in btcompress.report(compressed.with_step(bad).with_step(STEP)).advice)
