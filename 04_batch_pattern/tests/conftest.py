import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import structlog
import uvicorn
from src.api.app import create_app
from src.configurations import ApiSettings, JobSettings
from src.db.database import Database, open_database
from src.ml.prediction import IrisClassifier

from serving_testing.processes import wait_until
from tests.processes import PATTERN, Stack
from tests.servers import PrivateServer, Server, open_server, private_server

ROOT = PATTERN.parent


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """Left alone, structlog lets rich paint every traceback with all local variables, which takes seconds."""
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model: MODELS_DIR, else what `make models` has made, else made now."""
    folder = Path(os.environ.get("MODELS_DIR", ROOT / "models/artifacts"))
    if not (folder / "iris_svc.onnx").is_file():
        folder = tmp_path_factory.mktemp("models")
        build = [sys.executable, "-m", "models.build", "--only", "iris_svc", "--output", str(folder)]
        subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def flowers() -> tuple[list[list[float]], list[list[float]]]:
    """All 150 of scikit-learn's data set, and scikit-learn's own probabilities of their classes."""
    code = """if True:
        import json
        from models.iris import classifier, data
        rows, classes = data()
        probabilities = classifier().fit(rows, classes).predict_proba(rows)
        print(json.dumps([rows.astype(float).round(1).tolist(), probabilities.tolist()]))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    rows, probabilities = json.loads(done.stdout)
    assert len(rows) == 150
    return rows, probabilities


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with open_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def mortal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    """A server to kill."""
    with private_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def mysql_url(server: Server) -> Iterator[str]:
    with server.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "mysql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/items.db"
    url: str = request.getfixturevalue("mysql_url")
    return url


@pytest.fixture
def environment(models: Path, database_url: str) -> dict[str, str]:
    return environment_of(models, database_url)


def environment_of(models: Path, database_url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "DATABASE_WAIT_S": "5",
        "MODEL_FILEPATH": str(models / "iris_svc.onnx"),
        "LABEL_FILEPATH": str(models / "label.json"),
        "LOG_FORMAT": "json",
    }


@pytest.fixture
def stack(environment: dict[str, str]) -> Stack:
    return Stack(environment)


@pytest.fixture
def settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> ApiSettings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return ApiSettings()


@pytest.fixture
def job_settings(settings: ApiSettings) -> JobSettings:
    return JobSettings()


@pytest.fixture
def database(settings: ApiSettings) -> Iterator[Database]:
    with open_database(settings) as database:
        yield database


@pytest.fixture
def api(settings: ApiSettings) -> Iterator[httpx.Client]:
    """A client of the API, which is served on a thread of this process."""
    with serving(settings) as client:
        yield client


@contextmanager
def serving(settings: ApiSettings) -> Iterator[httpx.Client]:
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def classifier(models: Path) -> IrisClassifier:
    return IrisClassifier.load(models / "iris_svc.onnx", models / "label.json")
