"""In containers: a worker that dies comes back, and what it had in hand is done."""

import os

import httpx
import pytest

from serving_testing.compose import crash, only_against_compose, wait_until_restarted

IMAGES = 60

pytestmark = only_against_compose("BASE_URL_07")


@pytest.fixture
def proxy():
    with httpx.Client(base_url=os.environ["BASE_URL_07"], timeout=60, trust_env=False) as client:
        yield client


def test_a_worker_that_is_killed_comes_back_and_no_job_is_lost(proxy):
    ids = [proxy.get("/predict/test").json()["job_id"] for _ in range(IMAGES)]
    container = crash("worker")
    for job_id in ids:
        entry = proxy.get(f"/job/{job_id}", params={"wait": 30}).json()[job_id]
        assert entry["prediction"], entry
        assert "error" not in entry
    wait_until_restarted(container)
