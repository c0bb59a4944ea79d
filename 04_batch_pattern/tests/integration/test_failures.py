"""What API and job say when the database refuses, is locked, is full, or has a new primary."""

import os
import select as sockets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, make_url, text

from serving_common.errors import StartupError
from serving_testing.mysql_server import MySqlServer, mysql_binary
from serving_testing.processes import wait_until
from src.db import cruds
from src.db.database import open_database
from tests.conftest import (
    ROOT,
    ROW,
    count,
    empty_database,
    environment_of,
    execute,
    private_url,
    read,
    register_rows,
    serving,
    settings_of,
)
from tests.processes import PATTERN, BatchSystem

FASTAPI_THREADS = 40
PASSWORD = "pass wörd @/?# 日本"


def create_user(root_url, database_name):
    """The URL of a user without any right."""
    for host in ("localhost", "127.0.0.1"):
        execute(root_url, f"CREATE OR REPLACE USER app@'{host}' IDENTIFIED BY '{PASSWORD}'")
    return root_url.set(username="app", password=PASSWORD, database=database_name).render_as_string(False)


def change_rights(root_url, change):
    for host in ("localhost", "127.0.0.1"):
        execute(root_url, f"{change} app@'{host}'")


@pytest.fixture
def root_url(private_server):
    return private_url(private_server)


@pytest.fixture
def database_name(root_url) -> Iterator[str]:
    """A database with empty tables on the private server."""
    with empty_database(root_url) as url:
        migrate = [sys.executable, "-m", "src.db.migrate"]  # its user has all rights
        subprocess.run(migrate, env=os.environ | environment_of(ROOT, url), cwd=PATTERN, check=True)
        yield str(make_url(url).database)


@pytest.fixture
def settings(models, root_url, database_name):
    """Of a user with exactly the rights in the README."""
    url = create_user(root_url, database_name)
    readme = (ROOT / "04_batch_pattern/README.md").read_text()
    grants = [
        line.strip().partition(" --")[0].strip() for line in readme.splitlines() if line.strip().startswith("GRANT ")
    ]
    assert len(grants) >= 4
    for grant in grants:
        for host in ("localhost", "127.0.0.1"):
            statement = grant.rstrip(";").replace("sample_db", database_name)
            execute(root_url, statement.replace("'batch'@'%'", f"app@'{host}'"))
    return settings_of(models, url)


@pytest.fixture
def system(models, settings):
    return BatchSystem(environment_of(models, settings.database_url.get_secret_value()))


@contextmanager
def read_only(root_url):
    execute(root_url, "SET GLOBAL read_only = 1")
    try:
        yield
    finally:
        execute(root_url, "SET GLOBAL read_only = 0")


def refused(answer):
    """The detail of an answer that a retry does not cure."""
    assert answer.status_code == 503
    assert "Retry-After" not in answer.headers
    return answer.json()["detail"]


def failure_of(system):
    job = system.job("--no-wait")
    assert job.wait() == 1
    assert (job.log[-1]["action"], job.log[-1]["level"]) == ("batch failed", "CRITICAL")
    return job.log[-1]["reason"]


def test_documented_rights_suffice_for_api_and_job(settings, system):
    with serving(settings) as api, open_database(settings) as database:
        assert api.get("/health/ready").json() == {"status": "ready"}
        for _ in range(2):
            registered = api.post("/data", json={"values": ROW}, headers={"Idempotency-Key": "1"})
            assert registered.status_code == 200
        register_rows(database, [[99.0]])
        system.run_job()
        assert (count(database, cruds.PREDICTED), count(database, cruds.FAILED)) == (1, 1)


def test_read_only_server_is_named_and_left(settings, system, root_url):
    with serving(settings) as api:
        assert api.post("/data", json={"values": ROW}).status_code == 200
        with read_only(root_url):
            assert refused(api.post("/data", json={"values": ROW})) == "The database server is read-only"
            assert api.get("/health").json() == {"status": "ok"}
            assert len(api.get("/data/all").json()) == 1
            ready = api.get("/health/ready")
            assert ready.status_code == 503
            assert ready.json() == {"status": "not ready", "reason": "The database server is read-only"}
            reason = failure_of(system)
            assert reason.startswith("The database server is read-only (error 1290: ")
        assert api.get("/health/ready").status_code == 200
        assert api.post("/data", json={"values": ROW}).status_code == 200


def test_missing_right_of_the_api_is_named(settings, root_url, database_name):
    with serving(settings) as api:
        change_rights(root_url, f"REVOKE INSERT ON {database_name}.items FROM")
        reason = "The database's user lacks the right INSERT on items"
        assert refused(api.post("/data", json={"values": ROW})) == reason
        assert refused(api.post("/data/list", json=[{"values": ROW}])) == reason
        assert api.get("/health/ready").json()["reason"] == reason
        assert api.get("/health").status_code == 200


