"""Settings from environment variables, read once when a process starts and never on import.

A secret may stand in a file instead, as Docker and Kubernetes mount them: API_KEY_FILE=/run/secrets/api_key.
"""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, Field, SecretStr, ValidationError
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
    """The secrets among the settings, each from the file that `<VARIABLE>_FILE` names."""

    def __call__(self) -> dict[str, Any]:
        """The content of the files. Raises SettingsError, without any secret in it, for one that cannot be used."""
        fields = self.settings_cls.model_fields.items()
        values = ((name, self.get_field_value(field, name)[0]) for name, field in fields if is_secret(field.annotation))
        return {name: value for name, value in values if value is not None}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:
        """Value, name, and whether the value is JSON, as the base class wants it."""
        variable = field_name.upper()
        path = os.environ.get(f"{variable}_FILE")
        if not path:
            return None, field_name, False
        if os.environ.get(variable):
            raise SettingsError(f"{variable} and {variable}_FILE are both set")
        try:
            value = Path(path).read_text(encoding="utf-8").rstrip("\r\n")  # an editor ends the last line, too
        except OSError as exc:
            raise SettingsError(f"{variable}_FILE: {path} cannot be read: {exc.strerror}") from None
        except UnicodeDecodeError:
            raise SettingsError(f"{variable}_FILE: {path} is not UTF-8 text") from None
        # An empty variable counts as not set; but who names a file wants a secret, and would go without one.
        if not value:
            raise SettingsError(f"{variable}_FILE: {path} is empty")
        return value, field_name, False


def is_secret(annotation: Any) -> bool:
    """Whether a field of this type is a SecretStr, an optional one, or an annotated one."""
    return annotation is SecretStr or any(map(is_secret, get_args(annotation)))


class Settings(BaseSettings):
    """What every process reads: a variable that is set but empty counts as not set."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

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


def _fit_for_a_header(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not (text.isascii() and text.isprintable() and text == text.strip()):
        raise ValueError("must be of printable ASCII characters, as it travels in a header")
    return key


ApiKey = Annotated[SecretStr, AfterValidator(_fit_for_a_header)]


class HttpSettings(Settings):
    """What every HTTP service reads."""

    host: str = Field("127.0.0.1", description="Address to listen on; the images set 0.0.0.0.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    max_body_bytes: int = Field(1024 * 1024, gt=0, description="Larger request bodies are refused with 413, unread.")
    max_inflight_body_bytes: int = Field(
        32 * 1024 * 1024, gt=0, description="With so much of bodies in memory, what comes on top is refused (429)."
    )
    api_key: ApiKey | None = Field(
        None, description="If set, requests need it as `X-API-Key`; /health, /metrics and /docs stay open."
    )
    shutdown_grace_s: int = Field(10, gt=0, description="After SIGTERM, requests in hand have so many seconds.")


S = TypeVar("S", bound=Settings)


def load(settings_class: type[S]) -> S:
    """The settings from the environment; a bad value ends the process with one line on stderr and exit code 1."""
    try:
        return settings_class()
    except SettingsError as exc:
        sys.exit(f"configuration error: {exc}")
    except ValidationError as exc:
        # The values themselves are left out: one of them may be a secret.
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in exc.errors())
        sys.exit(f"configuration error: {faults}")
