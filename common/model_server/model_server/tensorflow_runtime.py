"""SavedModels in TensorFlow sessions. Only this module imports TensorFlow, and uses its private APIs:

- `import tensorflow` costs about 9 s of CPU time and 620 MB, most of it for Keras and the modules of the public API. A
  session and the SavedModel loader need a fifth of that. TensorFlow's package __init__ cannot be told to import less,
  so an empty package of the same name and path takes its place, unless the real one has been imported.
- Session._make_callable_from_options makes a call an order of magnitude cheaper than Session.run or a tf.function.

If one of them is missing or fails a self-test, the public API does the same, more slowly.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf import text_format

from tfserving_protos import messages

from .fallback import try_private
from .status import Code, StatusError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .context import Context
    from .runtime import Function, SessionOptions
    from .tensors import Array

    # Takes the inputs, and the milliseconds after which TensorFlow must stop (None: no limit); returns the requested
    # outputs, a scalar string as bytes.
    TimedFunction = Callable[[Sequence[Array], int | None], list[Array | bytes]]

# A graph without these takes a time that depends on its input's size, and not on its values.
LOOPS = frozenset(["While", "StatelessWhile", "Enter", "RefEnter"])
# A run below this may overstep its deadline; in return it is several times cheaper.
QUICK_S = 0.02

# Informational logs of the C++ side are noise for operators. It reads the variable when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@dataclass(frozen=True, slots=True)
class TensorFlowApi:
    """What this server uses of TensorFlow."""

    config: Any
    graph: Any
    session: Any
    op_error: Any
    load: Callable[[Any, str, list[str]], Any]
    load_library: Callable[[str], Any]
    make_function: Callable[[TensorFlowModel, str, Mapping[str, str], Mapping[str, str]], TimedFunction]


class TensorFlowModel:
    """A SavedModel in a session of its own."""

    platform = "tensorflow_savedmodel"

    def __init__(self, path: Path, options: SessionOptions) -> None:
        """Load it.

        Raises:
            StatusError: with TensorFlow's code; or any error of a parser, if the SavedModel is damaged.
        """
        config = API.config(
            intra_op_parallelism_threads=options.intra_op_threads, inter_op_parallelism_threads=options.inter_op_threads
        )
        # TensorFlow's threads keep spinning for a while when they run out of work. For a small model that costs more
        # than the computation.
        config.experimental.disable_thread_spinning = True
        # Otherwise a model that computes for long could occupy the threads of all others.
        config.use_per_session_threads = True
        self.path = path
        self.tags = [*options.tags]
        self._new_session(config)
        try:
            try:
                meta_graph = self._read()
            except OpError as error:
                if not _UNKNOWN_OPERATION.match(error.message) or not _add_text_operations():
                    raise
                # What has been read of the graph stays in it.
                self.close()
                self._new_session(config)
                meta_graph = self._read()
            self.graph.finalize()
            definition = meta_graph.graph_def
            bodies = [definition.node, *(function.node_def for function in definition.library.function)]
            self.has_loops = any(node.op in LOOPS for nodes in bodies for node in nodes)
            self.signatures = messages.SignatureDefMap()
            for key, definition in meta_graph.signature_def.items():
                self.signatures.signature_def[key].ParseFromString(definition.SerializeToString())
        except OpError as error:
            self.close()
            raise StatusError(Code(error.error_code), _explained(error.message)) from error
        except BaseException:
            self.close()
            raise

    def _new_session(self, config: Any) -> None:
        self.graph = API.graph()
        self.session = API.session(graph=self.graph, config=config)

    def _read(self) -> Any:
        """The MetaGraphDef of the SavedModel, whose graph and variables are then in the session."""
        with self.graph.as_default():
            return API.load(self.session, str(self.path), self.tags)

    def function(self, signature: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Function:
        """As LoadedModel.function."""
        inputs, outputs = ({alias: _full(name) for alias, name in names.items()} for names in (inputs, outputs))
        try:
            timed = API.make_function(self, signature, inputs, outputs)
        except (KeyError, ValueError) as error:
            # A tensor that the signature names is not in the graph.
            raise StatusError(Code.NOT_FOUND, str(error.args[0])) from None
        # Runs with inputs of up to so many bytes have been quick.
        quick_bytes = -1

        def run(arrays: Sequence[Array], context: Context) -> list[Array]:
            nonlocal quick_bytes
            size = sum(map(_size, arrays))
            timeout_ms = None if size <= quick_bytes else context.left_ms()
            started = time.monotonic()
            try:
                values = timed(arrays, timeout_ms)
            except OpError as error:
                # The public API sometimes puts words of its own before the message.
                message = error.message.removeprefix("Graph execution error:\n\n")
                raise StatusError(Code(error.error_code), message) from None
            if time.monotonic() - started > QUICK_S:
                quick_bytes = min(quick_bytes, size - 1)
            elif size > quick_bytes and not self.has_loops:
                quick_bytes = size
            # TensorFlow returns a scalar string as bytes, which have neither dtype nor shape.
            return [np.array(value, object) if isinstance(value, bytes) else value for value in values]

        return run

    def data_type(self, _: str, tensor: str, *, is_output: bool = False) -> int:
        """As LoadedModel.data_type."""
        try:
            data_type: int = self.graph.get_tensor_by_name(_full(tensor)).dtype.base_dtype.as_datatype_enum
        except (KeyError, ValueError):
            return messages.DT_INVALID
        return data_type

    def close(self) -> None:
        """Free what TensorFlow holds."""
        self.session.close()


_UNKNOWN_OPERATION = re.compile("Op type not registered '([^']+)'")


@functools.cache
def _add_text_operations() -> bool:
    """Whether TensorFlow Text, which TensorFlow Serving links, is installed, and has registered its operations.

    Its libraries are loaded without its Python modules, which import all of TensorFlow.
    """
    spec = importlib.util.find_spec("tensorflow_text")
    if spec is None or spec.submodule_search_locations is None:
        return False
    for folder in spec.submodule_search_locations:
        for library in sorted(Path(folder, "python").rglob("_*.so")):
            API.load_library(str(library))
    return True


def _explained(message: str) -> str:
    """An error of TensorFlow's loader, with the package that the model needs."""
    found = _UNKNOWN_OPERATION.match(message)
    if not found:
        return message
    if found[1].startswith("SimpleML"):
        return (
            f"Op type not registered '{found[1]}': it is TensorFlow Decision Forests', whose package "
            "tensorflow-decision-forests (1.12.0) loads into TensorFlow 2.19 only, and this server needs 2.21. "
            "TensorFlow Serving has it linked in"
        )
    if importlib.util.find_spec("tensorflow_text") is None:
        return f"{message} If it is TensorFlow Text's: pip install 'portable-model-server[text]'"
    return message


