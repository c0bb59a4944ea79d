"""The pool has few threads for short work, and more for slow work."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from model_server.pool import ElasticPool
from serving_testing.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 6


@pytest.fixture
def pool() -> Iterator[ElasticPool]:
    pool = ElasticPool(1, LIMIT)
    yield pool
    pool.shutdown()


def test_slow_work_adds_threads_which_end_afterwards(pool: ElasticPool) -> None:
    """Work of 8 ms never occupies a thread from one check of the pool to the next, and still all threads are busy."""
    in_flight = 0
    peak = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal in_flight, peak
        with lock:
            in_flight += 1
            peak = max(peak, in_flight)
        time.sleep(0.008)
        with lock:
            in_flight -= 1

    for future in [pool.submit(work) for _ in range(300)]:
        future.result()
    assert 3 <= peak <= LIMIT
    wait_until(lambda: len(pool._elastic._threads) == 1)


def test_stuck_work_does_not_block_other_work(pool: ElasticPool) -> None:
    release = threading.Event()
    stuck = [pool.submit(release.wait, 60) for _ in range(LIMIT - 1)]
    assert pool.submit(lambda: "answered").result(30) == "answered"
    release.set()
    assert all(future.result() for future in stuck)


def test_exception_fails_only_its_own_future(pool: ElasticPool) -> None:
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(30)
    assert pool.submit(lambda: 2).result(30) == 2


def test_submit_after_shutdown_raises_runtime_error(pool: ElasticPool) -> None:
    last = pool.submit(lambda: "last")
    pool.shutdown()
    assert last.result(30) == "last"
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(lambda: None)
