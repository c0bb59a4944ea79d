"""The vision models in 8-bit integers: a quarter of the size, up to three times as fast, nearly the same labels.

Static quantisation: the range of each activation comes from calibration images run through the float32 model.
Source: ONNX Runtime's documentation, "Quantize ONNX models".
"""

import logging
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from PIL import Image

from models.files import BuildError
from models.graphs import Array, run, tensors
from models.imagenet import PIXELS
from models.manifest import Facts

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
AMONG = 5


def quantize(source: Path, target: Path, *, images: int, seed: int) -> Facts:
    """Write the float32 model at `source` with int8 weights and uint8 activations; inputs and outputs stay float32.

    Metrics, over as many other crops of the photographs: the share with the same label (`agreement`), the share whose
    float32 label is among int8's best five (`agreement_among_5`), and by how much the scores before softmax differ on
    average (`mean_absolute_difference`). They say how closely int8 follows float32, not how well either recognises.

    Raises:
        BuildError: `source` does not exist.
    """
    if not source.is_file():
        raise BuildError(f"{source} does not exist")
    logging.getLogger().setLevel(logging.ERROR)  # it recommends a step that is taken below
    with tempfile.TemporaryDirectory() as folder:
        # Fuse batch normalisation into the convolutions, so that it is quantised as well.
        fused = Path(folder) / "fused.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(fused)
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        quantize_static(
            fused,
            target,
            Calibration(images, seed),
            per_channel=True,
            # Seven bits per weight: with eight, products overflow on processors without VNNI instructions.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            # Signed activations, the default, are nearly as slow as float32 on x86.
            activation_type=QuantType.QUInt8,
        )
    exact, quantised = onnx.load(source), onnx.load(target)
    unseen = np.concatenate(list(views(images, seed + 1)))
    wanted, scores = run(exact, unseen)[0], run(quantised, unseen)[0]
    best, ranking = wanted.argmax(axis=1), np.argsort(scores, axis=1)[:, ::-1]
    return Facts(
        inputs=tensors(quantised.graph.input),
        outputs=tensors(quantised.graph.output),
        metrics={
            "agreement": float((ranking[:, 0] == best).mean()),
            "agreement_among_5": float((ranking[:, :AMONG] == best[:, None]).any(axis=1).mean()),
            "mean_absolute_difference": float(np.abs(scores - wanted).mean()),
        },
    )


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds images to the calibration."""

    def __init__(self, count: int, seed: int) -> None:
        self._views = views(count, seed)

    def get_next(self) -> dict[str, Array] | None:
        """One image under the input's name; None after the last."""
        image = next(self._views, None)
        return None if image is None else {"input": image}


def views(count: int, seed: int) -> Iterator[Array]:
    """Crops of scikit-learn's two photographs, some mirrored, darker or brighter; each float32 (1, 3, 224, 224)."""
    generator = np.random.default_rng(seed)
    folder = files("sklearn") / "datasets/images"
    photographs = [Image.open(Path(str(folder / name))).convert("RGB") for name in PHOTOGRAPHS]
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        side = int(generator.integers(PIXELS[1], min(photograph.size), endpoint=True))
        left, top = (int(generator.integers(0, whole - side, endpoint=True)) for whole in photograph.size)
        detail = photograph.crop((left, top, left + side, top + side)).resize(PIXELS[1:])
        values = np.asarray(detail) / 255 * generator.uniform(0.6, 1.3)
        if generator.random() < 0.5:
            values = values[:, ::-1]
        yield ((values.clip(0, 1) - MEAN) / STD).transpose(2, 0, 1)[np.newaxis].astype(np.float32)