def _full(name: str) -> str:
    """A tensor's name as Python's API insists on it. C++ also takes that of an operation, for its first output."""
    return name if ":" in name else f"{name}:0"


def _size(array: Array) -> int:
    """Bytes of the elements. Those of strings are objects, and `nbytes` counts only references to them."""
    return array.nbytes + (sum(map(len, array.flat)) if array.dtype == object else 0)


def _private_api() -> TensorFlowApi:
    if "tensorflow" not in sys.modules:
        _put_stand_in()
    # Only after the stand-in is there.
    from tensorflow.core.framework.graph_pb2 import GraphDef
    from tensorflow.core.protobuf.config_pb2 import CallableOptions, ConfigProto, RunOptions
    from tensorflow.python.client import pywrap_tf_session
    from tensorflow.python.client.session import Session
    from tensorflow.python.framework.errors_impl import OpError
    from tensorflow.python.framework.importer import import_graph_def
    from tensorflow.python.framework.load_library import load_op_library
    from tensorflow.python.framework.ops import Graph, enable_eager_execution
    from tensorflow.python.saved_model.loader_impl import SavedModelLoader

    def load(session: Any, path: str, tags: list[str]) -> Any:
        return SavedModelLoader(path).load(session, tags)

    def make_callable(session: Any, feeds: Sequence[str], fetches: Sequence[str]) -> Callable[..., Any]:
        options = CallableOptions(feed=feeds, fetch=fetches)
        # Run in the calling thread: handing a small model to another thread costs more than running it.
        options.run_options.inter_op_thread_pool = -1
        function: Callable[..., Any] = session._make_callable_from_options(options)
        return function

    def run_until(session: Any, feeds: Mapping[Any, Array], fetches: Sequence[Any], timeout_ms: int) -> Any:
        """Slower by two changes of threads. A callable has one deadline for all its calls, and in the calling thread
        nothing would stop it."""
        options = pywrap_tf_session.TF_NewBufferFromString(RunOptions(timeout_in_ms=timeout_ms).SerializeToString())
        try:
            return session._call_tf_sessionrun(options, feeds, fetches, [], None)
        finally:
            pywrap_tf_session.TF_DeleteBuffer(options)

    def make_function(
        model: TensorFlowModel, _: str, inputs: Mapping[str, str], outputs: Mapping[str, str]
    ) -> TimedFunction:
        feeds, fetches = (
            [model.graph.get_tensor_by_name(name)._as_tf_output() for name in names.values()]
            for names in (inputs, outputs)
        )

        @functools.cache
        def untimed() -> Callable[..., Any]:
            return make_callable(model.session, [*inputs.values()], [*outputs.values()])

        def run(arrays: Sequence[Array], timeout_ms: int | None) -> list[Array | bytes]:
            values: list[Array | bytes] = (
                untimed()(*arrays)
                if timeout_ms is None
                else run_until(model.session, dict(zip(feeds, arrays, strict=True)), fetches, timeout_ms)
            )
            return values

        return run

    # As the real package does on import. Later would be too late for the fallback after a failed self-test.
    enable_eager_execution()
    graph = Graph()
    with graph.as_default():
        import_graph_def(text_format.Parse(SELF_TEST_GRAPH, GraphDef()), name="")
    session = Session(graph=graph)
    try:
        x, y = (graph.get_tensor_by_name(name)._as_tf_output() for name in ("x:0", "y:0"))
        given = np.array([1, 2], np.float32)
        results = [make_callable(session, ["x:0"], ["y:0"])(given), run_until(session, {x: given}, [y], 60_000)]
    finally:
        session.close()
    if not np.array_equal(results, [[[2, 4]]] * 2):
        raise RuntimeError("a session callable computes something else")
    return TensorFlowApi(ConfigProto, Graph, Session, OpError, load, load_op_library, make_function)


