"""The JSON of the API."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, NotRequired

import orjson
from pydantic import BeforeValidator, FailFast, Field, JsonValue
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from serving_common import iris

Features = list[float]


class ItemBase(TypedDict):
    """One Iris flower."""

    values: Annotated[iris.Row, Field(examples=iris.SAMPLE)]


class _ItemsBody(TypedDict):
    items: Annotated[list[ItemBase], Field(min_length=1)]


def _unwrapped(body: Any) -> Any:
    return body.get("items") if isinstance(body, dict) else body


ItemList = Annotated[
    list[ItemBase],
    Field(min_length=1),
    FailFast(),
    BeforeValidator(_unwrapped, json_schema_input_type=_ItemsBody | Annotated[list[ItemBase], Field(min_length=1)]),
]
"""`{"items": [...]}`, or just the list. Of a list with many faults the caller reads the first."""


class Item(TypedDict):
    """A flower as it is stored."""

    id: int
    # Any JSON: other software may have written it.
    values: Annotated[JsonValue, Field(description="As registered: four numbers, in cm.", examples=iris.SAMPLE)]
    prediction: Annotated[
        dict[str, float] | None, Field(description="Probability of each class, once the job has run.")
    ]
    # No JSON Schema date-time, which would have to have a zone.
    created_datetime: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$", description="UTC.")]
    error: NotRequired[Annotated[str, Field(description="Only where the job could not predict these values: why.")]]


@dataclass(frozen=True, slots=True)
class StoredItem:
    """A row as it is read: its JSON is text, which can be sent as it is."""

    id: int
    values: str
    prediction: str | None
    created_datetime: datetime
    error: str | None

    def answer(self) -> dict[str, Any]:
        """This as an `Item`, for orjson."""
        answer: dict[str, Any] = {
            "id": self.id,
            "values": orjson.Fragment(self.values),
            "prediction": None if self.prediction is None else orjson.Fragment(self.prediction),
            "created_datetime": self.created_datetime,
        }
        if self.error is not None:
            answer["error"] = self.error
        return answer


def to_json(items: StoredItem | Sequence[StoredItem]) -> bytes:
    """An `Item`, or a list of them."""
    # A list in one go: orjson's result for each would keep kilobytes, and a body of 8 MiB has 400,000 items.
    option = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_OMIT_MICROSECONDS
    return orjson.dumps(items, default=StoredItem.answer, option=option)


class Health(TypedDict):
    status: str


class Tensor(TypedDict):
    name: str
    dtype: str
    shape: list[int | str]


class ModelMetadata(TypedDict):
    """What the job's model takes and gives, and what its manifest tells of it (null where there is none)."""

    name: str
    version: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    labels: dict[str, str]
    weights: str | None
    accuracy: float | None
    data_names: list[str]
    data_sample: list[list[float]]
