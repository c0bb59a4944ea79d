"""Workers in this process, or as processes that can be killed."""

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from serving_testing.processes import Process, free_port, running
from serving_testing.redis_server import RedisServer
from src.configurations import WorkerSettings
from src.jobs import Jobs
from src.ml.classifier import Classifier
from src.ml.image_cards import imagenet_card
from tests.conftest import PATTERN, ROOT
from tests.integration.worker.model import write_model

ARTIFACTS = ROOT / "models/artifacts"
LABELS = ROOT / "models/imagenet_labels.json"

StartWorker = Callable[..., AbstractContextManager[Process]]


@pytest.fixture
def jobs(redis: Redis) -> Jobs:
    return Jobs(redis, "queue:jobs")


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "colours.onnx")


@pytest.fixture(scope="session")
def classifier(model_path: Path) -> Classifier:
    """The model itself, for the expected predictions."""
    return Classifier.load(imagenet_card(model_path, LABELS))


@pytest.fixture
def settings(redis_server: RedisServer, model_path: Path) -> Callable[..., WorkerSettings]:
    def make(**overrides: Any) -> WorkerSettings:
        defaults: dict[str, Any] = {
            "redis_host": "127.0.0.1",
            "redis_port": redis_server.port,
            "async_model_path": model_path,
            "labels_path": LABELS,
            "num_workers": 1,
            "worker_nice": 0,  # otherwise the tests would wait for everything else on the machine
            "heartbeat_s": 1,
        }
        return WorkerSettings(**(defaults | overrides))

    return make


def environment(redis_port: int, model_path: Path) -> dict[str, str]:
    """Environment of a worker process."""
    return {
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(redis_port),
        "ASYNC_MODEL_PATH": str(model_path),
        "LABELS_PATH": str(LABELS),
        "HEARTBEAT_S": "1",
        "WORKER_NICE": "0",
    }


@pytest.fixture
def start_worker(redis_server: RedisServer, model_path: Path, tmp_path: Path) -> StartWorker:
    """Starts a worker as a process and returns once it is healthy."""

    def start(**env: str) -> AbstractContextManager[Process]:
        port = free_port()
        return running(
            "src.worker.main",
            cwd=PATTERN,
            env=environment(redis_server.port, model_path) | {"PORT": str(port)} | env,
            log=tmp_path / "worker.log",
            ready=f"http://127.0.0.1:{port}/health",
        )

    return start


def children(pid: int) -> list[int]:
    """Ids of a worker's model processes."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (process / "cmdline").read_bytes():
                pids.append(int(process.name))
        except OSError:
            continue  # it has exited meanwhile
    return pids


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]


def kill(pid: int, signal_number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal_number)
