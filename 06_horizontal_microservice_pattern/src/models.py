"""JSON bodies of the services and the proxy, as the model's card describes them."""

from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypeVar

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, Strict, create_model
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from serving_common.cards import Card, Task

ROUNDING = 1e-3
"""How far a model's probability may lie outside 0 to 1: a forest that adds up in two threads gives 1.0000001."""

Finite = Annotated[float, Strict(), AllowInfNan(False)]
Probability = Annotated[Finite, Field(ge=0, le=1)]
Probabilities = Annotated[
    list[Probability], Field(min_length=2, max_length=2, description="[P(the class), P(any other class)]")
]
Numbers = Annotated[list[Finite], Field(min_length=2)]
Row = TypeVar("Row")
Several = Annotated[list[Row], Field(min_length=1)]


class Value(TypedDict):
    """What a regression gives for a row."""

    value: Finite


class Prediction(TypedDict):
    """A service's response: one prediction for one row, a list of them for several.

    Numbers with `labels` are those of the classes; a pair without is P(the service's class), P(any other class).
    """

    # A service may be newer than the proxy: what it adds is passed on.
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # how pydantic configures a TypedDict

    prediction: Numbers | Value | Several[Numbers] | Several[Value]
    labels: NotRequired[list[str]]


def prediction_type(card: Card) -> Any:
    """Prediction as the service of this card gives it: for OpenAPI, and checked before it is sent."""
    row: Any
    labels: dict[str, Any] = {}
    match card.task:
        case Task.ONE_VS_REST:
            row, each = Probabilities, "a pair of probabilities for one row, a list of pairs for several"
        case Task.REGRESSION:
            row, each = Value, f"{card.output.value} for one row, a list for several"
        case _:
            row = Annotated[list[Finite], Field(min_length=card.width, max_length=card.width)]
            each = "one number per label for one row, a list of such lists for several"
            labels["labels"] = Annotated[list[str], Field(examples=[card.labels])]
    prediction = TypedDict("Prediction", {"prediction": row | Several[row], **labels})  # type: ignore[misc]
    prediction.__doc__ = f"A service's response: {each}."
    return prediction


class RequestTypes(NamedTuple):
    """Types of the body of POST /predict, each with the rows as `data`."""

    any_rows: type[BaseModel]
    list_rows: type[BaseModel]
    """Without named rows, whose validation takes longer."""


def request_types(card: Card | None) -> RequestTypes:
    """The bodies for the rows of this card; without a card, for lists and objects of anything."""
    if card is None:
        row = list[Any] | dict[str, Any]
        anything = create_model(
            "PredictRequest",
            __doc__="One or more rows in the form of the services.",
            data=(Annotated[list[row], Field(min_length=1)], ...),
        )
        return RequestTypes(anything, anything)
    any_rows, list_rows = (
        create_model(
            "PredictRequest",
            __doc__="One or more rows: lists, or objects of named values.",
            data=(rows, Field(examples=[card.sample_rows])),
        )
        for rows in (card.rows_type, card.list_rows_type)
    )
    return RequestTypes(any_rows, list_rows)


class ServiceError(TypedDict):
    """Takes the place of the prediction of a service that failed."""

    error: str


class Label(TypedDict):
    """The most probable class and its probability; lists if there are several rows."""

    proba: float | list[float]
    label: str | list[str]


class LabelResponse(TypedDict):
    prediction: Label
    missing: NotRequired[list[str]]
    without_probabilities: NotRequired[list[str]]


class Health(TypedDict):
    health: Literal["ok"]


class Metadata(TypedDict):
    """Types and shapes of input and output, with a sample of each."""

    data_type: str | list[str]
    data_structure: str
    data_sample: list[list[Any]]
    data_names: list[str]
    prediction_type: str
    prediction_structure: str
    prediction_sample: list[float] | Value
    services: list[str]
    labels: NotRequired[list[str]]
    value: NotRequired[str]
    unit: NotRequired[str]


class ServicesMetadata(TypedDict):
    """Of services that may differ: the metadata of each, or why there is none."""

    services: list[str]
    metadata: dict[str, Any]


def metadata_of(card: Card, services: list[str]) -> Metadata:
    """What the card says, of these services."""
    dtypes: list[str] = [each.dtype for each in card.inputs]
    expected = card.sample.expected if card.sample else None
    # Any numbers show the form.
    numbers = expected[0] if expected else [0.98, 0.02, *[0.0] * card.width][: card.width]
    metadata: Metadata = {
        "data_type": dtypes[0] if len(set(dtypes)) == 1 else dtypes,
        "data_structure": f"(N,{len(dtypes)})",
        "data_sample": card.sample_rows,
        "data_names": card.names,
        "prediction_type": "float32",
        "prediction_structure": f"(N,{card.width})",
        "prediction_sample": {"value": numbers[0]} if card.task is Task.REGRESSION else numbers,
        "services": services,
    }
    if card.task is Task.CLASSIFICATION:
        metadata["labels"] = card.labels
    if card.output.value is not None:
        metadata["value"] = card.output.value
    if card.output.unit is not None:
        metadata["unit"] = card.output.unit
    return metadata
