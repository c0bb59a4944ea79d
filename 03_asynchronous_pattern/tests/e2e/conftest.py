"""The system under test: at BASE_URL_03 if set (compose, a remote deployment), else started as local processes."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving_testing.fixtures import running_redis
from serving_testing.processes import Process, free_port, running
from serving_testing.redis_server import RedisServer
from tests.conftest import PATTERN, ModelServer


@dataclass
class SystemUnderTest:
    """The proxy's base URL, and its dependencies and workers if they are local processes."""

    proxy: str
    redis: RedisServer | None = None
    model: ModelServer | None = None
    workers: list[Process] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)
    environment: Mapping[str, str] = field(default_factory=dict)
    logs: Path = Path()

    def start_worker(self) -> Process:
        """Start one more worker, without waiting until it is ready."""
        worker = self.stack.enter_context(
            running(
                "src.worker.main",
                cwd=PATTERN,
                env={**self.environment, "PORT": str(free_port()), "HEARTBEAT_S": "1"},
                log=self.logs / "workers.log",
            )
        )
        self.workers.append(worker)
        return worker


@pytest.fixture(scope="session")
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemUnderTest]:
    if proxy := os.environ.get("BASE_URL_03"):
        yield SystemUnderTest(proxy.rstrip("/"))
        return

    model: ModelServer = request.getfixturevalue("model_server")
    port = free_port()
    logs = tmp_path_factory.mktemp("logs")
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        # Not the fixture's Redis, which other tests flush.
        redis = stack.enter_context(running_redis(tmp_path_factory.mktemp("redis")))
        environment = {
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(redis.port),
            "TF_SERVING_HOST": "127.0.0.1",
            "TF_SERVING_GRPC_PORT": str(model.port),
            "QUEUE_NAME": "queue:predict",
        }
        proxy_env = {**environment, "PORT": str(port)}
        stack.enter_context(
            running("src.proxy.app", cwd=PATTERN, env=proxy_env, log=logs / "proxy.log", ready=f"{url}/health")
        )
        system = SystemUnderTest(url, redis, model, stack=stack, environment=environment, logs=logs)
        system.start_worker()
        system.start_worker()
        yield system
        assert redis.keys_without_ttl() == []
