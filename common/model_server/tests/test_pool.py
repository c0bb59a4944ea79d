"""The pool has few threads for short requests, and as many as are useful for slow ones."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from model_server.pool import ElasticPool
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 6


@pytest.fixture
def pool() -> Iterator[ElasticPool]:
    pool = ElasticPool(1, LIMIT)
    yield pool
    pool.shutdown()


def threads() -> int:
    return sum(thread.name == "pool" for thread in threading.enumerate())


def test_slow_work_gets_more_threads_and_they_go_again(pool: ElasticPool) -> None:
    """Work of 8 ms never holds a thread from one look of the pool to the next, and still all wait for one another."""
    under_way = 0
    peak = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal under_way, peak
        with lock:
            under_way += 1
            peak = max(peak, under_way)
        time.sleep(0.008)
        with lock:
            under_way -= 1

    for future in [pool.submit(work) for _ in range(300)]:
        future.result()
    assert 3 <= peak <= LIMIT
    wait_until(lambda: threads() == 1)


def test_stuck_work_leaves_the_others_alone(pool: ElasticPool) -> None:
    release = threading.Event()
    stuck = [pool.submit(release.wait, 60) for _ in range(LIMIT - 1)]
    assert pool.submit(lambda: "answered").result(30) == "answered"
    release.set()
    assert all(future.result() for future in stuck)


def test_what_fails_fails_its_future_only(pool: ElasticPool) -> None:
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(30)
    assert pool.submit(lambda: 2).result(30) == 2


def test_a_pool_that_is_shut_down_takes_nothing(pool: ElasticPool) -> None:
    last = pool.submit(lambda: "last")
    pool.shutdown()
    assert last.result(30) == "last"
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(lambda: None)
