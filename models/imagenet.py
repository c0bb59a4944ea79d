"""The vision models, brought to one contract whatever their weights come from.

Input `input` float32 (N, 3, 224, 224); output `output` float32 (N, 1000): scores, before softmax.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # stubs for one name: not worth it

from models.download import nature_of
from models.files import BuildError, say
from models.graphs import Array, run, tensors
from models.manifest import Facts

PIXELS = (3, 224, 224)
CLASSES = 1000
TARGET_OPSET = 17

# keras.applications, and the factor that brings the scores of random weights to single digits. The Model Zoo's
# resnet50-v2 is ResNet V2: pre-activation.
ARCHITECTURES = {"mobilenet_v2": ("MobileNetV2", 1.0), "resnet50": ("ResNet50V2", 0.01)}


def adopt(source: Path, target: Path) -> Facts:
    """Write an ONNX file of somebody else's with our tensor names and any N. Raises BuildError if it cannot be done."""
    try:
        original = onnx.load(source)
    except (OSError, DecodeError, onnx.checker.ValidationError) as exc:
        raise BuildError(f"{source} is {nature_of(source) or 'not an ONNX file'}") from exc
    try:
        return write(conform(original), target, original)
    except BuildError as exc:
        raise BuildError(f"{source}: {exc}") from exc


def randomize(architecture: str, seed: int, target: Path) -> Facts:
    """Write the architecture with random weights, the same for the same seed. Needs TensorFlow: seconds, and 4 GB."""
    if missing := [package for package in ("tensorflow", "tf2onnx") if find_spec(package) is None]:
        raise BuildError(
            f"random weights need {' and '.join(missing)}, not installed here: run `make setup`, "
            "or `uv pip install -c constraints.txt -r models/pyproject.toml --extra tensorflow` "
            "(in the image: build argument EXTRAS=tensorflow)"
        )
    say("loading TensorFlow to make random weights: takes half a minute")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it reorders sums, differently on each kind of processor
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import tensorflow as tf
    import tf2onnx
    from tf2onnx import optimizer

    name, factor = ARCHITECTURES[architecture]
    network = getattr(tf.keras.applications, name)(weights=None, classifier_activation=None)
    generator = np.random.default_rng(seed)
    for variable in network.trainable_variables:
        if variable.name == "kernel":
            variable.assign(random_kernel(generator, tuple(variable.shape), factor))
    # All of tf2onnx's optimizers together take twice the time and 6 GB of memory for the same graph.
    needed = {
        "transpose": optimizer.TransposeOptimizer,
        "fold_constants": optimizer.ConstFoldOptimizer,
        "global_pool": optimizer.GlobalPoolOptimizer,
        "identity": optimizer.IdentityOptimizer,
        "back_to_back": optimizer.BackToBackOptimizer,
    }
    model, _ = tf2onnx.convert.from_keras(
        network,
        input_signature=[tf.TensorSpec((None, 224, 224, 3), tf.float32, name="input")],
        opset=TARGET_OPSET,
        inputs_as_nchw=["input"],
        optimizers=needed,
    )
    return write(conform(model), target, model)


def random_kernel(generator: np.random.Generator, shape: tuple[int, ...], classifier_factor: float) -> Array:
    """He initialisation. Keras's default lets MobileNetV2's scores vanish to 1e-11: all classes equal after softmax."""
    is_depthwise = len(shape) == 4 and shape[-1] == 1
    fan_in = np.prod(shape[:2] if is_depthwise else shape[:-1])
    factor = classifier_factor if len(shape) == 2 else 1.0
    return generator.standard_normal(shape, np.float32) * np.float32(factor * np.sqrt(2 / fan_in))


def conform(original: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the contract's tensor names and a batch dimension N. Raises BuildError if the shapes are others."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    graph = model.graph
    # Before IR 4 weights had to be listed as inputs, too; onnxruntime then takes them for variable and folds nothing.
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)

    require_shape("input", graph.input, PIXELS)
    require_shape("output", graph.output, (CLASSES,))
    for value, name in ((graph.input[0], "input"), (graph.output[0], "output")):
        if value.name != name:
            rename(graph, name, f"{name}_of_original")
            rename(graph, value.name, name)
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del graph.value_info[:]  # may hold the batch size that was fixed
    return model


def require_shape(role: str, values: list[onnx.ValueInfoProto], rest: tuple[int, ...]) -> None:
    wanted = f"one {role}, float32 (N, {', '.join(map(str, rest))})"
    found = ", ".join(f"{tensor['dtype']} {tensor['shape']}" for tensor in tensors(values)) or "none"
    if len(values) != 1 or values[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise BuildError(f"{wanted} is needed, not {found}")
    dims = values[0].type.tensor_type.shape.dim
    # A dimension may be unknown (no value): the trial run decides.
    if len(dims) != 1 + len(rest) or any(d.dim_value not in (0, n) for d, n in zip(dims[1:], rest, strict=True)):
        raise BuildError(f"{wanted} is needed, not {found}")
    for dim, size in zip(dims[1:], rest, strict=True):
        dim.dim_value = size


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a tensor wherever it is written or read, also inside the branches and loops of the graph."""
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        if value.name == old:
            value.name = new
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
        for inner in inner_graphs(node):
            rename(inner, old, new)


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def write(model: onnx.ModelProto, target: Path, original: onnx.ModelProto) -> Facts:
    """Write the model after running it: one image and two at once must give what the original gives for each."""
    images = np.random.default_rng(0).standard_normal((2, *PIXELS), np.float32)
    wanted = np.concatenate([run(original, image[None])[0] for image in images])
    scale = float(np.abs(wanted).max())
    if not np.isfinite(wanted).all():
        raise BuildError("its scores are not finite")
    if (wanted >= 0).all() and np.allclose(wanted.sum(axis=1), 1, atol=1e-3):
        raise BuildError("it gives probabilities; scores before softmax are needed")
    for count in (1, 2):
        scores = run(model, images[:count])[0]
        if scores.shape != (count, CLASSES):
            raise BuildError(f"{count} images give an output of {list(scores.shape)}, not [{count}, {CLASSES}]")
        difference = float(np.abs(scores - wanted[:count]).max())
        if difference > 1e-4 * scale:
            raise BuildError(f"a batch of {count} gives other scores than its images alone (by {difference:.1e})")
    target.write_bytes(model.SerializeToString(deterministic=True))
    return Facts(
        inputs=tensors(model.graph.input),
        outputs=tensors(model.graph.output),
        metrics={"max_difference_to_source": difference},
    )
