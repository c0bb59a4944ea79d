"""The pattern itself, on the proxy's side: the fast model's answer now, and a job for the better model.

image_data ──▶ read: Base64, decode, resize ──┬──▶ fast model ──┬──▶ label ──▶ response: label and id
               (a thread)                     │    (a thread)   ▼
                                              └──▶ enqueue ──▶ store the sync result ──▶ id
                                                   (Redis, behind a circuit breaker)
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import structlog

from serving_common import tracing
from serving_common.breaker import CircuitBreaker
from serving_common.concurrency import ConcurrencyLimiter
from serving_common.errors import Overloaded, TooLarge, Unavailable
from serving_common.onnx import FloatArray, RunOptions, available_cpus, run_options
from serving_common.queue.types import JobId
from serving_common.redis import QueueUnavailable
from src.configurations import ProxySettings
from src.jobs import Jobs
from src.ml.classifier import Classifier, ImagePrediction, NonFiniteScores
from src.ml.preprocessing import decode_base64, preprocess
from src.proxy.metrics import JOBS, STAGE_TIME

REDIS_COOL_DOWN_S = 1
"""Seconds the circuit breaker stays open after a Redis failure, so that requests do not each wait for a timeout."""

SLICES = 10
TURNS = 50
DISCONNECT_TURNS = 6
"""Turns of the event loop within which it notices that a caller hung up once its request was sent."""

T = TypeVar("T")

log = structlog.get_logger()


async def ends_within(task: asyncio.Task[T], timeout_s: float) -> bool:
    """Whether the task ends within this time, in which this process's own lateness does not count.

    A busy event loop reads Redis's replies late, and must not take that for Redis's failure. So the time is waited in
    slices, and only those count after which the loop was on time. While it is late, redis-py's time limit remains.
    """
    slice_s = timeout_s / SLICES
    counted = 0
    while counted < SLICES:
        started = time.monotonic()
        done, _ = await asyncio.wait([task], timeout=slice_s)
        if done:
            return True
        if time.monotonic() - started - slice_s < slice_s / 4:
            counted += 1
    # What has arrived meanwhile may need some turns of the loop until the task has seen it.
    await _take_turns(TURNS)
    return task.done()


async def _take_turns(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


def max_file_bytes(settings: ProxySettings) -> int:
    """The largest file that is accepted: MAX_BODY_BYTES limits it as well, in Base64 and within JSON."""
    return min(settings.max_image_bytes, max(0, settings.max_body_bytes - len('{"image_data":""}')) // 4 * 3)


def too_large(settings: ProxySettings) -> str:
    """The `detail` of a 413: users see the size of their file, not of the request with its Base64."""
    return f"The image file is larger than {max_file_bytes(settings):,} bytes"


class SyncPredictor:
    """Decodes and predicts on one thread per CPU, off the event loop. An async context manager."""

    def __init__(self, classifier: Classifier, jobs: Jobs, settings: ProxySettings) -> None:
        self._classifier, self._form = classifier, classifier.form
        self._jobs = jobs
        self._settings = settings
        self._attributes = {"model.name": classifier.name}
        self._threads = ThreadPoolExecutor(available_cpus(), thread_name_prefix="predictor")
        # Those that wait do so here and not in the threads' queue, where the next would start before it is cancelled.
        self._reading = asyncio.Semaphore(available_cpus())
        self._limiter = ConcurrencyLimiter(settings.max_in_flight, "Too many requests wait for the model")
        self._redis_breaker = CircuitBreaker(failure_threshold=1, open_s=REDIS_COOL_DOWN_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def predict(self, image_data: str) -> tuple[JobId | None, ImagePrediction]:
        """The id of the better model's job, None if Redis takes no job, and the fast model's prediction.

        The job is enqueued while the fast model runs, and only after the image has been decoded.

        Raises:
            InvalidInput: the image cannot be decoded.
            TooLarge: the file is larger than MAX_IMAGE_BYTES.
            Overloaded: too many requests are in flight.
            Unavailable: the fast model's answer is not finite.
        """
        run = run_options()  # their `terminate` is the flag that ends what has been started, the decoding, too
        with self._limiter:
            try:
                return await self._predict(image_data, run)
            finally:
                run.terminate = True  # if this call was cancelled, because its caller has gone

    async def _predict(self, image_data: str, run: RunOptions) -> tuple[JobId | None, ImagePrediction]:
        loop = asyncio.get_running_loop()
        with tracing.span("read image"):
            async with self._reading:
                await _take_turns(DISCONNECT_TURNS)
                image, pixels = await loop.run_in_executor(self._threads, self._read, image_data, run)
        prediction = loop.run_in_executor(self._threads, self._classify, pixels, run)
        enqueueing = asyncio.create_task(self._enqueue(image, prediction))
        try:
            with tracing.span("run model", attributes=self._attributes):
                result = await prediction
            return await self._await_job_id(enqueueing), result
        finally:
            enqueueing.cancel()

    def _read(self, image_data: str, run: RunOptions) -> tuple[bytes, FloatArray]:
        with STAGE_TIME.labels("read").time():
            image = decode_base64(image_data)
            max_pixels = self._settings.max_image_pixels
            if len(image) > self._settings.max_image_bytes:
                raise TooLarge(too_large(self._settings))
            return image, preprocess(image, self._form, max_pixels=max_pixels, waits=lambda: not run.terminate)

    def _classify(self, pixels: FloatArray, run: RunOptions) -> ImagePrediction:
        with STAGE_TIME.labels("model").time():
            try:
                [prediction] = self._classifier.classify(pixels[None], run)
            except NonFiniteScores as exc:
                raise Unavailable(str(exc)) from exc
            return prediction

    async def _enqueue(self, image: bytes, prediction: asyncio.Future[ImagePrediction]) -> JobId | None:
        """The id of a new job, once its sync result is stored too; None if Redis is unavailable or the queue full."""
        if not self._redis_breaker.allows():
            JOBS.labels("redis_away").inc()
            return None
        try:
            job_id = await self._jobs.enqueue(image)
            self._redis_breaker.record_success()
            await self._jobs.store_sync_result(job_id, await prediction)
        except Overloaded:
            self._redis_breaker.record_success()
            JOBS.labels("queue_full").inc()
            return None
        except QueueUnavailable:
            self._record_redis_failure()
            return None
        JOBS.labels("registered").inc()
        return job_id

    async def _await_job_id(self, enqueueing: asyncio.Task[JobId | None]) -> JobId | None:
        # The prediction is ready: do not hold it back for a Redis that does not answer.
        if not await ends_within(enqueueing, self._settings.job_timeout_s):
            self._record_redis_failure()
            return None
        return await enqueueing

    def _record_redis_failure(self) -> None:
        JOBS.labels("redis_away").inc()
        log.warning("job_not_registered", reason="Redis does not answer")
        self._redis_breaker.record_failure()
