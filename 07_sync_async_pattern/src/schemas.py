"""The JSON of the proxy."""

from typing import Literal, NotRequired

from pydantic import BaseModel, Field
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12

from src.jobs import LabelProbability, StoredPrediction
from src.ml.weights import Weights

# The smallest PNG: one white pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsGHsFgAAAABJRU5ErkJggg=="


class PredictRequest(BaseModel):
    """An image file: JPEG, PNG, WebP, GIF, BMP or AVIF."""

    image_data: str = Field(
        strict=True,
        description="The file in Base64; whitespace, the URL-safe alphabet and the prefix of a data URL are allowed.",
        examples=[PIXEL],
        json_schema_extra={"format": "base64-image"},
    )


class PredictResponse(BaseModel):
    """The fast model's label, and the id under which GET /job/{job_id} will have the better model's."""

    job_id: str | None = Field(description="Null if no job could be queued: there will be no better answer.")
    result_sync: str = Field(examples=["Persian cat"])


class ImageJobResult(TypedDict):
    """`prediction` is empty until the job has completed; `error` says why it failed.

    `detail=true` adds the better model's five most probable classes, and the fast model's prediction.
    """

    prediction: str
    error: NotRequired[str]
    top5: NotRequired[list[LabelProbability]]
    sync: NotRequired[StoredPrediction]


WeightsOfBoth = TypedDict("WeightsOfBoth", {"sync": Weights, "async": Weights})
"""With random weights everything works, but the labels are meaningless."""


class Metadata(TypedDict):
    """Input and output of the API, and the weights of its models."""

    data_type: str
    data_structure: str
    data_sample: str
    prediction_type: str
    prediction_structure: str
    prediction_sample: str
    weights: WeightsOfBoth


class Health(TypedDict):
    health: Literal["ok"]
