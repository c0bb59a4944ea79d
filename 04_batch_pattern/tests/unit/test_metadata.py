import shutil
from pathlib import Path

import pytest

from serving_common.cards import Card, default_card
from serving_common.errors import StartupError
from src.ml.metadata import read_labels, read_metadata
from src.ml.prediction import BatchPredictor


def card_of(models: Path, file: Path | None = None) -> Card:
    return default_card(file or models / "iris_svc.onnx", read_labels(models / "label.json"))


def test_metadata_comes_from_the_manifest(models):
    metadata = read_metadata(card_of(models))
    assert metadata["name"] == "iris_svc"
    assert metadata["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["N", 4]}]
    assert metadata["labels"] == {"0": "setosa", "1": "versicolor", "2": "virginica"}
    assert metadata["weights"] == "trained"
    assert metadata["accuracy"] is not None
    assert metadata["accuracy"] > 0.95


def test_metadata_without_a_manifest_is_that_of_the_card(models, tmp_path):
    shutil.copy(models / "iris_svc.onnx", tmp_path / "mine.onnx")
    metadata = read_metadata(card_of(models, tmp_path / "mine.onnx"))
    assert (metadata["name"], metadata["accuracy"], metadata["weights"]) == ("mine", None, None)
    assert metadata["inputs"][0] == {"name": "sepal_length", "dtype": "float32", "shape": ["N"]}
    assert metadata["outputs"] == [{"name": "probabilities", "dtype": "float32", "shape": ["N", 3]}]


def test_api_and_job_report_the_same_version(models, predictor):
    assert read_metadata(card_of(models))["version"] == predictor.version


@pytest.mark.parametrize("content", [None, "[]", '{"0": "a", "2": "b"}', "not JSON"])
def test_invalid_labels_raise_startup_error(tmp_path, content):
    if content is not None:
        (tmp_path / "label.json").write_text(content)
    with pytest.raises(StartupError, match=r"label\.json"):
        read_labels(tmp_path / "label.json")


def test_labels_of_another_model_raise_startup_error(models, tmp_path):
    (tmp_path / "label.json").write_text('{"0": "yes", "1": "no"}')
    with pytest.raises(StartupError, match="no output has 2 numbers for a row"):
        BatchPredictor.load(default_card(models / "iris_svc.onnx", read_labels(tmp_path / "label.json")))


def test_missing_model_raises_startup_error(models, tmp_path):
    with pytest.raises(StartupError, match="there is no model at"):
        read_metadata(card_of(models, tmp_path / "iris_svc.onnx"))
