"""What every protocol does with a request: find the model, check the tensors, run. Knows neither HTTP nor gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving_common import tracing

from .context import NO_LIMIT
from .signature import Signature
from .status import invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Protocol

    from tfserving_protos import messages

    from .context import Context
    from .model import Servable
    from .tensors import Array

    class Finder(Protocol):
        """Knows which version a request is for."""

        def find(self, spec: messages.ModelSpec) -> Servable: ...

    # Signature.run, or with batching enabled, Batcher.run.
    Run = Callable[[Signature, Mapping[str, Array], tuple[str, ...], Context], dict[str, Array]]


class Core:
    """The models of one server, and how they are run."""

    def __init__(self, models: Finder, run: Run = Signature.run) -> None:
        self._models = models
        self._run = run

    def find(self, spec: messages.ModelSpec) -> Servable:
        """The version that `spec` asks for, by number, by label, or the newest. It stays loaded while it is referenced.

        Raises:
            StatusError: NOT_FOUND for an unknown model or version, INVALID_ARGUMENT for an unknown label or no name.
        """
        return self._models.find(spec)

    def predict(
        self,
        signature: Signature,
        inputs: Mapping[str, Array],
        output_filter: Iterable[str] = (),
        context: Context = NO_LIMIT,
    ) -> dict[str, Array]:
        """The chosen outputs, or all, in the order of their names.

        Raises:
            StatusError: INVALID_ARGUMENT for wrong names or types; otherwise as Signature.run.
        """
        _check_names(signature, inputs)
        chosen = tuple(output_filter)
        for alias in chosen:
            if alias not in signature.outputs:
                raise invalid(
                    f"output tensor alias not found in signature: {alias} "
                    f"Outputs expected to be in the set {{{','.join(signature.outputs)}}}."
                )
            if chosen.count(alias) > 1:
                raise invalid(f"duplicate output tensor alias: {alias}")
        with tracing.span("run model", attributes=signature.attributes):
            return self._run(signature, inputs, chosen, context)


def _check_names(signature: Signature, inputs: Mapping[str, Array]) -> None:
    """Raises INVALID_ARGUMENT if an input without a default is missing, or an unknown one is given."""
    if inputs.keys() == signature.inputs.keys():
        return
    extra = sorted(inputs.keys() - signature.inputs.keys())
    missing = sorted(signature.inputs.keys() - inputs.keys() - signature.defaults.keys())
    if missing and len(inputs) == len(signature.inputs):
        raise invalid(
            f"Signature input alias: {missing[0]}(feed name: {signature.inputs[missing[0]].name}) not found in "
            f"request and no default value provided. Inputs expected to be in the request "
            f"{{{','.join(sorted(inputs))}}}, or default input alias set: {','.join(sorted(signature.defaults))}"
        )
    if extra or missing:
        raise invalid(
            f"input size does not match signature: {len(inputs)}!={len(signature.inputs)} "
            f"len({{{','.join(sorted(inputs))}}}) != len({{{','.join(signature.inputs)}}}). "
            f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
        )
