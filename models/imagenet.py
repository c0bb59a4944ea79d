"""The vision models, converted to one interface whatever the source of their weights.

Input `input` float32 (N, 3, 224, 224); output `output` float32 (N, 1000): scores before softmax.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from models.download import content_type_of
from models.files import BuildError, say
from models.graphs import Array, run, tensors
from models.manifest import Facts

PIXELS = (3, 224, 224)
CLASSES = 1000
TARGET_OPSET = 17

# The class in keras.applications, and the factor that scales the scores of random weights to single digits. The Model
# Zoo's resnet50-v2 is ResNet V2: pre-activation.
ARCHITECTURES = {"mobilenet_v2": ("MobileNetV2", 1.0), "resnet50": ("ResNet50V2", 0.01)}


def adopt(source: Path, target: Path) -> Facts:
    """Convert an ONNX file from elsewhere to our tensor names and any N.

    Raises:
        BuildError: the file is not ONNX, or its shapes, type or scores do not fit.
    """
    try:
        original = onnx.load(source)
    except (OSError, DecodeError, onnx.checker.ValidationError) as exc:
        raise BuildError(f"{source} is {content_type_of(source) or 'not an ONNX file'}") from exc
    try:
        return write(conform(original), target, original)
    except BuildError as exc:
        raise BuildError(f"{source}: {exc}") from exc


def randomize(architecture: str, seed: int, target: Path) -> Facts:
    """Write the architecture with random weights, determined by the seed. Needs TensorFlow and 1 GB of memory."""
    if missing := [package for package in ("tensorflow", "tf2onnx") if find_spec(package) is None]:
        raise BuildError(
            f"random weights need {' and '.join(missing)}, not installed here: run `make setup`, "
            "or `uv pip install -c constraints.txt -r models/pyproject.toml --extra tensorflow` "
            "(in the image: build argument EXTRAS=tensorflow)"
        )
    say("loading TensorFlow to make random weights; this takes some seconds")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it reorders sums, differently on each kind of processor
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import tensorflow as tf
    import tf2onnx

    keras_name, classifier_factor = ARCHITECTURES[architecture]
    network = getattr(tf.keras.applications, keras_name)(weights=None, classifier_activation=None)
    weights = {f"weight_{number}": variable for number, variable in enumerate(network.trainable_variables)}
    kernels = {name: variable.shape for name, variable in weights.items() if variable.name == "kernel"}
    vectors = {name: variable.numpy() for name, variable in weights.items() if name not in kernels}
    statistics = [variable.numpy() for variable in network.non_trainable_variables]

    # The kernels are inputs during the conversion and become weights afterwards; otherwise TensorFlow and tf2onnx copy
    # 100 MB in each of their steps, which takes 6 GB of memory.
    def scores(images: tf.Tensor, *values: tf.Tensor) -> tf.Tensor:
        known = vectors | dict(zip(kernels, values, strict=True))
        trainable = [tf.convert_to_tensor(known[name]) for name in weights]
        fixed = [tf.constant(values) for values in statistics]
        return network.stateless_call(trainable, fixed, images, training=False)[0]

    signature = [tf.TensorSpec((None, 224, 224, 3), name="input")]
    signature += [tf.TensorSpec(shape, name=name) for name, shape in kernels.items()]
    model, _ = tf2onnx.convert.from_function(
        tf.function(scores, input_signature=signature, autograph=False),
        input_signature=signature,
        opset=TARGET_OPSET,
        inputs_as_nchw=["input"],
    )
    generator = np.random.default_rng(seed)
    for name, shape in kernels.items():
        kernel = random_kernel(generator, tuple(shape), classifier_factor)
        model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, name))
    normalize_order(model.graph)
    return write(conform(model), target, model)


def normalize_order(graph: onnx.GraphProto) -> None:
    """Sort nodes and weights by use and number the tensors, because tf2onnx's order depends on the process's hash seed.

    Clear doc_string, too: it contains the number of functions that the process had traced before.
    """
    graph.doc_string = ""
    makers = {name: node for node in graph.node for name in node.output}
    ordered: dict[str, onnx.NodeProto] = {}

    def visit(tensor: str) -> None:
        if tensor in makers and tensor not in ordered:
            for name in makers[tensor].input:
                visit(name)
            ordered[tensor] = makers[tensor]

    visit(graph.output[0].name)
    nodes = list(ordered.values())
    used = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output))
    weights = {tensor.name: tensor for tensor in graph.initializer}
    initializers = [weights[name] for name in used if name in weights]
    nodes, initializers = copy.deepcopy(nodes), copy.deepcopy(initializers)  # deletion empties the originals
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    for node in graph.node:
        node.name = ""
    for number, name in enumerate(used):
        rename(graph, name, f"tensor_{number}")


def random_kernel(generator: np.random.Generator, shape: tuple[int, ...], classifier_factor: float) -> Array:
    """He initialisation. With Keras's default, MobileNetV2's scores shrink to 1e-11: all equal after softmax."""
    is_depthwise = len(shape) == 4 and shape[-1] == 1
    fan_in = np.prod(shape[:2] if is_depthwise else shape[:-1])
    factor = classifier_factor if len(shape) == 2 else 1.0
    # Drawn in float64 and rounded, because the last bit of float32 draws depends on the C library.
    kernel: Array = (generator.standard_normal(shape) * factor * np.sqrt(2 / fan_in)).astype(np.float32)
    return kernel


def conform(original: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with our tensor names and a batch dimension N. Raises BuildError if its shapes do not fit."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    graph = model.graph
    # Before IR 4, weights were listed as inputs, too; onnxruntime then treats them as variable and folds no constants.
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
    del graph.value_info[:]  # may contain the fixed batch size
    return model


def require_shape(role: str, values: Sequence[onnx.ValueInfoProto], rest: tuple[int, ...]) -> None:
    wanted = f"one {role}, float32 (N, {', '.join(map(str, rest))})"
    found = ", ".join(f"{tensor['dtype']} {tensor['shape']}" for tensor in tensors(values)) or "none"
    if len(values) != 1 or values[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise BuildError(f"{wanted} is needed, not {found}")
    dims = values[0].type.tensor_type.shape.dim
    # An unknown dimension (no value) is left to the trial run.
    if len(dims) != 1 + len(rest) or any(d.dim_value not in (0, n) for d, n in zip(dims[1:], rest, strict=True)):
        raise BuildError(f"{wanted} is needed, not {found}")
    for dim, size in zip(dims[1:], rest, strict=True):
        dim.dim_value = size


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a tensor everywhere, also inside the graph's branches and loops."""
    values: list[onnx.ValueInfoProto | onnx.TensorProto] = [
        *graph.input,
        *graph.output,
        *graph.initializer,
        *graph.value_info,
    ]
    for value in values:
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
    """Write the model after a trial run: batches of one and two images must give the scores of the original."""
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
