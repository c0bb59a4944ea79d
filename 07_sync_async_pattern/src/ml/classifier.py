"""An ImageNet model with its class labels."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from serving_common.errors import StartupError
from serving_common.onnx import FloatArray, OnnxModel

CLASSES = 1000
TOP = 5


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """The best label, and the five most probable ones as (label, probability) in descending order."""

    label: str
    top5: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Classifier:
    """Thread-safe; a run blocks, and releases the GIL."""

    model: OnnxModel
    labels: list[str]

    @classmethod
    def load(cls, model_path: Path, labels_path: Path, *, threads: int = 1) -> Self:
        """Load and warm up a model that maps float32 images (N, 3, 224, 224) to scores (N, 1000).

        Args:
            model_path: the .onnx file.
            labels_path: a JSON list of the 1,000 labels.
            threads: number of threads of one run; 0 means all CPUs of this container.

        Raises:
            StartupError: a file is missing or malformed, or the model has other inputs or outputs.
        """
        labels = _read_labels(labels_path)
        model = OnnxModel.load(
            model_path, input_shape=(None, 3, 224, 224), output_shape=(None, CLASSES), threads=threads
        )
        return cls(model, labels)

    def classify(self, images: FloatArray) -> list[ImagePrediction]:
        """One prediction for each preprocessed image in float32 (N, 3, 224, 224)."""
        return [self._describe(row) for row in probabilities(self.model.run(images))]

    def _describe(self, row: FloatArray) -> ImagePrediction:
        best = np.argsort(row)[: -TOP - 1 : -1]
        top5 = [(self.labels[index], float(row[index])) for index in best]
        return ImagePrediction(top5[0][0], top5)


def probabilities(outputs: FloatArray) -> FloatArray:
    """Softmax of each row of (N, classes); a batch that already holds probabilities is returned unchanged."""
    if (outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        return outputs
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def _read_labels(path: Path) -> list[str]:
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise StartupError(f"there are no labels at {path} (build them with: python -m models.build)") from exc
    except ValueError as exc:
        raise StartupError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(labels, list) or len(labels) != CLASSES or not all(isinstance(label, str) for label in labels):
        raise StartupError(f"{path} is not a list of {CLASSES} names")
    return labels
