"""The README's curl lines and client commands print what it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATTERN, IrisServer

CLIENT_EXAMPLE = re.compile(r"```bash\npython (-m client\.(\w+)_client [^\n]*)\n```\n\n```text\n(.*?)```", re.DOTALL)


# The root's READMEs have examples of the other patterns as well.
@pytest.mark.parametrize("arguments", [[PATTERN], [PATTERN.parent, "--skip-others"]], ids=["pattern", "root"])
def test_curl_lines_print_what_is_shown(iris_server: IrisServer, arguments: list[str | Path]) -> None:
    base = f"http://localhost:8501={iris_server.rest_url}"
    done = subprocess.run(
        [sys.executable, "-m", "serving_testing.readme", *arguments, "--base", base],
        cwd=PATTERN.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_client_commands_print_what_is_shown(iris_server: IrisServer, protocol: str) -> None:
    address = iris_server.grpc_address if protocol == "grpc" else iris_server.rest_url
    [(arguments, shown)] = [
        (arguments, shown)
        for arguments, name, shown in CLIENT_EXAMPLE.findall((PATTERN / "README.md").read_text())
        if name == protocol
    ]
    command = [sys.executable, *shlex.split(arguments), "--address", address]
    assert subprocess.run(command, cwd=PATTERN, capture_output=True, text=True, check=True).stdout == shown
