"""The system under test: at BASE_URL_06 if set (compose, a remote deployment), else local processes."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving_testing.processes import Process, free_port, running
from tests.conftest import CLASSES

PATTERN = Path(__file__).parents[2]


@dataclass(frozen=True)
class HorizontalSystem:
    """Base URLs; the processes too, unless BASE_URL_06 is set."""

    proxy: str
    services: Mapping[str, str]
    processes: dict[str, Process] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)
    environments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    logs: Path = Path()

    def start(self, name: str) -> None:
        """Start or restart one of the services."""
        process = running(
            "src.services.app",
            cwd=PATTERN,
            env=self.environments[name],
            log=self.logs / f"{name}.log",
            ready=f"{self.services[name]}/health",
        )
        self.processes[name] = self.stack.enter_context(process)


@pytest.fixture(scope="session")
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HorizontalSystem]:
    if proxy := os.environ.get("BASE_URL_06"):
        ports = {"setosa": 8000, "versicolor": 8001, "virginica": 8002}
        host = proxy.rpartition(":")[0]
        yield HorizontalSystem(
            proxy.rstrip("/"),
            {name: os.environ.get(f"{name.upper()}_URL", f"{host}:{port}").rstrip("/") for name, port in ports.items()},
        )
        return

    models: Path = request.getfixturevalue("models")
    service_ports = {name: free_port() for name in CLASSES}
    services = {name: f"http://127.0.0.1:{port}" for name, port in service_ports.items()}
    environments = {
        name: {
            "SERVICE_NAME": name,
            "MODEL_FILEPATH": str(models / f"iris_svc_0_{name}.onnx"),
            "PORT": str(service_ports[name]),
        }
        for name in CLASSES
    }
    port = free_port()
    logs = tmp_path_factory.mktemp("logs")
    proxy_env = {"PORT": str(port), "SERVICES": ",".join(f"{name}={url}" for name, url in services.items())}
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        system = HorizontalSystem(url, services, {}, stack, environments, logs)
        for name in CLASSES:
            system.start(name)
        stack.enter_context(
            running("src.proxy.app", cwd=PATTERN, env=proxy_env, log=logs / "proxy.log", ready=f"{url}/health")
        )
        yield system
