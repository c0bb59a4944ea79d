"""The system under test: at BASE_URL_07 if set (compose, a remote deployment), else started as processes."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import httpx
import pytest

from serving_testing.fixtures import running_redis
from serving_testing.processes import Process, free_port, running
from serving_testing.redis_server import RedisServer
from tests.conftest import PATTERN


@dataclass
class System:
    """The proxy's base URL and, if the tests started them, the processes behind it."""

    proxy: str
    redis: RedisServer | None = None
    processes: dict[str, Process] = field(default_factory=dict)


@contextmanager
def running_system(
    models: Path,
    async_model: Path,
    folder: Path,
    *,
    worker: Mapping[str, str] = MappingProxyType({}),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[System]:
    """Redis, a proxy and a worker. Keys without a TTL left behind fail the test.

    Args:
        worker: further variables of the worker.
        environment: of both.
    """
    ports = {"proxy": free_port(), "worker": free_port()}
    with ExitStack() as stack:
        redis = stack.enter_context(running_redis(folder))
        environment = {
            **environment,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(redis.port),
            "LABELS_PATH": str(models / "imagenet_labels.json"),
            "SYNC_MODEL_PATH": str(models / "mobilenet_v2.onnx"),
            "ASYNC_MODEL_PATH": str(async_model),
            "SAMPLE_IMAGE_PATH": str(models / "sample.jpg"),
            "JOB_TIMEOUT_S": "10",  # tests run beside others
        }
        system = System(f"http://127.0.0.1:{ports['proxy']}", redis)
        for name, module, more in (("proxy", "src.proxy.app", {}), ("worker", "src.worker.main", worker)):
            system.processes[name] = stack.enter_context(
                running(
                    module,
                    cwd=PATTERN,
                    env={**environment, **more, "PORT": str(ports[name])},
                    log=folder / f"{name}.log",
                    ready=f"http://127.0.0.1:{ports[name]}/health",
                )
            )
        yield system
        assert redis.keys_without_ttl() == []


@pytest.fixture(scope="session")
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if proxy := os.environ.get("BASE_URL_07"):
        yield System(proxy.rstrip("/"))
        return
    models, async_model = request.getfixturevalue("models"), request.getfixturevalue("async_model")
    with running_system(models, async_model, tmp_path_factory.mktemp("system")) as system:
        yield system


@pytest.fixture(scope="session")
def proxy(system: System) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=system.proxy, timeout=60, trust_env=False) as client:
        yield client
