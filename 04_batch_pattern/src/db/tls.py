"""TLS to MySQL, by the names of MySQL's own `--ssl-mode`."""

import ssl
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pymysql
from pymysql.constants import CR
from sqlalchemy import Dialect, Engine, event

from serving_common.errors import StartupError


class SslMode(StrEnum):
    DISABLED = "DISABLED"
    PREFERRED = "PREFERRED"
    REQUIRED = "REQUIRED"
    VERIFY_CA = "VERIFY_CA"
    VERIFY_IDENTITY = "VERIFY_IDENTITY"


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How to reach the server; the files are PEM."""

    mode: SslMode = SslMode.PREFERRED
    ca: Path | None = None  # without one, the certificates of the system
    certificate: Path | None = None
    key: Path | None = None


def tls_arguments(tls: Tls) -> dict[str, Any]:
    """Arguments of PyMySQL's `connect`.

    Raises:
        StartupError: a file is missing or holds no certificate.
    """
    if tls.mode is SslMode.DISABLED:
        return {"ssl_disabled": True}
    if tls.mode is SslMode.PREFERRED:  # see prefer_tls
        return {}
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except OSError as error:  # ssl.SSLError is one
        raise StartupError(f"the CA file {tls.ca} cannot be used: {error.strerror or error}") from error
    # Python 3.13 sets this flag, which the certificates that MySQL makes for itself do not satisfy.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = tls.mode is SslMode.VERIFY_IDENTITY
    context.verify_mode = ssl.CERT_NONE if tls.mode is SslMode.REQUIRED else ssl.CERT_REQUIRED
    if tls.certificate is not None:
        try:
            context.load_cert_chain(tls.certificate, tls.key)
        except OSError as error:
            raise StartupError(
                f"the certificate {tls.certificate} cannot be used: {error.strerror or error}"
            ) from error
    return {"ssl": context}


def prefer_tls(engine: Engine) -> None:
    """Encrypt the connections of this engine if the server can; its certificate is not checked.

    The driver does the same by itself, but loads the system's certificates each time it tries to connect: 45 ms of CPU
    time, and while the server is away, for each request. Here, a server without TLS is connected to twice instead.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def connect(dialect: Dialect, _record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        try:
            return dialect.connect(*arguments, **options, ssl=context)
        except pymysql.OperationalError as error:
            if error.args[0] != CR.CR_SSL_CONNECTION_ERROR:
                raise
        # The driver raises this for a server without TLS only: a failed handshake is another error, and stays one.
        return dialect.connect(*arguments, **options, ssl_disabled=True)

    event.listen(engine, "do_connect", connect)
