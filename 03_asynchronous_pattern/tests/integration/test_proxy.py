"""The proxy's endpoints on a real Redis; the test itself acts as the worker."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import structlog
from fastapi import Request
from prometheus_client import generate_latest

from serving_common.queue.types import JobKeys
from serving_common.queue.worker import Worker
from serving_testing.processes import free_port, running, wait_until
from serving_testing.promtool import naming_problems, needs_promtool, undocumented
from src.configurations import ProxySettings, WorkerSettings
from src.constants import HEALTH_WITHIN_S
from src.proxy.app import create_app
from src.proxy.rate_limit import client_of
from src.worker.main import create_app as create_worker
from tests.conftest import PATTERN, SAMPLE


@pytest.fixture
def settings(redis_server, model):
    def make(**overrides) -> ProxySettings:
        return ProxySettings(
            **{
                "redis_host": "127.0.0.1",
                "redis_port": redis_server.port,
                "tf_serving_host": "127.0.0.1",
                "tf_serving_grpc_port": model.port,
                **overrides,
            }
        )

    return make


@asynccontextmanager
async def proxy(settings: ProxySettings):
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://proxy") as client,
    ):
        yield client


@pytest.fixture
async def client(redis, settings):
    async with proxy(settings()) as client:
        yield client


@pytest.fixture
async def worker(redis):
    worker = Worker(redis, JobKeys("queue:predict"))
    yield worker
    await worker.deregister()


async def submit(client, **body) -> str:
    response = await client.post("/predict", json=SAMPLE | body)
    assert response.status_code == 200, response.text
    job_id: str = response.json()["job_id"]
    return job_id


async def test_predict_returns_the_id_after_redis_stored_the_job(redis, client):
    job_id = await submit(client)

    assert await redis.get(f"job:{job_id}:data") == b"[[5.1,3.5,1.4,0.2]]"
    assert await redis.get(f"job:{job_id}:status") == b"pending"
    assert await redis.lrange("queue:predict", 0, -1) == [job_id.encode()]


async def test_get_job_from_pending_to_completed(redis, client, worker):
    job_id = await submit(client)
    assert (await client.get(f"/job/{job_id}")).json() == {"job_id": job_id, "status": "pending"}
    await worker.claim(1)
    assert (await client.get(f"/job/{job_id}")).json() == {"job_id": job_id, "status": "processing"}
    result = {"prediction": 0, "class_name": "setosa", "probabilities": [0.97, 0.02, 0.01]}
    await worker.complete([(job_id, httpx.Request("POST", "http://x", json=result).content)])

    response = await client.get(f"/job/{job_id}")
    assert response.json() == {"job_id": job_id, "status": "completed", "result": result}
    assert (await redis.ttl(f"job:{job_id}:result")) > 86_000


async def test_a_failed_job_returns_its_error(client, worker):
    job_id = await submit(client)
    await worker.claim(1)
    await worker.fail(job_id, "Model inference timeout")

    assert (await client.get(f"/job/{job_id}")).json() == {
        "job_id": job_id,
        "status": "failed",
        "error": "Model inference timeout",
    }


async def test_a_long_poll_returns_when_the_job_ends(redis, client, worker):
    job_id = await submit(client)
    polling = asyncio.create_task(client.get(f"/job/{job_id}?wait=30"))
    async with asyncio.timeout(20):
        while not await redis.pubsub_channels():  # noqa: ASYNC110 - Redis has no event for it
            await asyncio.sleep(0.01)
        await worker.fail(job_id, "no")
        assert (await polling).json()["status"] == "failed"


async def test_predict_test_enqueues_a_job(client):
    assert len((await client.post("/predict/test")).json()["job_id"]) == 6


async def test_high_priority_jobs_use_their_own_list(redis, client):
    job_id = await submit(client, priority="high")

    assert await redis.lrange("queue:predict:high", 0, -1) == [job_id.encode()]


async def test_unknown_job_returns_404(client):
    for method in ("GET", "DELETE"):
        response = await client.request(method, "/job/ffffff")
        assert (response.status_code, response.json()["detail"]) == (404, "Job not found")


async def test_cancel_returns_409_once_the_job_has_ended(client):
    job_id = await submit(client)

    assert (await client.delete(f"/job/{job_id}")).json() == {"job_id": job_id, "status": "cancelled"}
    assert (await client.get(f"/job/{job_id}")).json()["status"] == "cancelled"
    assert (await client.delete(f"/job/{job_id}")).status_code == 409


async def test_jobs_are_listed_in_pages_and_by_status(client):
    ids = [await submit(client) for _ in range(3)]
    await client.delete(f"/job/{ids[0]}")

    first = (await client.get("/jobs", params={"limit": 2})).json()
    rest = (await client.get("/jobs", params={"limit": 2, "cursor": first["next_cursor"]})).json()

    assert [job["job_id"] for job in first["jobs"] + rest["jobs"]] == ids[::-1]
    assert rest["next_cursor"] is None
    assert first["jobs"][0].keys() == {"job_id", "status", "created_at"}
    pending = (await client.get("/jobs", params={"status": "pending"})).json()
    assert [job["job_id"] for job in pending["jobs"]] == [ids[2], ids[1]]


async def test_a_repeated_idempotency_key_returns_the_same_job_or_422(client):
    headers = {"Idempotency-Key": "k"}
    first, second = [(await client.post("/predict", json=SAMPLE, headers=headers)).json() for _ in range(2)]
    other = await client.post("/predict", json={"data": [[1.0] * 4]}, headers=headers)

    assert first == second
    assert other.status_code == 422
    assert other.json()["errors"][0]["field"] == "Idempotency-Key"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"data": [[5.1, 3.5, 10.0, 0.2]]}, "petal_length"),
        ({"data": [[0.0, 3.5, 1.4, 0.2]]}, "sepal_length"),
        ({"data": [[5.1, "3.5", 1.4, 0.2]]}, "sepal_width"),
        ({"data": []}, "data"),
        ({}, "data"),
        (SAMPLE | {"priority": "urgent"}, "priority"),
    ],
)
async def test_invalid_input_returns_422_with_the_field(client, body, field):
    response = await client.post("/predict", json=body)

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field


async def test_a_full_queue_returns_429(redis, settings):
    async with proxy(settings(max_queue_length=1)) as client:
        await submit(client)
        response = await client.post("/predict", json=SAMPLE)

    assert response.status_code == 429
    assert response.headers["Retry-After"]


async def test_proxies_share_the_rate_limit(redis, settings):
    limited = settings(rate_limit="2/minute")
    async with proxy(limited) as one, proxy(limited) as other:
        await submit(one)
        await submit(other)
        response = await one.post("/predict", json=SAMPLE)
        assert (await one.get("/jobs")).status_code == 200

    assert response.status_code == 429
    assert 1 <= int(response.headers["Retry-After"]) <= 60


async def test_the_rate_limit_counts_by_the_header_that_the_gateway_sets(redis, settings):
    forwarded = {"rate_limit": "1/minute", "rate_limit_header": "X-Forwarded-For"}
    async with proxy(settings(**forwarded)) as client:
        statuses = [
            (await client.post("/predict", json=SAMPLE, headers={"X-Forwarded-For": value})).status_code
            # The gateway has appended the last entry. A client that invents others is still the same client.
            for value in ("203.0.113.1", "203.0.113.2", "198.51.100.9, 203.0.113.1", "10.0.0.1,203.0.113.2")
        ]
        assert statuses == [200, 200, 429, 429]


@pytest.mark.parametrize(
    ("header", "hops", "sent", "same"),
    [
        pytest.param(None, 1, {"X-Forwarded-For": "1.1.1.1"}, {}, id="without the setting the header is ignored"),
        pytest.param("X-Real-IP", 1, {"X-Real-IP": "1.1.1.1"}, {"x-real-ip": "1.1.1.1"}, id="by header"),
        pytest.param("X-Real-IP", 1, {"X-Real-IP": ""}, {}, id="empty header is the connection"),
        pytest.param("X-Forwarded-For", 2, {"X-Forwarded-For": "9.9.9.9, 1.1.1.1, 10.0.0.1"},
                     {"X-Forwarded-For": "1.1.1.1,10.0.0.1"}, id="two gateways"),
        pytest.param("X-Forwarded-For", 2, {"X-Forwarded-For": "1.1.1.1"}, {}, id="fewer entries than gateways"),
    ],
)  # fmt: skip
def test_who_is_counted(header, hops, sent, same):
    def client(headers):
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        return client_of(Request({"type": "http", "headers": encoded, "client": ("10.1.2.3", 1)}), header, hops)

    assert client(sent) == client(same)
    assert (client(sent) == "10.1.2.3") == (same == {})
    assert len(client({"X-Real-IP": "x" * 8000, "X-Forwarded-For": "x" * 8000 + ", x"})) <= 64


async def test_a_missing_api_key_returns_401(redis, settings):
    async with proxy(settings(api_key="secret")) as client:
        assert (await client.post("/predict", json=SAMPLE)).status_code == 401
        assert (await client.post("/predict", json=SAMPLE, headers={"X-API-Key": "secret"})).status_code == 200
        assert (await client.get("/health")).status_code == 200


@asynccontextmanager
async def hanging() -> AsyncIterator[int]:
    """The port of a server that accepts connections and never answers."""
    connections = []
    server = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for writer in connections:
            writer.close()


async def test_health_does_not_wait_for_a_hanging_redis(settings):
    async with hanging() as port, proxy(settings(redis_port=port)) as client:
        predicting = asyncio.create_task(client.post("/predict", json=SAMPLE))
        health = await client.get("/health")
        assert not predicting.done()
        assert (await predicting).status_code == 503

    assert health.status_code == 503
    assert health.json()["components"] == {"redis": "unavailable", "tensorflow_serving": "ok"}


async def test_liveness_asks_nobody_and_readiness_needs_redis(redis, settings):
    async with proxy(settings(redis_port=free_port(), tf_serving_grpc_port=free_port())) as client:
        assert (await client.get("/health/live")).json() == {"status": "alive"}
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert ready.json()["reason"].startswith("Redis: Error ")
    async with proxy(settings(tf_serving_grpc_port=free_port())) as client:
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


async def test_readiness_names_a_hanging_redis(settings):
    async with hanging() as port, proxy(settings(redis_port=port)) as client:
        ready = await client.get("/health/ready")

    assert (ready.status_code, ready.json()["reason"]) == (503, "Redis does not answer within 0.7 s")


async def test_health_does_not_wait_for_a_hanging_model_server(redis, settings):
    async with hanging() as port, proxy(settings(tf_serving_grpc_port=port)) as client:
        health = await client.get("/health")

    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert HEALTH_WITHIN_S < 1


async def test_readiness_names_what_weakens_the_promises(redis, client):
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        ready = await client.get("/health/ready")
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")

    assert ready.status_code == 200
    (warning,) = ready.json()["warnings"]
    assert "allkeys-lru" in warning
    assert (await client.get("/health/ready")).json() == {"status": "ready"}


async def test_a_replica_is_not_ready(redis, client):
    await redis.replicaof("127.0.0.1", free_port())
    try:
        ready = await client.get("/health/ready")
    finally:
        await redis.replicaof("NO", "ONE")

    assert ready.status_code == 503
    assert "not the primary" in ready.json()["reason"]


@pytest.mark.parametrize("rate_limit", [None, "100/minute"])
async def test_unavailable_redis_returns_503(redis, settings, rate_limit):
    async with proxy(settings(redis_port=free_port(), rate_limit=rate_limit)) as client:
        for method, path in [("POST", "/predict"), ("GET", "/job/a1b2c3"), ("GET", "/jobs")]:
            response = await client.request(method, path, json=SAMPLE)
            assert response.status_code == 503
            assert response.json()["detail"] == "Service temporarily unavailable"
            assert response.headers["Retry-After"]
        health = await client.get("/health")
        assert health.status_code == 503
        assert health.json() == {
            "status": "unhealthy",
            "components": {"redis": "unavailable", "tensorflow_serving": "ok"},
        }


async def test_a_caller_that_has_gone_leaves_no_job(redis, settings):
    messages: Iterator[MutableMapping[str, object]] = iter(
        [{"type": "http.request", "body": json.dumps(SAMPLE).encode()}]
    )
    sent = []

    async def receive() -> MutableMapping[str, object]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message) -> None:
        sent.append(message)

    app = create_app(settings(rate_limit="100/minute"))
    async with app.router.lifespan_context(app):
        await redis.client_pause(1000)  # holds up the rate limit; meanwhile the caller hangs up
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
        await app(scope, receive, send)

    assert sent[0]["status"] == 499
    assert await redis.llen("queue:predict") == 0


async def test_a_long_poll_ends_when_its_caller_hangs_up(redis, redis_server, tmp_path):
    port = free_port()
    env = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis_server.port), "PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    with running("src.proxy.app", cwd=PATTERN, env=env, log=tmp_path / "log", ready=f"{url}/health") as process:
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            job_id = await submit(client)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /job/{job_id}?wait=30 HTTP/1.1\r\nHost: proxy\r\n\r\n".encode())
        while not await redis.pubsub_channels():  # noqa: ASYNC110 - Redis has no event for it
            await asyncio.sleep(0.01)
        writer.close()

        # Before the 30 s, in which the job does not end.
        await asyncio.to_thread(wait_until, lambda: f'"path":"/job/{job_id}"' in process.log, 20)


async def test_a_stopping_proxy_answers_long_polls(redis, redis_server, tmp_path):
    port = free_port()
    env = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis_server.port), "PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    with running("src.proxy.app", cwd=PATTERN, env=env, log=tmp_path / "log", ready=f"{url}/health") as process:
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            job_id = await submit(client)
            polling = asyncio.create_task(client.get(f"/job/{job_id}?wait=30"))
            while not await redis.pubsub_channels():  # noqa: ASYNC110 - Redis has no event for it
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(process.stop) == 0

            # A request that outlasts the grace period is aborted with 500.
            assert (await polling).json() == {"job_id": job_id, "status": "pending"}


async def test_the_rights_in_the_readme_are_enough(redis, settings):
    (rights,) = re.findall(r"ACL SETUSER iris on >PASSWORD ([^`]+)`", (PATTERN / "README.md").read_text())
    await redis.execute_command("ACL", "SETUSER", "iris", "on", ">PASSWORD", *rights.split())
    user = {"redis_username": "iris", "redis_password": "PASSWORD"}
    try:
        with structlog.testing.capture_logs() as logs:
            async with proxy(settings(rate_limit="100/minute", **user)) as client:
                job_id = await submit(client)
                worker_app = create_worker(
                    WorkerSettings(**settings(**user).model_dump(include=WorkerSettings.model_fields.keys()))
                )
                async with worker_app.router.lifespan_context(worker_app):
                    assert (await client.get(f"/job/{job_id}?wait=30")).json()["status"] == "completed"
                assert (await client.delete(f"/job/{job_id}")).status_code == 409
                assert len((await client.get("/jobs")).json()["jobs"]) == 1
                assert (await client.get("/health/ready")).json() == {"status": "ready"}
        assert [line for line in logs if line["event"] == "redis_failed"] == []
    finally:
        await redis.acl_deluser("iris")


@pytest.mark.parametrize("module", ["src.proxy.app", "src.worker.main", "src.worker.dead_letters list"])
async def test_a_wrong_redis_password_ends_the_start_with_one_line(redis, redis_server, tmp_path, module):
    env = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis_server.port), "PORT": str(free_port())}
    await redis.config_set("requirepass", "right")
    try:
        with running(module, cwd=PATTERN, env=env | {"REDIS_PASSWORD": "wrong"}, log=tmp_path / "log") as process:
            assert await asyncio.to_thread(process.popen.wait, 60) == 1
    finally:
        await redis.config_set("requirepass", "")

    (line,) = process.log.splitlines()
    assert "Redis refuses REDIS_PASSWORD" in line


async def test_unavailable_tf_serving_is_reported_as_degraded(redis, settings):
    async with proxy(settings(tf_serving_grpc_port=free_port())) as client:
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert health.json()["components"] == {"redis": "ok", "tensorflow_serving": "unavailable"}
        assert (await client.get("/metadata")).status_code == 503
        await submit(client)


async def test_metrics_report_queue_and_redis(redis, client):
    await submit(client)
    async with asyncio.timeout(20):
        while b'queue_length{priority="normal"} 1' not in generate_latest():  # noqa: ASYNC110 - gauges have no event
            await asyncio.sleep(0.05)
    text = (await client.get("/metrics")).text

    assert "\njobs_unfinished 1" in text
    for name in ("queue_oldest_job_age_seconds", "redis_memory_usage_bytes", "redis_key_count"):
        assert f"\n{name} " in text
    assert "\nredis_expired_keys_total " in text
    assert 'request_count_total{method="POST",route="/predict",status="200"}' in text


@needs_promtool
async def test_metrics_follow_the_naming_rules(redis, client):
    await submit(client)
    async with asyncio.timeout(20):
        while b"redis_key_count" not in generate_latest():  # noqa: ASYNC110 - gauges have no event
            await asyncio.sleep(0.05)
    page = (await client.get("/metrics")).text
    assert naming_problems(page) == []
    assert undocumented(page, Path(__file__).parents[2] / "README.md") == []
