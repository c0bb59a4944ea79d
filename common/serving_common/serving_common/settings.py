"""Settings from environment variables, read once when a process starts and never on import.

A secret can come from a file instead, as Docker and Kubernetes mount them: API_KEY_FILE=/run/secrets/api_key. A renamed
variable keeps its old name as a deprecated alias: see `Settings.deprecated_variables`.
"""

import os
import sys
from collections import ChainMap
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class SecretFiles(PydanticBaseSettingsSource):
    """Reads each secret among the settings from the file that `<VARIABLE>_FILE` names."""

    def __call__(self) -> dict[str, Any]:
        """The content of the files. Raises SettingsError, without any secret in it, for an unusable file."""
        fields = self.settings_cls.model_fields.items()
        values = ((name, self.get_field_value(field, name)[0]) for name, field in fields if is_secret(field.annotation))
        return {name: value for name, value in values if value is not None}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:
        """Value, name, and whether the value is JSON; the base class defines this form."""
        variable = field_name.upper()
        path = os.environ.get(f"{variable}_FILE")
        if not path:
            return None, field_name, False
        if os.environ.get(variable):
            raise SettingsError(f"{variable} and {variable}_FILE are both set")
        try:
            value = Path(path).read_text(encoding="utf-8").rstrip("\r\n")  # editors end the last line with a newline
        except OSError as exc:
            raise SettingsError(f"{variable}_FILE: {path} cannot be read: {exc.strerror}") from None
        except UnicodeDecodeError:
            raise SettingsError(f"{variable}_FILE: {path} is not UTF-8 text") from None
        # An empty variable counts as unset. A file that is named but empty must not: the service would run unprotected.
        if not value:
            raise SettingsError(f"{variable}_FILE: {path} is empty")
        return value, field_name, False


def is_secret(annotation: Any) -> bool:
    """Whether a field of this type is a SecretStr, an optional one, or an annotated one."""
    return annotation is SecretStr or any(map(is_secret, get_args(annotation)))


class Settings(BaseSettings):
    """What every process reads. A variable that is set but empty counts as unset."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    deprecated_variables: ClassVar[Mapping[str, str]] = {}
    """Old name of a variable → its new name. Subclasses add theirs; the old name is read where the new one is unset."""

    log_level: LogLevel = Field(LogLevel.INFO, description="Least severe level that is logged.")
    log_format: LogFormat = Field(
        LogFormat.AUTO, description="`json`, `console`, or `auto`: console on a terminal, JSON elsewhere."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SecretFiles(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _ignore_service_links(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if not _is_service_link(name, value)}

    @classmethod
    def service_links_set(cls) -> list[str]:
        """The variables that Kubernetes set, not the user: for a service called redis, REDIS_PORT=tcp://10.0.0.1:6379."""
        variables = (name.upper() for name in cls.model_fields)
        return [variable for variable in variables if _is_service_link(variable, os.environ.get(variable))]

    @classmethod
    def deprecated_variables_set(cls) -> dict[str, str]:
        """The deprecated variables in the environment, with their new names."""
        known = ChainMap(*(dict(vars(each).get("deprecated_variables", {})) for each in cls.__mro__))
        return {old: new for old, new in known.items() if os.environ.get(old)}


def _is_service_link(name: str, value: object) -> bool:
    is_port = name.upper().endswith("_PORT")
    return is_port and isinstance(value, str) and value.startswith(("tcp://", "udp://", "sctp://"))


def _check_header_value(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not (text.isascii() and text.isprintable() and text == text.strip()):
        raise ValueError("must consist of printable ASCII characters, because it is sent in a header")
    return key


ApiKey = Annotated[SecretStr, AfterValidator(_check_header_value)]


class HttpSettings(Settings):
    """What every HTTP service reads."""

    deprecated_variables: ClassVar = {"MAX_BODIES_BYTES": "MAX_INFLIGHT_BODY_BYTES"}

    host: str = Field("127.0.0.1", description="Address to listen on; the images set 0.0.0.0.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    max_body_bytes: int = Field(1024 * 1024, gt=0, description="Larger request bodies are rejected with 413, unread.")
    max_inflight_body_bytes: int = Field(
        32 * 1024 * 1024,
        gt=0,
        description="Total size of bodies in memory; what exceeds it is rejected with 429.",
    )
    api_key: ApiKey | None = Field(
        None, description="If set, requests must send it as `X-API-Key`; /health, /metrics and /docs stay open."
    )
    keep_alive_s: int = Field(
        75,
        gt=0,
        description="Seconds an idle connection stays open: more than those of the load balancer in front, usually 60.",
    )
    shutdown_grace_s: int = Field(10, gt=0, description="Seconds that requests in flight get to finish after SIGTERM.")
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="Seconds after SIGTERM for which requests are still accepted, while /health/ready returns 503: "
        "what a load balancer takes to notice. SHUTDOWN_GRACE_S begins afterwards.",
    )


S = TypeVar("S", bound=Settings)


def load(settings_class: type[S]) -> S:
    """The settings from the environment; a bad value ends the process with one line on stderr and exit code 1."""
    replaced = {new: old for old, new in settings_class.deprecated_variables_set().items() if not os.environ.get(new)}
    values: dict[str, Any] = {new.lower(): os.environ[old] for new, old in replaced.items()}
    try:
        return settings_class(**values)
    except SettingsError as exc:
        sys.exit(f"configuration error: {exc}")
    except ValidationError as exc:
        # The values themselves are left out: one of them may be a secret.
        named = [(".".join(map(str, error["loc"])).upper(), error["msg"]) for error in exc.errors()]
        sys.exit(f"configuration error: {'; '.join(f'{replaced.get(name, name)}: {reason}' for name, reason in named)}")
