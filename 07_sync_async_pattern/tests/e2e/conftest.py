"""The system under test: at BASE_URL_07 if that is set (compose, a remote deployment), else started as processes."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from serving_common.testing import Process, free_port, running
from serving_common.testing_redis import RedisServer
from tests.conftest import PATTERN, running_redis


@dataclass
class System:
    """The proxy's base URL, and, if they are ours, the processes behind it."""

    proxy: str
    redis: RedisServer | None = None
    processes: dict[str, Process] = field(default_factory=dict)


@pytest.fixture(scope="session")
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if proxy := os.environ.get("BASE_URL_07"):
        yield System(proxy.rstrip("/"))
        return

    models: Path = request.getfixturevalue("models")
    async_model: Path = request.getfixturevalue("async_model")
    logs = tmp_path_factory.mktemp("logs")
    ports = {"proxy": free_port(), "worker": free_port()}
    with ExitStack() as stack:
        # Not the one that other tests empty.
        redis = stack.enter_context(running_redis(tmp_path_factory.mktemp("redis")))
        environment = {
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(redis.port),
            "LABELS_PATH": str(models / "imagenet_labels.json"),
            "SYNC_MODEL_PATH": str(models / "mobilenet_v2.onnx"),
            "ASYNC_MODEL_PATH": str(async_model),
            "SAMPLE_IMAGE_PATH": str(models / "sample.jpg"),
            "JOB_TIMEOUT_S": "10",  # tests share their machine
        }
        system = System(f"http://127.0.0.1:{ports['proxy']}", redis)
        for name, module in (("proxy", "src.proxy.app"), ("worker", "src.worker.main")):
            system.processes[name] = stack.enter_context(
                running(
                    module,
                    cwd=PATTERN,
                    env={**environment, "PORT": str(ports[name])},
                    log=logs / f"{name}.log",
                    ready=f"http://127.0.0.1:{ports[name]}/health",
                )
            )
        yield system
        assert redis.keys_for_ever() == []


@pytest.fixture(scope="session")
def proxy(system: System) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=system.proxy, timeout=60, trust_env=False) as client:
        yield client
