"""The messages: what importing them needs, how they are built, and a round trip."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserving_protos import messages

FOLDER = Path(__file__).parents[2]


def test_import_needs_neither_tensorflow_nor_numpy() -> None:
    code = """
import sys
import grpc
from tfserving_protos import messages, services
print({"tensorflow", "tensorflow_serving", "numpy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_build_step_reproduces_the_installed_files(tmp_path: Path) -> None:
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


@settings(deadline=None)
@given(st.text(), st.integers(-(2**63), 2**63 - 1), st.binary())
def test_predict_request_round_trips(name: str, version: int, content: bytes) -> None:
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name=name))
    request.model_spec.version.value = version
    request.inputs[name].tensor_content = content
    assert messages.PredictRequest.FromString(request.SerializeToString()) == request


# Serialized by tritonclient 2.73, whose generated classes share nothing with ours.
TRITON_BYTES = [
    (
        messages.ModelInferRequest(
            model_name="iris",
            model_version="1",
            id="7",
            parameters={"priority": messages.InferParameter(uint64_param=2)},
            inputs=[
                messages.ModelInferRequest.InferInputTensor(
                    name="x", datatype="FP32", shape=[1], parameters={"a": messages.InferParameter(bool_param=True)}
                )
            ],
            outputs=[
                messages.ModelInferRequest.InferRequestedOutputTensor(
                    name="y", parameters={"binary_data": messages.InferParameter(double_param=0.5)}
                )
            ],
            raw_input_contents=[b"\x00\x00\x80?"],
        ),
        (
            "0a04697269731201311a0137220e0a087072696f72697479120228022a150a01781204465033321a010122070a016112020801"
            "321d0a017912180a0b62696e6172795f64617461120921000000000000e03f3a040000803f"
        ),
    ),
    (
        messages.ModelInferResponse(
            model_name="iris",
            model_version="1",
            id="7",
            outputs=[
                messages.ModelInferResponse.InferOutputTensor(
                    name="y",
                    datatype="FP32",
                    shape=[1, -1],
                    contents=messages.InferTensorContents(
                        bool_contents=[True],
                        int_contents=[-1],
                        int64_contents=[2],
                        uint_contents=[3],
                        uint64_contents=[4],
                        fp32_contents=[0.5],
                        fp64_contents=[0.25],
                        bytes_contents=[b"b"],
                    ),
                )
            ],
            raw_output_contents=[b"r"],
        ),
        (
            "0a04697269731201311a01372a430a01791204465033321a0b01ffffffffffffffffff012a2b0a0101120affffffffffffffffff01"
            "1a01022201032a010432040000003f3a08000000000000d03f420162320172"
        ),
    ),
    (
        messages.ModelMetadataResponse(
            name="m",
            versions=["1"],
            platform="p",
            inputs=[messages.ModelMetadataResponse.TensorMetadata(name="x", datatype="INT8", shape=[-1])],
            outputs=[messages.ModelMetadataResponse.TensorMetadata(name="y", datatype="BOOL", shape=[2])],
        ),
        "0a016d1201311a017022150a01781204494e54381a0affffffffffffffffff012a0c0a01791204424f4f4c1a0102",
    ),
    (
        messages.RepositoryIndexResponse(
            models=[
                messages.RepositoryIndexResponse.ModelIndex(name="m", version="1", state="READY", reason="r"),
            ]
        ),
        "0a100a016d1201311a055245414459220172",
    ),
    (
        messages.RepositoryModelLoadRequest(
            repository_name="r",
            model_name="m",
            parameters={"f": messages.ModelRepositoryParameter(bytes_param=b"x")},
        ),
        "0a017212016d1a080a01661203220178",
    ),
    (messages.RepositoryIndexRequest(repository_name="r", ready=True), "0a01721001"),
    (messages.ServerMetadataResponse(name="n", version="v", extensions=["e"]), "0a016e1201761a0165"),
]


@pytest.mark.parametrize(("message", "serialized"), TRITON_BYTES, ids=lambda part: type(part).__name__)
def test_open_inference_messages_are_written_as_by_tritonclient(message: Message, serialized: str) -> None:
    assert message.SerializeToString(deterministic=True).hex() == serialized
