"""The JSON of the proxy."""

from typing import Literal, NotRequired

from pydantic import BaseModel, Field
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from src.jobs import Answer, Ranked
from src.ml.weights import Weights

# The smallest PNG: one white pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsGHsFgAAAABJRU5ErkJggg=="


class PredictRequest(BaseModel):
    """An image file: JPEG, PNG, WebP or GIF."""

    image_data: str = Field(
        strict=True,
        description="The file in Base64; whitespace and the prefix of a data URL are allowed.",
        examples=[PIXEL],
        json_schema_extra={"format": "base64-image"},
    )


class PredictResponse(BaseModel):
    """The fast answer, and the id of the better one, which GET /job/{job_id} will have."""

    job_id: str | None = Field(description="Null if no job could be queued: then there will be no better answer.")
    result_sync: str = Field(examples=["Persian cat"])


class JobEntry(TypedDict):
    """`prediction` is empty as long as there is none; `error` says why there will be none.

    With `detail=true` also the five best classes of the better model, and what the fast one had said.
    """

    prediction: str
    error: NotRequired[str]
    top5: NotRequired[list[Ranked]]
    sync: NotRequired[Answer]


WeightsOfBoth = TypedDict("WeightsOfBoth", {"sync": Weights, "async": Weights})
"""With random weights everything works, but the labels mean nothing."""


class Metadata(TypedDict):
    """What goes in, and what comes out."""

    data_type: str
    data_structure: str
    data_sample: str
    prediction_type: str
    prediction_structure: str
    prediction_sample: str
    weights: WeightsOfBoth


class Health(TypedDict):
    health: Literal["ok"]
