"""The JSON of the proxy, and of the data and results in Redis."""

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from serving_common import iris
from serving_common.queue.types import JobStatus, Priority

Probabilities = Annotated[list[float], Field(min_length=3, max_length=3, description="In the order of the classes.")]

ROWS: TypeAdapter[list[list[float]]] = TypeAdapter(iris.Rows)
"""Validates the JSON in a job's data key."""


class PredictRequest(BaseModel):
    """One or more Iris flowers."""

    data: iris.Rows = Field(examples=[iris.SAMPLE])
    priority: Priority = Field(Priority.NORMAL, description="`high` is served before `normal`.")


class PredictResponse(BaseModel):
    """The id for GET /job/{job_id}."""

    job_id: str


class Classification(TypedDict):
    """One row: its class, name and probabilities. Several rows: lists of these."""

    prediction: int | list[int]
    class_name: str | list[str]
    probabilities: Probabilities | list[Probabilities]


class JobResult(TypedDict):
    """A job's status, with its `result` once completed or its `error` once failed."""

    job_id: str
    status: JobStatus
    result: NotRequired[Classification]
    error: NotRequired[str]


class JobEntry(TypedDict):
    job_id: str
    status: JobStatus
    created_at: datetime


class JobPage(TypedDict):
    """Newest first; `next_cursor` is null on the last page."""

    jobs: list[JobEntry]
    next_cursor: str | None


class Components(TypedDict):
    redis: Literal["ok", "unavailable"]
    tensorflow_serving: Literal["ok", "unavailable"]


class Health(TypedDict):
    """`degraded`: jobs are accepted, but wait for TensorFlow Serving."""

    status: Literal["healthy", "degraded", "unhealthy"]
    components: Components


class ModelSpec(TypedDict):
    name: str
    version: str


class Metadata(TypedDict):
    """The model's signatures by name, with type and shape of each tensor, as TensorFlow Serving reports them."""

    model_spec: ModelSpec
    metadata: dict[str, Any]
