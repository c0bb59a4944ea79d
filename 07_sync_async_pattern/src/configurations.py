"""All settings that the proxy and the worker read from the environment."""

from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from serving_common.cards import Card, ImageCard
from serving_common.redis import RedisSettings
from serving_common.settings import HttpSettings, Settings
from src.ml.image_cards import imagenet_card
from src.ml.preprocessing import MAX_IMAGE_PIXELS, ResizeMode


class Precision(StrEnum):
    FLOAT32 = "float32"
    INT8 = "int8"


class QueueSettings(RedisSettings):
    """The queue between proxy and worker."""

    queue_name: str = Field("queue:jobs", min_length=1, description="Redis list of waiting job ids.")
    result_ttl_s: PositiveInt = Field(3600, description="Seconds for which a job and its results can be fetched.")


class ImageSettings(Settings):
    """Images and how they are preprocessed; for models of the built-in card, normally the same for both."""

    labels_path: Path = Field(Path("/models/imagenet_labels.json"), description="JSON list of the 1,000 class labels.")
    resize_mode: ResizeMode = Field(
        ResizeMode.STRETCH,
        description="`stretch` to 224x224, or `crop`: short side to 256, then the centre, as in training.",
    )
    max_image_pixels: int = Field(
        50_000_000,
        gt=0,
        le=MAX_IMAGE_PIXELS,
        description="Larger images are rejected before decoding (400); a pixel of it allows 8 bytes of memory.",
    )
    model_precision: Precision = Field(
        Precision.FLOAT32, description="`int8` uses the quantised model in the same folder, `…_int8.onnx`."
    )

    async_model_path: Path = Field(Path("/models/resnet50.onnx"), description="The better model.")
    async_model_card: ImageCard | None = Field(
        None,
        description="Card of a better model of your own (`model.toml`, or its folder), instead of ASYNC_MODEL_PATH.",
    )

    def in_precision(self, model: Path) -> Path:
        """The file of this model in the configured precision."""
        return model if self.model_precision is Precision.FLOAT32 else model.with_stem(f"{model.stem}_int8")

    def card_of(self, own: Card | None, model: Path) -> Card:
        """This card, else the built-in one for the model of the specified variables. Raises StartupError."""
        return own or imagenet_card(self.in_precision(model), self.labels_path, self.resize_mode)

    @property
    def async_card(self) -> Card:
        """What the better model takes and gives. Raises StartupError: there are no labels."""
        return self.card_of(self.async_model_card, self.async_model_path)


class ProxySettings(HttpSettings, QueueSettings, ImageSettings):
    """The proxy: the fast model and its limits."""

    deprecated_variables: ClassVar = {"MAX_WAITING": "MAX_IN_FLIGHT"}

    max_image_bytes: PositiveInt = Field(12_000_000, description="Larger image files are rejected with 413.")
    max_body_bytes: int = Field(
        17 * 1024 * 1024,
        gt=0,
        description="Larger request bodies are rejected with 413, unread; Base64 needs 4/3 of MAX_IMAGE_BYTES.",
    )
    max_inflight_body_bytes: int = Field(
        64 * 1024 * 1024, gt=0, description="Total size of bodies in memory; what exceeds it is rejected with 429."
    )
    sync_model_path: Path = Field(Path("/models/mobilenet_v2.onnx"), description="The fast model.")
    sync_model_card: ImageCard | None = Field(
        None, description="Card of a fast model of your own (`model.toml`, or its folder), instead of SYNC_MODEL_PATH."
    )
    sample_image_path: Path = Field(Path("/models/sample.jpg"), description="The photograph of GET /predict/test.")
    model_threads: NonNegativeInt = Field(1, description="Threads per model run; 0: all CPUs of the container.")
    max_in_flight: PositiveInt = Field(64, description="Requests in flight; more are rejected with 429.")

    @property
    def sync_card(self) -> Card:
        """What the fast model takes and gives. Raises StartupError: there are no labels."""
        return self.card_of(self.sync_model_card, self.sync_model_path)

    job_timeout_s: PositiveFloat = Field(
        0.2, description="Seconds that the fast answer waits for Redis to store the job; then it is sent without an id."
    )
    max_queue_length: PositiveInt = Field(
        1000, description="With this many jobs waiting, responses have no job (`job_id` null)."
    )


class WorkerSettings(HttpSettings, QueueSettings, ImageSettings):
    """The worker: the better model and its processes."""

    port: int = Field(
        9100,
        ge=0,
        le=65535,
        description="Port of /metrics and /health; if it is unset and 9100 is taken, any free one.",
    )
    num_workers: PositiveInt = Field(2, description="Model processes, each with its own copy of the model.")
    worker_nice: int = Field(
        5,
        ge=0,
        le=19,
        description="Niceness of the model processes, so that the proxy gets the CPU first: 0 none, 19 most.",
    )
    # Measured from queue to result: batches of at most 1, 2 and 4 reach 0.81, 0.84 and 0.88 of ResNet50 alone. No batch
    # waits to be filled, but its first image waits for its last, so it should stay small.
    batch_size: PositiveInt = Field(
        4, description="Most images in one model run; a smaller batch does not wait to be filled."
    )
    inference_timeout_s: PositiveFloat = Field(
        30.0, description="Seconds per batch; a process that takes longer is killed and replaced."
    )
    max_retries: NonNegativeInt = Field(3, description="Retries of a failed inference.")
    heartbeat_s: PositiveInt = Field(
        10, description="Seconds after its last heartbeat until a worker counts as dead and its jobs are requeued."
    )
