"""What the proxy and the worker read from their environment; nothing else reads it."""

from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from serving_common.cards import Card, TabularCard, default_card
from serving_common.queue.types import JobKeys
from serving_common.redis import RedisSettings
from serving_common.settings import HttpSettings, Settings
from tfserving_protos import channels


class QueueSettings(RedisSettings):
    """The queue between proxy and worker."""

    queue_name: str = Field("queue:predict", min_length=1, description="Redis list of the waiting jobs' ids.")
    result_ttl_s: PositiveInt = Field(86_400, description="Seconds for which a job and its result can be fetched.")

    @property
    def keys(self) -> JobKeys:
        return JobKeys(self.queue_name)


class TfServingSettings(Settings):
    """The model server, which both call."""

    tf_serving_host: str = Field("tensorflow_serving", description="Host of TensorFlow Serving.")
    tf_serving_grpc_port: int = Field(8500, ge=1, le=65535, description="gRPC port of TensorFlow Serving.")
    tf_serving_target: Annotated[str, AfterValidator(channels.target)] | None = Field(
        None,
        min_length=1,
        description="Servers that take turns, as `dns:///name:8500` or `ip:port,ip:port`; replaces host and port.",
    )
    tf_serving_timeout_s: PositiveFloat = Field(5.0, description="Timeout of a call to TensorFlow Serving, in seconds.")
    model_name: str = Field("iris", description="Name of the model in TensorFlow Serving.")
    model_card: TabularCard | None = Field(
        None, description="Card of a model of your own: `model.toml`, or its folder. Unset: the built-in one of Iris."
    )

    @property
    def card(self) -> Card:
        """What the model takes and gives."""
        return self.model_card or default_card()

    @property
    def tf_serving_address(self) -> str:
        """The target of the gRPC channel."""
        return self.tf_serving_target or f"{self.tf_serving_host}:{self.tf_serving_grpc_port}"


class ProxySettings(HttpSettings, QueueSettings, TfServingSettings):
    """The proxy, with its limits on jobs."""

    max_queue_length: PositiveInt = Field(10_000, description="Limit of waiting jobs; more are rejected with 429.")
    rate_limit: str | None = Field(
        None,
        pattern=r"^[1-9]\d*/(second|minute|hour|day)$",
        description="Jobs per client address, such as `100/minute`, the default of compose. Unset: no limit.",
    )
    rate_limit_header: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9-]*$",
        description="Behind a gateway: the header that it sets for each client and by which RATE_LIMIT counts, such "
        "as `X-Forwarded-For`, `X-Real-IP` or `X-API-Key`. Unset: the address of the connection.",
    )
    rate_limit_hops: PositiveInt = Field(
        1,
        description="Gateways in a row that append to X-Forwarded-For. What stands before their entries is the "
        "client's own and ignored.",
    )


class WorkerSettings(HttpSettings, QueueSettings, TfServingSettings):
    """The worker, with its claims and retries."""

    port: int = Field(
        9100,
        ge=0,
        le=65535,
        description="Port of /metrics and /health. If unset and 9100 is taken, the worker picks a free one.",
    )
    concurrency: PositiveInt = Field(
        2, validation_alias="num_workers", description="Batches that one worker process handles concurrently."
    )
    batch_size: int = Field(
        32, ge=1, le=1024, description="Jobs in one Predict call, at most; a worker never waits for more."
    )
    max_retries: NonNegativeInt = Field(3, description="Retries of a failed inference.")
    heartbeat_s: PositiveInt = Field(
        10, description="Seconds without a heartbeat after which a worker counts as dead and its jobs are requeued."
    )
    overdue_s: NonNegativeFloat = Field(
        10.0, description="Seconds after which waiting normal jobs get one place in four before high-priority ones."
    )
