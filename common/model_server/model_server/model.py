"""One version of a model in memory, and its signatures as typed functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfserving_protos import messages

from . import runtime
from .context import NO_LIMIT
from .status import Code, StatusError, invalid
from .tensors import ELEMENT_TYPES, decode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .context import Context
    from .runtime import Function, LoadedModel, SessionOptions
    from .tensors import Array

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

# Functions that are kept for one signature, one for each output_filter. Further filters cost a new one at every call.
MAX_FILTERS = 32


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a signature: the tensor's name, and its type for reading JSON.

    A signature also has shapes, which are documentation: what a model computes, its graph decides.
    """

    name: str
    data_type: int


class Signature:
    """One entry of a model's signature_def, ready to run."""

    def __init__(self, name: str, definition: messages.SignatureDef, model: LoadedModel) -> None:
        self.name = name
        self.inputs = {alias: TensorSpec(info.name, info.dtype) for alias, info in sorted(definition.inputs.items())}
        self.outputs = {alias: TensorSpec(info.name, info.dtype) for alias, info in sorted(definition.outputs.items())}
        self.defaults = {alias: decode(alias, proto) for alias, proto in definition.defaults.items()}
        self._model = model
        self._types = {alias: model.data_type(alias, spec.name) for alias, spec in self.inputs.items()}
        self._functions: dict[tuple[str, ...], Function] = {}

    def run(
        self, inputs: Mapping[str, Array], outputs: tuple[str, ...] = (), context: Context = NO_LIMIT
    ) -> dict[str, Array]:
        """The named outputs, all when `outputs` is empty, in the order of their names.

        Raises:
            StatusError: INVALID_ARGUMENT when the inputs do not fit, DEADLINE_EXCEEDED or CANCELLED when nobody waits
                for the result; otherwise what the runtime reports.
        """
        context.check()
        self.check(inputs)
        arguments = []
        for alias in self.inputs:
            array = inputs.get(alias)
            if array is None:
                array = self.defaults[alias]
            arguments.append(array)
        wanted = outputs or tuple(self.outputs)
        return dict(zip(wanted, self._function(wanted)(arguments, context), strict=True))

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Raises INVALID_ARGUMENT if an input is not of its type.

        TensorFlow's own error does not name the input, and its public API silently converts.
        """
        for alias, array in inputs.items():
            wanted = ELEMENT_TYPES.get(self._types[alias])
            if wanted is not None and array.dtype != wanted.dtype:
                given = next((e.name for e in ELEMENT_TYPES.values() if e.dtype == array.dtype), str(array.dtype))
                raise invalid(f'Expects input "{alias}" to be {wanted.name} but {given} is provided')

    def _function(self, outputs: tuple[str, ...]) -> Function:
        found = self._functions.get(outputs)
        if found is None:
            feeds = {alias: spec.name for alias, spec in self.inputs.items()}
            fetches = {alias: self.outputs[alias].name for alias in outputs}
            found = self._model.function(self.name, feeds, fetches)
            if len(self._functions) < MAX_FILTERS:
                self._functions[outputs] = found
        return found


class Servable:
    """A loaded version. Requests in flight hold it; the manager closes `model` when the last reference is gone."""

    def __init__(self, name: str, version: int, model: LoadedModel) -> None:
        self.name = name
        self.version = version
        self.model = model
        self.signatures = {
            key: Signature(key, definition, model)
            for key, definition in model.signatures.signature_def.items()
            if _is_runnable(definition)
        }

    def signature(self, name: str) -> Signature:
        """The signature of that name; without a name, the default one.

        Raises:
            StatusError: FAILED_PRECONDITION for an unknown signature.
        """
        name = name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        return self.signatures[name]

    @classmethod
    def load(cls, name: str, version: int, path: Path, options: SessionOptions) -> Servable:
        """Read the model in the folder `path`.

        Raises:
            StatusError: with the runtime's code and message, if it cannot be loaded.
        """
        model = None
        try:
            model = runtime.load(path, options)
            return cls(name, version, model)
        except Exception as error:
            if model is not None:
                model.close()
            if isinstance(error, StatusError):
                raise
            # A damaged model can raise any exception: of the parser, of the graph's import, of files.
            raise StatusError(Code.INTERNAL, f"Could not load the model at {path}: {error}") from error


def _is_runnable(definition: messages.SignatureDef) -> bool:
    """Whether it is a function to call, and not the graph's initialisation, whose output is an operation."""
    return bool(definition.outputs) and all(
        info.name and info.dtype != messages.DT_INVALID
        for info in (*definition.inputs.values(), *definition.outputs.values())
    )
