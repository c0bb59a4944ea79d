"""Our messages against the official ones, and what importing them costs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor
from hypothesis import given
from hypothesis import strategies as st

from tests import official
from tfserving_protos import messages, services

FOLDER = Path(__file__).parent.parent
FILES = [messages.POOL.FindFileByName(f"{name}.proto") for name in ("tensorflow", "error_codes", "config", "serving")]
# The server's own configuration files: messages that the official wheel does not hold.
NOT_IN_THE_WHEEL = {"PrometheusConfig", "MonitoringConfig", "SSLConfig", "BatchingParameters"}


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def reference() -> official.Found:
    found: official.Found = json.loads(run("from tests.official import main; main()"))
    return found


def messages_of(file: FileDescriptor) -> list[Descriptor]:
    return [message for message in file.message_types_by_name.values() if message.name not in NOT_IN_THE_WHEEL]


@pytest.mark.parametrize("message", [m for file in FILES for m in messages_of(file)], ids=lambda m: m.name)
def test_every_field_is_the_official_one(message: Descriptor, reference: official.Found) -> None:
    ours: official.Found = {}
    official.collect(message, ours)
    for name, content in ours.items():
        assert content.items() <= reference[name].items(), name


def test_error_codes_are_the_official_ones(reference: official.Found) -> None:
    [codes] = FILES[1].enum_types_by_name.values()
    assert {value.name: value.number for value in codes.values}.items() <= reference[codes.full_name].items()


@pytest.mark.parametrize("service", services.METHODS)
def test_the_table_holds_every_official_method(service: str, reference: official.Found) -> None:
    ours = {
        name: [method.request.DESCRIPTOR.full_name, method.response.DESCRIPTOR.full_name]
        for name, method in services.METHODS[service].items()
    }
    assert ours == reference[service]


def test_real_tensorflow_lives_in_the_same_process_and_reads_our_bytes() -> None:
    code = """
from tfserving_protos import messages
request = messages.PredictRequest(model_spec=messages.ModelSpec(name="iris", version_label="stable"))
request.inputs["x"].CopyFrom(messages.TensorProto(dtype=messages.DT_HALF, half_val=[15360]))
from tensorflow_serving.apis.predict_pb2 import PredictRequest
theirs = PredictRequest.FromString(request.SerializeToString())
assert theirs.model_spec.version_label == "stable" and theirs.inputs["x"].half_val == [15360]
print(messages.PredictRequest.FromString(theirs.SerializeToString()) == request)
"""
    assert run(code) == "True"


def test_importing_is_light() -> None:
    """The README has the measured figures; this holds what they come from: no TensorFlow, no numpy."""
    code = """
import sys
import grpc
from tfserving_protos import messages, services
print({"tensorflow", "tensorflow_serving", "numpy"} & set(sys.modules))
"""
    assert run(code) == "set()"


def test_the_build_step_reproduces_what_is_installed(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("hatch_build", FOLDER / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    package = tmp_path / "package"
    (package / "protos").mkdir(parents=True)
    for source in (FOLDER / "tfserving_protos" / "protos").iterdir():
        (package / "protos" / source.name).write_bytes(source.read_bytes())
    hook.generate(package)
    for name in ("descriptors.binpb", "messages.pyi"):
        assert (package / name).read_bytes() == (Path(messages.__file__).parent / name).read_bytes()


@given(st.text(), st.integers(-(2**63), 2**63 - 1), st.binary())
def test_round_trip(name: str, version: int, content: bytes) -> None:
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name=name))
    request.model_spec.version.value = version
    request.inputs[name].tensor_content = content
    assert messages.PredictRequest.FromString(request.SerializeToString()) == request
