"""Image models of the user's own, each with its card: size, layout, mean, std and labels may all differ."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from serving_common.cards import load
from serving_common.errors import StartupError
from src.configurations import ProxySettings, WorkerSettings
from src.ml.classifier import Classifier, NonFiniteScores
from src.ml.preprocessing import preprocess

CARD = """name = "colours"
file = "model.onnx"
task = "image-classification"

[output]
labels = ["red", "green", "blue"]

[image]
size = [192, 160]
layout = "NHWC"
mean = [0.0, 0.0, 0.0]
std = [0.5, 0.5, 0.5]
"""
OTHER = CARD.replace("[192, 160]", "[64, 64]").replace("NHWC", "NCHW").replace('"red", "green"', '"rouge", "vert"')


def write(folder: Path, card: str = CARD, shape=("N", 192, 160, 3), dtype=TensorProto.FLOAT, outputs=("scores",)):
    """The card, and a model whose scores are the means of the channels; further outputs have the same."""
    value = helper.make_tensor_value_info
    axes = [1, 2] if shape[-1] == 3 else [2, 3]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        *(helper.make_node("ReduceMean", ["float"], [name], axes=axes, keepdims=0) for name in outputs),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [value("image", dtype, shape)],
        [value(name, TensorProto.FLOAT, [shape[0], 3]) for name in outputs],
    )
    folder.mkdir(exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    (folder / "model.toml").write_text(card)
    return load(folder)


def picture(colour="blue", size=(300, 200), orientation: int = 1) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, colour).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("card", "shape", "label"),
    [(CARD, ("N", 192, 160, 3), "red"), (OTHER, (1, 3, 64, 64), "rouge")],
    ids=["NHWC, not square", "NCHW, one image per run"],
)
def test_each_model_gets_images_in_its_own_form(tmp_path, card, shape, label):
    classifier = Classifier.load(write(tmp_path, card, shape))

    pixels = [preprocess(picture(colour), classifier.form, max_pixels=10**6) for colour in ("#ff8000", "blue")]
    assert pixels[0].shape == shape[1:]
    channels = pixels[0] if shape[-1] == 3 else pixels[0].transpose(1, 2, 0)
    assert np.allclose(channels, np.array([255, 128, 0]) / 255 / 0.5, atol=1e-6)
    predictions = classifier.classify(np.stack(pixels))
    assert [each.label for each in predictions] == [label, "blue"]
    scores = np.exp([2, 256 / 255, 0])
    assert [share for _, share in predictions[0].top5] == pytest.approx(scores / scores.sum(), abs=1e-4)


@pytest.mark.parametrize("mode", ["stretch", "crop"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_image_that_is_not_square_is_upright_in_either_mode(tmp_path, mode, orientation):
    form = write(tmp_path, CARD.replace("[image]", f'[image]\nresize = "{mode}"')).image
    # Upright, 1000x20 and white in the upper part.
    size, white = {1: ((1000, 20), (0, 0, 1000, 8)), 6: ((20, 1000), (0, 0, 8, 1000))}[orientation]
    stored = Image.new("RGB", size, "red")
    stored.paste("white", white)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(buffer, "PNG", exif=exif)

    pixels = preprocess(buffer.getvalue(), form, max_pixels=10**6)

    assert pixels.shape == (192, 160, 3)
    assert pixels[10, 80, 1] == pytest.approx(2, abs=0.02)
    assert pixels[-10, 80, 1] == pytest.approx(0, abs=0.02)


def sample_card(probability: float) -> str:
    return f'{CARD}\n[sample]\nrows = [["sample.png"]]\nexpected = [[2, {probability}]]\ntolerance = 0.001\n'


def test_sample_is_tried_at_the_start(tmp_path):
    (tmp_path / "sample.png").write_bytes(picture(size=(160, 192)))
    Classifier.load(write(tmp_path, sample_card(np.exp(2) / (np.exp(2) + 2))))

    with pytest.raises(
        StartupError, match=r"answers sample.png with class 2 with 0.786986, the card expects \[2.0, 0.5"
    ):
        Classifier.load(write(tmp_path, sample_card(0.5)))


def test_labels_may_be_a_file_beside_the_card(tmp_path):
    card = CARD.replace('[output]\nlabels = ["red", "green", "blue"]', "[output]").replace(
        "[image]", '[image]\nlabels = "names.json"'
    )
    (tmp_path / "names.json").write_text(json.dumps(["r", "g", "b"]))

    assert Classifier.load(write(tmp_path, card)).labels == ["r", "g", "b"]

    (tmp_path / "names.json").write_text('["r", 1, "b"]')
    with pytest.raises(StartupError, match=r"names.json is not a list of names$"):
        Classifier.load(write(tmp_path, card))
    (tmp_path / "names.json").unlink()
    with pytest.raises(StartupError, match=r"no labels at .*names.json \(the card names this file in image.labels\)"):
        Classifier.load(write(tmp_path, card))


def test_answer_that_is_not_finite_is_an_error(tmp_path):
    classifier = Classifier.load(write(tmp_path))

    with pytest.raises(NonFiniteScores):
        classifier.classify(np.full((1, 192, 160, 3), np.nan, np.float32))


@pytest.mark.parametrize(
    ("old", "new", "model", "reason"),
    [
        ('"model.onnx"', f'"model.onnx"\nsha256 = "{"0" * 64}"', {}, "the card says 000000000000…"),
        ("[192, 160]", "[160, 192]", {}, "wrong input: wanted one tensor(float)[N, 160, 192, 3]"),
        ('"NHWC"', '"NCHW"', {}, "wrong input: wanted one tensor(float)[N, 3, 192, 160]"),
        ('"green", ', "", {}, "wrong output: wanted one tensor(float)[N, 2]"),
        ("[output]", '[output]\ntensor = "logits"', {}, "wrong output"),
        ("", "", {"dtype": TensorProto.UINT8}, "wrong input"),
        ("", "", {"outputs": ("a", "b")}, "several outputs that fit, a, b: the card must name one as output.tensor"),
        (
            "mean =",
            "median =",
            {},
            "line 8: image.mean: Field required; line 11: image.median: Extra inputs are not permitted",
        ),
    ],
    ids=["hash", "size", "layout", "missing label", "name", "dtype", "two outputs", "faulty card"],
)
def test_card_of_another_model_is_refused_in_one_line(tmp_path, old, new, model, reason):
    with pytest.raises(StartupError) as refusal:
        Classifier.load(write(tmp_path, CARD.replace(old, new, 1) if old else CARD, **model))

    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_settings_take_the_cards_and_otherwise_the_specified_variables(tmp_path):
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps([str(number) for number in range(1000)]))
    own = write(tmp_path / "own")
    fast = ProxySettings(labels_path=labels, sync_model_card=own.folder)
    better = WorkerSettings(labels_path=labels, resize_mode="crop", model_precision="int8")

    assert (fast.sync_card.name, fast.async_card.model_file) == ("colours", Path("/models/resnet50.onnx"))
    assert better.async_card.model_file == Path("/models/resnet50_int8.onnx")
    assert better.async_card.image
    assert (better.async_card.image.size, better.async_card.image.resize) == ([224, 224], "crop")


def test_hash_of_the_card_is_that_of_the_model(tmp_path):
    write(tmp_path)
    digest = hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest()

    assert Classifier.load(write(tmp_path, CARD.replace('"model.onnx"', f'"model.onnx"\nsha256 = "{digest}"'))).labels
