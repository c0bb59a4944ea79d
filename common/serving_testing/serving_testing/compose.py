"""The docker compose stack under test, where COMPOSE_PROJECT_NAME names one (make test-compose)."""

import os
import signal
import subprocess

import pytest

from serving_testing.processes import wait_until


def only_against_compose(base_url: str) -> pytest.MarkDecorator:
    """For tests of what only containers can show; `base_url` is the variable with the address of the stack."""
    return pytest.mark.skipif(
        not {"COMPOSE_PROJECT_NAME", base_url} <= os.environ.keys(),
        reason="no docker compose stack is under test (make test-compose)",
    )


def compose(*words: str, **variables: str) -> str:
    """What `docker compose` prints, run in the pattern's folder; CalledProcessError if it fails."""
    return _docker("compose", *words, **variables)


def crash(service: str) -> str:
    """SIGKILL to the first process of one container of this service; the id of the container.

    Not `docker kill`, after which the restart policy does not count; and from inside, a container's first process is
    deaf to SIGKILL. So this needs the right to kill it: root, on the engine's own machine.
    """
    container = compose("ps", "--quiet", service).split()[0]
    try:
        os.kill(int(_docker("inspect", "--format", "{{.State.Pid}}", container)), signal.SIGKILL)
    except (PermissionError, ProcessLookupError):
        pytest.skip("the processes of containers cannot be killed from here")
    return container


def wait_until_restarted(container: str, within_s: float = 60) -> None:
    """Return once a container that has crashed is healthy again, by its restart policy."""

    def is_back() -> bool:
        state = _docker("inspect", "--format", "{{.RestartCount}} {{.State.Health.Status}}", container).split()
        return state[0] != "0" and state[1:] == ["healthy"]

    wait_until(is_back, within_s=within_s)


def _docker(*words: str, **variables: str) -> str:
    environment = os.environ | variables
    done = subprocess.run(["docker", *words], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()
