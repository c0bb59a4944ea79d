"""What the proxy and the worker read from their environment; nothing else reads it."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from serving_common.queue.types import JobKeys
from serving_common.redis import RedisSettings
from serving_common.settings import HttpSettings, Settings


class QueueSettings(RedisSettings):
    """The queue between the two."""

    queue_name: str = Field("queue:predict", min_length=1, description="Redis list of the waiting jobs' ids.")
    result_ttl_s: PositiveInt = Field(86_400, description="A job and its result can be fetched for so long.")

    @property
    def keys(self) -> JobKeys:
        return JobKeys(self.queue_name)


class TfServingSettings(Settings):
    """The model server behind both."""

    tf_serving_host: str = Field("tensorflow_serving", description="Host of TensorFlow Serving.")
    tf_serving_grpc_port: int = Field(8500, ge=1, le=65535, description="Its gRPC port.")
    tf_serving_timeout_s: PositiveFloat = Field(5.0, description="A call that takes longer has failed.")
    model_name: str = Field("iris", description="Name of the model to ask.")


class ProxySettings(HttpSettings, QueueSettings, TfServingSettings):
    """The proxy: what it accepts, and how much of it."""

    max_queue_length: PositiveInt = Field(10_000, description="With so many jobs waiting, new ones are refused (429).")
    rate_limit: str | None = Field(
        None,
        pattern=r"^[1-9]\d*/(second|minute|hour|day)$",
        description="Jobs per client address, for instance `100/minute`, which compose sets. Unset: no limit.",
    )


class WorkerSettings(HttpSettings, QueueSettings, TfServingSettings):
    """The worker: how it takes jobs, and when it gives up on one."""

    port: int = Field(
        9100, ge=0, le=65535, description="Port of its /metrics and /health. Not set, and taken: another one."
    )
    num_workers: PositiveInt = Field(2, description="Batches that one process has in hand at the same time.")
    batch_size: int = Field(
        32, ge=1, le=1024, description="Jobs in one Predict call, at most; there is no waiting for more."
    )
    max_retries: NonNegativeInt = Field(3, description="A failed inference is tried again so often.")
    heartbeat_s: PositiveInt = Field(10, description="A worker that is silent for so long is dead: its jobs return.")
    overdue_s: NonNegativeFloat = Field(
        10.0, description="A normal job that has waited so long gets one place in four before those of high priority."
    )
