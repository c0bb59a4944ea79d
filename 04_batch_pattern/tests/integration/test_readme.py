"""What README.md shows is what happens: its curl lines are run, its settings tables generated anew."""

import subprocess
import sys

from tests.conftest import ROOT, environment_of
from tests.processes import PATTERN, Stack


def test_the_readme_is_as_it_says(models, tmp_path):
    with Stack(environment_of(models, f"sqlite:///{tmp_path}/items.db")).api() as api:
        base = f"http://localhost:8000={str(api.base_url).rstrip('/')}"
        command = [sys.executable, "-m", "scripts.readme", str(PATTERN), "--base", base]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
