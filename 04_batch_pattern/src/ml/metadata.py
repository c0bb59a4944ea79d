"""Metadata of the model: version, labels, and what its manifest says."""

import hashlib
import json
from pathlib import Path

from serving_common import iris
from serving_common.errors import StartupError
from serving_common.manifest import read_manifest_entry
from src.db.schemas import ModelMetadata


def model_version(model_filepath: Path) -> str:
    """The first 12 hexadecimal digits of the file's SHA-256.

    Raises:
        StartupError: there is no such file.
    """
    try:
        return hashlib.sha256(model_filepath.read_bytes()).hexdigest()[:12]
    except OSError as exc:
        raise StartupError(f"there is no model at {model_filepath} (build it with: python -m models.build)") from exc


def read_labels(label_filepath: Path) -> dict[str, str]:
    """Class names by index: `{"0": "setosa", …}`.

    Raises:
        StartupError: the file is missing or is not such a mapping.
    """
    try:
        labels = json.loads(label_filepath.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise StartupError(f"there are no labels at {label_filepath}: {exc}") from exc
    if not isinstance(labels, dict) or list(labels) != [str(index) for index in range(len(labels))]:
        raise StartupError(f"{label_filepath} does not map 0, 1, … to the names of the classes")
    return labels


def read_metadata(model_filepath: Path, label_filepath: Path) -> ModelMetadata:
    """The response of GET /metadata. A model without a manifest beside it, such as a user's own, has no figures.

    Raises:
        StartupError: model or labels are missing.
    """
    entry = read_manifest_entry(model_filepath)
    return {
        "name": model_filepath.stem,
        "version": model_version(model_filepath),
        "inputs": entry.inputs if entry else [],
        "outputs": entry.outputs if entry else [],
        "labels": read_labels(label_filepath),
        "weights": entry.weights if entry else None,
        "accuracy": entry.metrics.get("accuracy") if entry else None,
        "data_names": list(iris.FEATURES),
        "data_sample": iris.SAMPLE,
    }
