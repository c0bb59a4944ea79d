"""The READMEs' curl lines return what they show, and their settings tables are current."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PATTERN = Path(__file__).parents[2]


# The root's READMEs contain examples of the other patterns too.
@pytest.mark.parametrize("arguments", [[PATTERN], [ROOT, "--skip-others"]], ids=["pattern", "root"])
def test_readme_examples_and_tables_are_current(system, arguments):
    shown = {"http://localhost:9000": system.proxy} | {
        f"http://localhost:{port}": system.services[name]
        for name, port in (("setosa", 8000), ("versicolor", 8001), ("virginica", 8002))
    }
    bases = [word for base, actual in shown.items() for word in ("--base", f"{base}={actual}")]
    done = subprocess.run(
        [sys.executable, "-m", "serving_testing.readme", *arguments, *bases],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
