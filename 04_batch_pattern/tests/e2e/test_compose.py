"""Behaviour that only containers can show."""

import subprocess

import httpx
import pytest

from serving_testing.compose import compose, crash, only_against_compose, wait_until_restarted
from serving_testing.processes import wait_until
from tests.conftest import ROW

pytestmark = only_against_compose("BASE_URL_04")


def predicted(api: httpx.Client, after_id: int) -> int:
    return len(api.get("/data/predicted", params={"after_id": after_id}).json())


def test_api_and_job_recover_from_a_database_crash(api):
    before = api.post("/data", json={"values": ROW}).json()["id"]
    container = crash("mysql")
    answer = api.post("/data", json={"values": ROW})
    assert (answer.status_code, answer.json()["detail"]) == (503, "The database does not answer")
    assert api.get("/health").status_code == 503
    wait_until_restarted(container, within_s=120)
    wait_until(lambda: api.get("/health").status_code == 200, within_s=120)
    api.post("/data", json={"values": ROW}).raise_for_status()
    wait_until(lambda: predicted(api, before) == 1, within_s=180)


def test_three_jobs_share_the_rows(api):
    before = api.post("/data", json={"values": ROW}).json()["id"]
    compose("up", "--detach", "--no-recreate", "--scale", "job=3", "job")
    for _ in range(3):
        api.post("/data/list", json=[{"values": ROW}] * 10_000).raise_for_status()
    wait_until(lambda: predicted(api, before) == 30_000, within_s=180)


def test_api_runs_as_non_root_on_a_read_only_filesystem():
    assert compose("exec", "-T", "api", "id", "-u") == "10001"
    with pytest.raises(subprocess.CalledProcessError):
        compose("exec", "-T", "api", "touch", "/app/x")


def test_images_contain_no_build_tools():
    assert compose("exec", "-T", "api", "sh", "-c", "command -v uv gcc curl || true") == ""
    assert compose("run", "--rm", "--no-deps", "-T", "job", "sh", "-c", "command -v uv gcc curl || true") == ""
