"""The one module that knows which database it is: URL, pool, timeouts, locks, and all that can go wrong."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection, Engine, create_engine, event, exc, func, inspect, select, text
from sqlalchemy.orm import Session

from serving_common.errors import StartupError, Unavailable
from src.configurations import DatabaseSettings
from src.db.models import Base

# As many as the threads in which FastAPI runs plain functions.
POOL_SIZE, POOL_OVERFLOW = 10, 30
POOL_WAIT_S = 5
POOL_RECYCLE_S = 1800  # less than MySQL's wait_timeout, after which it closes idle connections
RETRY_EVERY_S = 0.5
LOCK_EVERY_S = 0.001
SCHEMA_LOCK, SCHEMA_LOCK_WAIT_S = "batch_pattern_schema", 60

# Lock wait timeout, deadlock, and MariaDB's "record has changed since last read".
LOST_CODES = {1205, 1213, 1020}

log = structlog.get_logger()


class LostToAnother(Unavailable):
    """The transaction was rolled back in favour of another one: done again, it will probably succeed."""


class Database:
    """Transactions on one engine. A database that does not answer makes them raise `Unavailable`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def transaction(self, *, locks: bool = False) -> Iterator[Session]:
        """A session, committed at the end or, after an exception, rolled back.

        Args:
            locks: rows are going to be written. SQLite, which has no row locks, takes its write lock at once.

        Raises:
            LostToAnother: try again.
            Unavailable: the database is away.
        """
        try:
            with Session(self._engine) as session, session.begin():
                session.connection(execution_options={"locks": locks})
                yield session
        except (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError) as error:
            raise _serving_error(error) from error

    def ping(self) -> None:
        """Raises Unavailable if the database does not answer."""
        with self.transaction() as session:
            session.execute(select(1))


@contextmanager
def open_database(settings: DatabaseSettings) -> Iterator[Database]:
    """The database with its tables, which are made where they are missing.

    Raises:
        StartupError: it does not answer in time, is no database, or has tables of these names with other columns.
    """
    engine = _create_engine(settings)
    try:
        _wait_for_tables(engine, settings.database_wait_s)
        yield Database(engine)
    finally:
        engine.dispose()


def _create_engine(settings: DatabaseSettings) -> Engine:
    url = settings.url
    common: dict[str, Any] = {
        "json_serializer": lambda value: orjson.dumps(value).decode(),
        "json_deserializer": orjson.loads,
        "pool_size": POOL_SIZE,
        "max_overflow": POOL_OVERFLOW,
        "pool_timeout": POOL_WAIT_S,
    }
    if url.get_backend_name() == "sqlite":
        _make_folder(Path(str(url.database)).parent)
        # Statements are not kept prepared: each bulk UPDATE is another one, with thousands of ids, and a megabyte.
        connect_args = {"timeout": settings.database_timeout_s, "cached_statements": 0}
        engine = create_engine(url, **common, connect_args=connect_args)
        event.listen(engine, "connect", _set_up_sqlite)
        turn = threading.Lock()
        event.listen(engine, "begin", lambda connection: _begin_sqlite(connection, turn, settings.database_timeout_s))
        return engine
    return create_engine(
        url,
        **common,
        pool_pre_ping=True,
        pool_recycle=POOL_RECYCLE_S,
        # Row locks of what a query passes over are given back, and gaps between rows are not locked at all.
        isolation_level="READ COMMITTED",
        connect_args={
            "connect_timeout": settings.database_timeout_s,
            "read_timeout": settings.database_timeout_s,
            "write_timeout": settings.database_timeout_s,
            "init_command": "SET time_zone = '+00:00'",
        },
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"the database's folder {folder} cannot be made: {error.strerror}") from error


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # Python's module would begin transactions when it sees fit; `_begin_sqlite` says when, and which.
    connection.isolation_level = None
    # Readers and a writer do not wait for each other.
    connection.execute("PRAGMA journal_mode = WAL").close()


def _begin_sqlite(connection: Connection, turn: threading.Lock, timeout_s: int) -> None:
    if not connection.get_execution_options().get("locks", False):
        connection.exec_driver_sql("BEGIN")
        return
    # SQLite itself would look ever more rarely, at last ten times a second, whether the lock is free: between two
    # chunks of a job it is for a millisecond or two, and whoever registers a row would wait for the end of the batch.
    # So we look, all the time, but only one thread of a process.
    deadline = time.monotonic() + timeout_s
    has_turn = turn.acquire(timeout=timeout_s)
    try:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0").close()
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except exc.OperationalError as error:
                if not _is_busy(error.orig) or time.monotonic() > deadline:
                    raise
                time.sleep(LOCK_EVERY_S)
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {1000 * timeout_s}").close()
        if has_turn:
            turn.release()


def _is_busy(error: BaseException | None) -> bool:
    # The bits above the lower eight say why.
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _wait_for_tables(engine: Engine, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _create_tables(engine)
        except (exc.OperationalError, exc.InterfaceError, exc.InternalError) as error:
            if time.monotonic() > deadline:
                where = engine.url.render_as_string(hide_password=True)
                raise StartupError(f"the database at {where} does not answer: {error.orig}") from error
            log.info("waiting for the database", reason=str(error.orig))
            time.sleep(RETRY_EVERY_S)
        except exc.DatabaseError as error:  # waiting makes no database of another file
            where = engine.url.render_as_string(hide_password=True)
            raise StartupError(f"the database at {where} cannot be used: {error.orig}") from error


def _create_tables(engine: Engine) -> None:
    """Make what is missing; one process at a time, as the API and any number of jobs may start at once."""
    with engine.connect().execution_options(locks=True) as connection:
        is_mysql = engine.dialect.name != "sqlite"
        if is_mysql:  # whose CREATE statements are no part of a transaction
            connection.execute(select(func.get_lock(SCHEMA_LOCK, SCHEMA_LOCK_WAIT_S)))
        try:
            Base.metadata.create_all(connection)
            for table in Base.metadata.sorted_tables:
                found = {column["name"] for column in inspect(connection).get_columns(table.name)}
                if missing := [column.name for column in table.columns if column.name not in found]:
                    raise StartupError(f"the table {table.name} is another one: it has no column {', '.join(missing)}")
            connection.commit()
        finally:
            if is_mysql:
                connection.execute(text("DO RELEASE_LOCK(:name)"), {"name": SCHEMA_LOCK})


def _serving_error(error: exc.SQLAlchemyError) -> Unavailable:
    original = getattr(error, "orig", None)
    log.warning("database_failed", reason=str(original or error))
    is_lost = _is_busy(original) or (original is not None and original.args[:1] and original.args[0] in LOST_CODES)
    return LostToAnother("The database is busy") if is_lost else Unavailable("The database does not answer")
