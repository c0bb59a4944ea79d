"""tf_serving_entrypoint.sh: from the environment to flags, and to a server in its place."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from client.grpc_client import GrpcClient
from serving_testing.processes import free_port
from tests.conftest import IRIS_LABELS, IRIS_ROWS, PATTERN, wait_until_served

if TYPE_CHECKING:
    from pathlib import Path

ENTRYPOINT = PATTERN / "tf_serving_entrypoint.sh"
VARIABLES = ("PORT", "REST_API_PORT", "MODEL_NAME", "MODEL_BASE_PATH", "MONITORING_CONFIG_FILE")


def installed(folder: Path, script: str) -> dict[str, str]:
    """An environment without the variables, in which `script` is the command tensorflow_model_server."""
    command = folder / "tensorflow_model_server"
    command.write_text(f"#!/usr/bin/env bash\n{script}\n")
    command.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return kept | {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("variables", "arguments", "flags"),
    [
        pytest.param(
            {},
            [],
            ["--port=8500", "--rest_api_port=8501", "--model_name=iris", "--model_base_path=/models/iris"],
            id="defaults",
        ),
        pytest.param(
            {
                "PORT": "1",
                "REST_API_PORT": "2",
                "MODEL_NAME": "a",
                "MODEL_BASE_PATH": "/with space",
                "MONITORING_CONFIG_FILE": "/a file",
            },
            ["--enable_batching", "--flag=two words"],
            [
                *("--port=1", "--rest_api_port=2", "--model_name=a", "--model_base_path=/with space"),
                *("--monitoring_config_file=/a file", "--enable_batching", "--flag=two words"),
            ],
            id="environment and further flags",
        ),
    ],
)
def test_environment_and_arguments_become_flags(
    tmp_path: Path, variables: dict[str, str], arguments: list[str], flags: list[str]
) -> None:
    environment = installed(tmp_path, """printf '%s\\n' "$@" """) | variables
    done = subprocess.run([ENTRYPOINT, *arguments], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == flags


def test_server_replaces_the_script_and_receives_its_signals(iris_model: Path, tmp_path: Path) -> None:
    port, rest_port = free_port(), free_port()
    environment = installed(tmp_path, f'exec {shlex.quote(sys.executable)} -m model_server "$@"') | {
        "PORT": str(port),
        "REST_API_PORT": str(rest_port),
        "MODEL_NAME": "flowers",
        "MODEL_BASE_PATH": str(iris_model),
    }
    # 0 は「起動時に一度だけ調べる」という意味で、それでも最初のバージョンは読み込まれる。
    command = [str(ENTRYPOINT), "--file_system_poll_wait_seconds=0"]
    process = subprocess.Popen(command, cwd=PATTERN, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_until_served(process, f"http://127.0.0.1:{rest_port}/v1/models/flowers")
        with GrpcClient(f"127.0.0.1:{port}", model="flowers") as client:
            assert [prediction.label for prediction in client.predict(IRIS_ROWS)] == IRIS_LABELS
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
