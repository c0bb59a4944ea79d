"""Our messages against the official ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor

from tests.integration import official
from tfserving_protos import messages, services

FOLDER = Path(__file__).parents[2]
FILES = [messages.POOL.FindFileByName(f"{name}.proto") for name in ("tensorflow", "error_codes", "config", "serving")]
# Of the server's own configuration files: the official wheel does not contain them.
NOT_IN_THE_WHEEL = {"PrometheusConfig", "MonitoringConfig", "SSLConfig", "BatchingParameters"}


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def reference() -> official.Descriptors:
    found: official.Descriptors = json.loads(run("from tests.integration.official import main; main()"))
    return found


def messages_of(file: FileDescriptor) -> list[Descriptor]:
    return [message for message in file.message_types_by_name.values() if message.name not in NOT_IN_THE_WHEEL]


@pytest.mark.parametrize("message", [m for file in FILES for m in messages_of(file)], ids=lambda m: m.name)
def test_every_field_equals_the_official_one(message: Descriptor, reference: official.Descriptors) -> None:
    ours: official.Descriptors = {}
    official.collect(message, ours)
    for name, content in ours.items():
        assert content.items() <= reference[name].items(), name


def test_error_codes_equal_the_official_ones(reference: official.Descriptors) -> None:
    [codes] = FILES[1].enum_types_by_name.values()
    assert {value.name: value.number for value in codes.values}.items() <= reference[codes.full_name].items()


@pytest.mark.parametrize("service", [services.PREDICTION_SERVICE, services.MODEL_SERVICE])
def test_services_have_every_official_method(service: str, reference: official.Descriptors) -> None:
    ours = {
        name: [method.request.DESCRIPTOR.full_name, method.response.DESCRIPTOR.full_name]
        for name, method in services.METHODS[service].items()
    }
    assert ours == reference[service]


def test_real_tensorflow_in_the_same_process_reads_our_bytes() -> None:
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
