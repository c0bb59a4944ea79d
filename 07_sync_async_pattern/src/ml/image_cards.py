"""The built-in card, of ImageNet models as the ONNX Model Zoo has them; and the labels of any card."""

import json
from pathlib import Path

from serving_common.cards import Card, Image
from serving_common.errors import StartupError
from src.ml.preprocessing import ResizeMode

CLASSES = 1000
SIZE = 224
MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]


def imagenet_form(mode: ResizeMode = ResizeMode.STRETCH) -> Image:
    """How these models take an image. Source: the preprocessing of MobileNetV2 and ResNet50 in the ONNX Model Zoo."""
    return Image(size=[SIZE, SIZE], mean=MEAN, std=STD, resize=mode.value)


def imagenet_card(model: Path, labels_path: Path, mode: ResizeMode = ResizeMode.STRETCH) -> Card:
    """The card of a model that maps float32 images (N, 3, 224, 224) to scores (N, 1000).

    Args:
        model: the .onnx file.
        labels_path: a JSON list of the 1,000 labels.
        mode: how images get their size.

    Raises:
        StartupError: the labels are missing or malformed.
    """
    labels = _read_labels(labels_path, "build them with: python -m models.build", CLASSES)
    card = {"name": model.stem[:64], "file": str(model.absolute()), "task": "image-classification"}
    return Card.model_validate(card | {"output": {"labels": labels}, "image": imagenet_form(mode)})


def labels_of(card: Card) -> list[str]:
    """The labels in the card, or in the file that it names. Raises StartupError."""
    if card.output.labels or card.image is None or card.image.labels is None:
        return card.labels
    return _read_labels(card.folder / card.image.labels, "the card names this file in image.labels")


def _read_labels(path: Path, hint: str, count: int | None = None) -> list[str]:
    """A JSON list of so many names, or of any number. Raises StartupError, with the hint if there is no such file."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise StartupError(f"there are no labels at {path} ({hint})") from exc
    except ValueError as exc:
        raise StartupError(f"{path} is not JSON: {exc}") from exc
    is_list = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not is_list or count not in (None, len(labels)):
        raise StartupError(f"{path} is not a list of {'' if count is None else f'{count} '}names")
    return list(labels)
