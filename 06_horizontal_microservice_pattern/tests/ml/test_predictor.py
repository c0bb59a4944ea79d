from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from sklearn.datasets import load_iris

from serving_common.cards import Card, Task, default_card
from src.ml.predictor import open_predictor
from tests.conftest import CLASSES


def card_of(path: Path, name: str) -> Card:
    return default_card(path, [name], Task.ONE_VS_REST)


@pytest.mark.parametrize("loop_us", [0, 10_000_000], ids=["on the thread", "on the loop"])
@pytest.mark.parametrize("name", CLASSES)
async def test_predictions_equal_the_models(models, name, loop_us):
    path = models / f"iris_svc_0_{name}.onnx"
    rows = load_iris().data[::3]
    raw = ort.InferenceSession(path).run(["probabilities"], {"input": rows.astype(np.float32)})[0]

    async with open_predictor(card_of(path, name), threads=1, loop_us=loop_us) as predictor:
        np.testing.assert_allclose(await predictor.predict(rows.tolist()), raw, atol=1e-6)


@pytest.mark.parametrize(("index", "name"), list(enumerate(CLASSES)))
async def test_first_number_is_the_probability_of_the_class(models, index, name):
    rows, labels = load_iris(return_X_y=True)

    async with open_predictor(card_of(models / f"iris_svc_0_{name}.onnx", name), threads=1) as predictor:
        first = np.array(await predictor.predict(rows.tolist()))[:, 0]

    assert first[labels == index].mean() > 0.8
    assert first[labels != index].mean() < 0.2
