"""A model of strings, numbers and booleans with its card, as a user might bring it: for tests of any pattern."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

CARD = """name = "churn"
file = "1/model.onnx"
task = "classification"

[[inputs]]
name = "age"
dtype = "int64"
min = 0

[[inputs]]
name = "region"
dtype = "string"
values = ["north", "south"]

[[inputs]]
name = "income"
unit = "EUR"
nullable = true

[[inputs]]
name = "is_new"
dtype = "bool"

[output]
tensor = "probabilities"
labels = ["stay", "churn"]

[sample]
rows = [[30, "north", 3100.0, true], [1, "south", nan, false]]
"""

REGRESSION = CARD.replace('"classification"', '"regression"').replace(
    'tensor = "probabilities"\nlabels = ["stay", "churn"]', 'tensor = "value"\nvalue = "price"\nunit = "EUR"'
)


def write_model(folder: Path, card: str = CARD) -> Path:
    """Store model and card as models.add does; returns the card's path."""
    types = {
        "income": TensorProto.FLOAT,
        "age": TensorProto.INT64,
        "is_new": TensorProto.BOOL,
        "region": TensorProto.STRING,
    }
    codes: dict[str, Any] = {"keys_strings": ["north", "south"], "values_floats": [1.0, 2.0], "default_float": 0.0}
    nodes = [
        helper.make_node("LabelEncoder", ["region"], ["code"], domain="ai.onnx.ml", **codes),
        helper.make_node("IsNaN", ["income"], ["is_missing"]),
        helper.make_node("Cast", ["is_missing"], ["missing"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["is_new"], ["new"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["age"], ["years"], to=TensorProto.FLOAT),
        helper.make_node("Log", ["years"], ["log"]),
        helper.make_node("Sum", ["code", "missing", "new", "log"], ["value"]),
        helper.make_node("Neg", ["value"], ["opposite"]),
        helper.make_node("Sigmoid", ["value"], ["yes"]),
        helper.make_node("Sigmoid", ["opposite"], ["no"]),
        helper.make_node("Concat", ["no", "yes"], ["probabilities"], axis=1),
    ]
    (folder / "1").mkdir(parents=True, exist_ok=True)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "churn",
        [info(name, dtype, ["N", 1]) for name, dtype in types.items()],
        [info("value", TensorProto.FLOAT, ["N", 1]), info("probabilities", TensorProto.FLOAT, ["N", 2])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "1/model.onnx")
    (folder / "model.toml").write_text(card)
    return folder / "model.toml"


def value_of(row: list[object]) -> float:
    """What the model computes of a row; infinite at the age 0."""
    age, region, income, is_new = row
    with np.errstate(divide="ignore"):
        return float({"north": 1, "south": 2}[str(region)] + (income is None) + bool(is_new) + np.log(float(str(age))))
