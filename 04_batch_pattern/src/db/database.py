"""Connections and transactions: URL, pool, timeouts, table creation, and the database's errors as the service's own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import structlog
from sqlalchemy import Engine, create_engine, exc, func, inspect, select, text
from sqlalchemy.orm import Session

from serving_common.errors import StartupError, Unavailable
from src.configurations import DatabaseSettings
from src.db import sqlite_lock
from src.db.models import Base

# Together the number of threads in which FastAPI runs plain functions.
POOL_SIZE, POOL_OVERFLOW = 10, 30
POOL_WAIT_S = 5
POOL_RECYCLE_S = 1800  # below MySQL's wait_timeout, after which the server closes idle connections
RETRY_INTERVAL_S = 0.5
SCHEMA_LOCK, SCHEMA_LOCK_WAIT_S = "batch_pattern_schema", 60

# Lock wait timeout, deadlock, and MariaDB's "record has changed since last read".
CONFLICT_CODES = {1205, 1213, 1020}

log = structlog.get_logger()


class TransactionConflict(Unavailable):
    """Rolled back in favour of another transaction (deadlock or lock timeout); a retry will probably succeed."""


class Database:
    """Transactions on one engine; while the database is down they raise `Unavailable`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Session]:
        """A session that is committed at the end, or rolled back after an exception.

        Args:
            write: take SQLite's write lock now, because it has no row locks. No effect on MySQL.

        Raises:
            TransactionConflict: retry.
            Unavailable: the database does not answer.
        """
        try:
            with Session(self._engine) as session, session.begin():
                session.connection(execution_options={"write": write})
                yield session
        except (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError) as error:
            raise _serving_error(error) from error

    def ping(self) -> None:
        """Raises Unavailable if the database does not answer."""
        with self.transaction() as session:
            session.execute(select(1))


@contextmanager
def open_database(settings: DatabaseSettings) -> Iterator[Database]:
    """The database, with missing tables created.

    Raises:
        StartupError: the database does not answer in time, is not a database, or has tables with other columns.
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
        # No cached statements: each bulk UPDATE is different, with thousands of ids, and would keep a megabyte.
        connect_args = {"timeout": settings.database_timeout_s, "cached_statements": 0}
        engine = create_engine(url, **common, connect_args=connect_args)
        sqlite_lock.install(engine, settings.database_timeout_s)
        return engine
    return create_engine(
        url,
        **common,
        pool_pre_ping=True,
        pool_recycle=POOL_RECYCLE_S,
        # Releases the locks of rows that a query reads but does not match, and takes no gap locks.
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
        raise StartupError(f"the database's folder {folder} cannot be created: {error.strerror}") from error


def _wait_for_tables(engine: Engine, wait_s: float) -> None:
    where = engine.url.render_as_string(hide_password=True)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _create_tables(engine)
        except (exc.OperationalError, exc.InterfaceError, exc.InternalError) as error:
            if time.monotonic() > deadline:
                raise StartupError(f"the database at {where} does not answer: {error.orig}") from error
            log.info("waiting for the database", reason=str(error.orig))
            time.sleep(RETRY_INTERVAL_S)
        except exc.DatabaseError as error:  # for instance a file that is not a database; retrying will not help
            raise StartupError(f"the database at {where} cannot be used: {error.orig}") from error


def _create_tables(engine: Engine) -> None:
    """Create missing tables, one process at a time: the API and any number of jobs may start together."""
    with engine.connect().execution_options(write=True) as connection:
        is_mysql = engine.dialect.name != "sqlite"
        if is_mysql:  # its CREATE statements are not transactional
            connection.execute(select(func.get_lock(SCHEMA_LOCK, SCHEMA_LOCK_WAIT_S)))
        try:
            Base.metadata.create_all(connection)
            for table in Base.metadata.sorted_tables:
                existing = {column["name"] for column in inspect(connection).get_columns(table.name)}
                if missing := [column.name for column in table.columns if column.name not in existing]:
                    raise StartupError(f"the table {table.name} has another schema: no column {', '.join(missing)}")
            connection.commit()
        finally:
            if is_mysql:
                connection.execute(text("DO RELEASE_LOCK(:name)"), {"name": SCHEMA_LOCK})


def _serving_error(error: exc.SQLAlchemyError) -> Unavailable:
    original = getattr(error, "orig", None)
    log.warning("database_failed", reason=str(original or error))
    code = original.args[0] if original is not None and original.args else None
    if sqlite_lock.is_busy(original) or code in CONFLICT_CODES:
        return TransactionConflict("The database is busy")
    return Unavailable("The database does not answer")
