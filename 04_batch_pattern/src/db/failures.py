"""The database's errors as the service's own, each with its true cause.

| what happened                                             | error               | what helps                     |
| --------------------------------------------------------- | ------------------- | ------------------------------ |
| no answer, or too many connections                        | Unavailable         | try again later                |
| deadlock, or a lock held for too long                     | TransactionConflict | try again at once              |
| the server is read-only, as an old primary after failover | ReadOnlyServer      | a new connection, or an operator |
| rights, configuration, tables, disk                       | Misconfigured       | an operator                    |
"""

import re
import sqlite3
import ssl

from sqlalchemy import exc

from serving_common.errors import Misconfigured, ServingError, Unavailable
from src.constants import MAX_ID
from src.db import sqlite_lock

# Codes of MySQL and MariaDB. Lock wait timeout, deadlock, "record has changed since last read", and a group that
# rolled back.
CONFLICT = {1205, 1213, 1020, 3101}
# Too many connections (of the server, of the user), shutdown, a node without its cluster, network errors between server
# and client, a killed or interrupted statement. The client's own codes, 2000 to 2999, are all like these but one.
AWAY = {1040, 1042, 1043, 1047, 1053, 1152, 1158, 1159, 1160, 1161, 1203, 1226, 1317, 1927, 1969, 3024, 4031}
# --read-only (if the text says so), a read-only transaction, read-only mode, refused by group replication, InnoDB.
OPTION_PREVENTS, READ_ONLY = 1290, {1792, 1836, 1874, 3100}
RIGHTS = {1044, 1045, 1130, 1142, 1143, 1227, 1251, 1370, 1698, 1820, 1862, 3118, 4151}
UNKNOWN_DATABASE, NO_TABLE, NO_COLUMN = 1049, 1146, 1054
DUPLICATE, OUT_OF_IDS = 1062, {167, 1264, 1467}
NO_SPACE = {1021, 1114}
TOO_LARGE = 1153
TLS_FAILED = 2026


class TransactionConflict(Unavailable):
    """Rolled back in favour of another transaction (deadlock or lock timeout); a retry will probably succeed."""


class ReadOnlyServer(Misconfigured):
    """The connection has been discarded: the next one asks for the server's address again."""


def serving_error(error: exc.SQLAlchemyError) -> ServingError | None:
    """What the caller of the database is told; None for an error of our own SQL or Python."""
    known: ServingError | None = None
    if isinstance(error, exc.TimeoutError):
        known = Unavailable("The database is busy: all connections are in use")
    elif isinstance(error, exc.DBAPIError):
        known = _sqlite_error(error.orig) if isinstance(error.orig, sqlite3.Error) else _mysql_error(error)
    if known is not None:
        known.__cause__ = error
    return known


def is_read_only(error: BaseException | None) -> bool:
    """Whether this server refuses to write, although another one may be the primary by now."""
    code = _code(error)
    return code in READ_ONLY or (code == OPTION_PREVENTS and re.search("read.only", str(error)) is not None)


def with_cause(error: ServingError) -> str:
    """The error, and in brackets the database's own words. For the log only: they may name users and hosts."""
    original = getattr(error.__cause__, "orig", None)
    if original is None or str(original) in str(error):
        return str(error)
    code, *words = original.args or (original,)
    return f"{error} (error {code}: {' '.join(map(str, words))})" if words else f"{error} ({code})"


def _code(error: BaseException | None) -> int:
    code = error.args[0] if error is not None and error.args else 0
    return code if isinstance(code, int) else 0


def _mysql_error(error: exc.DBAPIError) -> ServingError | None:
    original, code, statement = error.orig, _code(error.orig), error.statement or ""
    if code in CONFLICT:
        return TransactionConflict("The database is busy")
    if is_read_only(original):
        return ReadOnlyServer("The database server is read-only")
    if code == TLS_FAILED or isinstance(getattr(original, "original_exception", None), ssl.SSLError):
        return Misconfigured("No TLS connection to the database as MYSQL_SSL_MODE asks for it")
    if code in AWAY or 2000 <= code < 3000 or code == 0:
        return Unavailable("The database does not answer")
    if code in RIGHTS:
        return Misconfigured(_missing_right(str(original.args[-1]) if original else "", statement))
    if code == UNKNOWN_DATABASE:
        return Misconfigured("The database does not exist on its server")
    if code in (NO_TABLE, NO_COLUMN):
        return Misconfigured("A table of the database is missing or has another schema")
    if code in OUT_OF_IDS | {DUPLICATE} and statement.startswith("INSERT INTO items "):
        return full_table()
    if code in NO_SPACE:
        return Misconfigured("The database has no space left")
    if code == TOO_LARGE:
        return Misconfigured("A row is larger than the database's max_allowed_packet")
    if isinstance(error, exc.ProgrammingError):
        return None
    return Misconfigured(f"The database refuses this with its error {code}")


def _missing_right(message: str, statement: str) -> str:
    if denied := re.search(r"([A-Z][A-Z, ]*) command denied .* for (?:table|column) (\S+)", message):
        table = denied[2].split(".")[-1].strip("`'")
        return f"The database's user lacks the right {denied[1]} on {table}"
    if statement.lstrip().startswith("CREATE TEMPORARY TABLE"):
        return "The database's user lacks the right CREATE TEMPORARY TABLES"
    return "The database denies access to its user"


def _sqlite_error(error: sqlite3.Error) -> ServingError | None:
    if sqlite_lock.is_busy(error):
        return TransactionConflict("The database is busy")
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.ProgrammingError | sqlite3.DataError | sqlite3.IntegrityError
    ):
        # For instance read-only, damaged, or no such table.
        return Misconfigured(f"The database cannot be used: {error}")
    return None


def full_table() -> Misconfigured:
    return Misconfigured(f"The table items is full: its ids end at {MAX_ID}")
