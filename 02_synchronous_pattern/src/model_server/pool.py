"""A thread pool that stays small while requests are short, and grows when they are stuck behind slow ones."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_Task = tuple["Future[Any]", "Callable[..., Any]", tuple[object, ...], dict[str, object]]

STALL_S = 0.01
IDLE_S = 10.0


class ElasticPool(ThreadPoolExecutor):
    """`base` threads, and one more whenever nothing was taken from the queue for 10 ms although something waits.

    Many runnable threads only fight for the interpreter lock: a short model is served fastest by few. A slow model,
    which releases the lock while it runs, would block everybody else behind few. Extra threads end when idle.
    """

    # grpc は ThreadPoolExecutor 型を要求するが、使うのは submit だけである。
    def __init__(self, base: int, limit: int) -> None:
        super().__init__(max_workers=1)
        self._limit = limit
        self._threads_alive = 0
        self._taken = 0
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        for _ in range(base):
            self._start_thread(None)
        self._watcher = threading.Thread(target=self._watch, name="pool-watcher", daemon=True)
        self._watcher.start()

    def submit(self, fn: Callable[..., Any], /, *args: object, **kwargs: object) -> Future[Any]:
        """As in ThreadPoolExecutor."""
        if self._closing.is_set():
            raise RuntimeError("the pool is shut down")
        future: Future[Any] = Future()
        self._tasks.put((future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Runs what is queued, then ends the threads; `cancel_futures` is not supported and ignored."""
        self._closing.set()
        self._watcher.join()
        with self._lock:
            alive = self._threads_alive
        for _ in range(alive):
            self._tasks.put(None)

    def _start_thread(self, idle_s: float | None) -> None:
        with self._lock:
            self._threads_alive += 1
        threading.Thread(target=self._work, args=(idle_s,), name="pool", daemon=True).start()

    def _work(self, idle_s: float | None) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=idle_s)
            except Empty:
                break
            if task is None:
                break
            # 競合で数え落としても、値が動きさえすれば監視には足りる。
            self._taken += 1
            future, function, args, kwargs = task
            if future.set_running_or_notify_cancel():
                try:
                    result = function(*args, **kwargs)
                except BaseException as error:  # noqa: BLE001 標準の Executor と同じく、すべて Future に渡す
                    future.set_exception(error)
                else:
                    future.set_result(result)
            # 待機中のスレッドが直前の結果 (大きな配列かもしれない) を抱え続けないようにする。
            del task, future, function, args, kwargs
        with self._lock:
            self._threads_alive -= 1

    def _watch(self) -> None:
        seen = -1
        while not self._closing.wait(STALL_S):
            taken = self._taken
            if taken == seen and not self._tasks.empty() and self._threads_alive < self._limit:
                self._start_thread(IDLE_S)
            seen = taken
