"""Schemathesis against a running service: valid and invalid requests, made from its OpenAPI document."""

import os
import subprocess
import sys
from pathlib import Path

from serving_testing.processes import NO_COVERAGE

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def assert_conforms(base_url: str, cwd: Path, *, examples: int, hooks: Path | None = None) -> None:
    """AssertionError, with Schemathesis's report, if an answer is a 500 or not as the service's document says.

    `examples` is the number of requests for each operation and kind; `hooks`, a module that changes the requests.
    """
    env = os.environ | NO_COVERAGE | ({"SCHEMATHESIS_HOOKS": str(hooks)} if hooks else {})
    done = subprocess.run(
        [SCHEMATHESIS, "run", f"{base_url}/openapi.json", "--checks", "all", f"--max-examples={examples}", "--seed=1"],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
