"""JSON bodies of the services and the proxy."""

from typing import Annotated, Literal, NotRequired

from pydantic import AllowInfNan, BaseModel, Field, Strict
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from serving_common import iris

ROUNDING = 1e-3
"""How far a model's probability may lie outside 0 to 1: a forest that adds up in two threads gives 1.0000001."""

Probability = Annotated[float, Strict(), AllowInfNan(False), Field(ge=0, le=1)]
Probabilities = Annotated[
    list[Probability], Field(min_length=2, max_length=2, description="[P(the class), P(any other class)]")
]


class PredictRequest(BaseModel):
    """One or more Iris flowers."""

    data: iris.Rows = Field(examples=[iris.SAMPLE])


class Prediction(TypedDict):
    """A service's response: a pair of probabilities for one row, a list of pairs for several."""

    prediction: Probabilities | Annotated[list[Probabilities], Field(min_length=1)]


Received = Annotated[float, Strict(), AllowInfNan(False), Field(ge=-ROUNDING, le=1 + ROUNDING)]
ReceivedPair = Annotated[list[Received], Field(min_length=2, max_length=2)]


class ReceivedPrediction(TypedDict):
    """A Prediction as the proxy receives it: others' services do not clip."""

    prediction: ReceivedPair | Annotated[list[ReceivedPair], Field(min_length=1)]


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


class Health(TypedDict):
    health: Literal["ok"]


class Metadata(TypedDict):
    """Types and shapes of input and output, with a sample of each."""

    data_type: str
    data_structure: str
    data_sample: list[list[float]]
    data_names: list[str]
    prediction_type: str
    prediction_structure: str
    prediction_sample: list[float]
    services: list[str]
