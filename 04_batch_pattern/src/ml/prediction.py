"""The model, from stored JSON to the JSON to store."""

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

# Float32 has about seven digits; more would only be stored.
DECIMALS = 8

_rows = TypeAdapter(list[iris.Row])


@dataclass(frozen=True, eq=False)
class IrisClassifier:
    """Probabilities of the classes, for as many flowers as there are; may be used by several threads at once."""

    model: OnnxModel
    classes: tuple[str, ...]
    version: str

    @classmethod
    def load(cls, model_filepath: Path, label_filepath: Path) -> Self:
        """The model, warm.

        Raises:
            serving_common.errors.StartupError: model or labels are missing, or do not fit together.
        """
        classes = tuple(read_labels(label_filepath))
        # One thread each: the parallelism is in the slices.
        model = OnnxModel.load(model_filepath, input_shape=(None, 4), output_shape=(None, len(classes)), threads=1)
        return cls(model, classes, model_version(model_filepath))

    def predict(self, values: Sequence[str]) -> list[str]:
        """One model run for all of these.

        Args:
            values: JSON lists of four features in cm, `[5.1, 3.5, 1.4, 0.2]`.

        Returns: JSON objects of probabilities, `{"0": 0.97, "1": 0.02, "2": 0.01}`.

        Raises:
            ValueError: one of the values is something else.
        """
        rows = np.array(_rows.validate_json(f"[{','.join(values)}]"), np.float32)
        probabilities = self.model.run(rows).astype(float).round(DECIMALS).tolist()
        return [orjson.dumps(dict(zip(self.classes, row, strict=True))).decode() for row in probabilities]
