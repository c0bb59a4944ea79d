"""The model's card, and what GET /metadata tells of the model."""

import json
from pathlib import Path

from serving_common.cards import Card, check_file, default_card
from serving_common.errors import StartupError
from serving_common.manifest import Tensor, read_manifest_entry
from src.configurations import DatabaseSettings
from src.db.schemas import ModelMetadata


def read_card(settings: DatabaseSettings) -> Card:
    """The card of MODEL_CARD, or else the built-in one for the model and labels of the specified variables.

    Raises:
        StartupError: the labels are missing.
    """
    return settings.model_card or default_card(settings.model_filepath, read_labels(settings.label_filepath))


def read_labels(label_filepath: Path) -> list[str]:
    """Class names, in a file that has them by index: `{"0": "no", "1": "yes"}`.

    Raises:
        StartupError: the file is missing or is not such a mapping.
    """
    try:
        labels = json.loads(label_filepath.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise StartupError(f"there are no labels at {label_filepath}: {exc}") from exc
    if not isinstance(labels, dict) or list(labels) != [str(index) for index in range(len(labels))]:
        raise StartupError(f"{label_filepath} does not map 0, 1, … to the names of the classes")
    return list(labels.values())


def read_metadata(card: Card) -> ModelMetadata:
    """The response of GET /metadata. A model without a manifest beside it, such as a user's own, has no figures.

    Raises:
        StartupError: the model is missing, or not the one of the card.
    """
    version = card.version or check_file(card.model_file, card.sha256)[:12]
    entry = read_manifest_entry(card.model_file)
    output = Tensor(
        name=card.output.value or card.output.tensor or "probabilities",
        dtype="float32",
        shape=["N", len(card.labels)] if card.labels else ["N"],
    )
    return {
        "name": card.name,
        "version": version,
        "inputs": entry.inputs if entry else [Tensor(name=i.name, dtype=i.dtype, shape=["N"]) for i in card.inputs],
        "outputs": entry.outputs if entry else [output],
        "labels": {str(index): label for index, label in enumerate(card.labels)},
        "weights": entry.weights if entry else None,
        "accuracy": entry.metrics.get("accuracy") if entry else None,
        "data_names": card.names,
        "data_sample": card.sample_rows,
    }
