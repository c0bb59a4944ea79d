"""The connection to Redis: its settings, its retries, and the error while Redis is unavailable."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote, urlsplit

import structlog
from pydantic import AfterValidator, Field, FilePath, SecretStr
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from serving_common.errors import StartupError, Unavailable
from serving_common.settings import Settings

T = TypeVar("T")

MAX_CONNECTIONS = 64
"""Connections of one process. When all are in use, callers wait for one instead of failing."""
START_S = 2
"""Seconds that a start waits for Redis, at most."""
WRONG_SERVER = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "UNBLOCKED")
"""Errors of a server that is not the primary, or not yet; a blocked command is UNBLOCKED when its server is demoted."""

log = structlog.get_logger()


class QueueUnavailable(Unavailable):
    """Redis does not answer, or cannot run a command, for instance because it is out of memory."""


def _check_url(secret: SecretStr) -> SecretStr:
    """No message quotes the URL: a password with an unquoted character can stand in any of its parts."""
    try:
        url = urlsplit(secret.get_secret_value())
        is_valid = url.scheme in ("redis", "rediss") and bool(url.hostname) and url.port != 0
    except ValueError:  # the port
        is_valid = False
    if not is_valid or not re.fullmatch(r"(/\d*)?", url.path) or url.query or url.fragment:
        raise ValueError("must be redis[s]://[user[:password]@]host[:port][/db], with a percent-encoded password")
    return secret


RedisUrl = Annotated[SecretStr, AfterValidator(_check_url)]


class RedisSettings(Settings):
    """How to reach the queue's Redis."""

    redis_host: str = Field("redis", description="Host of the queue's Redis.")
    redis_port: int = Field(6379, ge=1, le=65535, description="Port of the queue's Redis.")
    redis_username: str | None = Field(None, description="ACL user of the queue's Redis; unset: `default`.")
    redis_password: SecretStr | None = Field(None, description="Password of the queue's Redis, if it has one.")
    redis_tls: bool = Field(False, description="Whether to connect with TLS.")
    redis_tls_ca_file: FilePath | None = Field(
        None, description="CA of Redis's certificate, in PEM; implies TLS. Unset: the system's CAs."
    )
    redis_url: RedisUrl | None = Field(
        None,
        description="`rediss://user:password@host:port/db` (TLS) or `redis://…`; replaces host, port, user, password.",
    )

    def connection_arguments(self) -> Mapping[str, Any]:
        """Host, port, db, credentials and TLS, as PrimaryConnection takes them. Raises StartupError."""
        password = self.redis_password.get_secret_value() if self.redis_password else None
        arguments = {
            "host": self.redis_host,
            "port": self.redis_port,
            "username": self.redis_username,
            "password": password,
        }
        uses_tls = self.redis_tls or self.redis_tls_ca_file is not None
        if self.redis_url is not None:
            url = urlsplit(self.redis_url.get_secret_value())
            arguments = {
                "host": url.hostname,
                "port": url.port or 6379,
                "username": unquote(url.username) if url.username else None,
                "password": unquote(url.password) if url.password else None,
                "db": int(url.path[1:] or 0),
            }
            uses_tls = uses_tls or url.scheme == "rediss"
        return arguments | {"tls": _tls_context(self.redis_tls_ca_file) if uses_tls else None}

    def warn_about_ignored(self) -> None:
        """Log one line if REDIS_URL makes other variables void."""
        replaced = self.model_fields_set & {"redis_host", "redis_port", "redis_username", "redis_password"}
        if self.redis_url is not None and replaced:
            log.info("settings_ignored", variables=sorted(map(str.upper, replaced)), reason="REDIS_URL is set")


