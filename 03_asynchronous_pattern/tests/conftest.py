"""Real dependencies: a private Redis, and the portable model server as TensorFlow Serving."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving_testing.fixtures import redis as redis
from serving_testing.fixtures import redis_server as redis_server
from serving_testing.processes import NO_COVERAGE, Process, free_port, running

PATTERN = Path(__file__).parents[1]
ROOT = PATTERN.parent
SAMPLE = {"data": [[5.1, 3.5, 1.4, 0.2]]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def iris_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base path of pattern 02's model, built here unless IRIS_MODEL names one."""
    if path := os.environ.get("IRIS_MODEL"):
        return Path(path)
    base = tmp_path_factory.mktemp("model") / "iris"
    build = [sys.executable, "build_model.py", "--output", str(base)]
    subprocess.run(build, cwd=ROOT / "02_synchronous_pattern", env=os.environ | NO_COVERAGE, check=True)
    return base


@dataclass
class ModelServer:
    """The portable model server."""

    model: Path
    folder: Path
    port: int = field(default_factory=free_port)
    rest_port: int = field(default_factory=free_port)
    stack: ExitStack = field(default_factory=ExitStack)
    process: Process | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Returns once the model is served."""
        monitoring = self.folder / "monitoring.config"
        monitoring.write_text('prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }')
        flags = [f"--port={self.port}", f"--rest_api_port={self.rest_port}", "--model_name=iris"]
        flags += [f"--model_base_path={self.model}", f"--monitoring_config_file={monitoring}"]
        self.process = self.stack.enter_context(
            running(
                shlex.join(["model_server", *flags]),
                cwd=PATTERN,
                env=self.environment,
                log=self.folder / "log",
                ready=f"http://127.0.0.1:{self.rest_port}/v1/models/iris",
            )
        )


@pytest.fixture(scope="session")
def model_server(iris_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    server = ModelServer(iris_model, tmp_path_factory.mktemp("model_server"))
    with server.stack:
        server.start()
        yield server
