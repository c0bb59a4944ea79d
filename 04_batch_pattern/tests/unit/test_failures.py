"""Errors of MySQL and MariaDB by their codes, also of those that the tests' server does not have."""

import pymysql
import pytest
from sqlalchemy import exc

from serving_common.errors import Misconfigured, Unavailable
from src.db.failures import ReadOnlyServer, TransactionConflict, is_read_only, serving_error


@pytest.mark.parametrize(
    ("code", "message", "error"),
    [
        (1290, "running with the --read-only option", ReadOnlyServer),
        (1290, "running with the --super-read-only option", ReadOnlyServer),
        (1290, "running with the LOCK_WRITE_GROWTH option", Misconfigured),
        (1792, "Cannot execute statement in a READ ONLY transaction.", ReadOnlyServer),
        (1836, "Running in read-only mode", ReadOnlyServer),
        (1874, "InnoDB is in read only mode.", ReadOnlyServer),
        (3100, "Error on observer while running replication hook 'before_commit'.", ReadOnlyServer),
        (1205, "Lock wait timeout exceeded", TransactionConflict),
        (1213, "Deadlock found", TransactionConflict),
        (1040, "Too many connections", Unavailable),
        (1053, "Server shutdown in progress", Unavailable),
        (2006, "MySQL server has gone away", Unavailable),
        (2013, "Lost connection to MySQL server during query", Unavailable),
        (1142, "INSERT command denied to user 'a'@'h' for table 'items'", Misconfigured),
        (1153, "Got a packet bigger than 'max_allowed_packet' bytes", Misconfigured),
        (1114, "The table 'items' is full", Misconfigured),
        (4711, "A code of a later version", Misconfigured),
    ],
)
def test_code_decides_whether_a_retry_helps(code, message, error):
    original = pymysql.OperationalError(code, message)
    found = serving_error(exc.OperationalError("INSERT INTO items VALUES (1)", {}, original))
    assert type(found) is error
    # Then the pool's connections are replaced.
    assert is_read_only(original) == (error is ReadOnlyServer)


def test_error_of_our_own_sql_is_none_of_the_database():
    wrong = exc.ProgrammingError("SELEC 1", {}, pymysql.ProgrammingError(1064, "You have an error in your SQL syntax"))
    assert serving_error(wrong) is None
