"""What the READMEs show is what happens: their curl lines are run, their settings tables generated anew."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment_of
from tests.processes import PATTERN, Stack


# The root's READMEs have examples of the other patterns as well, and the ports of `make up`.
@pytest.mark.parametrize(
    ("port", "arguments"), [(8000, [str(PATTERN)]), (8400, [str(ROOT), "--skip-others"])], ids=["pattern", "root"]
)
def test_the_readmes_are_as_they_say(models, tmp_path, port, arguments):
    stack = Stack(environment_of(models, f"sqlite:///{tmp_path}/items.db"))
    with stack.api() as api, stack.batches():
        base = f"http://localhost:{port}={str(api.base_url).rstrip('/')}"
        command = [sys.executable, "-m", "scripts.checks.readme", *arguments, "--base", base]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
