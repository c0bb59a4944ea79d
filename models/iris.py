"""The Iris classifiers: trained on scikit-learn's data set, exported to ONNX, checked against scikit-learn.

Input `input` float32 (N, 4) in cm: sepal length, sepal width, petal length, petal width. Outputs: `label` int64 (N,)
and `probabilities` float32 (N, classes).
"""

import warnings
from pathlib import Path

import numpy as np
from onnx import ModelProto
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # has no stubs

from models.files import BuildError
from models.graphs import Array, run, tensors
from models.manifest import Facts

MIN_ACCURACY = 0.95
MAX_DIFFERENCE = 1e-5
TARGET_OPSET = {"": 18, "ai.onnx.ml": 3}


def data() -> tuple[Array, Array]:
    """All 150 flowers: float32 (150, 4) in cm, as the services receive them, and their classes, 0 to 2."""
    rows, classes = load_iris(return_X_y=True)
    return rows.astype(np.float32), classes


def classifier() -> Pipeline:
    # CalibratedClassifierCV gives the SVC its probabilities; SVC(probability=True) is deprecated.
    return make_pipeline(StandardScaler(), CalibratedClassifierCV(SVC(), ensemble=False))


def build(target: Path, class_index: int | None, folds: int, repeats: int, seed: int) -> Facts:
    """Train, export and check one model.

    class_index: None for all three classes; else one class against the rest, with probabilities (N, 2) in the order
    [P(class), P(not class)].
    Raises BuildError if the cross-validated accuracy is not above 95 % or ONNX deviates from scikit-learn.
    """
    rows, classes = data()
    if class_index is not None:
        # Columns are in the order of the labels, so the class itself is 0 and everything else 1.
        classes = (classes != class_index).astype(np.int64)
    # Repeated, because one split of 150 rows varies by 1 %, as much as separates these models from the limit.
    split = RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed)
    # One thread: with 150 rows more would wait for each other, and sums would depend on the number of cores.
    with threadpool_limits(1):
        accuracy = float(cross_val_score(classifier(), rows, classes, cv=split).mean())
        trained = classifier().fit(rows, classes)
    if accuracy <= MIN_ACCURACY:
        raise BuildError(f"accuracy {accuracy:.4f} in cross-validation, {MIN_ACCURACY} must be exceeded")
    model = export(trained)
    difference = float(np.abs(run(model, rows)[1] - trained.predict_proba(rows)).max())
    if difference > MAX_DIFFERENCE:
        raise BuildError(f"ONNX differs from scikit-learn by {difference:.1e}, at most {MAX_DIFFERENCE} is allowed")
    target.write_bytes(model.SerializeToString(deterministic=True))
    return Facts(
        inputs=tensors(model.graph.input),
        outputs=tensors(model.graph.output),
        metrics={"accuracy": round(accuracy, 4), "max_difference_to_sklearn": difference},
    )


def export(trained: Pipeline) -> ModelProto:
    with warnings.catch_warnings():
        # skl2onnx reads every attribute of SVC, including probA_ and probB_, which belong to a deprecated option.
        warnings.filterwarnings("ignore", message="Attribute `prob[AB]_` was deprecated", category=FutureWarning)
        model: ModelProto = to_onnx(
            trained,
            name="iris",
            initial_types=[("input", FloatTensorType([None, 4]))],
            options={"zipmap": False},
            target_opset=TARGET_OPSET,
        )
    # skl2onnx lists these in the order of a set of strings, which differs between processes.
    opsets = sorted(model.opset_import, key=lambda opset: opset.domain)
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return model
