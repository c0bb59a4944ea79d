"""A small, fast, deterministic model with the inputs and outputs of the real ones, and two colours that break it."""

import io
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

HANGS = (255, 0, 0)
"""An image of this colour makes the model run for ever."""

FAILS = (0, 0, 255)
"""An image of this colour makes the model allocate more memory than there is, and raise."""


def write_model(path: Path) -> Path:
    """Scores are linear in the image's mean colour, so that different colours get different labels."""
    generator = np.random.default_rng(7)
    constants = {
        "weights": generator.standard_normal((3, 1000)).astype(np.float32),
        "bias": generator.standard_normal(1000).astype(np.float32),
        "red": np.array(0),
        "blue": np.array(2),
        # After normalisation, 255 is 2.249 in red and 2.640 in blue.
        "red_limit": np.array(2.2, np.float32),
        "blue_limit": np.array(2.6, np.float32),
        "very_often": np.array(1e14, np.float32),
        "very_much": np.array(1e17, np.float32),
        "one": np.array([1]),
        "zero": np.array(0, np.float32),
        "no_end": np.array(True),
    }
    unchanged = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("Cos", ["value"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, []),
        ],
    )
    node = helper.make_node
    nodes = [
        node("GlobalAveragePool", ["input"], ["means"]),
        node("Flatten", ["means"], ["colours"]),
        node("Gemm", ["colours", "weights", "bias"], ["scores"]),
        *_above("red", "very_often"),
        node("Loop", ["red_count", "no_end", "zero"], ["looped"], body=unchanged),
        *_above("blue", "very_much"),
        node("Add", ["blue_count", "one"], ["size"]),
        node("ConstantOfShape", ["size"], ["zeros"]),
        node("ReduceMax", ["zeros"], ["nothing"], keepdims=0),
        node("Mul", ["looped", "nothing"], ["still_nothing"]),
        node("Add", ["scores", "still_nothing"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 1000])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def _above(colour: str, factor: str) -> list[onnx.NodeProto]:
    """Nodes for `{colour}_count`: an integer, 0 unless the colour exceeds its limit in one of the images."""
    node = helper.make_node
    return [
        node("Gather", ["colours", colour], [f"{colour}s"], axis=1),
        node("ReduceMax", [f"{colour}s"], [f"{colour}_most"], keepdims=0),
        node("Sub", [f"{colour}_most", f"{colour}_limit"], [f"{colour}_excess"]),
        node("Relu", [f"{colour}_excess"], [f"{colour}_above"]),
        node("Mul", [f"{colour}_above", factor], [f"{colour}_wanted"]),
        node("Cast", [f"{colour}_wanted"], [f"{colour}_count"], to=TensorProto.INT64),
    ]


def image_of(colour: tuple[int, ...]) -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (32, 24), colour).save(file, "PNG")
    return file.getvalue()


def images(count: int) -> list[bytes]:
    """Images of different colours that the model handles."""
    colours = np.random.default_rng(count).integers(0, 200, (count, 3))
    return [image_of(tuple(int(part) for part in colour)) for colour in colours]
