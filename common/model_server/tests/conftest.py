"""A server as a process of its own, on free ports; or the one that TF_SERVING_GRPC and TF_SERVING_REST name."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import requests

from tfserving_protos.services import ModelServiceStub, PredictionServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATTERN = Path(__file__).parent.parent
IRIS_ROWS = [(5.1, 3.5, 1.4, 0.2), (5.9, 3.0, 4.2, 1.5), (6.3, 3.3, 6.0, 2.5)]
IRIS_LABELS = ["setosa", "versicolor", "virginica"]


def wait_until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Server:
    """Where a model server listens, and, if it is ours, its process and log."""

    grpc_address: str
    rest_url: str
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(self.grpc_address)
        self.predictions = PredictionServiceStub(self.channel)
        self.models = ModelServiceStub(self.channel)
        self.session = requests.Session()

    def get(self, path: str) -> requests.Response:
        return self.session.get(self.rest_url + path, timeout=30)

    def post(self, path: str, body: object = None, **options: Any) -> requests.Response:
        if body is not None:
            options["json"] = body
        return self.session.post(self.rest_url + path, timeout=30, **options)

    def states(self, model: str) -> dict[str, str]:
        """The state of each version, as GET /v1/models/NAME tells it."""
        answer = self.get(f"/v1/models/{model}").json()
        return {entry["version"]: entry["state"] for entry in answer.get("model_version_status", [])}

    def is_up(self) -> bool:
        assert self.process is None or self.process.poll() is None, self.log.read_text()
        try:
            requests.get(self.rest_url + "/v1/models/none", timeout=5)
        except requests.RequestException:
            return False
        return True

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "model_server", *flags]


@contextlib.contextmanager
def running(folder: Path, *flags: str) -> Iterator[Server]:
    """A server with `flags`, and its ports open."""
    port, rest_port = free_port(), free_port()
    log = folder / f"server-{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command(f"--port={port}", f"--rest_api_port={rest_port}", *flags), cwd=PATTERN, stderr=output
        )
        server = Server(f"127.0.0.1:{port}", f"http://127.0.0.1:{rest_port}", process, log)
        try:
            wait_until(server.is_up)
            yield server
        finally:
            server.channel.close()
            server.session.close()
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all small test models."""
    from tests.saved_models import build_all

    folder = tmp_path_factory.mktemp("models")
    build_all(folder)
    return folder


@dataclass(frozen=True)
class Build:
    """What build_model.py printed and wrote."""

    output: str
    base_path: Path


@pytest.fixture(scope="session")
def building(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run of the real build script, started early: it trains while this process imports TensorFlow."""
    base_path = tmp_path_factory.mktemp("build") / "iris"
    command = [sys.executable, "build_model.py", f"--output={base_path}", "--version=7"]
    with subprocess.Popen(
        command, cwd=PATTERN, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process, base_path


@pytest.fixture(scope="session")
def build(building: tuple[subprocess.Popen[str], Path]) -> Build:
    """The finished build: version 7 of the Iris model."""
    process, base_path = building
    output, _ = process.communicate()
    assert process.returncode == 0
    return Build(output, base_path)


@pytest.fixture(scope="session")
def iris_model(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base path of the Iris model, version 1."""
    base_path = tmp_path_factory.mktemp("models") / "iris"
    shutil.copytree(build.base_path / "7", base_path / "1")
    return base_path


CONFIG = """
model_config_list {{
  config {{ name: "iris" base_path: "{iris}" model_platform: "tensorflow" }}
  config {{ name: "half_plus_two" base_path: "{models}/half_plus_two" model_platform: "tensorflow" }}
  config {{ name: "several" base_path: "{models}/several" model_platform: "tensorflow" }}
  config {{ name: "text" base_path: "{models}/text" model_platform: "tensorflow" }}
  config {{ name: "types" base_path: "{models}/types" model_platform: "tensorflow" }}
  config {{ name: "slow" base_path: "{models}/slow" model_platform: "tensorflow" }}
  config {{
    name: "counted" base_path: "{models}/counted" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    version_labels {{ key: "stable" value: 1 }}
    version_labels {{ key: "canary" value: 2 }}
  }}
}}
"""


@pytest.fixture(scope="session")
def server(
    building: object, models: Path, iris_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Our server with every test model, metrics and CORS."""
    folder = tmp_path_factory.mktemp("server")
    config, monitoring = folder / "models.config", folder / "monitoring.config"
    config.write_text(CONFIG.format(models=models, iris=iris_model))
    monitoring.write_text('prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }')
    flags = [
        f"--model_config_file={config}",
        f"--monitoring_config_file={monitoring}",
        "--rest_api_enable_cors_support",
    ]
    with running(folder, *flags) as server:
        yield server


@pytest.fixture(scope="session")
def iris_server(request: pytest.FixtureRequest) -> Server:
    """A server of the Iris model: the one in TF_SERVING_GRPC and TF_SERVING_REST, else ours."""
    if "TF_SERVING_GRPC" in os.environ and "TF_SERVING_REST" in os.environ:
        return Server(os.environ["TF_SERVING_GRPC"], os.environ["TF_SERVING_REST"])
    ours: Server = request.getfixturevalue("server")
    return ours
