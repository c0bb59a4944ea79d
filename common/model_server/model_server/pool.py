"""Threads that stay few while requests are short, and become more when all of them are stuck in slow ones."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Work = Callable[[], object]

LOOK_S = 0.02
# 1スレッドがこの間に捌いた数がこれ以下なら、要求は遅い (4 ms 以上)。Python が GIL を握る時間はその数 % にすぎないので、
# スレッドを増やせば速くなる。
FEW = 5
EXTRA_LIFE_S = 1.0


class _Thread(threading.Thread):
    """One of the threads. Only it writes `taken` and `is_busy`, so that nobody needs a lock to read them."""

    taken = 0
    is_busy = False


class ElasticThreads:
    """`base` threads that do what `take` gives them, and one more every 20 ms while all are busy with slow work.

    Many runnable threads only fight for the interpreter lock: a short model is served fastest by few. A slow model,
    which releases the lock while it runs, would leave cores idle, and block everybody else, behind few. Extra threads
    take nothing new after a second: if one is still needed, another comes.

    `take(timeout_s)` waits for work and returns it; None ends the thread: the time is over, or there will be no more.
    """

    def __init__(self, take: Callable[[float | None], Work | None], base: int, limit: int) -> None:
        self._take = take
        self._limit = limit
        self._closing = threading.Event()
        self._threads: set[_Thread] = set()
        for _ in range(base):
            self._start(None)
        self._watcher = threading.Thread(target=self._watch, name="pool-watcher", daemon=True)
        self._watcher.start()

    def stop_growing(self) -> int:
        """No thread is started after this; how many there are, at most."""
        self._closing.set()
        self._watcher.join()
        return len(self._threads)

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
            # 待機中のスレッドが直前の仕事 (大きな配列かもしれない) を抱え続けないようにする。
            del work
        self._threads.discard(thread)

    def _watch(self) -> None:
        before: int | None = None
        while not self._closing.wait(LOOK_S):
            threads = tuple(self._threads)
            taken = sum(thread.taken for thread in threads) if all(thread.is_busy for thread in threads) else None
            if taken is not None and before is not None:
                is_slow = taken - before <= FEW * len(threads)
                if is_slow and len(threads) < self._limit:
                    self._start(EXTRA_LIFE_S)
            before = taken


class ElasticPool(ThreadPoolExecutor):
    """ElasticThreads behind the interface of an executor."""

    # grpc は ThreadPoolExecutor 型を要求するが、使うのは submit だけである。
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
            except BaseException as error:  # noqa: BLE001 標準の Executor と同じく、すべて Future に渡す
                future.set_exception(error)
            else:
                future.set_result(result)

        self._queue.put(work)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Runs what is queued, then ends the threads; `cancel_futures` is not supported and ignored."""
        self._is_closed = True
        for _ in range(self._elastic.stop_growing()):
            self._queue.put(None)

    def _next(self, timeout_s: float | None) -> Work | None:
        try:
            return self._queue.get(timeout=timeout_s)
        except Empty:
            return None
