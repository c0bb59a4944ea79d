"""scikit-learn models in .skops files, as ONNX. The format names the types in a file, so that none runs unseen."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from skl2onnx import to_onnx as sklearn_to_onnx
from skl2onnx.common.data_types import (
    BooleanTensorType,
    FloatTensorType,
    Int64TensorType,
    StringTensorType,
)
from sklearn.base import is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from skops import io
from skops.io.exceptions import UntrustedTypesFoundException

from models.files import BuildError
from models.iris import TARGET_OPSET
from models.rows import Table

# Types of scikit-learn that hold numbers and models and no code. skops trusts only its public ones by itself.
TRUSTED = {
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.utils._bunch.Bunch",
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn._loss._loss.CyHalfBinomialLoss",
    "sklearn._loss._loss.CyHalfMultinomialLoss",
    "sklearn._loss._loss.CyHalfSquaredError",
    "sklearn._loss.link.Interval",
    "sklearn._loss.link.IdentityLink",
    "sklearn._loss.link.LogitLink",
    "sklearn._loss.link.MultinomialLogit",
    "sklearn._loss.loss.HalfBinomialLoss",
    "sklearn._loss.loss.HalfMultinomialLoss",
    "sklearn._loss.loss.HalfSquaredError",
}
CALIBRATE = "fit it in scikit-learn's CalibratedClassifierCV, or take a classifier with predict_proba"
TYPES = {"float32": FloatTensorType, "int64": Int64TensorType, "string": StringTensorType, "bool": BooleanTensorType}


def to_onnx(path: Path, trusted: Sequence[str], target: Path, table: Table | None) -> dict[str, Any]:
    """Write the model as ONNX; what scikit-learn knows of it, as the fields of models.add.Converted.

    Raises BuildError: the file is no .skops file, has types that are not trusted, or cannot be converted.
    """
    model = load(path, trusted)
    if not (is_classifier(model) or is_regressor(model)):
        raise BuildError(
            f"{path} has a {type(model).__name__}, which predicts nothing (save a classifier or regressor)"
        )
    if is_classifier(model) and not hasattr(model, "predict_proba"):
        # Its scores would be taken for probabilities: of two classes, 0.1 for the second means 0.9 for the first.
        raise BuildError(f"{path} has a {type(_last(model)).__name__}, which gives no probabilities ({CALIBRATE})")
    columns, dtypes = columns_of(model, table)
    is_matrix = len(set(dtypes)) == 1 and not _has_columns(model)
    if is_matrix:
        types = [("input", TYPES[dtypes[0]]([None, len(columns)]))]
    else:
        types = [(name, TYPES[dtype]([None, 1])) for name, dtype in zip(columns, dtypes, strict=True)]
    try:
        with warnings.catch_warnings(), _plain_integers():
            warnings.simplefilter("ignore")
            options = {"zipmap": False} if is_classifier(model) else None
            onnx_model = sklearn_to_onnx(
                model,
                name=type(model).__name__,
                initial_types=types,
                options=options,
                target_opset=TARGET_OPSET,
            )
    except Exception as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise BuildError(
            f"{path} cannot be converted to ONNX: {reason} (replace that step, or add an .onnx file)"
        ) from exc
    target.write_bytes(onnx_model.SerializeToString(deterministic=True))

    def answers(rows: list[list[Any]]) -> Any:
        table = _table(model, columns, dtypes, rows)
        return model.predict(table) if is_regressor(model) else model.predict_proba(table)

    # A model that was fitted to a data frame selects columns by name, which an array does not have.
    is_comparable = getattr(model, "feature_names_in_", None) is None
    is_comparable = is_comparable and (hasattr(model, "predict_proba") or is_regressor(model))
    return {
        "columns": columns,
        "labels": [str(label) for label in model.classes_] if is_classifier(model) else None,
        "is_regression": is_regressor(model),
        "notes": [f"{type(_last(model)).__name__} of scikit-learn, converted with skl2onnx"],
        "answers": answers if is_comparable else None,
    }


@contextmanager
def _plain_integers() -> Iterator[None]:
    """skl2onnx 1.20 writes histogram trees with booleans among the integers, which newer protobufs refuse."""
    original = onnx.helper.make_attribute

    def make_attribute(key: str, value: Any, *rest: Any, **named: Any) -> Any:
        if isinstance(value, list) and all(isinstance(each, (int, np.integer, np.bool_)) for each in value):
            value = [int(each) for each in value]
        return original(key, value, *rest, **named)

    onnx.helper.make_attribute = make_attribute
    try:
        yield
    finally:
        onnx.helper.make_attribute = original


def load(path: Path, trusted: Sequence[str]) -> Any:
    """The model, if all types in the file are trusted by skops or named in `trusted`."""
    try:
        found = set(io.get_untrusted_types(file=path))
        if unknown := sorted(found - TRUSTED - set(trusted)):
            names = " ".join(unknown)
            raise BuildError(
                f"{path} has types that skops does not trust (if you know and trust them: --trust {names})"
            )
        return io.load(path, trusted=sorted(found))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, UntrustedTypesFoundException) as exc:
        raise BuildError(f"{path} is not a usable .skops file: {exc} (save it with skops.io.dump)") from exc


def columns_of(model: Any, table: Table | None) -> tuple[list[str], list[str]]:
    """Names and dtypes of the columns that the model was fitted to."""
    transformer = _column_transformer(model)
    names = getattr(model, "feature_names_in_", None)
    if names is None:
        names = getattr(transformer, "feature_names_in_", None)
    count = len(names) if names is not None else getattr(model, "n_features_in_", None)
    if count is None:  # a text vectorizer takes no matrix
        count = 1
    if names is None:
        header = table.header if table is not None else []
        names = header[:count] if len(header) in (count, count + 1) else [f"x{i}" for i in range(count)]
    names = [str(name) for name in names]
    if transformer is None:
        return names, _dtypes(_first(model), count)
    dtypes = dict.fromkeys(range(count), "float32")
    for _, step, selected in transformer.transformers_:
        if isinstance(step, str):
            continue
        positions = _positions(selected, names)
        dtypes |= dict(zip(positions, _dtypes(step, len(positions)), strict=True))
    return names, [dtypes[i] for i in range(count)]


def _positions(selected: Any, names: list[str]) -> list[int]:
    if isinstance(selected, slice):
        return list(range(len(names)))[selected]
    several = [selected] if isinstance(selected, (str, int, np.integer)) else list(selected)
    if several and isinstance(several[0], (bool, np.bool_)):
        return [i for i, is_selected in enumerate(several) if is_selected]
    return [names.index(each) if isinstance(each, str) else int(each) for each in several]


def _dtypes(step: Any, count: int) -> list[str]:
    """The dtypes of the columns that a transformer takes: an encoder's categories have them, text is strings."""
    for each in [part for _, part in step.steps] if isinstance(step, Pipeline) else [step]:
        if hasattr(each, "categories_"):
            kinds = {"i": "int64", "u": "int64", "f": "float32", "b": "bool"}
            return [kinds.get(_kind(categories), "string") for categories in each.categories_]
        if hasattr(each, "vocabulary_") or "Vectorizer" in type(each).__name__:
            return ["string"] * count
        statistics = getattr(each, "statistics_", None)  # an imputer's
        if statistics is not None and np.asarray(statistics).dtype.kind in "OU":
            return ["string"] * count
    return ["float32"] * count


def _kind(categories: Any) -> str:
    values = np.asarray(categories)
    return str(values.dtype.kind if values.dtype.kind != "O" else np.asarray(values.tolist()).dtype.kind)


def _first(model: Any) -> Any:
    return _first(model.steps[0][1]) if isinstance(model, Pipeline) else model


def _last(model: Any) -> Any:
    return model.steps[-1][1] if isinstance(model, Pipeline) else model


def _column_transformer(model: Any) -> Any:
    first = _first(model)
    return first if isinstance(first, ColumnTransformer) else None


def _has_columns(model: Any) -> bool:
    return _column_transformer(model) is not None


def _table(model: Any, columns: list[str], dtypes: list[str], rows: list[list[Any]]) -> Any:
    """Rows in the form that the model was fitted to: columns by name need a data frame."""
    if len(columns) == 1 and "Vectorizer" in type(_first(model)).__name__:
        return [row[0] for row in rows]
    dtype = np.float64 if set(dtypes) <= {"float32"} else object
    return np.array(rows, dtype)
