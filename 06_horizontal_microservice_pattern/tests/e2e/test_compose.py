"""What only containers can show. Runs where COMPOSE_PROJECT_NAME names the stack that BASE_URL_06 leads to."""

import os
import subprocess
from pathlib import Path

import httpx
import pytest

from serving_common.testing import wait_until

PATTERN = Path(__file__).parents[2]
SAMPLE = {"data": [[5.1, 3.5, 1.4, 0.2]]}

pytestmark = pytest.mark.skipif(
    not {"COMPOSE_PROJECT_NAME", "BASE_URL_06"} <= os.environ.keys(),
    reason="no docker compose stack is under test (make test-compose)",
)


def compose(*words: str, **variables: str) -> str:
    command = ["docker", "compose", *words]
    environment = os.environ | variables
    return subprocess.run(command, cwd=PATTERN, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_killed_container_is_missed_by_nobody_else_and_comes_back(system):
    def label() -> dict[str, object]:
        answer: dict[str, object] = httpx.post(f"{system.proxy}/predict/label", json=SAMPLE, timeout=30).json()
        return answer

    compose("kill", "service_versicolor")
    assert label()["missing"] == ["versicolor"]
    assert "error" in httpx.get(f"{system.proxy}/health/all", timeout=30).json()["versicolor"]

    compose("start", "service_versicolor")
    wait_until(lambda: "missing" not in label(), within_s=30)


def test_the_containers_run_without_privileges():
    for service in ("proxy", "service_setosa"):
        assert compose("exec", "-T", service, "id", "-u").strip() == "10001"
        # A read-only root, so that what gets in cannot stay.
        with pytest.raises(subprocess.CalledProcessError):
            compose("exec", "-T", service, "touch", "/app/x")


def test_the_images_hold_no_tools_that_only_building_needs():
    for service in ("proxy", "service_setosa"):
        found = compose("exec", "-T", service, "sh", "-c", "command -v uv gcc curl || true")
        assert found == ""


def test_a_service_can_be_scaled(system):
    try:
        compose("up", "-d", "--wait", "--scale", "service_setosa=2", SETOSA_PORT="127.0.0.1:0")
        assert len(compose("ps", "-q", "service_setosa").split()) == 2
        assert "missing" not in httpx.post(f"{system.proxy}/predict/label", json=SAMPLE, timeout=30).json()
    finally:
        compose("up", "-d", "--wait")  # one again, on its own port
