"""The Iris domain as the services had it before model cards: what the built-in card must equal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AllowInfNan, FailFast, Field, GetCoreSchemaHandler, Strict
from pydantic_core import CoreSchema, core_schema

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
"""The features in the order of a row, all in centimetres."""

LOW, HIGH = 0.0, 10.0
"""A feature's range, exclusive."""

LABELS: Mapping[int, str] = {0: "setosa", 1: "versicolor", 2: "virginica"}

SAMPLE: list[list[float]] = [[5.1, 3.5, 1.4, 0.2]]
"""One setosa, shape (1, 4): the test data of every pattern."""


@dataclass(frozen=True)
class _OneReason:
    """Any fault of a number is reported as the one rule, with the name of the feature instead of its index."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source),
            custom_error_type="iris_feature",
            custom_error_message=f"must be a number greater than {LOW} and less than {HIGH}",
            custom_error_context={"names": FEATURES},
        )


Feature = Annotated[float, Strict(), AllowInfNan(False), Field(gt=LOW, lt=HIGH), _OneReason()]
Row = Annotated[list[Feature], Field(min_length=4, max_length=4, description=", ".join(FEATURES) + " in cm")]
# Only the first invalid row is reported: collecting the errors of 50,000 rows would block the event loop for seconds.
Rows = Annotated[list[Row], Field(min_length=1), FailFast()]
"""One or more rows, shape (N, 4)."""
