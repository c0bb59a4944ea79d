"""What the READMEs show is what happens: their curl lines are run, their settings tables generated anew."""

import subprocess
import sys

import pytest

from tests.conftest import PATTERN, ROOT


# The root's READMEs have examples of the other patterns as well, and the ports of `make up`.
@pytest.mark.parametrize(
    ("port", "arguments"), [(8000, [PATTERN]), (8300, [ROOT, "--skip-others"])], ids=["pattern", "root"]
)
def test_the_readmes_are_as_they_say(system, port, arguments):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "scripts.checks.readme",
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
