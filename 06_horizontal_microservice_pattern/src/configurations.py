"""Environment variables of the services and the proxy; no other module reads the environment."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

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

from serving_common.cards import Card, TabularCard, Task, default_card
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
            raise ValueError(f"{name!r} is not a valid service name; the form is name=value,name=value")
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is listed twice")
    return {name: content.strip() for name, (_, _, content) in zip(names, pairs, strict=True)}


Pairs = BeforeValidator(_parse_pairs)


class ServiceSettings(HttpSettings):
    """One specialised service: its name, and its model."""

    service_name: str = Field(
        "setosa", description="The class that this service recognises; with MODEL_CARD, the card's name by default."
    )
    model_filepath: Path = Field(
        Path("/app/models/iris_svc_0_setosa.onnx"), description="ONNX file of a model of the built-in card."
    )
    model_card: TabularCard | None = Field(
        None, description="Card of the model (`model.toml`, or its folder), instead of MODEL_FILEPATH."
    )
    model_threads: NonNegativeInt = Field(1, description="Threads per model run; 0: one per CPU of the container.")
    model_loop_us: NonNegativeInt = Field(
        200,
        description="Microseconds of CPU that a model run may take on the event loop: few rows of a model that warm-up "
        "measures to be so fast. All other runs are on the model's thread; 0: all are.",
    )

    @property
    def card(self) -> Card:
        """The card of MODEL_CARD, else the built-in one for the model of MODEL_FILEPATH."""
        return self.model_card or default_card(self.model_filepath, [self.service_name], Task.ONE_VS_REST)

    @property
    def name(self) -> str:
        """The service's name."""
        if self.model_card is None or "service_name" in self.model_fields_set:
            return self.service_name
        return self.model_card.name


class ProxySettings(HttpSettings):
    """The proxy: the services that it calls, and how long it waits for them."""

    deprecated_variables: ClassVar = {"MAX_WAITING": "MAX_IN_FLIGHT"}

    port: int = Field(9000, ge=0, le=65535, description="Port to listen on.")
    # One variable holds the whole list. A scan for a prefix would find services that were never listed: Kubernetes puts
    # SERVICE_… variables into every container.
    services: Annotated[dict[str, AnyHttpUrl], NoDecode, Pairs, Field(min_length=1)] = Field(
        {
            "setosa": AnyHttpUrl("http://service_setosa:8000"),
            "versicolor": AnyHttpUrl("http://service_versicolor:8001"),
            "virginica": AnyHttpUrl("http://service_virginica:8002"),
        },
        description="The services to call: `name=url,name=url`.",
    )
    model_card: TabularCard | None = Field(
        None,
        description="Card of the rows that the services take (`model.toml`, or its folder). Unset: the built-in card "
        "if SERVICES has only classes of it; else only the services check the rows.",
    )
    service_timeout_s: PositiveFloat = Field(1.0, description="Deadline of a call to a service, in seconds.")
    service_timeouts: Annotated[dict[str, PositiveFloat], NoDecode, Pairs] = Field(
        {}, description="Deadlines of individual services: `name=seconds,…`."
    )
    services_api_key: ApiKey | None = Field(None, description="Sent to the services as `X-API-Key`.")
    max_connections: PositiveInt = Field(100, description="Most open connections to each service.")
    max_in_flight: PositiveInt = Field(128, description="Requests in flight; more are rejected with 429.")
    breaker_failures: PositiveInt = Field(3, description="Consecutive failures that open a service's circuit breaker.")
    breaker_open_s: PositiveFloat = Field(1.0, description="Seconds the breaker stays open before a trial call.")

    @field_validator("services")
    @classmethod
    def _check_urls(cls, services: dict[str, AnyHttpUrl]) -> dict[str, AnyHttpUrl]:
        """Whatever would keep every single request from being sent is found at the start."""
        from httpx import URL  # only the proxy's image has it

        for name, url in services.items():
            if url.query is not None or url.fragment is not None or url.port == 0:
                raise ValueError(f"the URL of {name} must have neither a query nor a fragment nor port 0")
            try:
                # The first has IDNA 2008's rules, the second those of the resolver: labels of 1 to 63 bytes.
                URL(str(url)).host.encode("idna")
            except UnicodeError as exc:
                raise ValueError(f"the URL of {name} has an invalid host name: {exc}") from None
        return services

    @field_validator("service_timeouts")
    @classmethod
    def _reject_unknown_services(cls, timeouts: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        if unknown := timeouts.keys() - info.data.get("services", timeouts).keys():
            raise ValueError(f"there is no service {', '.join(sorted(unknown))} in SERVICES")
        return timeouts

    @property
    def card(self) -> Card | None:
        """The card of the rows, where one card describes them for all services."""
        built_in = default_card(task=Task.ONE_VS_REST)
        return self.model_card or (built_in if self.services.keys() <= set(built_in.labels) else None)
