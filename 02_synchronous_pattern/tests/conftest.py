"""The Iris model, built by build_model.py, and a server of it: ours, or that of TF_SERVING_GRPC and TF_SERVING_REST."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from serving_testing.processes import answers, free_port, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PATTERN = Path(__file__).parent.parent
IRIS_ROWS = [(5.1, 3.5, 1.4, 0.2), (5.9, 3.0, 4.2, 1.5), (6.3, 3.3, 6.0, 2.5)]
IRIS_LABELS = ["setosa", "versicolor", "virginica"]


@dataclass(frozen=True)
class IrisBuild:
    """What build_model.py printed, and the base path that it wrote to."""

    output: str
    base_path: Path


@dataclass(frozen=True)
class IrisServer:
    """Where a server of the Iris model listens."""

    grpc_address: str
    rest_url: str


def wait_until_served(process: subprocess.Popen[bytes], url: str) -> None:
    """Return once GET `url` answers 200. Importing TensorFlow can take a minute on a busy machine."""
    wait_until(lambda: process.poll() is not None or answers(url), 180)
    assert process.poll() is None


@pytest.fixture(scope="session")
def building(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run of build_model.py that trains while this process imports TensorFlow."""
    base_path = tmp_path_factory.mktemp("build") / "iris"
    command = [sys.executable, "build_model.py", f"--output={base_path}", "--version=7"]
    with subprocess.Popen(
        command, cwd=PATTERN, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process, base_path


@pytest.fixture(scope="session")
def build(building: tuple[subprocess.Popen[str], Path]) -> IrisBuild:
    """The finished build: version 7 of the Iris model."""
    process, base_path = building
    output, _ = process.communicate()
    assert process.returncode == 0
    return IrisBuild(output, base_path)


@pytest.fixture(scope="session")
def iris_model(build: IrisBuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base path of the Iris model, version 1."""
    base_path = tmp_path_factory.mktemp("models") / "iris"
    shutil.copytree(build.base_path / "7", base_path / "1")
    return base_path


@pytest.fixture(scope="session")
def iris_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IrisServer]:
    """A server of the Iris model."""
    if "TF_SERVING_GRPC" in os.environ and "TF_SERVING_REST" in os.environ:
        yield IrisServer(os.environ["TF_SERVING_GRPC"], os.environ["TF_SERVING_REST"])
        return
    server = IrisServer(f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}")
    port, rest_port = server.grpc_address.rsplit(":", 1)[1], server.rest_url.rsplit(":", 1)[1]
    base_path = request.getfixturevalue("iris_model")
    with running(
        f"model_server --port={port} --rest_api_port={rest_port} --model_name=iris "
        f"--model_base_path={shlex.quote(str(base_path))}",
        cwd=PATTERN,
        env={},
        log=tmp_path_factory.mktemp("server") / "log",
    ) as process:
        wait_until_served(process.popen, f"{server.rest_url}/v1/models/iris")
        yield server
