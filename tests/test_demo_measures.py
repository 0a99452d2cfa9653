"""Laws of what is measured of models."""

import pytest

from btcompress.demo.measures import Measure


@pytest.mark.parametrize(
    ("measure", "value", "text"),
    [
        (Measure("accuracy", is_share=True), 0.9377, "93.8 %"),
        (Measure("accuracy", is_share=True), 1.0, "100.0 %"),
        (Measure("loss"), 0.123456, "0.1235"),
        (Measure("bound"), -1234.56, "-1,235"),
    ],
)
def test_measures_are_written_with_the_digits_that_tell_something(measure, value, text):
    assert measure.written(value) == text


def test_the_better_of_two_values_is_said_by_the_measure():
    for higher_is_better in (True, False):
        measure = Measure("any", higher_is_better)
        assert measure.is_better(2.0, 1.0) == higher_is_better
        assert measure.is_better(1.0, 2.0) != higher_is_better
        assert not measure.is_better(1.0, 1.0)
