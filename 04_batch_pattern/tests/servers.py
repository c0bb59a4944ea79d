"""Database servers to test against: SQLite always; MySQL or MariaDB where there is one."""

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pymysql
import pytest
from sqlalchemy import URL, create_engine, make_url, text

from serving_common.testing import free_port, wait_until


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


class PrivateServer(Server):
    """A mariadbd or mysqld of our own, which a test may kill."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._port = free_port()
        self._folder = folder
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        super().__init__(URL.create("mysql+pymysql", "root", "", "127.0.0.1", self._port))
        data = f"--datadir={folder}/data"
        if b"MariaDB" in subprocess.run([binary, "--version"], capture_output=True, check=True).stdout:
            (folder / "data").mkdir()
            install = ["mariadb-install-db", "--no-defaults", data, "--auth-root-authentication-method=normal"]
        else:
            install = [binary, "--no-defaults", data, "--initialize-insecure"]
        subprocess.run([*install, *self._user], capture_output=True, check=True)
        self.start()

    @property
    def _user(self) -> list[str]:
        return ["--user=root"] if os.geteuid() == 0 else []

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binary,
                    "--no-defaults",
                    f"--datadir={self._folder}/data",
                    f"--socket={self._folder}/socket",
                    f"--pid-file={self._folder}/pid",
                    f"--port={self._port}",
                    "--bind-address=127.0.0.1",
                    "--log-bin-trust-function-creators=1",
                    *self._user,
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers)

    def stop(self, signal_number: int = signal.SIGKILL) -> None:
        assert self._process
        self._process.send_signal(signal_number)
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            pymysql.connect(host="127.0.0.1", port=self._port, user="root").close()
        except pymysql.OperationalError:
            return False
        return True


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
    path = f"{os.environ['PATH']}:/usr/sbin"
    binary = shutil.which("mariadbd", path=path) or shutil.which("mysqld", path=path)
    if binary is None:
        pytest.skip("neither mariadbd nor mysqld is installed, and DATABASE_URL is not set")
    server = PrivateServer(binary, folder)
    try:
        yield server
    finally:
        server.stop()
