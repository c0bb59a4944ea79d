import io
import json

import numpy as np
import onnxruntime
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from serving_common.errors import StartupError
from src.ml.classifier import Classifier, probabilities
from src.ml.image_cards import imagenet_card, imagenet_form
from src.ml.preprocessing import ResizeMode, preprocess
from src.ml.weights import weights_of
from tests.conftest import MODEL_ZOO, ROOT

LABELS = json.loads((ROOT / "models/imagenet_labels.json").read_text())


@pytest.fixture(scope="module")
def classifier(models) -> Classifier:
    return Classifier.load(imagenet_card(models / "mobilenet_v2.onnx", models / "imagenet_labels.json"))


@pytest.fixture
def pretrained(models) -> None:
    if weights_of(models / "mobilenet_v2.onnx") != "pretrained":
        pytest.skip("the weights are random: neither a model zoo (MODEL_ZOO) nor a download was available")


def best(classifier: Classifier, image: bytes, mode: ResizeMode = ResizeMode.STRETCH) -> tuple[str, float]:
    pixels = preprocess(image, imagenet_form(mode), max_pixels=50_000_000)
    [prediction] = classifier.classify(pixels[None])
    return prediction.top5[0]


def check_against_raw_onnxruntime(classifier: Classifier, path, photo: bytes) -> None:
    images = [photo, *(rotated(photo, degrees) for degrees in (90, 180))]
    pixels = np.stack([preprocess(image, imagenet_form(ResizeMode.STRETCH), max_pixels=10**8) for image in images])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for prediction, one in zip(classifier.classify(pixels), pixels, strict=True):
        scores = session.run(None, {"input": one[None]})[0][0].astype(np.float64)
        expected = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        order = np.argsort(-expected)[:5]
        assert [label for label, _ in prediction.top5] == [LABELS[index] for index in order]
        assert [p for _, p in prediction.top5] == pytest.approx(expected[order], abs=1e-5)
        assert prediction.label == LABELS[order[0]]


def rotated(photo: bytes, degrees: int) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo)).rotate(degrees, expand=True).save(buffer, "PNG")
    return buffer.getvalue()


def test_mobilenet_v2_equals_raw_onnxruntime(classifier, models, photo):
    check_against_raw_onnxruntime(classifier, models / "mobilenet_v2.onnx", photo)


def test_resnet50_equals_raw_onnxruntime(models, photo):
    path = ROOT / "models/artifacts/resnet50.onnx"
    if not path.exists():
        pytest.skip("ResNet50 has not been built: python -m models.build --only resnet50")
    check_against_raw_onnxruntime(
        Classifier.load(imagenet_card(path, models / "imagenet_labels.json"), threads=0), path, photo
    )


@pytest.mark.usefixtures("pretrained")
@pytest.mark.parametrize("mode", ResizeMode)
def test_pretrained_model_recognises_palace(classifier, photo, mode):
    label, _ = best(classifier, photo, mode)

    assert label in {"palace", "castle", "monastery"}


@pytest.mark.usefixtures("pretrained")
@pytest.mark.parametrize(("mode", "probability"), [(ResizeMode.STRETCH, 0.50), (ResizeMode.CROP, 0.92)])
def test_pretrained_model_recognises_persian_cat(classifier, mode, probability):
    cat = MODEL_ZOO / "cat.jpg"
    if not cat.exists():
        pytest.skip(f"there is no {cat} (set MODEL_ZOO)")

    label, actual = best(classifier, cat.read_bytes(), mode)
    assert label == "Persian cat"
    assert actual == pytest.approx(probability, abs=0.01)


@pytest.mark.usefixtures("pretrained")
def test_int8_model_recognises_the_same_images(int8_model, models, photo):
    quantised = Classifier.load(imagenet_card(int8_model, models / "imagenet_labels.json"))

    assert weights_of(int8_model) == "pretrained"
    assert best(quantised, photo)[0] in {"palace", "castle", "monastery"}
    if (cat := MODEL_ZOO / "cat.jpg").exists():
        label, probability = best(quantised, cat.read_bytes(), ResizeMode.CROP)
        assert label == "Persian cat"
        assert probability == pytest.approx(0.92, abs=0.1)


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 50)), elements=st.floats(-1e4, 1e4, width=32)))
def test_softmax_is_a_distribution_with_the_same_argmax(scores):
    assume(
        (scores < 0).any() or not np.allclose(scores.sum(axis=1), 1, atol=1e-3)
    )  # a distribution is returned unchanged
    shares = probabilities(scores)

    assert shares.sum(axis=1) == pytest.approx(np.ones(len(scores)), abs=1e-5)
    for row, share in zip(scores, shares, strict=True):
        assert share[row.argmax()] == share.max()


def test_probabilities_are_returned_unchanged():
    shares = np.array([[0.1, 0.7, 0.2], [1, 0, 0]], np.float32)

    assert np.array_equal(probabilities(shares), shares)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "there are no labels at", id="missing"),
        pytest.param("tench", "is not JSON", id="not JSON"),
        pytest.param('["tench"]', "is not a list of 1000 names", id="too few"),
        pytest.param('{"0": "tench"}', "is not a list of 1000 names", id="no list"),
        pytest.param(json.dumps(list(range(1000))), "is not a list of 1000 names", id="no names"),
    ],
)
def test_invalid_labels_raise_startup_error(models, tmp_path, content, reason):
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StartupError, match=reason):
        Classifier.load(imagenet_card(models / "mobilenet_v2.onnx", path))


@pytest.mark.parametrize(
    ("manifest", "weights"),
    [
        (None, "unknown"),
        ("{", "unknown"),
        ('{"artifacts": []}', "unknown"),
        ('{"artifacts": {"m": {"file": "other.onnx", "weights": "random"}}}', "unknown"),
        ('{"artifacts": {"m": {"file": "m.onnx", "weights": "random"}}}', "random"),
        ('{"artifacts": {"m": {"file": "m.onnx", "weights": "pretrained"}}}', "pretrained"),
        ('{"artifacts": {"m": {"file": "m.onnx", "weights": "local"}}}', "pretrained"),
    ],
)
def test_weights_are_read_from_manifest(tmp_path, manifest, weights):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)

    assert weights_of(tmp_path / "m.onnx") == weights
