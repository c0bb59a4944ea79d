import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from serving_common.errors import StartupError
from serving_common.onnx import OnnxModel, available_cpus


def load(path: Path) -> OnnxModel:
    return OnnxModel.load(path, input_shape=(None, 4), output_shape=(None, 2))


@pytest.mark.parametrize("rows", ["N", 1])
def test_runs_a_batch_row_by_row(make_model, rows):
    batch = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)

    assert load(make_model(rows=rows)).run(batch).tolist() == [[6, 14], [22, 30]]


def test_uses_as_many_threads_as_asked(make_model):
    model = OnnxModel.load(make_model(), input_shape=(None, 4), output_shape=(None, 2), threads=2)

    assert model.session.get_session_options().intra_op_num_threads == 2


def test_uses_all_that_the_container_has_if_asked_for_none(make_model):
    model = OnnxModel.load(make_model(), input_shape=(None, 4), output_shape=(None, 2), threads=0)

    assert model.session.get_session_options().intra_op_num_threads == available_cpus()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        pytest.param({"width": 5}, "wrong input: wanted one tensor\\(float\\)\\[N, 4\\]", id="another width"),
        pytest.param({"dtype": TensorProto.DOUBLE}, "wrong input", id="another type"),
        pytest.param({"rows": 2}, "wrong input", id="batches of two"),
        pytest.param({"inputs": 2}, "wrong input", id="two inputs"),
        pytest.param({"output_width": 3}, "wrong output: wanted one tensor\\(float\\)\\[N, 2\\]", id="another output"),
    ],
)
def test_refuses_a_model_that_is_another(make_model, model, says):
    with pytest.raises(StartupError, match=says):
        load(make_model(**model))


def test_refuses_a_model_that_answers_another_shape_than_it_says(make_model):
    with pytest.raises(StartupError, match=r"answers one row with shape|not a usable ONNX model"):
        OnnxModel.load(make_model(output_width=3, declared_output=2), input_shape=(None, 4), output_shape=(None, 2))


def test_tells_nobody_about_the_model(make_model, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    code = "import sys, pathlib; from serving_common.onnx import OnnxModel as M; "
    code += "M.load(pathlib.Path(sys.argv[1]), input_shape=(None, 4), output_shape=(None, 2))"
    # Without our environment: ONNX Runtime keeps quiet where it sees CI or a test run.
    subprocess.run([sys.executable, "-c", code, make_model()], env={"HOME": str(home)}, check=True)

    # What it would send later, and the device's id, it stores at once.
    assert list(home.rglob("*")) == []


def test_refuses_a_missing_model(tmp_path):
    with pytest.raises(StartupError, match="there is no model at"):
        load(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 1000])
def test_refuses_a_file_that_is_no_model(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(StartupError, match="is not a usable ONNX model"):
        load(path)


@pytest.mark.parametrize(
    ("cpu_max", "cpus"),
    [
        pytest.param("50000 100000", 1, id="half a CPU is one thread"),
        pytest.param("100000 100000", 1, id="one"),
        pytest.param("max 100000", None, id="no quota"),
        pytest.param("nonsense", None, id="unreadable"),
        pytest.param(None, None, id="no such file"),
    ],
)
def test_respects_the_containers_quota(tmp_path, cpu_max, cpus):
    quota = tmp_path / "cpu.max"
    if cpu_max is not None:
        quota.write_text(cpu_max)

    assert available_cpus(quota) == (cpus or available_cpus(tmp_path / "none"))
