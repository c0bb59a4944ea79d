"""ONNX inference: from the stored JSON of rows to the JSON of predictions to store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import orjson
from pydantic import TypeAdapter

from serving_common.cards import Card, Row, Task
from serving_common.tabular import TabularModel

# Float32 has about seven significant digits; more would only take space. (A regressed value has any magnitude.)
DECIMALS = 8


class NotFinite(Exception):
    """The model's answer is NaN or infinite, which JSON does not have."""


@dataclass(frozen=True, eq=False)
class BatchPredictor:
    """Predictions for any number of rows. Thread-safe."""

    model: TabularModel
    rows: TypeAdapter[list[Row]]

    @classmethod
    def load(cls, card: Card) -> Self:
        """The card's model, checked against the card and warmed up with its sample.

        Raises:
            serving_common.errors.StartupError: the model is missing, or does not match the card.
        """
        # One thread per run: slices run in parallel.
        return cls(TabularModel.load(card, threads=1), TypeAdapter(card.list_rows_type))

    @property
    def version(self) -> str:
        return self.model.version

    def predict(self, values: Sequence[str]) -> list[str]:
        """Predict all of these in one model run.

        Args:
            values: JSON lists in the order of the card's inputs, `[5.1, 3.5, 1.4, 0.2]`.

        Returns: JSON objects: probabilities by class, `{"0": 0.97, "1": 0.02, "2": 0.01}`; of a regression
            `{"value": 151.5}`.

        Raises:
            ValueError: one of the values is not such a list.
            NotFinite: one of the answers is not a number.
        """
        rows = self.rows.validate_json(f"[{','.join(values)}]")
        answer = self.model.run(self.model.encode(rows))
        if not np.isfinite(answer).all():
            raise NotFinite("the model's answer is not a finite number")
        if self.model.card.task is Task.REGRESSION:
            option = orjson.OPT_SERIALIZE_NUMPY  # the shortest digits of a float32
            return [orjson.dumps({"value": value}, option=option).decode() for value in answer[:, 0]]
        classes = [str(index) for index in range(self.model.card.width)]
        probabilities = answer.astype(float).round(DECIMALS).tolist()
        return [orjson.dumps(dict(zip(classes, row, strict=True))).decode() for row in probabilities]
