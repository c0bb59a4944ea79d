"""The better model in processes of its own: all cores for ONNX Runtime and Pillow, none of them taken from the queue.

Each is a ProcessPoolExecutor of one process, rather than one executor having them all. An executor breaks when one of
its processes dies, and fails everything that it has in hand: whose image it was, nobody knows then. Here only the one
that had the guilty image breaks, and the images in the others go on.
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

from serving_common.errors import StartupError
from src.configurations import WorkerSettings
from src.ml.classifier import Prediction
from src.worker import child
from src.worker.metrics import INFERENCE_TIME, REPLACED

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()


class ProcessDied(Exception):
    """The process died, or did not answer in time, with these jobs in hand."""


class NoProcess(Exception):
    """There is no process for these jobs at the moment; nothing has happened to them."""


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """For a process that is started meanwhile, and inherits this: for always.

    Ctrl-C, and a signal to the whole group, reach the children, too; but when they stop is the parent's decision.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ModelProcess:
    """One process with the model in it, and after its death another."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self.is_up = False

    async def start(self) -> None:
        """Returns when the model is loaded. Raises StartupError, or NoProcess if it died meanwhile."""
        # Spawned, not forked: the copy of a process that has threads may wait for ever for a lock that one of them had.
        self._executor = ProcessPoolExecutor(1, get_context("spawn"), initializer=child.become_child)
        try:
            # The first task and not the initializer, which would print what it raises and keep it from us.
            with _signals_blocked():
                loading = self._executor.submit(child.load, self._settings)
            self._pid = await asyncio.wrap_future(loading)
        except (StartupError, BrokenExecutor) as exc:
            await self.stop()
            if isinstance(exc, BrokenExecutor):
                raise NoProcess("it died while it loaded the model") from exc
            raise
        self.is_up = True

    async def stop(self) -> None:
        """Returns when the process has done what it has in hand, and is gone."""
        self.is_up = False
        await asyncio.to_thread(self._executor.shutdown)

    async def predict(self, jobs: Sequence[bytes]) -> list[Prediction | None]:
        """See `child.predict`. Raises NoProcess, ProcessDied, and what the model raises."""
        try:
            running = await self._submit(child.predict, jobs)
            with INFERENCE_TIME.time():
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

    async def mend(self) -> None:
        """Start another process if this one died while it had nothing to do. Raises NoProcess."""
        with contextlib.suppress(BrokenExecutor):
            await self._submit(int)

    async def _submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if self.is_up:
            with contextlib.suppress(BrokenExecutor):  # an executor whose process is dead refuses at once
                return self._executor.submit(call, *args, **kwargs)
        await self.stop()
        try:
            await self.start()
        except (StartupError, NoProcess) as exc:
            log.error("model_process_not_started", reason=str(exc))
            raise NoProcess from exc
        REPLACED.inc()
        log.warning("model_process_replaced", pid=self._pid)
        return self._executor.submit(call, *args, **kwargs)

    def _kill(self) -> None:
        # What a process computes can be broken off in no other way.
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
        """Whether there is at least one process with a model."""
        return any(process.is_up for process in self._all)

    async def __aenter__(self) -> Self:
        started = await asyncio.gather(*(process.start() for process in self._all), return_exceptions=True)
        # One that died is replaced as it would be later; what one has told us of its model is true of all.
        if failures := [each for each in started if each is not None and not isinstance(each, NoProcess)]:
            await self.__aexit__(None, None, None)
            raise failures[0]
        for process in self._all:
            self._free.put_nowait(process)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.gather(*(process.stop() for process in self._all))

    async def predict(self, jobs: Sequence[bytes]) -> list[Prediction | None]:
        """See `child.predict`; by the process that is free first.

        Raises NoProcess, ProcessDied, and what the model raises.
        """
        async with self._one() as process:
            return await process.predict(jobs)

    async def mend(self) -> None:
        """Look after one of those that have nothing to do. Raises NoProcess."""
        if not self._free.empty():
            async with self._one() as process:
                await process.mend()

    def close(self) -> None:
        """Whoever waits for a process, or will, goes without; what is being predicted is not disturbed."""
        self._free.put_nowait(None)

    @contextlib.asynccontextmanager
    async def _one(self) -> AsyncIterator[ModelProcess]:
        process = await self._free.get()
        try:
            if process is None:
                raise NoProcess
            yield process
        finally:
            self._free.put_nowait(process)
