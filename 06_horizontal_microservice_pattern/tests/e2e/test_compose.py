"""What only containers can show."""

import subprocess

import httpx
import pytest

from serving_testing.compose import compose, crash, only_against_compose, wait_until_restarted
from serving_testing.processes import wait_until

SAMPLE = {"data": [[5.1, 3.5, 1.4, 0.2]]}

pytestmark = only_against_compose("BASE_URL_06")


def test_a_killed_container_is_missed_by_nobody_else_and_comes_back(system):
    def label() -> dict[str, object]:
        answer: dict[str, object] = httpx.post(f"{system.proxy}/predict/label", json=SAMPLE, timeout=30).json()
        return answer

    compose("kill", "service_versicolor")
    assert label()["missing"] == ["versicolor"]
    assert "error" in httpx.get(f"{system.proxy}/health/all", timeout=30).json()["versicolor"]

    compose("start", "service_versicolor")
    wait_until(lambda: "missing" not in label(), within_s=30)


def test_a_service_that_crashes_is_restarted(system):
    container = crash("service_setosa")
    wait_until_restarted(container)
    wait_until(lambda: "missing" not in httpx.post(f"{system.proxy}/predict/label", json=SAMPLE, timeout=30).json())


def test_the_containers_run_without_privileges():
    for service in ("proxy", "service_setosa"):
        assert compose("exec", "-T", service, "id", "-u") == "10001"
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