def _tls_context(ca_file: FilePath | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # ssl.SSLError is one
        raise StartupError(f"REDIS_TLS_CA_FILE: {ca_file} cannot be used: {exc.strerror or exc}") from exc


class WrongServer(RedisConnectionError):
    """The connection leads to a server that is not the primary (any more)."""


class Failovers:
    """Counts the failovers that a pool's connections have noticed."""

    def __init__(self) -> None:
        self.seen = 0


class PrimaryConnection(Connection):
    """A connection that is made anew, its host's name resolved again, once its server turns out not to be the primary.

    A managed Redis moves its name to the new primary; the old one may live on as a replica and keep its connections.
    """

    def __init__(self, *, failovers: Failovers, tls: ssl.SSLContext | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._failovers = failovers
        self._failovers_at_connect = failovers.seen
        self._tls = tls

    @property
    def is_outdated(self) -> bool:
        """Whether another connection has noticed a failover since this one was made."""
        return self._failovers_at_connect != self._failovers.seen

    async def connect(self) -> None:
        # The pool calls this for each command. A replica answers reads, so only other connections can tell.
        if self.is_outdated:
            await self.disconnect(nowait=True)
            self._failovers_at_connect = self._failovers.seen
        await super().connect()  # type: ignore[no-untyped-call]

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)
        except RedisError as exc:
            if _error_code(exc) not in WRONG_SERVER:
                raise
            if not self.is_outdated:
                self._failovers.seen += 1
            raise WrongServer(f"not the primary: {exc}") from exc  # redis-py disconnects and tries again

    def _connection_arguments(self) -> Mapping[str, Any]:
        # One context for all connections: redis-py's own class reads all CAs again, for 20 ms, at each connection.
        return {**super()._connection_arguments(), "ssl": self._tls}


def _error_code(error: RedisError) -> str:
    """As "READONLY". Before Redis 7, an error of a command in a script has it only in the text of another error."""
    if in_script := re.search(r"@user_script: \d+: -([A-Z]+) ", str(error)):
        return in_script[1]
    # Which of the two has the code depends on whether redis-py knows the error.
    return error.status_code or str(error).partition(" ")[0]


@asynccontextmanager
async def connect(settings: RedisSettings) -> AsyncIterator[Redis]:
    """A client that does not decode. Exponential backoff with jitter bridges short outages; longer ones raise errors.

    Raises StartupError if Redis rejects the password. A Redis that has not started yet is not an error.
    """
    settings.warn_about_ignored()
    pool = BlockingConnectionPool(
        max_connections=MAX_CONNECTIONS,
        timeout=2,
        connection_class=PrimaryConnection,
        **settings.connection_arguments(),
        failovers=Failovers(),
        socket_connect_timeout=1,
        socket_timeout=5,  # longer than any blocking command
        # Not after a timeout: callers would wait 5 s three times for a Redis that hangs.
        retry=Retry(
            ExponentialWithJitterBackoff(cap=0.2, base=0.02), retries=2, supported_errors=(RedisConnectionError,)
        ),
    )
    async with Redis.from_pool(pool) as redis:
        try:
            async with asyncio.timeout(START_S):
                await redis.ping()
                if missing := await missing_guarantees(redis):
                    log.warning("redis_guarantees_missing", missing=missing)
        except AuthenticationError as exc:
            raise StartupError(
                f"Redis refuses {'REDIS_URL' if settings.redis_url else 'REDIS_PASSWORD'}: {exc}"
            ) from exc
        except (RedisError, QueueUnavailable, TimeoutError) as exc:
            log.warning("redis_failed", error=str(exc) or "no answer")
        yield redis


async def translate_redis_errors(call: Awaitable[T]) -> T:
    """The call's reply. Raises QueueUnavailable instead of RedisError."""
    try:
        return await call
    except RedisError as exc:
        log.warning("redis_failed", error=str(exc))
        raise QueueUnavailable("Service temporarily unavailable") from exc


@dataclass(frozen=True, slots=True)
class RedisInfo:
    """Memory and keys of Redis; `expired` counts keys since Redis started."""

    memory_bytes: int
    keys: int
    expired: int
    eviction_policy: str
    appends_only: bool

    @classmethod
    async def read(cls, redis: Any) -> RedisInfo | None:
        """None if the user may not run INFO. Raises QueueUnavailable."""
        try:
            info = await redis.info()
        except ResponseError:  # NOPERM, or the command has been renamed
            return None
        except RedisError as exc:
            log.warning("redis_failed", error=str(exc))
            raise QueueUnavailable("Service temporarily unavailable") from exc
        db = f"db{redis.connection_pool.connection_kwargs.get('db', 0)}"
        return cls(
            memory_bytes=info["used_memory"],
            keys=info.get(db, {"keys": 0})["keys"],
            expired=info["expired_keys"],
            eviction_policy=info["maxmemory_policy"],
            appends_only=bool(info["aof_enabled"]),
        )


async def missing_guarantees(redis: Redis) -> list[str]:
    """What the promise that no accepted job is lost lacks, one sentence each. Raises QueueUnavailable."""
    # Not CONFIG GET: hosted servers forbid it, and INFO says the same.
    info = await RedisInfo.read(redis)
    if info is None:
        return ["maxmemory-policy and appendonly could not be checked: Redis forbids INFO"]
    missing = []
    if info.eviction_policy != "noeviction":
        missing.append(
            f"maxmemory-policy is {info.eviction_policy}, not noeviction: a full Redis deletes accepted jobs"
        )
    if not info.appends_only:
        missing.append("appendonly is no: a restart of Redis loses accepted jobs")
    return missing
