"""Model servers as processes of their own, on free ports, with small models that the tests build."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import requests

from model_server.fallback import VARIABLE
from model_server.tensors import encode
from serving_testing.processes import free_port, wait_until
from tfserving_protos import messages
from tfserving_protos.services import ModelServiceStub, PredictionServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Importing TensorFlow can take a minute on a busy machine.
UP_WITHIN_S = 180
PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parents[1]


@dataclass
class ServerUnderTest:
    """Where a model server listens, its process and its log."""

    grpc_address: str
    rest_url: str
    process: subprocess.Popen[bytes]
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
        """The state of each version, as GET /v1/models/NAME returns it."""
        response = self.get(f"/v1/models/{model}").json()
        return {entry["version"]: entry["state"] for entry in response.get("model_version_status", [])}

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            requests.get(self.rest_url + "/v1/models/none", timeout=5)
        except requests.RequestException:
            return False
        return True

    def cpu_s(self) -> float:
        """CPU time that the server has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_memory(self) -> int:
        """The most memory that the server has used so far, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def starting(folder: Path, *flags: str, **environment: str) -> Iterator[ServerUnderTest]:
    """A server that has been started with `flags`; its ports may not be open yet."""
    port, rest_port = free_port(), free_port()
    log = folder / f"server-{port}.log"
    command = [sys.executable, "-m", "model_server", f"--port={port}", f"--rest_api_port={rest_port}", *flags]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=PACKAGE, env=os.environ | environment, stderr=output)
    server = ServerUnderTest(f"127.0.0.1:{port}", f"http://127.0.0.1:{rest_port}", process, log)
    try:
        yield server
    finally:
        server.channel.close()
        server.session.close()
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running(folder: Path, *flags: str, **environment: str) -> Iterator[ServerUnderTest]:
    """A server with `flags` and open ports."""
    with starting(folder, *flags, **environment) as server:
        wait_until(server.is_up, UP_WITHIN_S)
        yield server


def predict_request(model: str, signature: str = "", **inputs: Any) -> messages.PredictRequest:
    """Python's floats become float32, as with TensorFlow's own make_tensor_proto."""
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name=model, signature_name=signature))
    for name, value in inputs.items():
        array = np.asarray(value)
        if not isinstance(value, (np.ndarray, np.generic)):
            array = array.astype(np.float32 if array.dtype.kind == "f" else object)
        encode(array, request.inputs[name])
    return request


def grpc_error(call: Any, request: object, timeout_s: float = 30) -> tuple[str, str]:
    """Code and message of the error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=timeout_s)
    return caught.value.code().name, caught.value.details() or ""


@pytest.fixture(scope="session")
def iris_model() -> Path:
    """Base path of the Iris model: IRIS_MODEL, or the one of `python -m models.build`."""
    if "IRIS_MODEL" in os.environ:
        return Path(os.environ["IRIS_MODEL"])
    subprocess.run([sys.executable, "-m", "models.build", "--only", "iris_saved_model"], cwd=ROOT, check=True)
    return ROOT / "models/artifacts/saved_model/iris"


CONFIG = """
model_config_list {{
  config {{ name: "iris" base_path: "{iris}" model_platform: "tensorflow" }}
  config {{ name: "half_plus_two" base_path: "{models}/half_plus_two" model_platform: "tensorflow" }}
  config {{ name: "half_plus_three" base_path: "{models}/half_plus_three" model_platform: "tensorflow" }}
  config {{ name: "several" base_path: "{models}/several" model_platform: "tensorflow" }}
  config {{ name: "text" base_path: "{models}/text" model_platform: "tensorflow" }}
  config {{ name: "types" base_path: "{models}/types" model_platform: "tensorflow" }}
  config {{ name: "slow" base_path: "{models}/slow" model_platform: "tensorflow" }}
  config {{ name: "endless" base_path: "{models}/endless" model_platform: "tensorflow" }}
  config {{
    name: "counted" base_path: "{models}/counted" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    version_labels {{ key: "stable" value: 1 }}
    version_labels {{ key: "canary" value: 2 }}
  }}
}}
"""


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models") / "built"


@pytest.fixture(scope="session")
def starting_servers(
    request: pytest.FixtureRequest, models_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, ServerUnderTest]]:
    """The servers of `server` and `v2`, if a test uses one: they import TensorFlow while their models are built."""
    if not any({"server", "v2"} & set(getattr(item, "fixturenames", ())) for item in request.session.items):
        yield {}
        return
    folder = tmp_path_factory.mktemp("servers")
    config, monitoring = folder / "models.config", folder / "monitoring.config"
    config.write_text(CONFIG.format(models=models_folder, iris=request.getfixturevalue("iris_model")))
    monitoring.write_text('prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }')
    flags = [
        f"--model_config_file={config}",
        f"--monitoring_config_file={monitoring}",
        "--rest_api_enable_cors_support",
        "--runtime=tensorflow",
    ]
    with starting(folder, *flags) as private, starting(folder, *flags, **{VARIABLE: "1"}) as public:
        yield {"private APIs": private, "public APIs": public}


@pytest.fixture(scope="session")
def models(starting_servers: object, models_folder: Path) -> Path:
    """The folder of all small test models, which appears complete."""
    from tests.saved_models import build_all

    build_all(models_folder.with_name("building"))
    return models_folder.with_name("building").rename(models_folder)


@pytest.fixture
def server(
    request: pytest.FixtureRequest, models: Path, starting_servers: Mapping[str, ServerUnderTest]
) -> ServerUnderTest:
    """A server of all tests, with every test model, metrics and CORS. Its parameter: on which APIs it runs."""
    server = starting_servers[getattr(request, "param", "private APIs")]
    wait_until(server.is_up, UP_WITHIN_S)
    return server


# For the tests that must pass on the fallback, too.
on_both_apis = pytest.mark.parametrize("server", ["private APIs", "public APIs"], indirect=True)
