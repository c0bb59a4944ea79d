import pytest
from hypothesis import given
from hypothesis import strategies as st
from src.models import Prediction
from src.proxy.backends import Failure
from src.proxy.fan_out import Answers, decide, predict


def test_one_row_is_decided_by_the_surest_service():
    answers: Answers[Prediction] = {
        "setosa": {"prediction": [0.2, 0.8]},
        "versicolor": {"prediction": [0.7, 0.3]},
        "virginica": {"prediction": [0.6, 0.4]},
    }

    assert decide(answers) == {"prediction": {"proba": 0.7, "label": "versicolor"}}


def test_several_rows_are_decided_one_by_one():
    answers: Answers[Prediction] = {
        "setosa": {"prediction": [[0.9, 0.1], [0.1, 0.9]]},
        "versicolor": {"prediction": [[0.3, 0.7], [0.8, 0.2]]},
    }

    assert decide(answers) == {"prediction": {"proba": [0.9, 0.8], "label": ["setosa", "versicolor"]}}


def test_the_rest_decide_without_a_service_that_failed():
    answers: Answers[Prediction] = {
        "setosa": Failure("cannot be reached"),
        "versicolor": {"prediction": [0.1, 0.9]},
        "virginica": {"prediction": [0.2, 0.8]},
    }

    assert decide(answers) == {"prediction": {"proba": 0.2, "label": "virginica"}, "missing": ["setosa"]}


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=10))
def test_no_service_is_surer_than_the_one_that_decides(sureness):
    names = ("a", "b", "c")
    answers: Answers[Prediction] = {
        name: {
            "prediction": (
                [[row[i], 1 - row[i]] for row in sureness]
                if len(sureness) > 1
                else [sureness[0][i], 1 - sureness[0][i]]
            )
        }
        for i, name in enumerate(names)
    }

    decision = decide(answers)["prediction"]

    probas = decision["proba"] if isinstance(decision["proba"], list) else [decision["proba"]]
    labels = decision["label"] if isinstance(decision["label"], list) else [decision["label"]]
    for row, proba, label in zip(sureness, probas, labels, strict=True):
        assert proba == max(row) == row[names.index(label)]


@pytest.mark.parametrize(
    ("rows", "content"),
    [
        pytest.param(1, b"", id="nothing"),
        pytest.param(1, b"<html>", id="a page"),
        pytest.param(1, b"[]", id="no object"),
        pytest.param(1, b"{}", id="no prediction"),
        pytest.param(1, b'{"prediction": []}', id="no numbers"),
        pytest.param(1, b'{"prediction": [0.5]}', id="one number"),
        pytest.param(1, b'{"prediction": [0.5, "x"]}', id="no number"),
        pytest.param(1, b'{"prediction": ["0.5", "0.5"]}', id="numbers in text"),
        pytest.param(1, b'{"prediction": [0.5, NaN]}', id="not a number"),
        pytest.param(1, b'{"prediction": [5, -4]}', id="no probabilities"),
        pytest.param(1, b'{"prediction": [[0.5, 0.5], [0.5, 0.5]]}', id="two rows for one"),
        pytest.param(2, b'{"prediction": [0.5, 0.5]}', id="one row for two"),
        pytest.param(2, b'{"prediction": [[0.5, 0.5], [0.5]]}', id="half a row"),
    ],
)
def test_what_is_no_answer_to_the_question_is_refused(rows, content):
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's own, or ours
        predict(b"", rows).parse(content)


def test_an_answer_is_taken_as_it_is():
    call = predict(b'{"data": [[5.1, 3.5, 1.4, 0.2]]}', 1)

    assert (call.method, call.path, call.body) == ("POST", "/predict", b'{"data": [[5.1, 3.5, 1.4, 0.2]]}')
    assert call.parse(b'{"prediction": [0.75, 0.25]}') == {"prediction": [0.75, 0.25]}
