"""Small ONNX models: those of saved_models.py that ONNX can express, and what only ONNX has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf import json_format
from onnx import TensorProto, helper

from model_server.onnx_runtime import SIGNATURES_KEY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tfserving_protos import messages

    Shape = Sequence[int | str] | None

TYPES = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16, "int8": TensorProto.INT8, "int16": TensorProto.INT16,
    "int32": TensorProto.INT32, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16, "uint32": TensorProto.UINT32, "uint64": TensorProto.UINT64,
    "bool": TensorProto.BOOL, "string": TensorProto.STRING,
}  # fmt: skip
FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING

node = helper.make_node


def tensor(name: str, kind: int = FLOAT, shape: Shape = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, value: Any, kind: int = FLOAT) -> onnx.NodeProto:
    shape = [len(value)] if isinstance(value, list) else []
    values = value if isinstance(value, list) else [value]
    return node("Constant", [], [name], value=helper.make_tensor(name, kind, shape, values))


def write(
    folder: Path,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    nodes: list[onnx.NodeProto],
    signatures: messages.SignatureDefMap | None = None,
) -> None:
    """A version's folder with model.onnx."""
    model = helper.make_model(
        helper.make_graph(nodes, "model", inputs, outputs),
        ir_version=9,
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)],
    )
    if signatures is not None:
        document = json_format.MessageToDict(signatures, preserving_proto_field_name=True)
        helper.set_model_props(model, {SIGNATURES_KEY: json.dumps(document)})
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def half_plus(folder: Path, offset: float, shape: Shape = None) -> None:
    """y = x / 2 + offset, for any shape."""
    nodes = [
        *(constant("half", 0.5), constant("offset", offset)),
        *(node("Mul", ["x", "half"], ["scaled"]), node("Add", ["scaled", "offset"], ["y"])),
    ]
    write(folder, [tensor("x", shape=shape)], [tensor("y", shape=shape)], nodes)


def several(folder: Path) -> None:
    """Three named inputs of different types."""
    nodes = [
        node("Identity", ["tag"], ["copy"]),
        constant("axis", [1], INT64),
        node("ReduceSum", ["signal", "axis"], ["total"], keepdims=0),
        constant("one", 1, INT64),
        node("Add", ["sensor", "one"], ["next"]),
    ]
    inputs = [tensor("tag", STRING, ["N"]), tensor("signal", FLOAT, ["N", 5]), tensor("sensor", INT64, ["N", 2, 2])]
    outputs = [tensor("copy", STRING, ["N"]), tensor("total", FLOAT, ["N"]), tensor("next", INT64, ["N", 2, 2])]
    write(folder, inputs, outputs, nodes)


def identity(folder: Path, kind: int) -> None:
    write(folder, [tensor("x", kind)], [tensor("y", kind)], [node("Identity", ["x"], ["y"])])


def loop(folder: Path, *, is_endless: bool) -> None:
    """n multiplications of a matrix; or, whatever n is, without an end."""
    square = [[0.01] * 100] * 100
    body = helper.make_graph(
        [node("MatMul", ["before", "square"], ["after"]), node("Identity", ["goes_on"], ["continues"])],
        "body",
        [tensor("i", INT64, []), tensor("goes_on", TensorProto.BOOL, []), tensor("before", FLOAT, [100, 100])],
        [tensor("continues", TensorProto.BOOL, []), tensor("after", FLOAT, [100, 100])],
        [helper.make_tensor("square", FLOAT, [100, 100], [cell for row in square for cell in row])],
    )
    nodes = [
        node("Constant", [], ["start"], value=helper.make_tensor("s", FLOAT, [100, 100], [1.0] * 10_000)),
        constant("go", True, TensorProto.BOOL),
        node("Loop", ["" if is_endless else "n", "go", "start"], ["end"], body=body),
        node("ReduceSum", ["end"], ["sum"], keepdims=0),
        # So that n is used in both.
        *(node("Cast", ["n"], ["as_float"], to=FLOAT), constant("zero", 0.0)),
        *(node("Mul", ["as_float", "zero"], ["nothing"]), node("Add", ["sum", "nothing"], ["done"])),
    ]
    write(folder, [tensor("n", INT64, [])], [tensor("done", FLOAT, [])], nodes)


def zip_map(folder: Path, keys: str) -> None:
    """As scikit-learn's classifiers are exported by default: the row's scores as a map from the class."""
    labels: dict[str, Any] = (
        {"classlabels_strings": ["low", "high"]} if keys == "strings" else {"classlabels_int64s": [7, 3]}
    )
    kind = STRING if keys == "strings" else INT64
    maps = helper.make_value_info(
        "scores",
        helper.make_sequence_type_proto(helper.make_map_type_proto(kind, helper.make_tensor_type_proto(FLOAT, None))),
    )
    nodes = [node("ZipMap", ["x"], ["scores"], domain="ai.onnx.ml", **labels)]
    write(folder, [tensor("x", FLOAT, ["N", 2])], [maps], nodes)


def sequence(folder: Path) -> None:
    """x and its double, as one sequence."""
    nodes = [node("Add", ["x", "x"], ["double"]), node("SequenceConstruct", ["x", "double"], ["both"])]
    both = helper.make_value_info("both", helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, ["N"])))
    write(folder, [tensor("x", FLOAT, ["N"])], [both], nodes)


def build_all(folder: Path) -> None:
    """Every model below `folder`, by name and version."""
    half_plus(folder / "half_plus_two/00000123", 2.0, ["N"])
    half_plus(folder / "half_plus_three/1", 3.0)
    for version in (1, 2, 3):
        half_plus(folder / f"counted/{version}", version)
    several(folder / "several/1")
    for name, kind in TYPES.items():
        identity(folder / name / "1", kind)
    loop(folder / "slow/1", is_endless=False)
    loop(folder / "endless/1", is_endless=True)
    zip_map(folder / "zip_map/1", "strings")
    zip_map(folder / "zip_map_of_numbers/1", "int64s")
    sequence(folder / "sequence/1")
    half_plus(folder / "one_row/1", 2.0, [1, 3])
