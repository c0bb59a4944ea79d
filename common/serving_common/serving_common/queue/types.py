"""The values that the queue's modules and its callers exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from serving_common.errors import NotFound
from serving_common.tracing import NO_SPAN, Span

JobId = NewType("JobId", str)

POISON = "The job was in flight each time its worker or the model server died"


class JobNotFound(NotFound):
    """The job does not exist or has expired."""


class JobStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in (JobStatus.PENDING, JobStatus.PROCESSING)


class Priority(StrEnum):
    NORMAL = "normal"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class JobKeys:
    """A pattern's Redis keys; `{}` stands for the job's id."""

    queue: str
    data: str = "job:{}:data"
    result: str = "job:{}:result"
    status: str = "job:{}:status"


@dataclass(frozen=True, slots=True)
class Job:
    """A job that a worker has claimed."""

    id: JobId
    data: bytes
    is_suspect: bool = False
    """Whether it comes from quarantine: it was in flight when a worker or the model server died."""
    request_id: str = ""
    """X-Request-ID of the request that enqueued it; empty if there was none."""
    trace_id: str = ""
    """That of this request, if it was traced."""
    span: Span = field(default=NO_SPAN, compare=False)
    """From its claim until it has ended or is requeued."""

    @property
    def log_ids(self) -> dict[str, str]:
        """For each log line about the job."""
        found = {"job_id": self.id, "request_id": self.request_id, "trace_id": self.trace_id}
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class JobState:
    """A job's status, with its `result` once completed or its `error` once failed."""

    id: JobId
    status: JobStatus
    result: bytes | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job in the listing; `created` in seconds since 1970."""

    id: JobId
    status: JobStatus
    created: float


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Jobs by where they are, the number of workers, and the age of the oldest waiting job in seconds."""

    normal: int
    high: int
    processing: int
    dead_letters: int
    workers: int
    oldest_age_s: float
