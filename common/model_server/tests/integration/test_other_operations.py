"""SavedModels with operations that TensorFlow Serving has linked in, and TensorFlow's package has not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import running


@pytest.fixture
def load(models: Path):
    """Loads a SavedModel into this process: only after the models, so that TensorFlow is imported as a whole."""
    from model_server.model import Servable
    from model_server.runtime import Runtime, SessionOptions

    return lambda path: Servable.load("model", 1, path, SessionOptions(runtime=Runtime.TENSORFLOW))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (
            "SimpleMLInferenceOpWithHandle",
            "package tensorflow-decision-forests (1.12.0) loads into TensorFlow 2.19 only",
        ),
        ("TFText>Unknown", "Op type not registered 'TFText>Unknown'"),
    ],
)
def test_error_names_the_package_of_an_unknown_operation(load, tmp_path: Path, operation: str, message: str) -> None:
    from model_server.status import StatusError
    from tests.saved_models import export, mistyped, rename_operation

    export(tmp_path / "1", mistyped)
    rename_operation(tmp_path / "1", "y", operation)
    with pytest.raises(StatusError) as caught:
        load(tmp_path / "1")
    assert message in str(caught.value)
    has_text = importlib.util.find_spec("tensorflow_text") is not None
    assert ("portable-model-server[text]" in str(caught.value)) == (operation.startswith("TFText") and not has_text)


TEXT: Any = importlib.util.find_spec("tensorflow_text")  # not imported: that would register its operations


@pytest.mark.skipif(TEXT is None, reason="tensorflow-text is an extra of 200 MB, which is not installed here")
def test_operations_of_tensorflow_text_are_run(models: Path, tmp_path: Path) -> None:
    import tensorflow as tf
    from tensorflow.compat import v1

    from tests.saved_models import export, signature

    def fold():
        operations = tf.load_op_library(str(Path(TEXT.origin).parent / "python/ops/_normalize_ops.so"))
        text = v1.placeholder(tf.string, [None], name="text")
        return {"serving_default": signature({"text": text}, {"folded": operations.case_fold_utf8(input=text)})}

    export(tmp_path / "fold/1", fold)
    # Here, the export has registered the operation; in the server, nobody has.
    with running(tmp_path, "--model_name=fold", f"--model_base_path={tmp_path}/fold") as server:
        response = server.post("/v1/models/fold:predict", {"instances": ["Straße"]})
    assert response.json() == {"predictions": ["strasse"]}
