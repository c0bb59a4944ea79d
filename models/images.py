"""The cards of image classifiers, for models.add."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from models.card import Description
from models.files import BuildError
from serving_common.cards import Task, Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SAMPLE, LABELS = "sample.png", "labels.json"
MANY_LABELS = 20
FLOATS = ("float", "double")
# ImageNet's, the usual ones.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Processors round the sums of a convolution differently.
TOLERANCE = 1e-3


def describe_image(
    options: argparse.Namespace, name: str, session: Any, folder: Path, inputs: list[Tensor], outputs: list[Tensor]
) -> Description:
    """What a card of an image classifier says; writes its sample, and its labels if they are many, into the folder."""
    [tensor] = inputs if len(inputs) == 1 else [None]
    if tensor is None or 3 not in (tensor.shape[1], tensor.shape[3]):
        raise BuildError(f"the inputs {', '.join(map(str, inputs))} are not one RGB image (export it with one)")
    if tensor.dtype != "float":
        raise BuildError(f"the input {tensor} does not take float32 (add a Cast to the model)")
    is_nchw = tensor.shape[1] == 3
    size = [side for side in (tensor.shape[2:] if is_nchw else tensor.shape[1:3]) if side is not None]
    if len(size) < 2:
        raise BuildError(f"the size of {tensor} is not in the model (export it with fixed height and width)")
    fitting = [each for each in outputs if each.name == options.output_tensor or options.output_tensor is None]
    fitting = [each for each in fitting if each.dtype == "float" and len(each.shape) == 2]
    if len(fitting) != 1:
        raise BuildError(f"one of the outputs {', '.join(map(str, outputs))} must be chosen (with --output-tensor)")
    unknown, width, labels = [], fitting[0].shape[1], options.labels
    if options.mean is None or options.std is None:
        unknown.append("mean and std of the channels: ImageNet's are assumed (give them with --mean and --std)")
    if labels is None:
        if width is None:
            raise BuildError(f"the number of classes is not in {fitting[0]} (give them with --labels)")
        labels = [str(number) for number in range(width)]
        unknown.append("the labels of the classes (give them with --labels)")
    if width not in (None, len(labels)):
        raise BuildError(
            f"the model has {width} classes, but {len(labels)} labels are given (give them all with --labels)"
        )
    form = {
        "size": size,
        "layout": "NCHW" if is_nchw else "NHWC",
        "mean": options.mean or MEAN,
        "std": options.std or STD,
        "resize": options.resize,
    }
    if options.sample is None:
        unknown.append("a photograph: the sample is a ramp of colours (give one with --sample photo.jpg)")
    picture = sample_of(options.sample, size)
    picture.save(folder / SAMPLE)
    best, probability = answer_of(session, fitting[0], tensor, picture, form)
    if len(labels) > MANY_LABELS:
        (folder / LABELS).write_text(json.dumps(labels, ensure_ascii=False, indent=0), encoding="utf-8")
        form["labels"] = LABELS
    return Description(
        name=name,
        task=Task.IMAGE_CLASSIFICATION.value,
        columns=[],
        output_tensor=fitting[0].name,
        labels=labels,
        value=None,
        unit=None,
        rows=[[SAMPLE]],
        notes=[f"the sample is {labels[best]!r} with the probability {probability:.4f}"],
        unknown=unknown,
        expected=[[best, probability]],
        tolerance=TOLERANCE,
        image=form,
    )


def sample_of(path: Path | None, size: list[int]) -> Image.Image:
    """The photograph in the model's size, so that only normalising is left to do; a ramp of colours without one."""
    height, width = size
    if path is None:
        rows, columns = np.mgrid[0:height, 0:width]
        ramp = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 255 // (height + width)], 2)
        return Image.fromarray(ramp.astype(np.uint8))
    try:
        return Image.open(path).convert("RGB").resize((width, height))
    except (UnidentifiedImageError, Image.DecompressionBombError) as exc:
        raise BuildError(f"{path} is not a usable image: {exc} (give a JPEG or PNG file)") from exc


def answer_of(
    session: Any, output: Tensor, tensor: Tensor, picture: Image.Image, form: dict[str, Any]
) -> tuple[int, float]:
    """The best class of the picture and its probability, as pattern 07 computes them."""
    values = ((np.asarray(picture) / 255 - form["mean"]) / form["std"]).astype(np.float32)
    if form["layout"] == "NCHW":
        values = values.transpose(2, 0, 1)
    try:
        [[scores]] = session.run([output.name], {tensor.name: np.ascontiguousarray(values[None])})
    except Exception as exc:
        reason = str(exc).splitlines()[0]
        raise BuildError(f"the model cannot be run on the sample: {reason} (export it again)") from exc
    if not np.isfinite(scores).all():
        raise BuildError("the model answers the sample with numbers that are not finite (export it again)")
    if (scores < 0).any() or abs(scores.sum() - 1) > 1e-3:
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
    best = int(scores.argmax())
    return best, float(scores[best])
