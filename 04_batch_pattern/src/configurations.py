"""Settings of the API and the job, read from environment variables."""

from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, SecretStr
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from serving_common.cards import TabularCard
from serving_common.settings import HttpSettings, Settings
from src.db.tls import SslMode, Tls

# Options of connection strings, as hosters and drivers write them, in lower case and without - and _.
_SSL_FILES = {"sslca": "ca", "sslcert": "certificate", "sslkey": "key"}
_SSL_FLAGS = {
    ("sslverifycert", "true"): SslMode.VERIFY_CA,
    ("sslverifyidentity", "true"): SslMode.VERIFY_IDENTITY,
    ("sslaccept", "strict"): SslMode.VERIFY_IDENTITY,
}
_IGNORED_OPTIONS = {"reconnect"}  # the pool does
_DRIVER_OPTIONS = {"charset", "unix_socket"}


def _supported_database(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    # The messages must not quote the URL, and with it the password.
    try:
        url = make_url(text)
    except ArgumentError:
        raise ValueError("must be a database URL such as mysql://user:password@host/name or sqlite:///file") from None
    if url.get_backend_name() not in ("mysql", "mariadb", "sqlite"):
        raise ValueError("must begin with mysql://, mariadb:// or sqlite://")
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ValueError("must name a file, because the API and the job are two processes")
        return value
    # What follows an unquoted @ would be taken for the host, and shown as such.
    if text.partition("://")[2].partition(":")[2].count("@") > 1:
        raise ValueError("has an @ in its password or options, which must be written as %40")
    if not url.database:
        raise ValueError("must name a database: mysql://user:password@host/name")
    _tls(url)
    return value


def _tls(url: URL) -> Tls | None:
    """TLS as the options of the URL ask for it; None without such options. ValueError for an unknown option."""
    modes, files = [], {}
    for name, values in url.query.items():
        option, value = name.lower().replace("-", "").replace("_", ""), str(values)
        if option == "sslmode":
            if value.upper() not in list(SslMode):
                raise ValueError(f"has another ssl-mode than {', '.join(SslMode)}")
            modes.append(SslMode(value.upper()))
        elif option in _SSL_FILES:
            files[_SSL_FILES[option]] = Path(value)
        elif (option, value.lower()) in _SSL_FLAGS:
            modes.append(_SSL_FLAGS[option, value.lower()])
        elif name not in _DRIVER_OPTIONS | _IGNORED_OPTIONS:
            known = "ssl-mode, ssl-ca, ssl-cert, ssl-key, charset, unix_socket"
            raise ValueError(f"has the option {name} with a value that is not understood; known are {known}")
    if not modes and not files:
        return None
    return Tls(mode=max(modes, key=list(SslMode).index, default=SslMode.VERIFY_CA), **files)


class DatabaseSettings(Settings):
    """Settings of both processes: database and model."""

    mysql_server: str = Field("localhost", description="Host of MySQL.")
    mysql_user: str = Field("root", description="User of MySQL.")
    mysql_password: SecretStr = Field(SecretStr("password"), description="The user's password; unset: `password`.")
    mysql_database: str = Field("sample_db", description="Name of the database.")
    mysql_port: int = Field(3306, gt=0, le=65535, description="Port of MySQL.")
    mysql_ssl_mode: SslMode = Field(
        SslMode.PREFERRED, description="TLS to MySQL: DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY."
    )
    mysql_ssl_ca: Path | None = Field(
        None, description="CA certificates (PEM); alone, it means VERIFY_CA. Unset: those of the system."
    )
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
    model_card: TabularCard | None = Field(
        None,
        description="Card of a model of your own: `model.toml`, or its folder. Replaces MODEL_FILEPATH and "
        "LABEL_FILEPATH, which are those of the built-in card.",
    )

    @property
    def url(self) -> URL:
        """The database's URL. It always uses this package's drivers, whichever ones DATABASE_URL names."""
        if self.database_url is not None:
            url = make_url(self.database_url.get_secret_value())
            if url.get_backend_name() == "sqlite":
                return url.set(drivername="sqlite")
            options = {name: value for name, value in url.query.items() if name in _DRIVER_OPTIONS}
            return url.set(drivername="mysql+pymysql", query=options)
        # Not assembled as text: a password may contain any character.
        return URL.create(
            "mysql+pymysql",
            self.mysql_user,
            self.mysql_password.get_secret_value(),
            self.mysql_server,
            self.mysql_port,
            self.mysql_database,
        )

    @property
    def tls(self) -> Tls:
        """How to reach MySQL: as DATABASE_URL says, or else the variables."""
        of_url = _tls(make_url(self.database_url.get_secret_value())) if self.database_url is not None else None
        is_ca_alone = self.mysql_ssl_ca is not None and "mysql_ssl_mode" not in self.model_fields_set
        return of_url or Tls(mode=SslMode.VERIFY_CA if is_ca_alone else self.mysql_ssl_mode, ca=self.mysql_ssl_ca)


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
