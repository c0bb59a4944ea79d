"""What the services and the proxy read from their environment; nothing else reads it."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AnyHttpUrl,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import NoDecode

from serving_common.settings import ApiKey, HttpSettings

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def _parse_pairs(value: Any) -> Any:
    """`a=1,b=2` as a dictionary."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    names = [name.strip() for name, _, _ in pairs]
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a service; the form is name=value,name=value")
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is there twice")
    return {name: content.strip() for name, (_, _, content) in zip(names, pairs, strict=True)}


Pairs = BeforeValidator(_parse_pairs)


class ServiceSettings(HttpSettings):
    """One specialised service: which class it knows, and the model that knows it."""

    service_name: str = Field("setosa", description="The class that this service knows.")
    model_filepath: Path = Field(Path("/app/models/iris_svc_0_setosa.onnx"), description="Its model.")
    model_threads: NonNegativeInt = Field(1, description="Threads of one model run; 0: all that the container has.")


class ProxySettings(HttpSettings):
    """The proxy: which services it asks, and how long it waits for them."""

    port: int = Field(9000, ge=0, le=65535, description="Port to listen on.")
    # One variable with the whole list. Scanning the environment for a prefix would find services that nobody has
    # listed: Kubernetes puts SERVICE_… variables into every container.
    services: Annotated[dict[str, AnyHttpUrl], NoDecode, Pairs, Field(min_length=1)] = Field(
        {
            "setosa": AnyHttpUrl("http://service_setosa:8000"),
            "versicolor": AnyHttpUrl("http://service_versicolor:8001"),
            "virginica": AnyHttpUrl("http://service_virginica:8002"),
        },
        description="The services to ask: `name=url,name=url`.",
    )
    service_timeout_s: PositiveFloat = Field(1.0, description="A service that takes longer counts as failed.")
    service_timeouts: Annotated[dict[str, PositiveFloat], NoDecode, Pairs] = Field(
        {}, description="Other timeouts for some services: `name=seconds,…`."
    )
    services_api_key: ApiKey | None = Field(None, description="Sent to the services as `X-API-Key`.")
    max_connections: PositiveInt = Field(100, description="Open connections to each service.")
    max_waiting: PositiveInt = Field(128, description="With so many requests in hand, more are refused (429).")
    breaker_failures: PositiveInt = Field(
        3, description="After so many failures in a row a service is not asked for a while."
    )
    breaker_open_s: PositiveFloat = Field(1.0, description="How long a while is.")

    @field_validator("service_timeouts")
    @classmethod
    def _are_of_services(cls, timeouts: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        if unknown := timeouts.keys() - info.data.get("services", timeouts).keys():
            raise ValueError(f"there is no service {', '.join(sorted(unknown))} in SERVICES")
        return timeouts
