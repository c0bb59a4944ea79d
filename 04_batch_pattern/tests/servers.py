"""Database servers to test against: SQLite always; MySQL or MariaDB where there is one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, make_url, text

from serving_testing.mysql_server import MySqlServer, mysql_binary


class Server:
    """A server whose user may create databases."""

    def __init__(self, url: URL) -> None:
        self.url = url

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of an empty database, dropped at the end."""
        name = f"batch_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield self.url.set(database=name).render_as_string(hide_password=False)
        finally:
            self.execute(f"DROP DATABASE {name}")

    def execute(self, statement: str) -> None:
        engine = create_engine(self.url)
        with engine.begin() as connection:
            connection.execute(text(statement))
        engine.dispose()


class PrivateServer(Server, MySqlServer):
    """A mariadbd or mysqld of our own, which a test may kill."""

    def __init__(self, binary: str, folder: Path) -> None:
        MySqlServer.__init__(self, binary, folder)
        Server.__init__(self, URL.create("mysql+pymysql", "root", "", "127.0.0.1", self.port))
        self.install()
        self.start()


@contextmanager
def open_server(folder: Path) -> Iterator[Server]:
    """The server of DATABASE_URL, or one of our own; without either, the test is skipped."""
    if url := os.environ.get("DATABASE_URL"):
        if make_url(url).get_backend_name() == "sqlite":
            pytest.skip("DATABASE_URL names no MySQL or MariaDB server")
        yield Server(make_url(url).set(drivername="mysql+pymysql"))
        return
    with private_server(folder) as server:
        yield server


@contextmanager
def private_server(folder: Path) -> Iterator[PrivateServer]:
    binary = mysql_binary()
    if binary is None:
        pytest.skip("neither mariadbd nor mysqld is installed, and DATABASE_URL is not set")
    server = PrivateServer(binary, folder)
    try:
        yield server
    finally:
        server.stop()
