"""The pattern's own logic, without Redis or TensorFlow Serving."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_common.cards import Output, Task, default_card
from serving_common.queue.types import Job, JobId, JobState, JobStatus
from src import jobs
from src.constants import MAX_ROWS

CARD = default_card()
ONE = [0.1, 0.7, 0.2]


def job(data: bytes = b"[[1,1,1,1]]") -> Job:
    return Job(JobId("a1b2c3"), data)


def test_result_of_one_row():
    assert jobs.result_of(CARD, [ONE]) == {"prediction": 1, "class_name": "versicolor", "probabilities": ONE}


def test_result_of_several_rows_has_lists():
    assert jobs.result_of(CARD, [ONE, [1.0, 0.0, 0.0]]) == {
        "prediction": [1, 0],
        "class_name": ["versicolor", "setosa"],
        "probabilities": [ONE, [1.0, 0.0, 0.0]],
    }


@pytest.mark.parametrize(
    ("answers", "result"),
    [
        ([[151.5]], {"value": 151.5}),
        ([[151.5], [2.0]], {"value": [151.5, 2.0]}),
    ],
)
def test_result_of_a_regression_is_its_value(answers, result):
    output = Output(value="price")
    assert jobs.result_of(CARD.model_copy(update={"task": Task.REGRESSION, "output": output}), answers) == result


def test_result_of_one_against_the_rest_names_both():
    card = CARD.model_copy(update={"task": Task.ONE_VS_REST, "output": Output(labels=["spam"])})
    result = jobs.result_of(card, [[0.25, 0.75], [1.0000001, 0.0]])
    assert result == {
        "prediction": [1, 0],
        "class_name": ["not spam", "spam"],
        "probabilities": [[0.25, 0.75], [1.0000001, 0.0]],
    }


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_answer_that_is_not_finite_is_a_fault(number):
    assert jobs.fault_of([ONE, ONE]) is None
    assert jobs.fault_of([ONE, [0.1, number, 0.1]]) == (
        "Model inference failed: the answer to row 1 is not a finite number"
    )


@pytest.mark.parametrize(
    ("state", "described"),
    [
        (JobState(JobId("a"), JobStatus.PENDING), {"job_id": "a", "status": "pending"}),
        (
            JobState(JobId("a"), JobStatus.COMPLETED, b'{"prediction":1}'),
            {"job_id": "a", "status": "completed", "result": {"prediction": 1}},
        ),
        (
            JobState(JobId("a"), JobStatus.FAILED, error="Model inference timeout"),
            {"job_id": "a", "status": "failed", "error": "Model inference timeout"},
        ),
    ],
)
def test_describe_returns_the_specified_json(state, described):
    assert jobs.describe(state) == described


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"[[1,2,3]]", b'[["1",1,1,1]]', b"[[1,1,1,11]]"])
def test_malformed_data_raises_value_error(data):
    with pytest.raises(ValueError, match="validation error"):
        jobs.read_rows(job(data), jobs.rows_adapter(CARD))


@given(st.lists(st.integers(1, MAX_ROWS * 2), max_size=40))
def test_batches_are_bounded_and_keep_every_job_in_order(sizes):
    all_jobs = [(job(), [[1.0] * 4] * size) for size in sizes]

    batches = list(jobs.in_batches(all_jobs))

    assert [each for batch in batches for each in batch] == all_jobs
    assert all(len(batch) == 1 or sum(len(rows) for _, rows in batch) <= MAX_ROWS for batch in batches)
