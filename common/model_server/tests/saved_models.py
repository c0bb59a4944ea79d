"""Small SavedModels: y = x / 2 + 2, several inputs, strings, every type, a slow one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.compat import v1

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DTYPES = [
    tf.float32, tf.float64, tf.float16, tf.bfloat16, tf.int8, tf.int16, tf.int32, tf.int64,
    tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.bool, tf.string, tf.complex64, tf.complex128,
]  # fmt: skip


Signatures = dict[str, Any]


def export(path: Path, build: Callable[[], Signatures]) -> None:
    """Write a SavedModel: `build` fills a graph and returns its signatures."""
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        signatures = build()
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


def signature(inputs: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor], method: str = "tensorflow/serving/predict"):
    info = v1.saved_model.build_tensor_info
    return v1.saved_model.build_signature_def(
        {name: info(tensor) for name, tensor in inputs.items()},
        {name: info(tensor) for name, tensor in outputs.items()},
        method,
    )


def half_plus(offset: float) -> Callable[[], Signatures]:
    """y = x / 2 + offset, also as regression and classification on the feature x of examples."""

    def build() -> Signatures:
        scale = v1.get_variable("scale", initializer=0.5)
        x = v1.placeholder(tf.float32, [None], name="x")
        examples = v1.placeholder(tf.string, [None], name="examples")
        parsed = v1.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        y = parsed["x"] * scale + offset
        classes = tf.tile(tf.constant([["low", "high"]]), [tf.shape(y)[0], 1])
        scores = tf.concat([y, y + 1], axis=1)
        regress, classify = "tensorflow/serving/regress", "tensorflow/serving/classify"
        more = v1.placeholder(tf.string, [None], name="more_examples")
        of_more = v1.parse_example(more, {"x": tf.io.FixedLenFeature([], tf.float32)})
        return {
            "serving_default": signature({"x": x}, {"y": x * scale + offset}),
            regress: signature({"inputs": examples}, {"outputs": y}, regress),
            "classify": signature({"inputs": examples}, {"classes": classes, "scores": scores}, classify),
            "scores_only": signature({"inputs": examples}, {"scores": scores}, classify),
            "odd_method": signature({"x": x}, {"y": x + 1}, "something/else"),
            # In TensorFlow Serving's documentation, the x of half_plus_two has the shape [-1, 1].
            "column": signature({"x": parsed["x"]}, {"y": y}),
            # In models that TensorFlow 2 saved, every signature has the method_name predict.
            "tf2_classify": signature({"inputs": examples}, {"classes": classes, "scores": scores}),
            "tf2_regress": signature({"inputs": more}, {"outputs": of_more["x"] * scale + offset}),
        }

    return build


def half_plus_three() -> Signatures:
    """As TensorFlow Serving's own test model of this name: the TensorInfo of its signature has no shape at all."""
    x = v1.placeholder(tf.float32, name="x")
    found = signature({"x": x}, {"y": x * 0.5 + 3})
    for info in (found.inputs["x"], found.outputs["y"]):
        info.ClearField("tensor_shape")
    missing = signature({"x": x}, {"z": x})
    missing.outputs["z"].name = "nowhere:0"
    return {"serving_default": found, "missing": missing}


def mistyped() -> Signatures:
    """y = x / 2 of floats, as exports of TensorFlow 1 describe it that were written by hand."""
    x = v1.placeholder(tf.float32, name="x")
    y = tf.multiply(x, 0.5, name="y")
    other, none, bare = (signature({"x": x}, {"y": y}) for _ in range(3))
    for info in (other.inputs["x"], other.outputs["y"]):
        info.dtype = tf.int64.as_datatype_enum
    # Names of operations: their first output is meant.
    bare.inputs["x"].name, bare.outputs["y"].name = "x", "y"
    return {"serving_default": other, "untyped": none, "bare": bare}


def clear_types(path: Path, name: str) -> None:
    """Of a signature of a SavedModel. TensorFlow's builder writes none without types, but its loader takes them."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    definition = saved.meta_graphs[0].signature_def[name]
    for info in (*definition.inputs.values(), *definition.outputs.values()):
        info.ClearField("dtype")
        info.ClearField("tensor_shape")
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())


def rename_operation(path: Path, node: str, operation: str) -> None:
    """Of a node of a SavedModel, as if a library had made it that is not loaded."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    [found] = [each for each in saved.meta_graphs[0].graph_def.node if each.name == node]
    found.op = operation
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())


