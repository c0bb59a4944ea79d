from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.proxy.backends import Failure
from src.proxy.fan_out import Results, decide, predict_request


def test_most_confident_service_decides_a_single_row():
    results: Results[Any] = {
        "setosa": {"prediction": [0.2, 0.8]},
        "versicolor": {"prediction": [0.7, 0.3]},
        "virginica": {"prediction": [0.6, 0.4]},
    }

    assert decide(results) == {"prediction": {"proba": 0.7, "label": "versicolor"}}


def test_each_of_several_rows_is_decided_separately():
    results: Results[Any] = {
        "setosa": {"prediction": [[0.9, 0.1], [0.1, 0.9]]},
        "versicolor": {"prediction": [[0.3, 0.7], [0.8, 0.2]]},
    }

    assert decide(results) == {"prediction": {"proba": [0.9, 0.8], "label": ["setosa", "versicolor"]}}


def test_failed_service_is_missing_and_the_others_decide():
    results: Results[Any] = {
        "setosa": Failure("cannot be reached"),
        "versicolor": {"prediction": [0.1, 0.9]},
        "virginica": {"prediction": [0.2, 0.8]},
    }

    assert decide(results) == {"prediction": {"proba": 0.2, "label": "virginica"}, "missing": ["setosa"]}


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=10))
def test_decision_is_the_highest_confidence_of_each_row(confidences):
    names = ("a", "b", "c")
    results: Results[Any] = {
        name: {
            "prediction": (
                [[row[i], 1 - row[i]] for row in confidences]
                if len(confidences) > 1
                else [confidences[0][i], 1 - confidences[0][i]]
            )
        }
        for i, name in enumerate(names)
    }

    decision = decide(results)["prediction"]

    probas = decision["proba"] if isinstance(decision["proba"], list) else [decision["proba"]]
    labels = decision["label"] if isinstance(decision["label"], list) else [decision["label"]]
    for row, proba, label in zip(confidences, probas, labels, strict=True):
        assert proba == max(row) == row[names.index(label)]


@pytest.mark.parametrize(
    ("rows", "content"),
    [
        pytest.param(1, b"", id="empty"),
        pytest.param(1, b"<html>", id="HTML"),
        pytest.param(1, b"[]", id="not an object"),
        pytest.param(1, b"{}", id="no prediction"),
        pytest.param(1, b'{"prediction": []}', id="no numbers"),
        pytest.param(1, b'{"prediction": [0.5]}', id="one number"),
        pytest.param(1, b'{"prediction": [0.5, "x"]}', id="not a number"),
        pytest.param(1, b'{"prediction": ["0.5", "0.5"]}', id="numbers as strings"),
        pytest.param(1, b'{"prediction": [0.5, NaN]}', id="NaN"),
        pytest.param(1, b'{"prediction": [5, -4]}', id="outside 0 to 1"),
        pytest.param(1, b'{"prediction": [1.01, -0.01]}', id="outside 0 to 1 by more than rounding"),
        pytest.param(1, b'{"prediction": [[0.5, 0.5], [0.5, 0.5]]}', id="two rows for one"),
        pytest.param(2, b'{"prediction": [0.5, 0.5]}', id="one row for two"),
        pytest.param(2, b'{"prediction": [[0.5, 0.5], [0.5]]}', id="half a row"),
    ],
)
def test_parsing_rejects_an_invalid_response(rows, content):
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's own, or ours
        predict_request(b"", rows).parse(content)


def test_parsing_clips_what_rounding_added():
    def parse(rows, content):
        return predict_request(b"", rows).parse(content)["prediction"]

    assert parse(1, b'{"prediction": [1.0000001, -1e-7]}') == [1, 0]
    assert parse(1, b'{"prediction": [[1.0000001, -1e-7]]}') == [[1, 0]]
    assert parse(2, b'{"prediction": [[1.0000001, -1e-7], [0.25, 0.75]]}') == [[1, 0], [0.25, 0.75]]


def test_predict_request_forwards_the_body_and_parses_the_response():
    request = predict_request(b'{"data": [[5.1, 3.5, 1.4, 0.2]]}', 1)

    assert (request.method, request.path, request.body) == ("POST", "/predict", b'{"data": [[5.1, 3.5, 1.4, 0.2]]}')
    assert request.parse(b'{"prediction": [0.75, 0.25]}') == {"prediction": [0.75, 0.25]}
