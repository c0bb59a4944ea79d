"""What the README shows is what happens: its curl lines are run, its settings tables generated anew."""

import subprocess
import sys

from tests.conftest import PATTERN, ROOT


def test_the_readme_is_as_it_says(system):
    done = subprocess.run(
        [sys.executable, "-m", "scripts.readme", PATTERN, "--base", f"http://localhost:8000={system.proxy}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
