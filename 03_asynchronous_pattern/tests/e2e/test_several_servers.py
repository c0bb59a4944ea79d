"""Four workers and two model servers, all processes: equal load, and no failed job when one server is killed."""

import os
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from redis import Redis

from serving_testing.processes import free_port, running, wait_until
from tests.conftest import PATTERN, SAMPLE, ModelServer

WORKERS = 4
JOBS = 200
REQUESTS = re.compile(r':tensorflow:serving:request_count\{model_name="iris",status="OK"\} (\d+)')

pytestmark = pytest.mark.skipif("BASE_URL_03" in os.environ, reason="the system's processes were not started here")


@pytest.fixture
def victim(model_server: ModelServer, tmp_path: Path) -> Iterator[ModelServer]:
    """A second model server, for this test to kill."""
    server = ModelServer(model_server.model, tmp_path)
    with server.stack:
        server.start()
        yield server


def calls(server: ModelServer) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics") as page:
        found = REQUESTS.search(page.read().decode())
    return int(found[1]) if found else 0


def submit(client: httpx.Client, count: int) -> list[str]:
    """One after the other, so that the workers claim small batches."""
    return [client.post("/predict", json=SAMPLE).json()["job_id"] for _ in range(count)]


def ended(client: httpx.Client, ids: list[str]) -> Counter[str]:
    """How these jobs end."""
    return Counter(client.get(f"/job/{job_id}", params={"wait": 30}).json()["status"] for job_id in ids)


def test_workers_share_servers_equally_and_lose_no_job_with_one(system, model_server, victim, tmp_path):
    servers = [model_server, victim]
    before = [calls(server) for server in servers]
    environment = {
        **system.environment,
        "TF_SERVING_TARGET": ",".join(f"127.0.0.1:{server.port}" for server in servers),
        "QUEUE_NAME": "queue:several",
        "HEARTBEAT_S": "1",
    }
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        for index in range(WORKERS):
            stack.enter_context(
                running("src.worker.main", cwd=PATTERN, env=environment, log=tmp_path / f"worker-{index}.log")
            )
        proxy = {**environment, "PORT": str(port)}
        stack.enter_context(
            running("src.proxy.app", cwd=PATTERN, env=proxy, log=tmp_path / "proxy.log", ready=f"{url}/health")
        )
        client = stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))

        with Redis(port=system.redis.port) as redis:
            wait_until(lambda: redis.llen("queue:several:workers") == WORKERS)
        assert ended(client, submit(client, JOBS)) == {"completed": JOBS}
        load = [calls(server) - old for server, old in zip(servers, before, strict=True)]
        assert abs(load[0] - load[1]) <= 0.2 * sum(load) / 2, load

        ids = submit(client, JOBS // 2)
        victim.process.popen.kill()
        ids += submit(client, JOBS // 2)
        assert ended(client, ids) == {"completed": JOBS}
        assert calls(model_server) > before[0] + load[0]
