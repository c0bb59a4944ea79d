"""The pattern itself: while the fast model works, the slow one's answer is promised with an id and fetched later.

    proxy   jobs.register(image)               image:{id}, status:{id}, queue:jobs     while the fast model runs
            jobs.note_sync(id, prediction)     sync:{id}                               once it has answered
    worker  store(redis, worker, …)            async:{id}, result:{id}                 `image:{id}` is deleted
    proxy   jobs.look(id, wait_s)              status:{id}, result:{id}
            jobs.details(id)                   sync:{id}, async:{id}

| key           | type   | holds                                                                  | TTL      |
|---------------|--------|------------------------------------------------------------------------|----------|
| `queue:jobs`  | list   | ids of the jobs that wait                                              | none     |
| `image:{id}`  | string | the image as it came, in Base64; deleted once the result is stored     | `ttl_s`  |
| `result:{id}` | string | name of the slow model's best class, nothing around it                 | `ttl_s`  |
| `status:{id}` | string | pending, processing, completed or failed                               | `ttl_s`  |
| `sync:{id}`   | string | what the fast model says: a JSON object {"prediction": …, "top5": […]} | `ttl_s`  |
| `async:{id}`  | string | the same of the slow model                                             | `ttl_s`  |

What else the queue keeps below `queue:jobs:` is described in `serving_common.queue`.
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
    from src.ml.classifier import Prediction  # needs numpy and ONNX Runtime, which a look at a job does not

MAX_WAIT_S = 30
"""`look` holds its answer back no longer than this."""

DETAILS = {"sync": "sync:{}", "async": "async:{}"}


class Ranked(TypedDict):
    label: str
    probability: float


class Answer(TypedDict):
    """What one of the models says; `top5` with the most probable first."""

    prediction: str
    top5: list[Ranked]


def keys(queue_name: str) -> JobKeys:
    """The pattern's keys, as its specification names them."""
    return JobKeys(queue_name, data="image:{}", result="result:{}", status="status:{}")


class Jobs:
    """The proxy's side. Every method raises QueueUnavailable if Redis does not answer or has no memory left."""

    def __init__(self, redis: Redis, queue_name: str, *, ttl_s: int = 3600, max_length: int = 10_000) -> None:
        """
        Args:
            redis: a client that does not decode (`serving_common.queue.connect`).
            queue_name: the list of waiting ids.
            ttl_s: how long a job can be fetched, counted from its creation and again from its end.
            max_length: more jobs than this do not wait: they are refused.
        """
        self._redis: Any = redis  # its annotations mix decoded and undecoded replies
        self._ttl_s = ttl_s
        self.queue = JobQueue(redis, keys(queue_name), ttl_s=ttl_s, max_length=max_length)

    async def register(self, image: bytes) -> JobId:
        """The id of a new job, once Redis has it. To be called with images that could be read, whatever else follows.

        Args:
            image: the bytes of the file as they came, JPEG, PNG or another format; not Base64.

        Raises:
            Overloaded: too many jobs are waiting.
        """
        # Not decoded pixels, nor those in a format of ours: a 640x480 JPEG has 115 kB, its pixels 920 kB, what
        # the model gets 600 kB. Base64, which the specification wants, makes the 115 kB 153.
        return await self.queue.enqueue(pybase64.b64encode(image))

    async def note_sync(self, job_id: JobId, prediction: Prediction) -> None:
        """Keep the fast model's answer for `details`."""
        # One command and not a hash with its expiry: the answer to the client waits for this round trip.
        await translate_redis_errors(
            self._redis.set(DETAILS["sync"].format(job_id), orjson.dumps(answer(prediction)), ex=self._ttl_s)
        )

    async def look(self, job_id: JobId, wait_s: float = 0) -> JobState:
        """Where the job stands, or, if it ends within `wait_s`, how it has ended: `result` is the label's name, UTF-8.

        Raises:
            JobNotFound: there is no such job, or it has expired.
        """
        return await self.queue.wait(job_id, min(wait_s, MAX_WAIT_S))

    async def details(self, job_id: JobId) -> Mapping[str, Answer]:
        """What the models have said so far: under `sync` the fast one, under `async` the slow one.

        Once `look` has said completed, `async` is there.
        """
        found = await translate_redis_errors(self._redis.mget([key.format(job_id) for key in DETAILS.values()]))
        return {model: orjson.loads(answer) for model, answer in zip(DETAILS, found, strict=True) if answer is not None}


def read_image(data: bytes) -> bytes:
    """What `register` was given, from a job's data. Raises ValueError if somebody else stored something else."""
    return pybase64.b64decode(data, validate=True)


async def store(
    redis: Redis, worker: Worker, predictions: Sequence[tuple[JobId, Prediction]], ttl_s: int
) -> set[JobId]:
    """Details first, then the end of the jobs: whoever sees a job completed sees both. Which jobs this has ended.

    Storing again what was stored before changes nothing. Raises QueueUnavailable.
    """
    async with redis.pipeline() as pipeline:
        for job_id, prediction in predictions:
            pipeline.set(DETAILS["async"].format(job_id), orjson.dumps(answer(prediction)), ex=ttl_s)
        await translate_redis_errors(pipeline.execute())
    return await worker.complete([(job_id, prediction.label.encode()) for job_id, prediction in predictions])


def answer(prediction: Prediction) -> Answer:
    """A prediction as it is stored, and as the client reads it."""
    top5: list[Ranked] = [{"label": label, "probability": float(p)} for label, p in prediction.top5]
    return {"prediction": prediction.label, "top5": top5}
