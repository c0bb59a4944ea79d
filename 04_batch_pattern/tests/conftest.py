"""Databases of both kinds, the API on a thread, and batches in this process or as processes of their own."""

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import uvicorn
from sqlalchemy import URL, create_engine, make_url, text
from structlog.testing import capture_logs

from serving_testing.mysql_server import MySqlServer, mysql_binary
from serving_testing.processes import NO_COVERAGE, wait_until
from src.api.app import create_app
from src.configurations import ApiSettings, JobSettings
from src.db import cruds
from src.db.database import Database, open_database
from src.db.schemas import StoredItem
from src.ml.metadata import read_card
from src.ml.prediction import BatchPredictor
from src.task import job
from tests.processes import PATTERN, BatchSystem

ROOT = PATTERN.parent
ROW = [5.1, 3.5, 1.4, 0.2]

RunBatch = Callable[..., list[MutableMapping[str, Any]]]


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """By default structlog renders tracebacks with rich, including all local variables, which takes seconds."""
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model: MODELS_DIR, or the output of `make models`, or built now."""
    folder = Path(os.environ.get("MODELS_DIR", ROOT / "models/artifacts"))
    if not (folder / "iris_svc.onnx").is_file():
        folder = tmp_path_factory.mktemp("models")
        build = [sys.executable, "-m", "models.build", "--only", "iris_svc", "--output", str(folder)]
        subprocess.run(build, cwd=ROOT, env=os.environ | NO_COVERAGE, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def predictor(models: Path) -> BatchPredictor:
    return BatchPredictor.load(read_card(settings_of(models, "sqlite:///unused")))


@pytest.fixture(scope="session")
def flowers() -> tuple[list[list[float]], list[list[float]]]:
    """All 150 flowers of scikit-learn's data set, and scikit-learn's own class probabilities for them."""
    code = """if True:
        import json
        from models.iris import classifier, data
        rows, classes = data()
        probabilities = classifier().fit(rows, classes).predict_proba(rows)
        print(json.dumps([rows.astype(float).round(1).tolist(), probabilities.tolist()]))
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | NO_COVERAGE, check=True, capture_output=True)
    rows, probabilities = json.loads(done.stdout)
    assert len(rows) == 150
    return rows, probabilities


# --- databases ---


