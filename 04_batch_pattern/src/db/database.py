"""Connections and transactions: pool, timeouts, table creation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import structlog
from sqlalchemy import Engine, ExceptionContext, create_engine, event, exc, false, func, insert, inspect, select, text
from sqlalchemy.orm import Session

from serving_common import tracing
from serving_common.errors import StartupError, Unavailable
from serving_common.tracing import CLIENT, NO_SPAN, Span
from src.configurations import DatabaseSettings
from src.db import sqlite_lock
from src.db.failures import ReadOnlyServer, TransactionConflict, is_read_only, serving_error, with_cause
from src.db.models import Base
from src.db.tls import SslMode, prefer_tls, tls_arguments

# Together the number of threads in which FastAPI runs plain functions.
POOL_SIZE, POOL_OVERFLOW = 10, 30
POOL_WAIT_S = 5
POOL_RECYCLE_S = 1800  # below MySQL's wait_timeout, after which the server closes idle connections
RETRY_INTERVAL_S = 0.5
SCHEMA_LOCK, SCHEMA_LOCK_WAIT_S = "batch_pattern_schema", 60

log = structlog.get_logger()


class Database:
    """Transactions on one engine. What they raise while the database fails is in src/db/failures.py."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._attributes = {"db.system.name": engine.dialect.name, "db.collection.name": "items"}
        if engine.url.host:
            self._attributes["server.address"] = engine.url.host

    @contextmanager
    def transaction(self, *, write: bool = False, operation: str | None = None) -> Iterator[Session]:
        """A session that is committed at the end, or rolled back after an exception.

        Args:
            write: take SQLite's write lock now, because it has no row locks. No effect on MySQL.
            operation: on the items, such as SELECT; names its span, which it does not have otherwise.

        Raises:
            TransactionConflict: retry.
            Unavailable: the database does not answer.
            Misconfigured: the database refuses, by its configuration or for lack of rights.
        """
        with self._span(operation):
            try:
                with Session(self._engine) as session, session.begin():
                    session.connection(execution_options={"write": write})
                    yield session
            except exc.SQLAlchemyError as error:
                if (known := serving_error(error)) is None:
                    raise
                log.warning("database_failed", reason=with_cause(known))
                raise known from error

    def _span(self, operation: str | None) -> Span:
        if operation is None:
            return NO_SPAN
        return tracing.span(f"{operation} items", CLIENT, self._attributes | {"db.operation.name": operation})

    def ping(self) -> None:
        """Raises Unavailable if the database does not answer."""
        with self.transaction() as session:
            session.execute(select(1))

    def check_writable(self) -> None:
        """Raises what registering a row would raise, but stores nothing and uses up no id."""
        self.ping()
        try:
            with self.transaction(write=True) as session:
                for name in ("items", "idempotency_keys"):
                    table = Base.metadata.tables[name]
                    columns = [column for column in table.c if column.computed is None]
                    session.execute(insert(table).from_select(columns, select(*columns).where(false())))
        except TransactionConflict:
            pass  # another transaction holds the lock, and will release it
        except Unavailable as error:
            raise Unavailable("The database answers, but its tables do not: they may be locked") from error

    def close(self) -> None:
        self._engine.dispose()


@contextmanager
def open_database(settings: DatabaseSettings) -> Iterator[Database]:
    """The database, with missing tables created.

    Raises:
        StartupError: the database does not answer in time, refuses, or has tables with other columns.
    """
    engine = _create_engine(settings, settings.database_timeout_s)
    try:
        _wait_for_tables(engine, settings.database_wait_s)
        yield Database(engine)
    finally:
        engine.dispose()


def open_for_probes(settings: DatabaseSettings, timeout_s: float) -> Database:
    """One connection of its own, opened when it is used, which waits for the server no longer than this."""
    return Database(_create_engine(settings, timeout_s, pool_size=1, max_overflow=0))


def _create_engine(settings: DatabaseSettings, timeout_s: float, **pool: int) -> Engine:
    url = settings.url
    common: dict[str, Any] = {
        "json_serializer": lambda value: orjson.dumps(value).decode(),
        "json_deserializer": orjson.loads,
        "pool_size": POOL_SIZE,
        "max_overflow": POOL_OVERFLOW,
        "pool_timeout": POOL_WAIT_S,
        **pool,
    }
    if url.get_backend_name() == "sqlite":
        _make_folder(Path(str(url.database)).parent)
        # No cached statements: each bulk UPDATE is different, with thousands of ids, and would keep a megabyte.
        connect_args = {"timeout": timeout_s, "cached_statements": 0}
        engine = create_engine(url, **common, connect_args=connect_args)
        sqlite_lock.install(engine, timeout_s)
        return engine
    engine = create_engine(
        url,
        **common,
        pool_pre_ping=True,
        pool_recycle=POOL_RECYCLE_S,
        # Releases the locks of rows that a query reads but does not match, and takes no gap locks.
        isolation_level="READ COMMITTED",
        connect_args={
            "password": (url.password or "").encode(),  # the driver would encode text as Latin-1
            "connect_timeout": timeout_s,
            "read_timeout": timeout_s,
            "write_timeout": timeout_s,
            "init_command": "SET time_zone = '+00:00'",
            **tls_arguments(settings.tls),
        },
    )
    if settings.tls.mode is SslMode.PREFERRED:
        prefer_tls(engine)
    event.listen(engine, "connect", _learn_packet_limit)
    event.listen(engine, "handle_error", _leave_read_only_server)
    return engine


def _learn_packet_limit(connection: Any, record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        [record.info["max_allowed_packet"]] = cursor.fetchone()


def _leave_read_only_server(context: ExceptionContext) -> None:
    """After a failover the old primary lives on as a replica: all connections to it are replaced.

    The next one looks up the server's name again.
    """
    if is_read_only(context.original_exception):
        context.is_disconnect = True


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"the database's folder {folder} cannot be created: {error.strerror}") from error


def _wait_for_tables(engine: Engine, wait_s: float) -> None:
    url = engine.url
    where = url.database if engine.dialect.name == "sqlite" else f"{url.host}:{url.port or 3306}/{url.database}"
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _create_tables(engine)
        except exc.SQLAlchemyError as error:
            if (known := serving_error(error)) is None:
                raise
            if not isinstance(known, Unavailable | ReadOnlyServer) or time.monotonic() > deadline:
                raise StartupError(f"{with_cause(known)}, at {where}") from error
            log.info("waiting for the database", reason=with_cause(known))
            time.sleep(RETRY_INTERVAL_S)


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