def test_missing_right_of_the_job_is_named(settings, system, root_url, database_name):
    with open_database(settings) as database:
        register_rows(database)
        change_rights(root_url, f"REVOKE CREATE TEMPORARY TABLES ON {database_name}.* FROM")
        assert failure_of(system).startswith(
            "The database's user lacks the right CREATE TEMPORARY TABLES (error 1044: Access denied for user"
        )
        assert count(database, cruds.UNPREDICTED) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("password", "The database denies access to its user"),
        ("database", "The database denies access to its user"),
        ("create", "The database's user lacks the right CREATE on batch_runs"),
    ],
)
def test_refusal_at_the_start_is_named_without_waiting(settings, root_url, database_name, change, reason):
    url = settings.url
    if change == "password":
        url = url.set(password="wrong")
    elif change == "database":
        url = url.set(database="another")
    else:
        execute(root_url, f"DROP TABLE {database_name}.batch_runs")
    # A test that waited would not end.
    settings = settings.model_copy(
        update={"database_url": settings_of(ROOT, url.render_as_string(False)).database_url, "database_wait_s": 1e9}
    )
    with pytest.raises(StartupError, match=reason), open_database(settings):
        pass


def test_statements_fit_into_a_small_max_allowed_packet(settings, system, root_url):
    before = 16 * 1024 * 1024
    execute(root_url, "SET GLOBAL max_allowed_packet = 16384")
    try:
        # Numbers of as many digits as there can be.
        items = [{"values": [1.2345678901234567e-300] * 4}] * 2_500
        with serving(settings) as api:
            stored = api.post("/data/list", json=items, headers={"Idempotency-Key": "small"})
            assert stored.status_code == 200
            assert [item["id"] for item in stored.json()] == sorted({item["id"] for item in stored.json()})
            system.run_job()
            assert len(api.get("/data/predicted").json()) == 2_500
    finally:
        execute(root_url, f"SET GLOBAL max_allowed_packet = {before}")


def test_full_table_is_named(fresh_settings):
    with serving(fresh_settings) as api, open_database(fresh_settings) as database:
        with database.transaction(write=True) as db:
            db.execute(text("INSERT INTO items (id, `values`) VALUES (2147483646, '[1, 1, 1, 1]')"))
        assert api.post("/data", json={"values": ROW}).json()["id"] == 2147483647
        for answer in (
            api.post("/data", json={"values": ROW}),
            api.post("/data/list", json=[{"values": ROW}] * 3),
        ):
            assert refused(answer) == "The table items is full: its ids end at 2147483647"
        assert len(api.get("/data/all").json()) == 2


def test_health_answers_while_requests_wait_for_a_locked_table(settings, root_url, database_name):
    engine = create_engine(root_url.set(database=database_name))
    with serving(settings) as api, ThreadPoolExecutor(60) as executor, engine.connect() as backup:
        backup.execute(text("LOCK TABLES items READ"))
        posts = [executor.submit(api.post, "/data", json={"values": ROW}) for _ in range(60)]
        waiting = text("SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'INSERT INTO items%'")
        wait_until(lambda: backup.scalar(waiting) >= 30)
        try:
            for path, status in (("/health", 200), ("/health/live", 200), ("/health/ready", 503), ("/health", 200)):
                assert api.get(path).status_code == status  # the 60 wait until the lock is released below
            # On a busy machine the service's own limit comes first.
            assert api.get("/health/ready").json()["reason"] in (
                "The database answers, but its tables do not: they may be locked",
                "the check took longer than 0.8 s",
            )
        finally:  # a lock that is left would block every later test
            backup.execute(text("UNLOCK TABLES"))
        assert {post.result().status_code for post in posts} == {200}
        wait_until(lambda: api.get("/health/ready").status_code == 200)
    engine.dispose()


def test_nothing_is_stored_for_callers_that_have_gone_while_no_thread_was_free(settings, root_url, database_name):
    engine = create_engine(root_url.set(database=database_name))
    with serving(settings) as api, ThreadPoolExecutor(60) as executor, engine.connect() as backup:
        backup.execute(text("LOCK TABLES items READ"))
        try:
            posts = [executor.submit(api.post, "/data", json={"values": ROW}, timeout=3) for _ in range(60)]
            assert {type(post.exception()) for post in posts} == {httpx.ReadTimeout}
            # Its event loop reads this after the ends of those connections.
            assert api.get("/health/live").status_code == 200
        finally:
            backup.execute(text("UNLOCK TABLES"))
        wait_until(lambda: "\nrequests_in_flight 0.0\n" in api.get("/metrics").text)
        # What had a thread waited in the database already.
        assert 0 < backup.scalar(text("SELECT COUNT(*) FROM items")) <= FASTAPI_THREADS
        assert api.post("/data", json={"values": ROW}).status_code == 200
    engine.dispose()


