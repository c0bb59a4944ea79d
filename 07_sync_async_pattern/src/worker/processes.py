"""The better model in processes of its own, so that ONNX Runtime and Pillow do not hold up the worker's event loop.

Each is a ProcessPoolExecutor of one process rather than one executor of them all. An executor breaks when any of its
processes dies and fails every call in flight, and nothing tells which image was to blame. This way only the executor
whose process died breaks, and the images in the others are not affected.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

import structlog

from serving_common import tracing
from serving_common.errors import StartupError, Unavailable
from src.configurations import WorkerSettings
from src.ml.classifier import ImagePrediction
from src.worker import child
from src.worker.metrics import INFERENCE_TIME, REPLACED

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()


class ProcessDied(Exception):
    """The process died or timed out while it had these jobs."""


class ProcessUnavailable(Unavailable):
    """No process can take these jobs now; they have not been touched."""


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process that is started in here inherits the mask and keeps it.

    Ctrl-C and signals to the process group reach the children too, but the parent decides when they stop.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ModelProcess:
    """One process with the model in it, replaced when it dies."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._attributes = {"model.name": settings.async_card.name}
        self.is_up = False

    async def start(self) -> None:
        """Load the model. Raises StartupError, or ProcessUnavailable if the process died meanwhile."""
        # spawn, not fork: a forked copy of a process with threads can deadlock on a lock that one of them held.
        self._executor = ProcessPoolExecutor(1, get_context("spawn"), initializer=child.exit_with_parent)
        try:
            # Loaded by the first call, because an executor prints an initializer's exception instead of passing it on.
            with _signals_blocked():
                loading = self._executor.submit(child.load, self._settings)
            self._pid = await asyncio.wrap_future(loading)
        except (StartupError, BrokenExecutor) as exc:
            await self.stop()
            if isinstance(exc, BrokenExecutor):
                raise ProcessUnavailable("the process died while loading the model") from exc
            raise
        self.is_up = True

    async def stop(self) -> None:
        """Returns when the process has finished its call in flight and exited."""
        self.is_up = False
        await asyncio.to_thread(self._executor.shutdown)

    async def predict(self, jobs: Sequence[bytes]) -> list[ImagePrediction | None]:
        """See `child.predict`. Raises ProcessUnavailable, ProcessDied, and whatever the model raises."""
        try:
            running = await self._submit(child.predict, jobs)
            with INFERENCE_TIME.time(), tracing.span("run model", attributes=self._attributes):
                async with asyncio.timeout(self._settings.inference_timeout_s):
                    return await asyncio.wrap_future(running)
        except BrokenExecutor as exc:
            self.is_up = False
            raise ProcessDied from exc
        except TimeoutError as exc:
            self._kill()
            raise ProcessDied from exc
        except asyncio.CancelledError:
            self._kill()
            raise

    async def ensure_alive(self) -> None:
        """Replace the process if it died while idle. Raises ProcessUnavailable."""
        with contextlib.suppress(BrokenExecutor):
            await self._submit(int)

    async def _submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if self.is_up:
            with contextlib.suppress(BrokenExecutor):  # raised at once if the process is dead
                return self._executor.submit(call, *args, **kwargs)
        await self.stop()
        try:
            await self.start()
        except (StartupError, ProcessUnavailable) as exc:
            log.error("model_process_not_started", reason=str(exc))
            raise ProcessUnavailable("no process could be started") from exc
        REPLACED.inc()
        log.warning("model_process_replaced", pid=self._pid)
        return self._executor.submit(call, *args, **kwargs)

    def _kill(self) -> None:
        # The only way to stop a running inference.
        if self.is_up:
            self.is_up = False
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


class ModelProcesses:
    """NUM_WORKERS processes. Use as an async context manager; entering raises StartupError."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._all = [ModelProcess(settings) for _ in range(settings.num_workers)]
        self._free: asyncio.Queue[ModelProcess | None] = asyncio.Queue()

    @property
    def is_up(self) -> bool:
        """Whether at least one process has a model loaded."""
        return any(process.is_up for process in self._all)

    async def __aenter__(self) -> Self:
        started = await asyncio.gather(*(process.start() for process in self._all), return_exceptions=True)
        # A process that died is replaced on its first use; a StartupError concerns the model, and so all processes.
        if failures := [each for each in started if each is not None and not isinstance(each, ProcessUnavailable)]:
            await self.__aexit__(None, None, None)
            raise failures[0]
        for process in self._all:
            self._free.put_nowait(process)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.gather(*(process.stop() for process in self._all))

    async def predict(self, jobs: Sequence[bytes]) -> list[ImagePrediction | None]:
        """`ModelProcess.predict` on the first process that is free."""
        async with self._borrow() as process:
            return await process.predict(jobs)

    async def ensure_alive(self) -> None:
        """Check one idle process, and replace it if it died. Raises ProcessUnavailable."""
        if not self._free.empty():
            async with self._borrow() as process:
                await process.ensure_alive()

    def close(self) -> None:
        """Calls that wait for a process, now or later, raise ProcessUnavailable; predictions in flight finish."""
        self._free.put_nowait(None)

    @contextlib.asynccontextmanager
    async def _borrow(self) -> AsyncIterator[ModelProcess]:
        process = await self._free.get()
        try:
            if process is None:
                raise ProcessUnavailable("the worker is stopping")
            yield process
        finally:
            self._free.put_nowait(process)