@pytest.fixture(scope="session")
def private_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MySqlServer]:
    """A mariadbd or mysqld of our own."""
    binary = mysql_binary()
    if binary is None:
        pytest.skip("neither mariadbd nor mysqld is installed")
    server = MySqlServer(binary, tmp_path_factory.mktemp("server"))
    server.install()
    server.start()
    # No fsync per commit; a commit still survives a killed server.
    execute(private_url(server), "SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    yield server
    server.stop()


def private_url(server: MySqlServer) -> URL:
    return URL.create("mysql+pymysql", "root", "", "127.0.0.1", server.port)


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> URL:
    """The server of DATABASE_URL, whose user may create databases, or else a private one."""
    if not (url := os.environ.get("DATABASE_URL")):
        return private_url(request.getfixturevalue("private_server"))
    if make_url(url).get_backend_name() == "sqlite":
        pytest.skip("DATABASE_URL is not a MySQL or MariaDB server")
    return make_url(url).set(drivername="mysql+pymysql")


def execute(url: URL, statement: str) -> None:
    engine = create_engine(url, connect_args={"ssl_disabled": True} if url.host else {})
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


@contextmanager
def empty_database(server_url: URL) -> Iterator[str]:
    """The URL of a database without tables, dropped at the end."""
    name = f"batch_{uuid.uuid4().hex[:12]}"
    execute(server_url, f"CREATE DATABASE {name}")
    try:
        yield server_url.set(database=name).render_as_string(hide_password=False)
    finally:
        execute(server_url, f"DROP DATABASE {name}")


@pytest.fixture
def mysql_url(server_url: URL) -> Iterator[str]:
    """An empty database on the server."""
    with empty_database(server_url) as url:
        yield url


@pytest.fixture
def killable_server(private_server: MySqlServer) -> Iterator[MySqlServer]:
    """The private server, for a test that kills it; runs again afterwards."""
    yield private_server
    private_server.stop()
    private_server.start()


@pytest.fixture(params=["sqlite", "mysql"])
def fresh_settings(request: pytest.FixtureRequest, models: Path, tmp_path: Path) -> ApiSettings:
    """A database of its own, for tests that change the tables."""
    if request.param == "sqlite":
        return settings_of(models, f"sqlite:///{tmp_path}/items.db")
    return settings_of(models, request.getfixturevalue("mysql_url"))


@pytest.fixture(scope="session", params=["sqlite", "mysql"])
def settings(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiSettings]:
    """One database of each kind for all tests; `database` empties it for each."""
    if request.param == "sqlite":
        yield settings_of(models, f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/items.db")
        return
    with empty_database(request.getfixturevalue("server_url")) as url:
        yield settings_of(models, url)


def settings_of(models: Path, database_url: str) -> ApiSettings:
    return ApiSettings.model_validate(
        {name.lower(): value for name, value in environment_of(models, database_url).items()}
    )


def environment_of(models: Path, database_url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "DATABASE_WAIT_S": "5",
        "MODEL_FILEPATH": str(models / "iris_svc.onnx"),
        "LABEL_FILEPATH": str(models / "label.json"),
        "LOG_FORMAT": "json",
    }


@pytest.fixture(scope="session")
def open_tables(settings: ApiSettings) -> Iterator[Database]:
    with open_database(settings) as database:
        yield database


@pytest.fixture
def database(open_tables: Database) -> Database:
    """The empty tables."""
    with open_tables.transaction(write=True) as db:
        is_sqlite = db.connection().dialect.name == "sqlite"
        for table in ("items", "batch_runs", "idempotency_keys"):
            db.execute(text(f"DELETE FROM {table}" if is_sqlite else f"TRUNCATE {table}"))
    return open_tables


def register_rows(database: Database, rows: Sequence[list[float]] = (ROW,)) -> list[int]:
    with database.transaction(write=True) as db:
        return [item.id for item in cruds.register_items(db, rows)]


def write(database: Database, *values: str) -> None:
    """Store JSON that the API would reject, as another program might."""
    with database.transaction(write=True) as db:
        for each in values:
            db.execute(text("INSERT INTO items (`values`) VALUES (:values)"), {"values": each})


def read(database: Database, row_filter: cruds.Filter = cruds.ALL) -> list[StoredItem]:
    with database.transaction() as db:
        return cruds.select_items(db, row_filter, 0, 1_000_000)


def count(database: Database, row_filter: cruds.Filter) -> int:
    with database.transaction() as db:
        return cruds.count_items(db, row_filter).count


# --- API and job ---


@contextmanager
def serving(settings: ApiSettings) -> Iterator[httpx.Client]:
    """A client of the API, which runs on a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        # Tests share it between threads: beyond 20 connections httpx would close one that a thread is about to use.
        limits = httpx.Limits(max_keepalive_connections=None)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60, limits=limits) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def shared_api(settings: ApiSettings) -> Iterator[httpx.Client]:
    with serving(settings) as client:
        yield client


@pytest.fixture
def api(shared_api: httpx.Client, database: Database) -> httpx.Client:
    """A client of the API on empty tables."""
    return shared_api


@pytest.fixture
def system(settings: ApiSettings, models: Path) -> BatchSystem:
    assert settings.database_url
    return BatchSystem(environment_of(models, settings.database_url.get_secret_value()))


@pytest.fixture
def run_batch(database: Database, predictor: BatchPredictor) -> RunBatch:
    """Runs one batch in this process, with these settings of the job; returns its log."""

    def run(repredict: str | None = None, **variables: object) -> list[MutableMapping[str, Any]]:
        job_settings = JobSettings.model_validate(variables)
        with capture_logs() as log:
            job.run_batch(database, predictor, job_settings, threading.Event(), repredict)
        return log

    return run
