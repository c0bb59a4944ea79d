"""Inference in slices on threads, and rows that cannot be predicted."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.db.cruds import ClaimedItem
from src.task.worker import predict_all

VALID = "[5.1, 3.5, 1.4, 0.2]"


def predict(predictor, values, slice_size=500):
    with ThreadPoolExecutor(4) as executor:
        rows = [ClaimedItem(number, text) for number, text in enumerate(values, start=1)]
        return predict_all(executor, predictor, rows, slice_size)


@pytest.mark.parametrize("slice_size", [1, 7, 500])
def test_predictions_equal_scikit_learn(predictor, flowers, slice_size):
    rows, probabilities = flowers
    outcome = predict(predictor, map(json.dumps, rows), slice_size)
    assert outcome.errors == {}
    assert list(outcome.predictions) == list(range(1, 151))
    for prediction, wanted in zip(outcome.predictions.values(), probabilities, strict=True):
        assert json.loads(prediction) == pytest.approx({"0": wanted[0], "1": wanted[1], "2": wanted[2]}, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        pytest.param("[5.1, 3.5, 1.4]", "at least 4 items", id="three numbers"),
        pytest.param("[5.1, 3.5, 1.4, 0.2, 1.0]", "at most 4 items", id="five numbers"),
        pytest.param('"a text"', "valid array", id="text"),
        pytest.param('[5.1, 3.5, "1.4", 0.2]', "values[2]: must be a number", id="a number in quotes"),
        pytest.param("[5.1, true, 1.4, 0.2]", "values[1]: must be a number", id="a boolean"),
        pytest.param("[5.1, 3.5, 1.4, 10]", "values[3]: must be a number", id="out of range"),
        pytest.param("[5.1, 3.5, 1.4, 1e999]", "values[3]: must be a number", id="infinite"),
        pytest.param("{}", "valid array", id="an object"),
        pytest.param("null", "valid array", id="null"),
        pytest.param(f"{VALID},{VALID}", "ValueError", id="two rows in one value"),
        pytest.param("][", "Invalid JSON", id="malformed JSON"),
    ],
)
def test_invalid_row_gets_a_reason_and_the_others_their_predictions(predictor, values, reason):
    outcome = predict(predictor, [VALID, values, VALID])
    assert outcome.predictions.keys() == {1, 3}
    assert outcome.errors.keys() == {2}
    assert reason in outcome.errors[2]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(0, 10) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=8,
)


@given(st.lists(json_values | st.lists(st.floats(0.1, 9.9), min_size=4, max_size=4), max_size=20), st.integers(1, 10))
def test_every_row_has_a_prediction_or_an_error(predictor, values, slice_size):
    outcome = predict(predictor, map(json.dumps, values), slice_size)
    assert sorted([*outcome.predictions, *outcome.errors]) == list(range(1, len(values) + 1))
    for prediction in outcome.predictions.values():
        assert sum(json.loads(prediction).values()) == pytest.approx(1, abs=1e-5)
