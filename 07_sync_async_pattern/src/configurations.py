"""What the proxy and the worker read from their environment; nothing else reads it."""

from enum import StrEnum
from pathlib import Path

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from serving_common.redis import RedisSettings
from serving_common.settings import HttpSettings, Settings
from src.ml.preprocessing import MAX_IMAGE_PIXELS, ResizeMode


class Precision(StrEnum):
    FLOAT32 = "float32"
    INT8 = "int8"


class QueueSettings(RedisSettings):
    """The queue between the two."""

    queue_name: str = Field("queue:jobs", min_length=1, description="Redis list of the waiting jobs' ids.")
    result_ttl_s: PositiveInt = Field(3600, description="A job and its results can be fetched for so long.")


class ImageSettings(Settings):
    """How an image is looked at; as a rule it is the same for both models."""

    labels_path: Path = Field(Path("/models/imagenet_labels.json"), description="Names of the 1,000 classes.")
    resize_mode: ResizeMode = Field(
        ResizeMode.STRETCH,
        description="`stretch` to 224x224, or `crop`: short side to 256 and the centre, as the weights were trained.",
    )
    max_image_pixels: int = Field(
        50_000_000,
        gt=0,
        le=MAX_IMAGE_PIXELS,
        description="Images with more are refused before they are decoded; each needs 8 bytes of memory.",
    )
    model_precision: Precision = Field(
        Precision.FLOAT32, description="`int8` takes the quantised model beside the other: `…_int8.onnx`."
    )

    def in_precision(self, model: Path) -> Path:
        """The file of this model in the precision that is wanted."""
        return model if self.model_precision is Precision.FLOAT32 else model.with_stem(f"{model.stem}_int8")


class ProxySettings(HttpSettings, QueueSettings, ImageSettings):
    """The proxy: the fast model, and what is accepted."""

    max_body_bytes: int = Field(
        10 * 1024 * 1024, gt=0, description="Larger request bodies are refused with 413, unread."
    )
    max_inflight_body_bytes: int = Field(
        64 * 1024 * 1024, gt=0, description="With so much of bodies in memory, what comes on top is refused (429)."
    )
    sync_model_path: Path = Field(Path("/models/mobilenet_v2.onnx"), description="The fast model.")
    async_model_path: Path = Field(
        Path("/models/resnet50.onnx"), description="The worker's model, of which /metadata tells the weights."
    )
    sample_image_path: Path = Field(Path("/models/sample.jpg"), description="The photograph of GET /predict/test.")
    model_threads: NonNegativeInt = Field(1, description="Threads of one model run; 0: all that the container has.")
    max_waiting: PositiveInt = Field(64, description="With so many requests in hand, more are refused (429).")
    job_timeout_s: PositiveFloat = Field(
        0.2, description="The fast answer waits so long for Redis to take the job, and then goes out without an id."
    )
    max_queue_length: PositiveInt = Field(
        1000, description="With so many jobs waiting, requests are answered without one (`job_id` null)."
    )


class WorkerSettings(HttpSettings, QueueSettings, ImageSettings):
    """The worker: the better model, and how it takes jobs."""

    port: int = Field(
        9100, ge=0, le=65535, description="Port of its /metrics and /health. Not set, and taken: another one."
    )
    async_model_path: Path = Field(Path("/models/resnet50.onnx"), description="The better model.")
    num_workers: PositiveInt = Field(2, description="Processes, each with a model of its own.")
    worker_nice: int = Field(
        5, ge=0, le=19, description="They leave the processor to others, above all to the proxy: 0 not, 19 most."
    )
    # Measured from the queue to the result: batches of up to 1, 2 and 4 reach 0.81, 0.84 and 0.88 of ResNet50 alone.
    # Nobody waits for one to fill; but its first image waits for its last, so it should not be long.
    batch_size: PositiveInt = Field(4, description="Images in one run of the model, at most.")
    inference_timeout_s: PositiveFloat = Field(
        30.0, description="A process that takes longer for a batch is killed, and another started."
    )
    max_retries: NonNegativeInt = Field(3, description="A failed inference is tried again so often.")
    heartbeat_s: PositiveInt = Field(10, description="A worker that is silent for so long is dead: its jobs return.")
