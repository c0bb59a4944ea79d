"""A Redis server of its own, and the models as models.build makes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving_testing.fixtures import redis as redis
from serving_testing.fixtures import redis_server as redis_server
from serving_testing.processes import NO_COVERAGE

PATTERN = Path(__file__).parents[1]
ROOT = PATTERN.parent
MODEL_ZOO = Path(os.environ.get("MODEL_ZOO", ROOT.parent / "shared" / "model_zoo"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def models() -> Path:
    """A folder with mobilenet_v2.onnx, imagenet_labels.json, sample.jpg and their manifest.

    With a model zoo, the weights are from there; else this is models/artifacts, built if necessary: with pretrained
    weights if they can be downloaded, random ones otherwise.
    """
    folder = ROOT / "models/artifacts"
    weights: list[str] = []
    zoo = MODEL_ZOO / "mobilenet_v2.onnx"
    if zoo.exists():
        # Kept for the other processes of `make test`, and for its next run.
        folder = ROOT / ".run/tests/zoo"
        weights = ["--weights-file", f"mobilenet_v2={zoo}"]
    subprocess.run(
        [sys.executable, "-m", "models.build", "--only", "mobilenet_v2", "--output", folder, *weights],
        cwd=ROOT,
        env=os.environ | NO_COVERAGE,
        check=True,
    )
    return folder


@pytest.fixture(scope="session")
def int8_model(models: Path) -> Path:
    """MobileNetV2 in 8-bit integers, in the same folder."""
    build = [sys.executable, "-m", "models.build", "--only", "mobilenet_v2", "--precision", "int8", "--output"]
    subprocess.run([*build, models], cwd=ROOT, env=os.environ | NO_COVERAGE, check=True)
    return models / "mobilenet_v2_int8.onnx"


@pytest.fixture(scope="session")
def async_model(models: Path) -> Path:
    """ResNet50 if it has been built, else MobileNetV2, which has the same inputs and outputs."""
    resnet = ROOT / "models/artifacts/resnet50.onnx"
    return resnet if resnet.exists() else models / "mobilenet_v2.onnx"


@pytest.fixture(scope="session")
def photo(models: Path) -> bytes:
    """A JPEG of a palace, 640x427."""
    return (models / "sample.jpg").read_bytes()