# --- failover ---


class Relay:
    """An address that leads to one server, and for new connections, later to another one."""

    def __init__(self, port: Any) -> None:
        self.target = port
        self.is_breaking_after_commit = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._copy, args=(client, server), daemon=True).start()

    def _copy(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError):
            has_written = has_committed = False
            while True:
                for source in sockets.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data or (has_committed and source is server):
                        return
                    has_written |= b"INSERT INTO items" in data
                    has_committed = self.is_breaking_after_commit and has_written and data.endswith(b"\x03COMMIT")
                    (server if source is client else client).sendall(data)


@pytest.fixture
def new_primary(tmp_path: Path) -> Iterator[MySqlServer]:
    binary = mysql_binary()
    assert binary is not None
    server = MySqlServer(binary, tmp_path)
    server.install()
    server.start()
    yield server
    server.stop()


def test_failover_loses_nothing_that_was_accepted(settings, system, root_url, database_name, models, new_primary):
    new_root = private_url(new_primary)
    execute(new_root, f"CREATE DATABASE {database_name}")
    with open_database(settings_of(ROOT, new_root.set(database=database_name).render_as_string(False))) as new:
        url = create_user(new_root, database_name)
        change_rights(new_root, f"GRANT ALL ON {database_name}.* TO")
        relay = Relay(root_url.port)
        through_relay = make_url(url).set(port=relay.port).render_as_string(False)
        system = BatchSystem(environment_of(models, through_relay))
        answers: list[tuple[float, int]] = []
        accepted: list[list[float]] = []
        stopping = threading.Event()

        def post_rows(api, client):
            number = 0
            while not stopping.is_set():
                number += 1
                row = [1 + client, number / 1_000_000, 1.0, 1.0]
                answer = api.post("/data", json={"values": row})
                answers.append((time.monotonic(), answer.status_code))
                if answer.status_code == 200:
                    accepted.append(row)

        with serving(settings_of(models, through_relay)) as api, ThreadPoolExecutor(8) as executor:
            clients = [executor.submit(post_rows, api, number) for number in range(8)]
            try:
                wait_until(lambda: len(accepted) > 100)
                execute(root_url, "SET GLOBAL read_only = 1")
                failed_over = time.monotonic()
                relay.target = new_primary.port
                wait_until(lambda: len(read(new)) > 100)
                recovered = max([at for at, status in answers if status != 200], default=failed_over)
                wait_until(lambda: api.get("/health/ready").status_code == 200)
                job = system.job("--no-wait")
                assert job.wait() == 0, job.log
            finally:
                stopping.set()
                execute(root_url, "SET GLOBAL read_only = 0")
                relay.close()
            for client in clients:
                client.result()
        assert recovered - failed_over < 5
        assert count(new, cruds.PREDICTED) > 100
        with open_database(settings) as old:
            stored = {item.values for database in (old, new) for item in read(database)}
        assert len(accepted) == len(answers) - sum(status != 200 for _, status in answers)
        assert {tuple(row) for row in accepted} == {
            tuple(map(float, values.strip("[]").split(","))) for values in stored
        }


# --- idempotency ---


def test_request_whose_answer_was_lost_can_be_repeated(settings, models, root_url):
    relay = Relay(root_url.port)
    through_relay = settings.url.set(port=relay.port).render_as_string(False)
    items = [{"values": [1.0, 1.0, 1.0, 1 + number / 1000]} for number in range(3)]
    with serving(settings_of(models, through_relay)) as api, open_database(settings) as database:
        for stored, key in ((3, {"Idempotency-Key": "delivery-1"}), (6, {})):
            relay.is_breaking_after_commit = True
            lost = api.post("/data/list", json=items, headers=key)
            assert (lost.status_code, lost.json()["detail"]) == (503, "The database does not answer")
            assert lost.headers["Retry-After"]
            assert count(database, cruds.ALL) == stored  # although the caller was not told
            relay.is_breaking_after_commit = False
        repeated = api.post("/data/list", json=items, headers={"Idempotency-Key": "delivery-1"})
        assert repeated.status_code == 200
        assert repeated.json() == api.get("/data/all", params={"limit": 3}).json()
        assert count(database, cruds.ALL) == 6
    relay.close()
