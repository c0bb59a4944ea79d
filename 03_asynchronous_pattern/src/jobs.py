"""The pattern itself: submit a job and get its id at once; a worker predicts; fetch the result later."""

import math
from collections.abc import Iterator, Sequence

import orjson

from serving_common import iris
from serving_common.queue.client import JobQueue
from serving_common.queue.types import Job, JobId, JobState, JobStatus, Priority
from src.constants import MAX_ROWS, MAX_WAIT_S
from src.schemas import ROWS, Classification, JobResult

Rows = list[list[float]]


async def submit(queue: JobQueue, rows: Rows, priority: Priority, idempotency_key: str | None) -> JobId:
    """Enqueue rows of shape (N, 4); returns the id of the job."""
    return await queue.enqueue(orjson.dumps(rows), priority, idempotency_key)


async def find(queue: JobQueue, job_id: JobId, wait_s: float) -> JobResult:
    """The job's state, as soon as it has ended, or after `wait_s` seconds. Raises JobNotFound."""
    return describe(await queue.wait(job_id, min(wait_s, MAX_WAIT_S)))


async def cancel(queue: JobQueue, job_id: JobId) -> JobResult:
    """Cancel a job that has not ended. Raises JobNotFound, Conflict."""
    await queue.cancel(job_id)
    return {"job_id": job_id, "status": JobStatus.CANCELLED}


def describe(state: JobState) -> JobResult:
    """A job's state in the JSON of the API."""
    described: JobResult = {"job_id": state.id, "status": state.status}
    if state.status is JobStatus.COMPLETED and state.result is not None:
        described["result"] = orjson.loads(state.result)
    if state.status is JobStatus.FAILED and state.error is not None:
        described["error"] = state.error
    return described


def read_rows(job: Job) -> Rows:
    """The rows that `submit` stored. Raises ValueError if the data is not in its form."""
    return ROWS.validate_json(job.data)


def classify(probabilities: Sequence[list[float]]) -> Classification:
    """The classification of a job's rows by their probabilities, shape (N, 3). Raises ValueError for other values."""
    for row in probabilities:
        if len(row) != len(iris.LABELS) or not all(map(math.isfinite, row)):
            raise ValueError(f"not the probabilities of {len(iris.LABELS)} classes: {row}")
    predictions = [row.index(max(row)) for row in probabilities]
    names = [iris.LABELS[prediction] for prediction in predictions]
    if len(predictions) == 1:
        return {"prediction": predictions[0], "class_name": names[0], "probabilities": probabilities[0]}
    return {"prediction": predictions, "class_name": names, "probabilities": list(probabilities)}


def in_batches(jobs: Sequence[tuple[Job, Rows]]) -> Iterator[list[tuple[Job, Rows]]]:
    """The jobs in batches for one Predict call each, of up to MAX_ROWS rows unless a single job has more."""
    batch: list[tuple[Job, Rows]] = []
    size = 0
    for job, rows in jobs:
        if batch and size + len(rows) > MAX_ROWS:
            yield batch
            batch, size = [], 0
        batch.append((job, rows))
        size += len(rows)
    if batch:
        yield batch
