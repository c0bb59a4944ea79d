"""One version of a model in memory: a TensorFlow session on a SavedModel, and its signatures as typed functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfserving_protos import messages

from .runtime import CallableOptions, ConfigProto, Graph, OpError, SavedModelLoader, Session
from .status import Code, StatusError, invalid
from .tensors import ELEMENT_TYPES, decode, shape_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .tensors import Array

SERVING_TAG = "serve"
DEFAULT_SIGNATURE = "serving_default"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

# output_filter の組み合わせごとに実行関数を作って覚えておく上限。超えたら、全出力を計算して選ぶ。
MAX_FILTERS = 32


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a signature. Shape: None for an unknown rank, None for an unknown size."""

    name: str
    data_type: int
    shape: tuple[int | None, ...] | None

    def check(self, alias: str, array: Array) -> None:
        """Raises INVALID_ARGUMENT, naming the input and what was wanted, unless `array` fits."""
        element = ELEMENT_TYPES.get(self.data_type)
        if element is not None and array.dtype != element.dtype:
            given = next((e.name for e in ELEMENT_TYPES.values() if e.dtype == array.dtype), str(array.dtype))
            raise invalid(
                f'Expects input "{alias}" to be {element.name} {shape_text(self.shape)} '
                f"but {given} {shape_text(array.shape)} is provided"
            )
        if not self._takes(array.shape):
            raise invalid(
                f'Expects input "{alias}" to have shape {shape_text(self.shape)} but got {shape_text(array.shape)}'
            )

    def _takes(self, given: tuple[int, ...]) -> bool:
        # 大きさ 1 の次元は縛らない。TensorFlow Serving は形をモデルの演算に任せ、公式の half_plus_two の例も、
        # [-1,1] の入力に [1.0, 2.0, 5.0] を送る。
        wanted = self.shape
        return wanted is None or (
            len(given) <= len(wanted)
            and all(size == 1 for size in wanted[len(given) :])
            and all(size in (None, 1, got) for size, got in zip(wanted, given, strict=False))
        )


class Signature:
    """One entry of the SavedModel's signature_def, ready to run."""

    def __init__(self, name: str, definition: messages.SignatureDef, session: Session) -> None:
        self.name = name
        self.inputs = {alias: _spec(info) for alias, info in sorted(definition.inputs.items())}
        self.outputs = {alias: _spec(info) for alias, info in sorted(definition.outputs.items())}
        self.defaults = {alias: decode(alias, proto) for alias, proto in definition.defaults.items()}
        self._session = session
        self._callables: dict[tuple[str, ...], Callable[..., list[Array]]] = {}

    def run(self, inputs: Mapping[str, Array], outputs: tuple[str, ...] = ()) -> dict[str, Array]:
        """The named outputs, all when `outputs` is empty, in the order of their names.

        Raises:
            StatusError: INVALID_ARGUMENT when the inputs do not fit; otherwise what TensorFlow reports.
        """
        arguments = []
        for alias, spec in self.inputs.items():
            array = inputs.get(alias)
            if array is None:
                array = self.defaults[alias]
            spec.check(alias, array)
            arguments.append(array)
        wanted = outputs or tuple(self.outputs)
        try:
            values = self._callable(wanted)(*arguments)
        except OpError as error:
            raise StatusError(Code(error.error_code), error.message) from None
        return dict(zip(wanted, values, strict=True))

    def _callable(self, outputs: tuple[str, ...]) -> Callable[..., list[Array]]:
        found = self._callables.get(outputs)
        if found is None:
            found = self._make_callable(outputs)
            if len(self._callables) < MAX_FILTERS:
                self._callables[outputs] = found
        return found

    def _make_callable(self, outputs: tuple[str, ...]) -> Callable[..., list[Array]]:
        """A session callable: an order of magnitude cheaper per call than Session.run or a tf.function."""
        options = CallableOptions()
        options.feed.extend(self.inputs[alias].name for alias in self.inputs)
        options.fetch.extend(self.outputs[alias].name for alias in outputs)
        # 呼び出したスレッドで実行する。小さなモデルではスレッド間の受け渡しの方が高くつく。
        options.run_options.inter_op_thread_pool = -1
        # 公開されている API には、これと同等のものがない。
        make: Callable[..., Callable[..., list[Array]]] = self._session._make_callable_from_options
        return make(options)


class Servable:
    """A loaded version. In-flight requests hold it; TensorFlow's resources go with the last reference."""

    def __init__(self, name: str, version: int, session: Session, signatures: messages.SignatureDefMap) -> None:
        self.name = name
        self.version = version
        self.signature_map = signatures
        self.signatures = {
            key: Signature(key, definition, session)
            for key, definition in signatures.signature_def.items()
            if _is_runnable(definition)
        }
        self.session = session

    @classmethod
    def load(cls, name: str, version: int, path: Path, parallelism: int = 0) -> Servable:
        """Read the SavedModel at `path`. `parallelism`: threads inside one operation, 0 for one per core.

        Raises:
            StatusError: with TensorFlow's code and message, if it cannot be loaded.
        """
        if not any((path / f"saved_model.{suffix}").is_file() for suffix in ("pb", "pbtxt")):
            raise StatusError(
                Code.NOT_FOUND, f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}"
            )
        config = ConfigProto(intra_op_parallelism_threads=parallelism, inter_op_parallelism_threads=parallelism)
        # TensorFlow のスレッドは、仕事がなくなった後もしばらく空回りする。小さなモデルではそれが計算より高くつく。
        config.experimental.disable_thread_spinning = True
        graph = Graph()
        session = Session(graph=graph, config=config)
        try:
            with graph.as_default():
                meta_graph = SavedModelLoader(str(path)).load(session, [SERVING_TAG])
            graph.finalize()
            signatures = messages.SignatureDefMap()
            for key, definition in meta_graph.signature_def.items():
                signatures.signature_def[key].ParseFromString(definition.SerializeToString())
            return cls(name, version, session, signatures)
        except OpError as error:
            session.close()
            raise StatusError(Code(error.error_code), error.message) from error
        except StatusError:
            session.close()
            raise
        except Exception as error:
            # 壊れた SavedModel からは、パーサー・グラフの取り込み・入出力のどの例外も起こりうる。
            session.close()
            raise StatusError(Code.INTERNAL, f"Could not load the SavedModel at {path}: {error}") from error


def _is_runnable(definition: messages.SignatureDef) -> bool:
    """Whether it is a function to call, and not the graph's initialisation, whose output is an operation."""
    return bool(definition.outputs) and all(
        info.name and info.dtype != messages.DT_INVALID
        for info in (*definition.inputs.values(), *definition.outputs.values())
    )


def _spec(info: messages.TensorInfo) -> TensorSpec:
    if info.tensor_shape.unknown_rank:
        return TensorSpec(info.name, info.dtype, None)
    return TensorSpec(info.name, info.dtype, tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim))
