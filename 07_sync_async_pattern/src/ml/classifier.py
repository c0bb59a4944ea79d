"""An image model with its class labels."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from serving_common.cards import ADD, Card, check_file
from serving_common.cards import Image as ImageForm
from serving_common.errors import InvalidInput, StartupError
from serving_common.onnx import FloatArray, OnnxModel, RunOptions
from src.ml.image_cards import labels_of
from src.ml.preprocessing import MAX_IMAGE_PIXELS, preprocess

TOP = 5


class NonFiniteScores(Exception):
    """The model's answer to an image has a number that is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """The best label, and the five most probable ones as (label, probability) in descending order."""

    label: str
    top5: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Classifier:
    """Thread-safe; a run blocks, and releases the GIL."""

    name: str
    """That of its card."""
    model: OnnxModel
    labels: list[str]
    form: ImageForm
    """What `preprocess` needs to know of the images that it takes."""

    @classmethod
    def load(cls, card: Card, *, threads: int = 1) -> Self:
        """Load the model of the card, check each against the other, run the sample.

        Args:
            card: of an image model.
            threads: number of threads of one run; 0 means all CPUs of this container.

        Raises:
            StartupError: a file is missing or malformed, or the model is not the card's; in one line.
        """
        form = card.image
        if form is None:
            raise StartupError(f"the model of {card.name} takes rows, and this service images")
        labels = labels_of(card)
        check_file(card.model_file, card.sha256)
        height, width = form.size
        shape = (3, height, width) if form.layout == "NCHW" else (height, width, 3)
        model = OnnxModel.load(
            card.model_file,
            input_shape=(None, *shape),
            output_shape=(None, len(labels)),
            output_name=card.output.tensor,
            threads=threads,
        )
        classifier = cls(card.name, model, labels, form)
        classifier._try_sample(card)
        return classifier

    def classify(self, images: FloatArray, options: RunOptions | None = None) -> list[ImagePrediction]:
        """One prediction for each preprocessed image, float32 (N, …) as `form` says. Raises NonFiniteScores."""
        outputs = self.model.run(images, options)
        if not np.isfinite(outputs).all():
            raise NonFiniteScores("The model's answer is not a finite number")
        return [self._describe(row) for row in probabilities(outputs)]

    def _describe(self, row: FloatArray) -> ImagePrediction:
        best = np.argsort(row)[: -TOP - 1 : -1]
        top5 = [(self.labels[index], float(row[index])) for index in best]
        return ImagePrediction(top5[0][0], top5)

    def _try_sample(self, card: Card) -> None:
        """Each sample's best class must be the expected one, with the expected probability."""
        if card.sample is None:
            return
        expected = card.sample.expected or [[]] * len(card.sample.rows)
        # It has the model's size already, which only stretching leaves as it is.
        form = self.form.model_copy(update={"resize": "stretch"})
        for [file], wanted in zip(card.sample.rows, expected, strict=True):
            try:
                pixels = preprocess((card.folder / file).read_bytes(), form, max_pixels=MAX_IMAGE_PIXELS)
                outputs = self.model.run(pixels[None])
            except (OSError, InvalidInput) as exc:
                raise StartupError(
                    f"the card's sample {card.folder / file} is not a usable image: {exc} ({ADD})"
                ) from exc
            if not np.isfinite(outputs).all():
                raise StartupError(f"{card.model_file} answers {file} with numbers that are not finite")
            [row] = probabilities(outputs)
            best = int(row.argmax())
            if wanted and (best != wanted[0] or abs(float(row[best]) - wanted[1]) > card.sample.tolerance):
                got = f"class {best} with {row[best]:.6f}"
                raise StartupError(f"{card.model_file} answers {file} with {got}, the card expects {wanted} ({ADD})")


def probabilities(outputs: FloatArray) -> FloatArray:
    """Softmax of each row of (N, classes); a batch that already holds probabilities is returned unchanged."""
    if (outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        return outputs
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers
