"""The pattern itself, on the proxy's side: a fast answer now, and the promise of a better one.

image_data ──▶ read: Base64, decode, resize ──┬──▶ fast model ──┬──▶ label ─▶ the answer: label and id
               (a thread)                     │    (a thread)   ▼
                                              └──▶ register the job ─▶ note the fast answer ─▶ id
                                                   (Redis)
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import structlog

from serving_common.concurrency import ConcurrencyLimiter
from serving_common.errors import Overloaded
from serving_common.onnx import FloatArray, available_cpus
from serving_common.queue.types import JobId
from serving_common.redis import QueueUnavailable
from src.configurations import ProxySettings
from src.jobs import Jobs
from src.ml.classifier import Classifier, Prediction
from src.ml.preprocessing import decode_base64, preprocess
from src.proxy.metrics import JOBS, STAGE_TIME

REDIS_REST_S = 1
"""After Redis has failed, so long nobody asks it: not every request shall wait for its silence."""

log = structlog.get_logger()


class Predictor:
    """Decodes and predicts on threads, one for each CPU, so that the event loop stays free.

    Use as an async context manager.
    """

    def __init__(self, classifier: Classifier, jobs: Jobs, settings: ProxySettings) -> None:
        self._classifier = classifier
        self._jobs = jobs
        self._settings = settings
        self._threads = ThreadPoolExecutor(available_cpus(), thread_name_prefix="predictor")
        self._places = ConcurrencyLimiter(settings.max_waiting, "Too many requests wait for the model")
        self._redis_rests_until = -float("inf")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def predict(self, image_data: str) -> tuple[JobId | None, Prediction]:
        """The fast model's prediction, and the id under which the better one will be; None if Redis takes no job.

        The job is registered while the fast model works, and only once the image has turned out to be readable.

        Raises:
            InvalidInput: there is no image that we can read in it.
            Overloaded: too many requests are being worked on.
        """
        with self._places:
            return await self._predict(image_data)

    async def _predict(self, image_data: str) -> tuple[JobId | None, Prediction]:
        loop = asyncio.get_running_loop()
        image, pixels = await loop.run_in_executor(self._threads, self._read, image_data)
        answer = loop.run_in_executor(self._threads, self._classify, pixels)
        promise = asyncio.create_task(self._promise(image, answer))
        try:
            prediction = await answer
            return await self._kept(promise), prediction
        finally:
            promise.cancel()

    def _read(self, image_data: str) -> tuple[bytes, FloatArray]:
        with STAGE_TIME.labels("read").time():
            image = decode_base64(image_data)
            settings = self._settings
            return image, preprocess(image, resize_mode=settings.resize_mode, max_pixels=settings.max_image_pixels)

    def _classify(self, pixels: FloatArray) -> Prediction:
        with STAGE_TIME.labels("model").time():
            [prediction] = self._classifier.classify(pixels[None])
            return prediction

    async def _promise(self, image: bytes, answer: asyncio.Future[Prediction]) -> JobId | None:
        """The id of a job that exists, and knows the fast answer; None if there can be no job now."""
        if asyncio.get_running_loop().time() < self._redis_rests_until:
            JOBS.labels("redis_away").inc()
            return None
        try:
            job_id = await self._jobs.register(image)
            await self._jobs.note_sync(job_id, await answer)
        except Overloaded:
            JOBS.labels("queue_full").inc()
            return None
        except QueueUnavailable:
            self._let_redis_rest()
            return None
        JOBS.labels("registered").inc()
        return job_id

    async def _kept(self, promise: asyncio.Task[JobId | None]) -> JobId | None:
        # The fast answer is there: it is not held back for long by a Redis that does not answer.
        done, _ = await asyncio.wait([promise], timeout=self._settings.job_timeout_s)
        if not done:
            self._let_redis_rest()
            return None
        return await promise

    def _let_redis_rest(self) -> None:
        JOBS.labels("redis_away").inc()
        log.warning("job_not_registered", reason="Redis does not answer")
        self._redis_rests_until = asyncio.get_running_loop().time() + REDIS_REST_S
