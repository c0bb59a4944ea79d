"""The JSON of services and proxy."""

from typing import Annotated, Literal, NotRequired

from pydantic import AllowInfNan, BaseModel, Field, Strict
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from serving_common import iris

Probability = Annotated[float, Strict(), AllowInfNan(False), Field(ge=0, le=1)]
Probabilities = Annotated[
    list[Probability], Field(min_length=2, max_length=2, description="[P(the class), P(any other class)]")
]


class PredictRequest(BaseModel):
    """One or more Iris flowers."""

    data: iris.Rows = Field(examples=[iris.SAMPLE])


class Prediction(TypedDict):
    """What a service answers: for one row the pair of probabilities, for several rows a list of pairs."""

    prediction: Probabilities | Annotated[list[Probabilities], Field(min_length=1)]


class ServiceError(TypedDict):
    """What stands in the place of a service's answer if there is none."""

    error: str


class Label(TypedDict):
    """The class that is most sure of a row, and how sure it is; lists if there are several rows."""

    proba: float | list[float]
    label: str | list[str]


class LabelResponse(TypedDict):
    prediction: Label
    missing: NotRequired[list[str]]


class Health(TypedDict):
    health: Literal["ok"]


class Metadata(TypedDict):
    """What goes in and what comes out, with a sample of each."""

    data_type: str
    data_structure: str
    data_sample: list[list[float]]
    data_names: list[str]
    prediction_type: str
    prediction_structure: str
    prediction_sample: list[float]
    services: list[str]