SELF_TEST_GRAPH = """
node { name: "x" op: "Placeholder" attr { key: "dtype" value { type: DT_FLOAT } } }
node { name: "y" op: "AddV2" input: "x" input: "x" attr { key: "T" value { type: DT_FLOAT } } }
"""


def _put_stand_in() -> None:
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("TensorFlow is not installed", name="tensorflow")
    package = types.ModuleType("tensorflow")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["tensorflow"] = package


def _public_api() -> TensorFlowApi:
    stand_in = sys.modules.get("tensorflow")
    if stand_in is not None and not hasattr(stand_in, "__version__"):
        # Make it the real package. Parts of it are loaded already, and cannot be loaded a second time.
        stand_in.__spec__.loader.exec_module(stand_in)  # type: ignore[union-attr]  # _put_stand_in sets both
    import tensorflow as tf

    # Its advice to migrate to TensorFlow 2, at every load.
    tf.get_logger().setLevel("ERROR")
    v1 = tf.compat.v1

    def load(session: Any, path: str, tags: list[str]) -> Any:
        return v1.saved_model.loader.load(session, tags, path)

    def make_function(
        model: TensorFlowModel, signature: str, inputs: Mapping[str, str], outputs: Mapping[str, str]
    ) -> TimedFunction:
        tensors, fetches = (
            [model.graph.get_tensor_by_name(name) for name in names.values()] for names in (inputs, outputs)
        )

        @functools.cache
        def eager() -> Any:
            return tf.saved_model.load(str(model.path), model.tags).signatures[signature]

        def run(arrays: Sequence[Array], timeout_ms: int | None) -> list[Array | bytes]:
            if all(
                tensor.shape.is_compatible_with(np.shape(array)) for tensor, array in zip(tensors, arrays, strict=True)
            ):
                options = v1.RunOptions(timeout_in_ms=timeout_ms or 0)
                values: list[Array | bytes] = model.session.run(
                    fetches, dict(zip(tensors, arrays, strict=True)), options=options
                )
                return values
            # Session.run checks the shapes of the graph, which a session callable and TensorFlow Serving leave to the
            # operations. An eager signature does, too, but has the variables in memory a second time, and no deadline.
            try:
                results = eager()(**{alias: tf.constant(array) for alias, array in zip(inputs, arrays, strict=True)})
            except (TypeError, ValueError) as error:
                # Some eager signatures check shapes themselves.
                raise tf.errors.InvalidArgumentError(None, None, str(error)) from None
            return [results[alias].numpy() for alias in outputs]

        return run

    return TensorFlowApi(
        v1.ConfigProto, tf.Graph, v1.Session, tf.errors.OpError, load, tf.load_op_library, make_function
    )


API = try_private("tensorflow.python", _private_api) or _public_api()
OpError = API.op_error
