"""The model of one service: rows in, the numbers of each row out."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import structlog

from serving_common import tracing
from serving_common.batching import MicroBatcher
from serving_common.cards import Card, Row, Task
from serving_common.errors import FieldError, ServingError, Unavailable
from serving_common.tabular import TabularModel, require_finite
from src.models import ROUNDING

log = structlog.get_logger()


class Predictor:
    """Maps rows of the card's columns to its numbers: for one-vs-rest [P(the class), P(any other class)]."""

    def __init__(self, model: TabularModel, batcher: MicroBatcher) -> None:
        """`batcher` runs what `model` encodes."""
        self.model = model
        self._batcher = batcher
        self._attributes = {"model.name": model.card.name}
        self._gives_probabilities = model.card.task is Task.ONE_VS_REST

    async def predict(self, rows: Sequence[Row], is_wanted: Callable[[], bool] = lambda: True) -> list[list[float]]:
        """Numbers, shape (N, card.width), for valid rows of shape (N, inputs), unless nobody waits for them any more.

        Raises:
            serving_common.errors.Overloaded: too many requests are waiting.
            serving_common.errors.Unavailable: the model fails on these rows, or gives a number that is not finite, or
                for one-vs-rest no probability; or the numbers are not wanted.
        """
        try:
            with tracing.span("run model", attributes=self._attributes):
                numbers = await self._batcher.predict(self.model.encode(rows), is_wanted)
        except ServingError:
            raise
        except Exception as exc:
            # What a model cannot take is in no card, such as a category that it has not seen.
            log.warning("model_failed", reason=str(exc))
            raise Unavailable(f"The model failed on these rows: {str(exc).splitlines()[0][:200]}") from exc
        if not self._gives_probabilities:
            require_finite(numbers)
            return numbers.tolist()  # type: ignore[no-any-return]  # numpy's stubs say Any
        lowest, highest = np.min(numbers), np.max(numbers)
        if not (lowest >= -ROUNDING and highest <= 1 + ROUNDING):  # also for NaN
            is_probability = np.abs(numbers - 0.5) <= 0.5 + ROUNDING
            row = int(np.argmin(is_probability.all(axis=1)))
            error: FieldError = {"row": row, "field": "prediction", "reason": "is not a probability"}
            raise Unavailable("The model returned numbers that are not probabilities", [error])
        if lowest < 0 or highest > 1:
            numbers = numbers.clip(0, 1)
        return numbers.tolist()  # type: ignore[no-any-return]


@asynccontextmanager
async def open_predictor(card: Card, threads: int, loop_us: int = 0) -> AsyncIterator[Predictor]:
    """A predictor that has answered the card's sample, closed at the end.

    Args:
        card: of the model.
        threads: of one model run; 0: one per CPU.
        loop_us: microseconds of a run that may hold the event loop; 0: none may.

    Raises:
        serving_common.errors.StartupError: the model is missing, or is not the one of the card.
    """
    model = TabularModel.load(card, threads)
    row = model.encode(card.sample_rows[:1])
    async with MicroBatcher(model.run) as batcher:
        # Of several threads, the loop would wait for the others. How long a text takes depends on its length.
        if threads == 1 and row.dtype != object:
            log.info("model_measured", max_loop_rows=await batcher.allow_loop_runs(row, loop_us))
        yield Predictor(model, batcher)
