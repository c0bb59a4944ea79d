"""SQLite's one write lock: how a transaction waits for it, and what its timeout looks like.

SQLite's own busy handler backs off to ten polls a second. Between two chunks of a job the lock is free for a
millisecond or two, so a request that registers a row would wait for the end of the batch. Polling every millisecond
finds the gap; one thread per process polls, so that the API's threads do not compete for it.
"""

import sqlite3
import threading
import time
from typing import Any

from sqlalchemy import Connection, Engine, event, exc

POLL_INTERVAL_S = 0.001


def install(engine: Engine, timeout_s: float) -> None:
    """Begin every transaction of this engine explicitly; with the execution option `write`, take the write lock first.

    Args:
        timeout_s: how long to wait for the lock before OperationalError.
    """
    polling = threading.Lock()
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", lambda connection: _begin(connection, polling, timeout_s))


def is_busy(error: BaseException | None) -> bool:
    """Whether another transaction held the lock for too long."""
    # The bits above the lower eight are SQLite's extended code: the reason.
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _configure(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # stops Python's sqlite3 from beginning transactions of its own
    connection.execute("PRAGMA journal_mode = WAL").close()  # readers and the writer do not block each other


def _begin(connection: Connection, polling: threading.Lock, timeout_s: float) -> None:
    if not connection.get_execution_options().get("write", False):
        connection.exec_driver_sql("BEGIN")
        return
    deadline = time.monotonic() + timeout_s
    is_polling = polling.acquire(timeout=timeout_s)
    try:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0").close()
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except exc.OperationalError as error:
                if not is_busy(error.orig) or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_INTERVAL_S)
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1000 * timeout_s)}").close()
        if is_polling:
            polling.release()
