import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from models.artifacts import IRIS_CLASSES
from models.files import BuildError
from models.iris import build, classifier, data
from models.tests.conftest import IRIS_MODELS, ROOT, Completed, run_build

ROWS, CLASSES = data()
IrisBuild = tuple[Path, Completed]


def infer(folder: Path, name: str, rows: np.ndarray = ROWS) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    label, probabilities = session.run(["label", "probabilities"], {"input": rows})
    return [label, probabilities]


@pytest.mark.parametrize("name", IRIS_MODELS)
def test_onnx_agrees_with_scikit_learn_on_all_rows(iris_build: IrisBuild, name: str):
    one = name.removeprefix("iris_svc_0_")
    targets = CLASSES if name == "iris_svc" else np.not_equal(CLASSES, IRIS_CLASSES.index(one)).astype(int)
    label, probabilities = infer(iris_build[0], name)
    trained = classifier().fit(ROWS, targets)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, trained.predict_proba(ROWS), rtol=0, atol=1e-5)
    assert (label == trained.predict(ROWS)).all()


@pytest.mark.parametrize("name", IRIS_MODELS)
@pytest.mark.parametrize("count", [1, 7])
def test_model_accepts_any_number_of_rows(iris_build: IrisBuild, name: str, count: int):
    label, probabilities = infer(iris_build[0], name, ROWS[:count])
    assert label.shape == (count,)
    assert probabilities.shape == (count, 3 if name == "iris_svc" else 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_three_class_model_classifies_the_flowers(iris_build: IrisBuild):
    assert (infer(iris_build[0], "iris_svc")[0] == CLASSES).mean() > 0.95


def test_one_vs_rest_models_put_their_class_first(iris_build: IrisBuild):
    of_class = np.stack([infer(iris_build[0], f"iris_svc_0_{name}")[1][:, 0] for name in IRIS_CLASSES], axis=1)
    for index in range(3):
        assert of_class[index == CLASSES, index].mean() > 0.9
        assert of_class[index != CLASSES, index].mean() < 0.1
    assert (of_class.argmax(axis=1) == CLASSES).mean() > 0.95


def test_two_processes_build_the_same_bytes(iris_build: IrisBuild):
    # Those of `make test`, or built now.
    again = run_build("--only", *IRIS_MODELS)
    assert again.returncode == 0, again.stderr
    folder, artifacts = iris_build[0], ROOT / "models/artifacts"
    for name in (*(f"{name}.onnx" for name in IRIS_MODELS), "label.json"):
        assert (artifacts / name).read_bytes() == (folder / name).read_bytes()
    ours, theirs = (json.loads((path / "manifest.json").read_text())["artifacts"] for path in (folder, artifacts))
    assert ours == {name: theirs[name] for name in ("label", *IRIS_MODELS)}


@pytest.mark.parametrize("name", IRIS_MODELS)
def test_manifest_describes_the_file(iris_build: IrisBuild, name: str):
    folder, done = iris_build
    entry = json.loads((folder / "manifest.json").read_text())["artifacts"][name]
    columns = 3 if name == "iris_svc" else 2
    assert entry["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["N", 4]}]
    assert entry["outputs"] == [
        {"name": "label", "dtype": "int64", "shape": ["N"]},
        {"name": "probabilities", "dtype": "float32", "shape": ["N", columns]},
    ]
    assert entry["metrics"]["accuracy"] > 0.95
    assert f"accuracy {entry['metrics']['accuracy']:.4f}" in done.stdout
    assert {"scikit-learn", "skl2onnx", "onnx", "onnxruntime"} <= entry["libraries"].keys()
    onnx.checker.check_model(folder / entry["file"], full_check=True)


def test_labels_are_written_with_the_models(iris_build: IrisBuild):
    assert json.loads((iris_build[0] / "label.json").read_text()) == dict(zip("012", IRIS_CLASSES, strict=True))


def test_build_below_the_required_accuracy_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.iris.MIN_ACCURACY", 0.999)
    with pytest.raises(BuildError, match=r"accuracy 0\.9\d+ in cross-validation, 0.999 must be exceeded"):
        build(tmp_path / "x.onnx", None, folds=2, repeats=1, seed=0)
    assert not (tmp_path / "x.onnx").exists()


def test_build_that_deviates_from_scikit_learn_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.iris.MAX_DIFFERENCE", 0.0)
    with pytest.raises(BuildError, match="ONNX differs from scikit-learn"):
        build(tmp_path / "x.onnx", 0, folds=2, repeats=1, seed=0)