def counter() -> Signatures:
    """A model with state, and signatures without inputs, as TensorFlow Serving's own test model of this name."""
    count = v1.get_variable("count", initializer=0.0, use_resource=False)
    delta = v1.placeholder(tf.float32, [], name="delta")
    return {
        "get_counter": signature({}, {"output": tf.identity(count)}),
        # These are references to the variable, and so is their dtype in the signature.
        "incr_counter": signature({}, {"output": v1.assign_add(count, 1)}),
        "incr_counter_by": signature({"delta": delta}, {"output": v1.assign_add(count, delta)}),
        "reset_counter": signature({}, {"output": v1.assign(count, 0)}),
    }


def several() -> Signatures:
    """The three named inputs of the REST documentation."""
    tag = v1.placeholder(tf.string, [None], name="tag")
    signal = v1.placeholder(tf.float32, [None, 5], name="signal")
    sensor = v1.placeholder(tf.int64, [None, 2, 2], name="sensor")
    return {
        "serving_default": signature(
            {"tag": tag, "signal": signal, "sensor": sensor},
            {
                "tag": tf.identity(tag),
                "total": tf.reduce_sum(signal, axis=1),
                "sensor": sensor + 1,
                "raw_bytes": tf.identity(tag),
            },
        ),
        "scalar": signature({"signal": signal}, {"total": tf.reduce_sum(signal)}),
        "uneven": signature({"signal": signal}, {"total": tf.reduce_sum(signal, axis=1), "head": signal[:1]}),
    }


def text() -> Signatures:
    """One string in, one string out: as text, and as bytes."""
    value = v1.placeholder(tf.string, [None], name="value")
    return {
        "serving_default": signature({"text": value}, {"joined": tf.strings.join([value, value], "-")}),
        "raw": signature({"image_bytes": value}, {"copy_bytes": tf.identity(value)}),
        "lengths": signature({"text": value}, {"length": tf.strings.length(value)}),
    }


def types() -> Signatures:
    """One signature for each element type, which returns its input; the default one can divide by zero."""
    signatures = {}
    for dtype in DTYPES:
        x = v1.placeholder(dtype, None, name=dtype.name)
        signatures[dtype.name] = signature({"x": x}, {"y": tf.identity(x)})
    x = v1.placeholder(tf.float32, [None], name="divisor")
    signatures["serving_default"] = signature({"x": x}, {"y": 1 / x})
    return signatures


def slow() -> Signatures:
    """Runs a loop n times: as slow as the caller wants."""
    n = v1.placeholder(tf.int64, [], name="n")
    size = 100

    def body(i, m):
        return i + 1, tf.matmul(m, m) / size

    _, m = tf.while_loop(lambda i, _: i < n, body, [tf.constant(0, tf.int64), tf.ones([size, size])])
    return {"serving_default": signature({"n": n}, {"done": tf.reduce_sum(m)})}


def endless() -> Signatures:
    """Never ends by itself, and computes all the time."""
    n = v1.placeholder(tf.int64, [], name="n")
    [done] = tf.while_loop(lambda i: i < n, lambda i: i * 1, [n - 1])
    return {"serving_default": signature({"n": n}, {"done": done})}


def build_all(folder: Path) -> None:
    """Every model below `folder`, by name and version."""
    export(folder / "half_plus_two" / "00000123", half_plus(2.0))
    export(folder / "half_plus_three" / "1", half_plus_three)
    export(folder / "counted" / "1", half_plus(1.0))
    export(folder / "counted" / "2", half_plus(2.0))
    export(folder / "counted" / "3", half_plus(3.0))
    export(folder / "mistyped" / "1", mistyped)
    clear_types(folder / "mistyped" / "1", "untyped")
    export(folder / "counter" / "1", counter)
    export(folder / "several" / "1", several)
    export(folder / "text" / "1", text)
    export(folder / "types" / "1", types)
    export(folder / "slow" / "1", slow)
    export(folder / "endless" / "1", endless)
