"""The messages: what importing them needs, how they are built, and a round trip."""

import importlib.util
import subprocess
import sys
from pathlib import Path

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
