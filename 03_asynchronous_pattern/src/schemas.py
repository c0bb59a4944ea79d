"""The JSON of the proxy, and of the data and results in Redis."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, Field, create_model
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from serving_common.cards import Card, Row
from serving_common.queue.types import JobStatus, Priority


class PredictRequest(BaseModel):
    """One or more rows of the model's inputs."""

    data: Sequence[Row]
    priority: Priority = Field(Priority.NORMAL, description="`high` is served before `normal`.")


def request_type(card: Card, *, named: bool) -> type[PredictRequest]:
    """The request with the rows of this card: lists, which are faster to validate, or also objects of named values."""
    data: Any = (card.rows_type if named else card.list_rows_type, Field(examples=[card.sample_rows]))
    return create_model("PredictRequest", __base__=PredictRequest, __doc__=PredictRequest.__doc__, data=data)


class PredictResponse(BaseModel):
    """The id for GET /job/{job_id}."""

    job_id: str


class Classification(TypedDict):
    """One row: its class, name and probabilities. Several rows: lists of these."""

    prediction: int | list[int]
    class_name: str | list[str]
    probabilities: Annotated[list[float] | list[list[float]], Field(description="In the order of the classes.")]


class Regression(TypedDict):
    """One row: its value. Several rows: a list of these."""

    value: float | list[float]


class JobResult(TypedDict):
    """A job's status, with its `result` once completed or its `error` once failed."""

    job_id: str
    status: JobStatus
    result: NotRequired[Classification | Regression]
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
    """`degraded`: jobs are accepted, but wait for TensorFlow Serving. `reason`: its model is not the card's."""

    status: Literal["healthy", "degraded", "unhealthy"]
    components: Components
    reason: NotRequired[str]


class ModelSpec(TypedDict):
    name: str
    version: str


class Metadata(TypedDict):
    """The model's signatures by name, with type and shape of each tensor, as TensorFlow Serving reports them."""

    model_spec: ModelSpec
    metadata: dict[str, Any]
