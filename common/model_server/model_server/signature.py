"""What a signature decides, and what the graph does. The rule, as TensorFlow Serving has it:

- Of a signature, the server takes the aliases and the names of the tensors behind them, and the dtypes only to read
  JSON, which has no types of its own.
- All else the graph decides. A signature may have no shapes and no dtypes, or others than the graph: it is not a
  contract. An input is refused only where the graph has another dtype, or cannot compute.

So nothing is refused that the runtime computes, and no value is another than the runtime's: test_oracle.py compares
with a session that is run directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .context import NO_LIMIT
from .status import invalid
from .tensors import ELEMENT_TYPES, decode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from serving_common.tracing import Attributes
    from tfserving_protos import messages

    from .context import Context
    from .runtime import Function, LoadedModel
    from .tensors import Array

DEFAULT_SIGNATURE = "serving_default"
# What TensorFlow 2 calls the operations that it runs itself after loading.
INTERNAL = "__saved_model_"

# Functions that are kept for one signature, one for each output_filter. Further filters cost a new one at every call.
MAX_FILTERS = 32


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a signature: the tensor's name, and its type for reading JSON."""

    name: str
    data_type: int


class Signature:
    """One entry of a model's signature_def, ready to run."""

    def __init__(
        self, name: str, definition: messages.SignatureDef, model: LoadedModel, attributes: Attributes
    ) -> None:
        """`attributes`: of the span of each run."""
        self.name = name
        self.attributes = attributes
        self.definition = definition
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


def is_callable(name: str, definition: messages.SignatureDef) -> bool:
    """Whether it is a function to call, and not the graph's initialisation, whose output is an operation."""
    tensors = (*definition.inputs.values(), *definition.outputs.values())
    return bool(definition.outputs) and not name.startswith(INTERNAL) and all(info.name for info in tensors)
