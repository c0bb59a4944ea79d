import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from serving_common.errors import StartupError
from serving_common.onnx import OnnxModel, available_cpus, run_options


def load(path: Path) -> OnnxModel:
    return OnnxModel.load(path, input_shape=(None, 4), output_shape=(None, 2))


@pytest.mark.parametrize("rows", ["N", 1])
def test_run_maps_a_batch_row_by_row(make_model, rows):
    batch = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)

    assert load(make_model(rows=rows)).run(batch).tolist() == [[6, 14], [22, 30]]


def test_run_is_ended_from_another_thread(slow_model, capfd):
    model = OnnxModel.load(slow_model, input_shape=(None, 4), output_shape=(None, 1))
    options = run_options()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(model.run, np.full((1, 4), 1e12, np.float32), options)
        options.terminate = True
        with pytest.raises(Exception, match="terminate"):
            running.result(60)
    assert capfd.readouterr().err == ""


def test_number_of_threads_is_configurable(make_model):
    model = OnnxModel.load(make_model(), input_shape=(None, 4), output_shape=(None, 2), threads=2)

    assert model.session.get_session_options().intra_op_num_threads == 2


def test_zero_threads_means_all_available_cpus(make_model):
    model = OnnxModel.load(make_model(), input_shape=(None, 4), output_shape=(None, 2), threads=0)

    assert model.session.get_session_options().intra_op_num_threads == available_cpus()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param({"width": 5}, "wrong input: wanted one tensor\\(float\\)\\[N, 4\\]", id="wrong width"),
        pytest.param({"dtype": TensorProto.DOUBLE}, "wrong input", id="wrong type"),
        pytest.param({"rows": 2}, "wrong input", id="batches of two"),
        pytest.param({"inputs": 2}, "wrong input", id="two inputs"),
        pytest.param({"output_width": 3}, "wrong output: wanted one tensor\\(float\\)\\[N, 2\\]", id="wrong output"),
    ],
)
def test_model_with_other_inputs_or_outputs_is_rejected(make_model, model, message):
    with pytest.raises(StartupError, match=message):
        load(make_model(**model))


def test_model_with_a_wrong_declared_output_is_rejected(make_model):
    with pytest.raises(StartupError, match=r"answers one row with shape|not a usable ONNX model"):
        OnnxModel.load(make_model(output_width=3, declared_output=2), input_shape=(None, 4), output_shape=(None, 2))


def test_onnxruntime_telemetry_is_disabled(make_model, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    code = "import sys, pathlib; from serving_common.onnx import OnnxModel as M; "
    code += "M.load(pathlib.Path(sys.argv[1]), input_shape=(None, 4), output_shape=(None, 2))"
    # With an empty environment: ONNX Runtime disables telemetry by itself in CI and test runs.
    subprocess.run([sys.executable, "-c", code, make_model()], env={"HOME": str(home)}, check=True)

    # It would store its device id and the unsent events at once.
    assert list(home.rglob("*")) == []


def test_missing_model_is_rejected(tmp_path):
    with pytest.raises(StartupError, match="there is no model at"):
        load(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 1000])
def test_file_that_is_not_a_model_is_rejected(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(StartupError, match="is not a usable ONNX model"):
        load(path)


@pytest.mark.parametrize(
    ("cpu_max", "cpus"),
    [
        pytest.param("50000 100000", 1, id="half a CPU"),
        pytest.param("100000 100000", 1, id="one"),
        pytest.param("max 100000", None, id="no quota"),
        pytest.param("nonsense", None, id="unreadable"),
        pytest.param(None, None, id="no such file"),
    ],
)
def test_available_cpus_respects_the_cgroup_quota(tmp_path, cpu_max, cpus):
    quota = tmp_path / "cpu.max"
    if cpu_max is not None:
        quota.write_text(cpu_max)

    assert available_cpus(quota) == (cpus or available_cpus(tmp_path / "none"))
