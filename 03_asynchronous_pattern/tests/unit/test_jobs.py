"""The pattern's own logic, without Redis or TensorFlow Serving."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from src import jobs
from src.constants import MAX_ROWS

from serving_common.queue.types import Job, JobId, JobState, JobStatus

ONE = [0.1, 0.7, 0.2]


def job(data: bytes = b"[[1,1,1,1]]") -> Job:
    return Job(JobId("a1b2c3"), data)


def test_classify_one_row():
    assert jobs.classify([ONE]) == {"prediction": 1, "class_name": "versicolor", "probabilities": ONE}


def test_classify_several_rows_returns_lists():
    assert jobs.classify([ONE, [1.0, 0.0, 0.0]]) == {
        "prediction": [1, 0],
        "class_name": ["versicolor", "setosa"],
        "probabilities": [ONE, [1.0, 0.0, 0.0]],
    }


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
        jobs.read_rows(job(data))


@given(st.lists(st.integers(1, MAX_ROWS * 2), max_size=40))
def test_batches_are_bounded_and_keep_every_job_in_order(sizes):
    all_jobs = [(job(), [[1.0] * 4] * size) for size in sizes]

    batches = list(jobs.in_batches(all_jobs))

    assert [each for batch in batches for each in batch] == all_jobs
    assert all(len(batch) == 1 or sum(len(rows) for _, rows in batch) <= MAX_ROWS for batch in batches)
