"""The SavedModel and the ONNX file that build_model.py writes."""

from __future__ import annotations

import numpy as np
import onnxruntime
import tensorflow as tf
from sklearn.datasets import load_iris

from build_model import train
from tests.conftest import IRIS_ROWS, IrisBuild


def test_held_out_accuracy_is_printed_and_above_95_percent(build: IrisBuild) -> None:
    first = build.output.splitlines()[0]
    assert first.startswith("accuracy on 45 held-out rows: ")
    assert float(first.rsplit(" ", 1)[1].rstrip("%")) > 95


def test_finished_version_is_the_only_output(build: IrisBuild) -> None:
    assert [child.name for child in build.base_path.iterdir()] == ["7"]
    assert (build.base_path / "7" / "saved_model.pb").is_file()
    assert (build.base_path / "7" / "variables").is_dir()


def test_signature_has_the_specified_input_and_output(build: IrisBuild) -> None:
    signatures = tf.saved_model.load(str(build.base_path / "7")).signatures
    assert list(signatures) == ["serving_default"]
    function = signatures["serving_default"]
    [(name, given)] = function.structured_input_signature[1].items()
    assert (name, given.dtype, given.shape.as_list()) == ("input", tf.float32, [None, 4])
    [(name, result)] = function.structured_outputs.items()
    assert (name, result.dtype, result.shape.as_list()) == ("output", tf.float32, [None, 3])


def test_raw_measurements_return_probabilities(build: IrisBuild) -> None:
    function = tf.saved_model.load(str(build.base_path / "7")).signatures["serving_default"]
    output = function(input=tf.constant(IRIS_ROWS, tf.float32))["output"].numpy()
    assert output.argmax(axis=1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(output.sum(axis=1), 1, atol=1e-6)


def test_onnx_file_is_the_same_network(build: IrisBuild) -> None:
    rows = load_iris().data.astype(np.float32)
    saved = tf.saved_model.load(str(build.base_path / "7")).signatures["serving_default"]
    session = onnxruntime.InferenceSession(build.base_path / "7" / "model.onnx", providers=["CPUExecutionProvider"])
    [output] = session.run(["output"], {"input": rows})
    np.testing.assert_allclose(output, saved(input=tf.constant(rows))["output"].numpy(), rtol=0, atol=1e-6)


def test_training_is_reproducible(build: IrisBuild) -> None:
    rows = tf.constant(IRIS_ROWS, tf.float32)
    saved = tf.saved_model.load(str(build.base_path / "7")).signatures["serving_default"](input=rows)["output"]
    again, _ = train()
    np.testing.assert_allclose(again(rows), saved, atol=1e-4)
