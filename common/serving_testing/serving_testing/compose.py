"""The docker compose stack under test, named by COMPOSE_PROJECT_NAME (make test-compose)."""

import os
import signal
import subprocess

import pytest

from serving_testing.processes import wait_until


def only_against_compose(base_url: str) -> pytest.MarkDecorator:
    """Marks tests that need containers; `base_url` is the variable with the address of the stack."""
    return pytest.mark.skipif(
        not {"COMPOSE_PROJECT_NAME", base_url} <= os.environ.keys(),
        reason="no docker compose stack is under test (make test-compose)",
    )


def compose(*arguments: str, **variables: str) -> str:
    """Output of `docker compose`, run in the pattern's folder; CalledProcessError if it fails."""
    return _docker("compose", *arguments, **variables)


def crash(service: str) -> str:
    """Send SIGKILL to the first process of one container of this service; return the container's id.

    Not `docker kill`, which suspends the restart policy, and not from inside, where SIGKILL never reaches the first
    process. This needs the right to kill it: root, on the engine's own machine.
    """
    container = compose("ps", "--quiet", service).split()[0]
    try:
        os.kill(int(_docker("inspect", "--format", "{{.State.Pid}}", container)), signal.SIGKILL)
    except (PermissionError, ProcessLookupError):
        pytest.skip("the processes of containers cannot be killed from here")
    return container


def wait_until_restarted(container: str, within_s: float = 60) -> None:
    """Return once the restart policy has made a crashed container healthy again."""

    def is_back() -> bool:
        state = _docker("inspect", "--format", "{{.RestartCount}} {{.State.Health.Status}}", container).split()
        return state[0] != "0" and state[1:] == ["healthy"]

    wait_until(is_back, within_s=within_s)


def _docker(*arguments: str, **variables: str) -> str:
    environment = os.environ | variables
    completed = subprocess.run(["docker", *arguments], env=environment, capture_output=True, text=True, check=True)
    return completed.stdout.strip()
