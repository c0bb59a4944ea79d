"""What the API and the job read from their environment; nothing else reads it."""

from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, SecretStr
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from serving_common.settings import HttpSettings, Settings


def _known_database(value: SecretStr) -> SecretStr:
    try:
        url = make_url(value.get_secret_value())
    except ArgumentError:
        # The message would quote the URL, and with it the password.
        raise ValueError("is no database URL such as mysql://user:password@host/name or sqlite:///file") from None
    if url.get_backend_name() not in ("mysql", "mariadb", "sqlite"):
        raise ValueError("must begin with mysql://, mariadb:// or sqlite://")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("must name a file: API and job are two processes and share it")
    return value


class DatabaseSettings(Settings):
    """What both processes read: where the database is, and the model."""

    mysql_server: str = Field("localhost", description="Host of MySQL.")
    mysql_user: str = Field("root", description="User of MySQL.")
    mysql_password: SecretStr = Field(SecretStr("password"), description="The user's password; unset: `password`.")
    mysql_database: str = Field("sample_db", description="Name of the database.")
    mysql_port: int = Field(3306, gt=0, le=65535, description="Port of MySQL.")
    database_url: Annotated[SecretStr, AfterValidator(_known_database)] | None = Field(
        None, description="Used instead of the MYSQL_ variables, for instance `sqlite:///items.db`."
    )
    database_wait_s: NonNegativeFloat = Field(30, description="How long a starting process waits for the database.")
    database_timeout_s: PositiveInt = Field(
        10, description="A database that says nothing for so long counts as gone; SQLite: as busy."
    )
    model_filepath: Path = Field(
        Path("/app/models/iris_svc.onnx"), description="The model; manifest.json beside it tells about it."
    )
    label_filepath: Path = Field(Path("/app/models/label.json"), description="Names of the classes.")

    @property
    def url(self) -> URL:
        """Where the database is. The driver is ours, whichever the URL names."""
        if self.database_url is not None:
            url = make_url(self.database_url.get_secret_value())
            return url.set(drivername="sqlite" if url.get_backend_name() == "sqlite" else "mysql+pymysql")
        # Not put together as text: a password may hold any character.
        return URL.create(
            "mysql+pymysql",
            self.mysql_user,
            self.mysql_password.get_secret_value(),
            self.mysql_server,
            self.mysql_port,
            self.mysql_database,
        )


class ApiSettings(DatabaseSettings, HttpSettings):
    """The API."""

    max_body_bytes: int = Field(
        8 * 1024 * 1024, gt=0, description="Larger request bodies are refused with 413, unread."
    )


class JobSettings(DatabaseSettings):
    """The batch job."""

    database_timeout_s: PositiveInt = Field(
        60, description="A database that says nothing for so long counts as gone; SQLite: as busy."
    )
    job_wait_seconds: NonNegativeFloat = Field(60, le=TIMEOUT_MAX, description="Pause before the batch.")
    batch_threads: PositiveInt = Field(4, description="Threads that run the model.")
    batch_chunk_size: PositiveInt = Field(
        5_000, le=10_000, description="Rows that are claimed, predicted and committed together."
    )
    batch_slice_size: PositiveInt = Field(500, description="Rows of one model run.")
    metrics_textfile: Path | None = Field(
        None, description="Metrics are written to this file (`*.prom`), for node_exporter's textfile collector."
    )
    pushgateway_url: str | None = Field(None, description="Metrics are pushed to this Prometheus Pushgateway.")
