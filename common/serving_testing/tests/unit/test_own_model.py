"""The model that stands for a user's own."""

import numpy as np
import onnxruntime as ort
import pytest

from serving_testing.own_model import value_of, write_model


@pytest.mark.parametrize("row", [[30, "north", 3100.0, True], [1, "south", None, False]])
def test_expected_value_is_that_of_the_model(tmp_path, row):
    card = write_model(tmp_path / "churn")
    session = ort.InferenceSession(card.with_name("1") / "model.onnx")
    age, region, income, is_new = row
    feeds = {
        "age": np.array([[age]], np.int64),
        "region": np.array([[region]], object),
        "income": np.array([[np.nan if income is None else income]], np.float32),
        "is_new": np.array([[is_new]]),
    }
    value, (probabilities,) = session.run(["value", "probabilities"], feeds)
    assert value.item() == pytest.approx(value_of(row), abs=1e-5)
    assert probabilities.sum() == pytest.approx(1)
