"""In containers: a worker that dies comes back, and what it had in hand is done."""

import os
import signal
import subprocess

import httpx
import pytest

from serving_common.testing import wait_until

IMAGES = 60


@pytest.fixture
def proxy():
    if "BASE_URL_07" not in os.environ or "COMPOSE_PROJECT_NAME" not in os.environ:
        pytest.skip("no docker compose stack of this run")
    with httpx.Client(base_url=os.environ["BASE_URL_07"], timeout=60, trust_env=False) as client:
        yield client


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout.strip()


def test_a_worker_that_is_killed_comes_back_and_no_job_is_lost(proxy):
    container = docker("compose", "ps", "--quiet", "worker")
    ids = [proxy.get("/predict/test").json()["job_id"] for _ in range(IMAGES)]
    # Not `docker kill`, after which the restart policy does not count; and a container's first process is deaf to a
    # SIGKILL from inside.
    os.kill(int(docker("inspect", "--format", "{{.State.Pid}}", container)), signal.SIGKILL)

    for job_id in ids:
        entry = proxy.get(f"/job/{job_id}", params={"wait": 30}).json()[job_id]
        assert entry["prediction"], entry
        assert "error" not in entry
    assert docker("inspect", "--format", "{{.RestartCount}}", container) == "1"
    wait_until(lambda: docker("inspect", "--format", "{{.State.Health.Status}}", container) == "healthy")
