"""The JSON of the API: what requests are validated against, and how rows are serialized."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, NotRequired

import orjson
from pydantic import BeforeValidator, FailFast, Field, GetPydanticSchema, JsonValue
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from serving_common.cards import Card, Row, Task, Value
from serving_common.manifest import Tensor


class NewItem(TypedDict):
    """A row to store, in the order of the card's inputs."""

    values: Row


@dataclass(frozen=True, slots=True)
class ItemTypes:
    """What depends on the model's card: annotations of the bodies of requests, and types of the answers."""

    new: GetPydanticSchema
    new_list: GetPydanticSchema
    stored: Any
    stored_list: Any


def item_types(card: Card) -> ItemTypes:
    """The types of the requests and answers of this model."""

    def in_order(values: Any) -> Any:
        return card.in_order(values) if isinstance(values, dict) else values

    class ItemBase(TypedDict):
        """One row of the model's inputs."""

        values: Annotated[Row, _schema_of(card.row_type), BeforeValidator(in_order), Field(examples=card.sample_rows)]

    class _ItemsBody(TypedDict):
        items: Annotated[list[ItemBase], Field(min_length=1)]

    class Item(TypedDict):
        """A row as it is stored."""

        id: int
        # Any JSON: another program may have written it.
        values: Annotated[
            JsonValue, Field(description=f"As registered: {card.described_row()}.", examples=card.sample_rows)
        ]
        prediction: Annotated[dict[str, float] | None, Field(description=_described_prediction(card))]
        # Not a JSON Schema date-time, which requires a time zone.
        created_datetime: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$", description="UTC.")]
        error: NotRequired[
            Annotated[str, Field(description="Why the job could not predict these values; absent otherwise.")]
        ]

    # `{"items": [...]}` or a plain list. Validation stops at the first invalid item, which is enough to report.
    item_list: Any = Annotated[
        list[ItemBase],
        Field(min_length=1),
        FailFast(),
        BeforeValidator(
            _unwrap_items, json_schema_input_type=_ItemsBody | Annotated[list[ItemBase], Field(min_length=1)]
        ),
    ]
    return ItemTypes(_schema_of(ItemBase), _schema_of(item_list), Item, list[Item])


def _schema_of(made: Any) -> GetPydanticSchema:
    """In an annotation: validate as this type, which is made at run time, whatever the annotated type is."""
    return GetPydanticSchema(lambda _source, handler: handler.generate_schema(made))


def _unwrap_items(body: Any) -> Any:
    return body.get("items") if isinstance(body, dict) else body


def _described_prediction(card: Card) -> str:
    if card.task is Task.REGRESSION:
        unit = f" in {card.output.unit}" if card.output.unit else ""
        return f"`value`: {card.output.value}{unit}, once the job has run."
    return "Probability of each class, once the job has run."


@dataclass(frozen=True, slots=True)
class StoredItem:
    """A row as it is read. Its JSON stays text, which is sent unparsed."""

    id: int
    values: str
    prediction: str | None
    created_datetime: datetime
    error: str | None

    def to_item(self) -> dict[str, Any]:
        """The `Item` for orjson."""
        item: dict[str, Any] = {
            "id": self.id,
            "values": orjson.Fragment(self.values),
            "prediction": None if self.prediction is None else orjson.Fragment(self.prediction),
            "created_datetime": self.created_datetime,
        }
        if self.error is not None:
            item["error"] = self.error
        return item


def to_json(items: StoredItem | Sequence[StoredItem]) -> bytes:
    """JSON of an `Item`, or of a list of them."""
    # The list in one call: orjson allocates kilobytes for each result, and a body of 8 MiB has 400,000 items.
    option = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_OMIT_MICROSECONDS
    return orjson.dumps(items, default=StoredItem.to_item, option=option)


class Health(TypedDict):
    status: str


class ModelMetadata(TypedDict):
    """The job's model: inputs, outputs, labels, and the figures of its manifest (null if it has none)."""

    name: str
    version: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    labels: dict[str, str]
    weights: str | None
    accuracy: float | None
    data_names: list[str]
    data_sample: list[list[Value]]
