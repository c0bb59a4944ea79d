"""One version of a model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import runtime
from .signature import DEFAULT_SIGNATURE, Signature, is_callable
from .status import Code, StatusError

if TYPE_CHECKING:
    from pathlib import Path

    from .runtime import LoadedModel, SessionOptions


class Servable:
    """A loaded version. Requests in flight hold it; the manager closes `model` when the last reference is gone."""

    def __init__(self, name: str, version: int, model: LoadedModel) -> None:
        self.name = name
        self.version = version
        self.model = model
        self.signatures = {
            key: Signature(
                key, definition, model, {"model.name": name, "model.version": version, "model.signature": key}
            )
            for key, definition in model.signatures.signature_def.items()
            if is_callable(key, definition)
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
