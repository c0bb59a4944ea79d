"""One binary classifier: this class, or any other."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from serving_common.batching import MicroBatcher
from serving_common.errors import Unavailable
from serving_common.onnx import OnnxModel
from src.models import ROUNDING


class Predictor:
    """Maps rows of Iris features to [P(the class), P(any other class)]."""

    def __init__(self, batcher: MicroBatcher) -> None:
        self._batcher = batcher

    async def predict(self, rows: list[list[float]], is_wanted: Callable[[], bool] = lambda: True) -> list[list[float]]:
        """Probabilities, shape (N, 2), for rows of shape (N, 4) in centimetres, unless nobody waits for them any more.

        Raises:
            serving_common.errors.Overloaded: too many requests are waiting.
            serving_common.errors.Unavailable: the model's output is no probability, or not wanted.
        """
        probabilities = await self._batcher.predict(np.array(rows, np.float32), is_wanted)
        if not (np.abs(probabilities - 0.5) <= 0.5 + ROUNDING).all():  # also for NaN
            raise Unavailable("The model returned numbers that are not probabilities")
        return probabilities.clip(0, 1).tolist()  # type: ignore[no-any-return]  # numpy's stubs say Any


@asynccontextmanager
async def open_predictor(model_filepath: Path, threads: int) -> AsyncIterator[Predictor]:
    """A warmed-up predictor, closed at the end.

    Raises:
        serving_common.errors.StartupError: the model is missing, or its inputs or outputs differ.
    """
    model = OnnxModel.load(model_filepath, input_shape=(None, 4), output_shape=(None, 2), threads=threads)
    async with MicroBatcher(model.run) as batcher:
        yield Predictor(batcher)
