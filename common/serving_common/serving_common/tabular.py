"""The ONNX model of a card: rows in, numbers out, checked against the card before the first request."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from serving_common.cards import ADD, Binding, Card, Part, Row, Task, Tensor, bind, check_file
from serving_common.errors import FieldError, StartupError, Unavailable
from serving_common.onnx import RunOptions, open_session

Batch = npt.NDArray[Any]
"""Rows, shape (N, inputs): of one dtype where the model's inputs have one, else objects."""

_DTYPES = {"float": np.float32, "double": np.float64, "int64": np.int64, "int32": np.int32, "bool": np.bool_}


@dataclass(frozen=True, eq=False)
class TabularModel:
    """The model of a card in ONNX Runtime. `run` may be called from several threads at once."""

    card: Card
    version: str
    session: Any  # onnxruntime has no types
    binding: Binding
    keys: tuple[Any, ...]
    one_row: bool

    @classmethod
    def load(cls, card: Card, threads: int = 1) -> Self:
        """Load the model of the card, check each against the other, and run the sample.

        Raises:
            StartupError: the file is missing or no model, or differs from the card; in one line, with the next step.
        """
        path = card.model_file
        digest = check_file(path, card.sha256)
        session = open_session(path, threads)
        inputs, outputs = (tensors_of(each) for each in (session.get_inputs(), session.get_outputs()))
        binding = bind(card, inputs, outputs)
        one_row = any(tensor.shape[:1] == (1,) for tensor in (*inputs, binding.output))
        model = cls(card, card.version or digest[:12], session, binding, (), one_row)
        object.__setattr__(model, "keys", model._class_keys())
        model._try_sample()
        return model

    def encode(self, rows: Sequence[Row]) -> Batch:
        """Valid rows as the batch that `run` takes."""
        return np.array(rows, self._dtype)

    @cached_property
    def _dtype(self) -> Any:
        dtypes = {part.tensor.dtype for part in self.binding.parts}
        return _DTYPES.get(dtypes.pop(), object) if len(dtypes) == 1 else object

    def run(self, batch: Batch, options: RunOptions | None = None, /) -> npt.NDArray[np.float32]:
        """The model's numbers, shape (N, card.width), row by row. Blocks until the run ends.

        Another thread ends it by setting `options.terminate`: it raises then, what ONNX Runtime raises for it.
        """
        if self.one_row and len(batch) > 1:
            return np.concatenate([self.run(batch[row : row + 1], options) for row in range(len(batch))])
        feeds = {part.tensor.name: _feed(part, batch) for part in self.binding.parts}
        [answer] = self.session.run([self.binding.output.name], feeds, options)
        if isinstance(answer, list):  # ZipMap
            answer = np.array([[row[key] for key in self.keys] for row in answer], np.float32)
        if answer.ndim == 1:
            answer = answer[:, None]
        if answer.shape[1] == 1 and self.card.width == 2:
            answer = np.concatenate([1 - answer, answer], axis=1)
        return answer  # type: ignore[no-any-return]

    def _class_keys(self) -> tuple[Any, ...]:
        """The keys of the maps that ZipMap makes, in the order of the labels."""
        if not self.binding.output.dtype.startswith("seq("):
            return ()
        row = self.encode(self.card.sample_rows[:1])
        feeds = {part.tensor.name: _feed(part, row) for part in self.binding.parts}
        [[answer]] = self.session.run([self.binding.output.name], feeds)
        by_name = {str(key): key for key in answer}
        if len(answer) != self.card.width:
            raise StartupError(f"{self.card.model_file} has {len(answer)} classes, the card {self.card.width} ({ADD})")
        if by_name.keys() == set(self.card.labels):
            return tuple(by_name[label] for label in self.card.labels)
        if any(isinstance(key, str) for key in answer) and self.card.task is not Task.ONE_VS_REST:
            raise StartupError(f"{self.card.model_file} has the classes {', '.join(by_name)}, the card others ({ADD})")
        return tuple(sorted(answer))

    def _try_sample(self) -> None:
        sample, path = self.card.sample, self.card.model_file
        try:
            answer = self.run(self.encode(self.card.sample_rows))
        except Exception as exc:
            reason = str(exc).splitlines()[0]
            raise StartupError(f"{path} cannot be run on the card's sample: {reason} ({ADD})") from exc
        wanted = (len(self.card.sample_rows), self.card.width)
        if answer.shape != wanted:
            raise StartupError(f"{path} answers the sample with shape {answer.shape}, wanted {wanted} ({ADD})")
        if not np.isfinite(answer).all():
            raise StartupError(f"{path} answers the sample with numbers that are not finite (choose other rows)")
        if sample is not None and sample.expected is not None:
            expected = np.array(sample.expected)
            if not np.allclose(answer, expected, rtol=sample.tolerance, atol=sample.tolerance):
                got = answer.astype(float).round(6).tolist()
                raise StartupError(f"{path} answers the sample with {got}, the card expects {sample.expected} ({ADD})")


def require_finite(answer: npt.NDArray[np.float32]) -> None:
    """Raises Unavailable, which names the first row whose numbers are NaN or infinite."""
    finite = np.isfinite(answer)
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        error: FieldError = {"row": row, "field": "prediction", "reason": "is not a finite number"}
        raise Unavailable(f"The model's answer to row {row} is not a finite number", [error])


def tensors_of(values: Sequence[Any]) -> list[Tensor]:
    """Inputs or outputs of a session as a card is compared with them."""
    return [
        Tensor(
            value.name,
            value.type.removeprefix("tensor(").removesuffix(")") if value.type.startswith("tensor(") else value.type,
            tuple(size if isinstance(size, int) else None for size in value.shape or ()),
        )
        for value in values
    ]


def _feed(part: Part, batch: Batch) -> Batch:
    columns = batch if len(part.columns) == batch.shape[1] else batch[:, part.columns]
    if len(part.tensor.shape) == 1:
        columns = columns[:, 0]
    # Strings stay objects; null becomes NaN.
    dtype = _DTYPES.get(part.tensor.dtype)
    return columns if dtype is None else columns.astype(dtype, copy=False)
