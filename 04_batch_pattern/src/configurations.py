"""Settings of the API and the job, read from environment variables."""

from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, SecretStr
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from serving_common.settings import HttpSettings, Settings


def _supported_database(value: SecretStr) -> SecretStr:
    try:
        url = make_url(value.get_secret_value())
    except ArgumentError:
        # The message would quote the URL, and with it the password.
        raise ValueError("must be a database URL such as mysql://user:password@host/name or sqlite:///file") from None
    if url.get_backend_name() not in ("mysql", "mariadb", "sqlite"):
        raise ValueError("must begin with mysql://, mariadb:// or sqlite://")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("must name a file, because the API and the job are two processes")
    return value


class DatabaseSettings(Settings):
    """Settings of both processes: database and model."""

    mysql_server: str = Field("localhost", description="Host of MySQL.")
    mysql_user: str = Field("root", description="User of MySQL.")
    mysql_password: SecretStr = Field(SecretStr("password"), description="The user's password; unset: `password`.")
    mysql_database: str = Field("sample_db", description="Name of the database.")
    mysql_port: int = Field(3306, gt=0, le=65535, description="Port of MySQL.")
    database_url: Annotated[SecretStr, AfterValidator(_supported_database)] | None = Field(
        None, description="Replaces the MYSQL_ variables, for instance `sqlite:///items.db`."
    )
    database_wait_s: NonNegativeFloat = Field(30, description="Seconds that a starting process waits for the database.")
    database_timeout_s: PositiveInt = Field(
        10, description="Seconds without an answer until the database counts as down; on SQLite, as busy."
    )
    model_filepath: Path = Field(
        Path("/app/models/iris_svc.onnx"), description="ONNX model; its metadata comes from manifest.json beside it."
    )
    label_filepath: Path = Field(Path("/app/models/label.json"), description="Class names by index.")

    @property
    def url(self) -> URL:
        """The database's URL. It always uses this package's drivers, whichever ones DATABASE_URL names."""
        if self.database_url is not None:
            url = make_url(self.database_url.get_secret_value())
            return url.set(drivername="sqlite" if url.get_backend_name() == "sqlite" else "mysql+pymysql")
        # Not assembled as text: a password may contain any character.
        return URL.create(
            "mysql+pymysql",
            self.mysql_user,
            self.mysql_password.get_secret_value(),
            self.mysql_server,
            self.mysql_port,
            self.mysql_database,
        )


class ApiSettings(DatabaseSettings, HttpSettings):
    """Settings of the API."""

    max_body_bytes: int = Field(
        8 * 1024 * 1024, gt=0, description="Larger request bodies are rejected with 413, unread."
    )


class JobSettings(DatabaseSettings):
    """Settings of the batch job."""

    database_timeout_s: PositiveInt = Field(
        60, description="Seconds without an answer until the database counts as down; on SQLite, as busy."
    )
    job_wait_seconds: NonNegativeFloat = Field(60, le=TIMEOUT_MAX, description="Seconds to wait before the batch.")
    batch_threads: PositiveInt = Field(4, description="Threads that run the model.")
    batch_chunk_size: PositiveInt = Field(
        5_000, le=10_000, description="Rows claimed, predicted and committed in one transaction."
    )
    batch_slice_size: PositiveInt = Field(500, description="Rows per model run.")
    metrics_textfile: Path | None = Field(
        None, description="File (`*.prom`) to write metrics to, for node_exporter's textfile collector."
    )
    pushgateway_url: str | None = Field(None, description="Prometheus Pushgateway to push metrics to.")
