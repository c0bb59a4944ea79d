"""The values that the queue's modules and its callers exchange."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from serving_common.errors import NotFound

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
