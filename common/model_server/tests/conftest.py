"""Model servers as processes of their own, on free ports, with small models that the tests build."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import requests

from model_server.fallback import VARIABLE
from model_server.tensors import encode
from serving_testing.processes import cpu_seconds, free_port, wait_until
from tfserving_protos import messages
from tfserving_protos.services import ModelServiceStub, PredictionServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# Importing TensorFlow can take a minute on a busy machine.
UP_WITHIN_S = 180
SAVED_MODELS = (
    *("half_plus_two", "half_plus_three", "mistyped", "counter", "counted", "several", "text", "types"),
    *("slow", "endless"),
)
PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parents[1]


@dataclass
class ServerUnderTest:
    """Where a model server listens, its process and its log."""

    grpc_address: str
    rest_url: str
    process: subprocess.Popen[bytes]
    log: Path = field(default_factory=Path)
    has_onnx: bool = False  # whether its models are those of onnx_models.build_converted

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

    def model(self, name: str) -> str:
        """The model behind a name such as types/int8: with ONNX, there is one for each type."""
        model, _, element = name.partition("/")
        return element if element and self.has_onnx else model

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
        return cpu_seconds(self.process.pid)

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


def slow_loops(server: ServerUnderTest, model: str = "slow") -> int:
    """So many loops of the model `slow`, served as `model`, take at least 0.3 s, however fast this machine is."""

    def seconds(loops: int) -> float:
        started = time.monotonic()
        server.predictions.Predict(predict_request(model, n=np.array(loops)), timeout=60)
        return time.monotonic() - started

    loops = 1_000
    # Twice, because one may have been held up.
    while min(seconds(loops), seconds(loops)) < 0.3:
        loops *= 2
    return loops


@pytest.fixture(scope="session")
def iris_model() -> Path:
    """Base path of the Iris model: IRIS_MODEL, or the one of `python -m models.build`."""
    if "IRIS_MODEL" in os.environ:
        return Path(os.environ["IRIS_MODEL"])
    subprocess.run([sys.executable, "-m", "models.build", "--only", "iris_saved_model"], cwd=ROOT, check=True)
    return ROOT / "models/artifacts/saved_model/iris"


VERSIONS = """
model_version_policy { specific { versions: 1 versions: 2 } }
version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }
"""


def config_of(models: Path, names: Iterable[str], iris: Path) -> str:
    """The configuration of these test models and of Iris."""
    bases = {name: models / name for name in names} | {"iris": iris}
    entries = [
        f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" '
        f"{VERSIONS if name == 'counted' else ''} }}"
        for name, base in bases.items()
    ]
    return f"model_config_list {{ {' '.join(entries)} }}"


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models") / "built"


@pytest.fixture(scope="session")
def starting_servers(
    request: pytest.FixtureRequest, models_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, ServerUnderTest]]:
    """The servers of `server` and `v2` that tests use: they import TensorFlow while their models are built."""
    wanted = set()
    for item in request.session.items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "server" in getattr(item, "fixturenames", ()):
            wanted.add(parameters.get("server", "private APIs"))
        if (runtime := parameters.get("v2", "onnx")) != "onnx":
            wanted.add("public APIs" if "public" in runtime else "private APIs")
    folder = tmp_path_factory.mktemp("servers")
    monitoring, config, onnx_config = (folder / f"{name}.config" for name in ("monitoring", "models", "onnx"))
    monitoring.write_text('prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }')
    flags = [f"--monitoring_config_file={monitoring}", "--rest_api_enable_cors_support"]
    saved_models = [*flags, f"--model_config_file={config}", "--runtime=tensorflow"]
    with contextlib.ExitStack() as stack:
        servers = {}
        if wanted:
            iris = request.getfixturevalue("iris_model")
            config.write_text(config_of(models_folder, SAVED_MODELS, iris))
        if "private APIs" in wanted:
            servers["private APIs"] = stack.enter_context(starting(folder, *saved_models))
        if "public APIs" in wanted:
            servers["public APIs"] = stack.enter_context(starting(folder, *saved_models, **{VARIABLE: "1"}))
        if "ONNX" in wanted:
            converted = request.getfixturevalue("converted")
            onnx_config.write_text(config_of(converted, (base.name for base in converted.iterdir()), iris))
            onnx_flags = [*flags, f"--model_config_file={onnx_config}", "--runtime=onnx"]
            servers["ONNX"] = stack.enter_context(starting(folder, *onnx_flags))
            servers["ONNX"].has_onnx = True
        yield servers


@pytest.fixture(scope="session")
def models(starting_servers: object, models_folder: Path) -> Path:
    """The folder of all small test models, which appears complete."""
    from tests.saved_models import build_all

    build_all(models_folder.with_name("building"))
    return models_folder.with_name("building").rename(models_folder)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same models as ONNX files: a server of these starts in a second, and not in ten."""
    from tests.onnx_models import build_converted

    folder = tmp_path_factory.mktemp("converted")
    build_converted(folder)
    return folder


@pytest.fixture
def server(request: pytest.FixtureRequest, starting_servers: Mapping[str, ServerUnderTest]) -> ServerUnderTest:
    """A server of all tests, with every test model, metrics and CORS. Its parameter: on what it runs."""
    server = starting_servers[getattr(request, "param", "private APIs")]
    if not server.has_onnx:
        request.getfixturevalue("models")
    wait_until(server.is_up, UP_WITHIN_S)
    return server


def pytest_configure(config: pytest.Config) -> None:
    """Register the two markers."""
    config.addinivalue_line("markers", "every_server: runs on both runtimes and, of TensorFlow, on both kinds of APIs")
    config.addinivalue_line("markers", "tensorflow_only(reason): not on ONNX Runtime")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of the protocol on every server that can have their models."""
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "server" not in own and metafunc.definition.get_closest_marker("every_server"):
        servers = ["private APIs", "public APIs"]
        if not metafunc.definition.get_closest_marker("tensorflow_only"):
            servers.append("ONNX")
        metafunc.parametrize("server", servers, indirect=True)
