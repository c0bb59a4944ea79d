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
    "COMPOSE_PROJECT_NAME" not in os.environ, reason="no docker compose stack is under test (make test-compose)"
)


def compose(*words: str) -> str:
    return subprocess.run(["docker", "compose", *words], cwd=PATTERN, capture_output=True, text=True, check=True).stdout


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
