"""ONNX inference: from the stored JSON of features to the JSON of probabilities to store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import orjson
from pydantic import TypeAdapter

from serving_common import iris
from serving_common.onnx import OnnxModel
from src.ml.metadata import model_version, read_labels

# Float32 has about seven significant digits; more would only take space.
DECIMALS = 8

_rows = TypeAdapter(list[iris.Row])


@dataclass(frozen=True, eq=False)
class IrisClassifier:
    """Class probabilities for any number of flowers. Thread-safe."""

    model: OnnxModel
    classes: tuple[str, ...]
    version: str

    @classmethod
    def load(cls, model_filepath: Path, label_filepath: Path) -> Self:
        """The model, warmed up.

        Raises:
            serving_common.errors.StartupError: model or labels are missing, or do not match each other.
        """
        classes = tuple(read_labels(label_filepath))
        # One thread per run: slices run in parallel.
        model = OnnxModel.load(model_filepath, input_shape=(None, 4), output_shape=(None, len(classes)), threads=1)
        return cls(model, classes, model_version(model_filepath))

    def predict(self, values: Sequence[str]) -> list[str]:
        """Predict all of these in one model run.

        Args:
            values: JSON lists of four features in cm, `[5.1, 3.5, 1.4, 0.2]`.

        Returns: JSON objects of probabilities, `{"0": 0.97, "1": 0.02, "2": 0.01}`.

        Raises:
            ValueError: one of the values is not such a list.
        """
        rows = np.array(_rows.validate_json(f"[{','.join(values)}]"), np.float32)
        probabilities = self.model.run(rows).astype(float).round(DECIMALS).tolist()
        return [orjson.dumps(dict(zip(self.classes, row, strict=True))).decode() for row in probabilities]
