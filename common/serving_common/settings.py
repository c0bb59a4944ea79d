"""Settings from environment variables, read once when a process starts and never on import."""

import sys
from enum import StrEnum
from typing import TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class Settings(BaseSettings):
    """What every process reads: a variable that is set but empty counts as not set."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    log_level: LogLevel = Field(LogLevel.INFO, description="Least severe level that is logged.")
    log_format: LogFormat = Field(
        LogFormat.AUTO, description="`json`, `console`, or `auto`: console on a terminal, JSON elsewhere."
    )


class HttpSettings(Settings):
    """What every HTTP service reads."""

    host: str = Field("127.0.0.1", description="Address to listen on; the images set 0.0.0.0.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    max_body_bytes: int = Field(1024 * 1024, gt=0, description="Larger request bodies are refused with 413, unread.")
    api_key: SecretStr | None = Field(
        None, description="If set, requests need it as `X-API-Key`; /health, /metrics and /docs stay open."
    )
    shutdown_grace_s: int = Field(10, gt=0, description="After SIGTERM, requests in hand have so many seconds.")


S = TypeVar("S", bound=Settings)


def load(settings_class: type[S]) -> S:
    """The settings from the environment; a bad value ends the process with one line on stderr and exit code 1."""
    try:
        return settings_class()
    except ValidationError as exc:
        # The values themselves are left out: one of them may be a secret.
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in exc.errors())
        sys.exit(f"configuration error: {faults}")
