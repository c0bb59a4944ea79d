"""What only containers can show. Runs where COMPOSE_PROJECT_NAME names the stack that BASE_URL_04 leads to."""

import os
import subprocess

import httpx
import pytest

from serving_common.testing import wait_until
from tests.processes import PATTERN

ROW = [5.1, 3.5, 1.4, 0.2]

pytestmark = pytest.mark.skipif(
    not {"COMPOSE_PROJECT_NAME", "BASE_URL_04"} <= os.environ.keys(),
    reason="no docker compose stack is under test (make test-compose)",
)


def compose(*words: str) -> str:
    return subprocess.run(["docker", "compose", *words], cwd=PATTERN, capture_output=True, text=True, check=True).stdout


def predicted(api: httpx.Client, after_id: int) -> int:
    return len(api.get("/data/predicted", params={"after_id": after_id}).json())


def test_the_stack_outlives_its_database(api):
    before = api.post("/data", json={"values": ROW}).json()["id"]
    compose("kill", "mysql")
    answer = api.post("/data", json={"values": ROW})
    assert (answer.status_code, answer.json()["detail"]) == (503, "The database does not answer")
    assert api.get("/health").status_code == 503
    compose("start", "mysql")
    wait_until(lambda: api.get("/health").status_code == 200, within_s=120)
    api.post("/data", json={"values": ROW}).raise_for_status()
    wait_until(lambda: predicted(api, before) == 1, within_s=180)


def test_three_jobs_share_the_rows(api):
    before = api.post("/data", json={"values": ROW}).json()["id"]
    compose("up", "--detach", "--no-recreate", "--scale", "job=3", "job")
    for _ in range(3):
        api.post("/data/list", json=[{"values": ROW}] * 10_000).raise_for_status()
    wait_until(lambda: predicted(api, before) == 30_000, within_s=180)


def test_the_api_runs_without_privileges():
    assert compose("exec", "-T", "api", "id", "-u").strip() == "10001"
    with pytest.raises(subprocess.CalledProcessError):
        compose("exec", "-T", "api", "touch", "/app/x")


def test_the_images_hold_no_tools_that_only_building_needs():
    assert compose("exec", "-T", "api", "sh", "-c", "command -v uv gcc curl || true") == ""
    assert compose("run", "--rm", "--no-deps", "-T", "job", "sh", "-c", "command -v uv gcc curl || true") == ""
