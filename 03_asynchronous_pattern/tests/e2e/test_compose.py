"""Tests that need containers: restarts, privileges, and the contents of images."""

import httpx
import pytest

from serving_testing.compose import compose, crash, only_against_compose, wait_until_restarted
from serving_testing.processes import wait_until

JOBS = 300
FLOWER = {"data": [[5.1, 3.5, 1.4, 0.2]]}

pytestmark = only_against_compose("BASE_URL_03")


@pytest.fixture
def client(system):
    with httpx.Client(base_url=system.proxy, timeout=60, trust_env=False) as client:
        yield client


def enqueue(client, count):
    return [client.post("/predict", json=FLOWER).raise_for_status().json()["job_id"] for _ in range(count)]


def results(client, ids):
    return {client.get(f"/job/{job_id}", params={"wait": 30}).json()["status"] for job_id in ids}


def test_a_killed_worker_is_restarted_and_loses_no_job(client):
    ids = enqueue(client, JOBS)
    container = crash("worker")
    ids += enqueue(client, JOBS)
    assert results(client, ids) == {"completed"}
    wait_until_restarted(container)


@pytest.mark.parametrize("service", ["redis", "tensorflow_serving"])
def test_a_killed_dependency_is_restarted_and_loses_no_job(client, service):
    ids = enqueue(client, JOBS)
    container = crash(service)
    wait_until_restarted(container, within_s=120)
    wait_until(lambda: client.get("/health").json()["status"] == "healthy", within_s=30)
    ids += enqueue(client, JOBS)
    assert results(client, ids) == {"completed"}


def test_containers_run_without_privileges():
    for service in ("proxy", "worker"):
        assert compose("exec", "-T", service, "id", "-u") == "10001"
        with pytest.raises(Exception, match="touch"):
            compose("exec", "-T", service, "touch", "/app/x")


def test_images_contain_no_build_tools():
    for service in ("proxy", "worker"):
        assert compose("exec", "-T", service, "sh", "-c", "command -v uv gcc curl || true") == ""
