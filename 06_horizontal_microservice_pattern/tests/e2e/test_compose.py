"""Behaviour that needs containers."""

import subprocess

import httpx
import pytest

from serving_testing.compose import compose, crash, only_against_compose, wait_until_restarted
from serving_testing.processes import wait_until

SAMPLE = {"data": [[5.1, 3.5, 1.4, 0.2]]}

pytestmark = only_against_compose("BASE_URL_06")


def test_killed_container_fails_alone_and_rejoins(system):
    def label() -> dict[str, object]:
        answer: dict[str, object] = httpx.post(f"{system.proxy}/predict/label", json=SAMPLE, timeout=30).json()
        return answer

    compose("kill", "service_versicolor")
    assert label()["missing"] == ["versicolor"]
    assert "error" in httpx.get(f"{system.proxy}/health/all", timeout=30).json()["versicolor"]

    compose("start", "service_versicolor")
    wait_until(lambda: "missing" not in label(), within_s=30)


def test_crashed_service_is_restarted(system):
    container = crash("service_setosa")
    wait_until_restarted(container)
    wait_until(lambda: "missing" not in httpx.post(f"{system.proxy}/predict/label", json=SAMPLE, timeout=30).json())


def test_containers_run_unprivileged():
    for service in ("proxy", "service_setosa"):
        assert compose("exec", "-T", service, "id", "-u") == "10001"
        # The root filesystem is read-only, so that an intruder cannot persist anything.
        with pytest.raises(subprocess.CalledProcessError):
            compose("exec", "-T", service, "touch", "/app/x")


def test_images_contain_no_build_tools():
    for service in ("proxy", "service_setosa"):
        found = compose("exec", "-T", service, "sh", "-c", "command -v uv gcc curl || true")
        assert found == ""


def test_service_can_be_scaled(system):
    try:
        compose("up", "-d", "--wait", "--scale", "service_setosa=2", SETOSA_PORT="127.0.0.1:0")
        assert len(compose("ps", "-q", "service_setosa").split()) == 2
        assert "missing" not in httpx.post(f"{system.proxy}/predict/label", json=SAMPLE, timeout=30).json()
    finally:
        compose("up", "-d", "--wait")  # one again, on its own port
