"""Runs the curl examples of the READMEs and regenerates their settings tables."""

import subprocess
import sys

import pytest

from tests.conftest import PATTERN, ROOT


# The root's READMEs also have examples of other patterns, and use the ports of `make up`.
@pytest.mark.parametrize(
    ("port", "arguments"), [(8000, [PATTERN]), (8300, [ROOT, "--skip-others"])], ids=["pattern", "root"]
)
def test_readme_examples_match_responses(system, port, arguments):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "serving_testing.readme",
            *arguments,
            "--base",
            f"http://localhost:{port}={system.proxy}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
