"""The pattern itself: submit a job and get its id at once; a worker predicts; fetch the result later."""

import math
from collections.abc import Iterator, Sequence

import orjson
from pydantic import TypeAdapter

from serving_common.cards import Card, Row, Task
from serving_common.queue.client import JobQueue
from serving_common.queue.types import Job, JobId, JobState, JobStatus, Priority
from src.constants import MAX_ROWS, MAX_WAIT_S
from src.schemas import Classification, JobResult, Regression

Rows = Sequence[Row]
Answers = Sequence[Sequence[float]]
"""The model's numbers for rows, shape (N, card.width)."""


async def submit(queue: JobQueue, rows: Rows, priority: Priority, idempotency_key: str | None) -> JobId:
    """Enqueue rows; returns the id of the job."""
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


def rows_adapter(card: Card) -> TypeAdapter[Rows]:
    """Validates the JSON in a job's data key."""
    return TypeAdapter(card.list_rows_type)


def read_rows(job: Job, adapter: TypeAdapter[Rows]) -> Rows:
    """The rows that `submit` stored. Raises ValueError if they do not fit the card."""
    return adapter.validate_json(job.data)


def result_of(card: Card, answers: Answers) -> Classification | Regression:
    """The result of a job's rows by the model's answers."""
    if card.task is Task.REGRESSION:
        values = [row[0] for row in answers]
        return {"value": values[0] if len(values) == 1 else values}
    labels = card.labels if card.task is Task.CLASSIFICATION else [card.labels[0], f"not {card.labels[0]}"]
    predictions = [row.index(max(row)) for row in answers]
    names = [labels[prediction] for prediction in predictions]
    if len(predictions) == 1:
        return {"prediction": predictions[0], "class_name": names[0], "probabilities": list(answers[0])}
    return {"prediction": predictions, "class_name": names, "probabilities": [list(row) for row in answers]}


def fault_of(answers: Answers) -> str | None:
    """Why a job with these answers fails: JSON has neither NaN nor infinity."""
    for number, row in enumerate(answers):
        if not all(map(math.isfinite, row)):
            return f"Model inference failed: the answer to row {number} is not a finite number"
    return None


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
