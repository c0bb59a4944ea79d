"""Thread pools that stay small while requests are short, and grow while all threads are busy with slow ones."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Work = Callable[[], object]

CHECK_PERIOD_S = 0.02
# A thread that completes at most this many requests per period has slow ones (4 ms or more). They hold the interpreter
# lock for a few percent of that, so more threads get more done.
SLOW_COUNT = 5
EXTRA_LIFE_S = 1.0


class _Thread(threading.Thread):
    """Only the thread itself writes `taken` and `is_busy`, so that reading them needs no lock."""

    taken = 0
    is_busy = False


class ElasticThreads:
    """`base` threads that run what `take` returns, and one more every 20 ms while all are busy with slow work.

    Many runnable threads compete for the interpreter lock: few threads serve a fast model fastest. With a slow model,
    which releases the lock while it runs, few threads would leave cores idle and make all other requests wait. Extra
    threads take no more work after a second; if one is still needed, another is started.

    `take(timeout_s)` waits for work and returns it; None, on timeout or when no more will come, ends the thread.
    """

    def __init__(self, take: Callable[[float | None], Work | None], base: int, limit: int) -> None:
        self._take = take
        self._limit = limit
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: set[_Thread] = set()
        for _ in range(base):
            self._start(None)
        self._watcher = threading.Thread(target=self._watch, name="pool-watcher", daemon=True)
        self._watcher.start()

    def stop_growing(self) -> int:
        """Start no more threads; returns how many there are at most."""
        self._closing.set()
        self._watcher.join()
        return len(self._threads)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the calling thread waits for, using no CPU: another one may work in its place."""
        with self._lock:
            self._limit += 1
        self._start(EXTRA_LIFE_S)
        try:
            yield
        finally:
            with self._lock:
                self._limit -= 1

    def _start(self, life_s: float | None) -> None:
        thread = _Thread(target=lambda: self._work(thread, life_s), name="pool", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self, thread: _Thread, life_s: float | None) -> None:
        end = None if life_s is None else time.monotonic() + life_s
        while end is None or time.monotonic() < end:
            work = self._take(None if end is None else max(0.0, end - time.monotonic()))
            if work is None:
                break
            thread.taken += 1
            thread.is_busy = True
            work()
            thread.is_busy = False
            # A waiting thread must not keep the last work, which may hold large arrays, alive.
            del work
        self._threads.discard(thread)

    def _watch(self) -> None:
        before: int | None = None
        while not self._closing.wait(CHECK_PERIOD_S):
            threads = tuple(self._threads)
            taken = sum(thread.taken for thread in threads) if all(thread.is_busy for thread in threads) else None
            if taken is not None and before is not None:
                is_slow = taken - before <= SLOW_COUNT * len(threads)
                if is_slow and len(threads) < self._limit:
                    self._start(EXTRA_LIFE_S)
            before = taken


class ElasticPool(ThreadPoolExecutor):
    """ElasticThreads behind the interface of an executor."""

    # grpc requires the type ThreadPoolExecutor, but uses only submit.
    def __init__(self, base: int, limit: int) -> None:
        super().__init__(max_workers=1)
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._elastic = ElasticThreads(self._next, base, limit)
        self._is_closed = False

    def submit(self, fn: Callable[..., Any], /, *args: object, **kwargs: object) -> Future[Any]:
        """As in ThreadPoolExecutor."""
        if self._is_closed:
            raise RuntimeError("the pool is shut down")
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 the Future takes all, as in the standard executors
                future.set_exception(error)
            else:
                future.set_result(result)

        self._queue.put(work)
        return future

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """As ElasticThreads.waiting."""
        return self._elastic.waiting()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Run what is queued, then end the threads. `cancel_futures` is ignored."""
        self._is_closed = True
        for _ in range(self._elastic.stop_growing()):
            self._queue.put(None)

    def _next(self, timeout_s: float | None) -> Work | None:
        try:
            return self._queue.get(timeout=timeout_s)
        except Empty:
            return None
