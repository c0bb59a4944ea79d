"""The pattern itself: the fast model answers now, and a job id stands for the better model's answer, fetched later.

    proxy   jobs.enqueue(image)                    image:{id}, status:{id}, queue:jobs     while the fast model runs
            jobs.store_sync_result(id, prediction) sync:{id}                               once it has answered
    worker  store(redis, worker, …)                async:{id}, result:{id}                 deletes `image:{id}`
    proxy   jobs.get(id, wait_s)                   status:{id}, result:{id}
            jobs.details(id)                       sync:{id}, async:{id}

| key           | type   | holds                                                                     | TTL     |
|---------------|--------|---------------------------------------------------------------------------|---------|
| `queue:jobs`  | list   | ids of the waiting jobs                                                   | none    |
| `image:{id}`  | string | the image file as it was sent, in Base64; deleted once the result exists  | `ttl_s` |
| `result:{id}` | string | label of the better model's best class, nothing else                      | `ttl_s` |
| `status:{id}` | string | pending, processing, completed or failed                                  | `ttl_s` |
| `sync:{id}`   | string | the fast model's prediction: a JSON object {"prediction": …, "top5": […]} | `ttl_s` |
| `async:{id}`  | string | the same of the better model                                              | `ttl_s` |

`serving_common.queue` describes the queue's other keys, below `queue:jobs:`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import pybase64
from redis.asyncio import Redis
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from serving_common.queue.client import JobQueue
from serving_common.queue.types import JobId, JobKeys, JobState
from serving_common.queue.worker import Worker
from serving_common.redis import translate_redis_errors

if TYPE_CHECKING:
    from src.ml.classifier import ImagePrediction  # imports numpy and ONNX Runtime, which reading a job does not need

MAX_WAIT_S = 30
"""The longest that `Jobs.get` waits, whatever it is asked for."""

DETAILS = {"sync": "sync:{}", "async": "async:{}"}


class LabelProbability(TypedDict):
    label: str
    probability: float


class StoredPrediction(TypedDict):
    """One model's prediction in Redis and in the API; `top5` is in descending order of probability."""

    prediction: str
    top5: list[LabelProbability]


def keys(queue_name: str) -> JobKeys:
    """The pattern's keys, as its specification names them."""
    return JobKeys(queue_name, data="image:{}", result="result:{}", status="status:{}")


class Jobs:
    """The proxy's side. Every method raises QueueUnavailable if Redis does not answer or is out of memory."""

    def __init__(self, redis: Redis, queue_name: str, *, ttl_s: int = 3600, max_length: int = 10_000) -> None:
        """
        Args:
            redis: a client that does not decode (`serving_common.redis.connect`).
            queue_name: the list of waiting ids.
            ttl_s: seconds for which a job can be fetched, counted from its creation and again from its end.
            max_length: with this many jobs waiting, `enqueue` raises Overloaded.
        """
        self._redis: Any = redis  # its annotations mix decoded and undecoded replies
        self._ttl_s = ttl_s
        self.queue = JobQueue(redis, keys(queue_name), ttl_s=ttl_s, max_length=max_length)

    async def enqueue(self, image: bytes) -> JobId:
        """The id of a new job, once Redis has stored it. Only for images that could be decoded.

        Args:
            image: the bytes of the file as it was sent (JPEG, PNG, …), not Base64.

        Raises:
            Overloaded: the queue is full.
        """
        # The file rather than its pixels or the model's input: a 640x480 JPEG has 115 kB, its pixels 920 kB, the
        # model's input 600 kB. Base64, which the specification requires, makes the 115 kB 153.
        return await self.queue.enqueue(pybase64.b64encode(image))

    async def store_sync_result(self, job_id: JobId, prediction: ImagePrediction) -> None:
        """Store the fast model's prediction for `details`."""
        # One SET rather than a hash and its EXPIRE: the response to the client waits for this round trip.
        await translate_redis_errors(
            self._redis.set(DETAILS["sync"].format(job_id), orjson.dumps(to_stored(prediction)), ex=self._ttl_s)
        )

    async def get(self, job_id: JobId, wait_s: float = 0) -> JobState:
        """The job's state now or, if it ends within `wait_s` seconds, its final one; `result` is the label in UTF-8.

        Raises:
            JobNotFound: the job does not exist, or has expired.
        """
        return await self.queue.wait(job_id, min(wait_s, MAX_WAIT_S))

    async def details(self, job_id: JobId) -> Mapping[str, StoredPrediction]:
        """The predictions stored so far: `sync` is the fast model's, `async` the better one's.

        Once `get` has returned completed, `async` is present.
        """
        found = await translate_redis_errors(self._redis.mget([key.format(job_id) for key in DETAILS.values()]))
        return {model: orjson.loads(value) for model, value in zip(DETAILS, found, strict=True) if value is not None}


def read_image(data: bytes) -> bytes:
    """The image that `Jobs.enqueue` was given, from a job's data. Raises ValueError if that is not Base64."""
    return pybase64.b64decode(data, validate=True)


async def store(
    redis: Redis, worker: Worker, predictions: Sequence[tuple[JobId, ImagePrediction]], ttl_s: int
) -> set[JobId]:
    """Complete these jobs; returns the ids that this call has ended. Idempotent. Raises QueueUnavailable.

    The details are written first, so that a client that reads "completed" finds them.
    """
    async with redis.pipeline() as pipeline:
        for job_id, prediction in predictions:
            pipeline.set(DETAILS["async"].format(job_id), orjson.dumps(to_stored(prediction)), ex=ttl_s)
        await translate_redis_errors(pipeline.execute())
    return await worker.complete([(job_id, prediction.label.encode()) for job_id, prediction in predictions])


def to_stored(prediction: ImagePrediction) -> StoredPrediction:
    """The prediction as Redis holds it and as the client reads it."""
    top5: list[LabelProbability] = [{"label": label, "probability": float(p)} for label, p in prediction.top5]
    return {"prediction": prediction.label, "top5": top5}
