"""Small ONNX models: those of saved_models.py that ONNX can express, and what only ONNX has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf import json_format
from onnx import TensorProto, helper

from model_server.onnx_runtime import SIGNATURES_KEY
from tfserving_protos import messages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Shape = Sequence[int | str] | None
    # Alias, tensor, type and sizes; no sizes: the signature has no shape.
    Info = tuple[str, str, int, Sequence[int] | None]

TYPES = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16, "int8": TensorProto.INT8, "int16": TensorProto.INT16,
    "int32": TensorProto.INT32, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16, "uint32": TensorProto.UINT32, "uint64": TensorProto.UINT64,
    "bool": TensorProto.BOOL, "string": TensorProto.STRING,
}  # fmt: skip
# What TensorFlow calls them.
DATA_TYPES = {
    kind: getattr(messages, f"DT_{ {'FLOAT16': 'HALF'}.get(name, name) }")
    for name, kind in ((TensorProto.DataType.Name(kind), kind) for kind in TYPES.values())
}
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


def several(folder: Path, signatures: messages.SignatureDefMap | None = None) -> None:
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
    write(folder, inputs, outputs, nodes, signatures)


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


def signature(inputs: Sequence[Info], outputs: Sequence[Info]) -> messages.SignatureDef:
    """As a SavedModel has it: names of its own for the tensors, and shapes that nobody enforces."""
    definition = messages.SignatureDef(method_name="tensorflow/serving/predict")
    for infos, given in ((definition.inputs, inputs), (definition.outputs, outputs)):
        for alias, name, kind, sizes in given:
            infos[alias].name = name
            infos[alias].dtype = kind
            if sizes is not None:
                infos[alias].tensor_shape.SetInParent()
                for size in sizes:
                    infos[alias].tensor_shape.dim.add().size = size
    return definition


def converted_half_plus(folder: Path, offset: float, sizes: Sequence[int] | None) -> None:
    """y = x / 2 + offset under three signatures, and a fourth whose output is not in the graph."""
    kind = messages.DT_FLOAT
    default = signature([("x", "x:0", kind, sizes)], [("y", "y:0", kind, sizes)])
    column = signature([("x", "x:0", kind, [-1, 1])], [("y", "y:0", kind, [-1, 1])])
    odd = signature([("x", "x:0", kind, [-1])], [("y", "next", kind, [-1])])
    odd.method_name = "something/else"
    missing = signature([("x", "x:0", kind, None)], [("z", "nowhere:0", kind, None)])
    definitions = {"serving_default": default, "column": column, "odd_method": odd, "missing": missing}
    nodes = [
        *(constant("half", 0.5), constant("offset", offset), constant("one", 1.0)),
        *(node("Mul", ["x", "half"], ["scaled"]), node("Add", ["scaled", "offset"], ["y"])),
        node("Add", ["x", "one"], ["next"]),
    ]
    signatures = messages.SignatureDefMap(signature_def=definitions)
    write(folder, [tensor("x")], [tensor("y"), tensor("next")], nodes, signatures)


def converted_mistyped(folder: Path) -> None:
    """y = x / 2 of floats under signatures that say int64, or no type at all."""
    definitions = {}
    for name, kind in (("serving_default", messages.DT_INT64), ("untyped", messages.DT_INVALID)):
        definitions[name] = signature([("x", "x:0", kind, None)], [("y", "y:0", kind, None)])
    definitions["bare"] = signature([("x", "x", messages.DT_FLOAT, None)], [("y", "y", messages.DT_FLOAT, None)])
    nodes = [constant("half", 0.5), node("Mul", ["x", "half"], ["y"])]
    write(folder, [tensor("x")], [tensor("y")], nodes, messages.SignatureDefMap(signature_def=definitions))


def converted_several(folder: Path) -> None:
    """The three named inputs of the REST documentation; two outputs have the aliases of inputs."""
    inputs = [
        ("tag", "tag:0", messages.DT_STRING, [-1]),
        ("signal", "signal:0", messages.DT_FLOAT, [-1, 5]),
        ("sensor", "sensor:0", messages.DT_INT64, [-1, 2, 2]),
    ]
    outputs = [
        ("tag", "copy", messages.DT_STRING, [-1]),
        ("total", "total", messages.DT_FLOAT, [-1]),
        ("sensor", "next", messages.DT_INT64, [-1, 2, 2]),
        ("raw_bytes", "copy", messages.DT_STRING, [-1]),
    ]
    several(folder, messages.SignatureDefMap(signature_def={"serving_default": signature(inputs, outputs)}))


def converted_text(folder: Path) -> None:
    """One string in, one string out: as text, and as bytes."""
    kind = messages.DT_STRING
    definitions = {
        "serving_default": signature([("text", "value", kind, [-1])], [("joined", "joined", kind, [-1])]),
        "raw": signature([("image_bytes", "value", kind, [-1])], [("copy_bytes", "copy", kind, [-1])]),
    }
    nodes = [
        constant("dash", "-", STRING),
        node("StringConcat", ["value", "dash"], ["first"]),
        node("StringConcat", ["first", "value"], ["joined"]),
        node("Identity", ["value"], ["copy"]),
    ]
    outputs = [tensor("joined", STRING), tensor("copy", STRING)]
    write(folder, [tensor("value", STRING)], outputs, nodes, messages.SignatureDefMap(signature_def=definitions))


def converted_identity(folder: Path, name: str, kind: TensorProto.DataType) -> None:
    """One signature, named as the type, as the SavedModel of all types has it."""
    data_type = DATA_TYPES[kind]
    definition = signature([("x", "x", data_type, None)], [("y", "y", data_type, None)])
    signatures = messages.SignatureDefMap(signature_def={name: definition})
    write(folder, [tensor("x", kind)], [tensor("y", kind)], [node("Identity", ["x"], ["y"])], signatures)


def build_converted(folder: Path) -> None:
    """The models of saved_models.py, as far as ONNX can express them: same names, signatures and answers.

    An ONNX graph needs all of its inputs at every run. So the SavedModel of all types becomes one model for each, and
    signatures on a subset of the inputs are missing; so is what parses a tf.Example.
    """
    converted_half_plus(folder / "half_plus_two/00000123", 2.0, [-1])
    converted_half_plus(folder / "half_plus_three/1", 3.0, None)
    for version in (1, 2, 3):
        converted_half_plus(folder / f"counted/{version}", version, [-1])
    converted_mistyped(folder / "mistyped/1")
    converted_several(folder / "several/1")
    converted_text(folder / "text/1")
    for name, kind in TYPES.items():
        converted_identity(folder / name / "1", name, kind)
    nodes = [constant("one", 1.0), node("Div", ["one", "x"], ["y"])]
    write(folder / "types/1", [tensor("x", FLOAT, ["N"])], [tensor("y", FLOAT, ["N"])], nodes)
    loop(folder / "slow/1", is_endless=False)
    loop(folder / "endless/1", is_endless=True)


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
