"""The READMEs match reality: their curl lines are run, their settings tables generated again."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment_of
from tests.processes import PATTERN, BatchSystem


@pytest.fixture(scope="module")
def api_url(models, tmp_path_factory):
    """The base URL of an API beside which batches run."""
    folder = tmp_path_factory.mktemp("readme")
    system = BatchSystem(environment_of(models, f"sqlite:///{folder}/items.db"))
    with system.api() as (api, _), system.batches():
        yield str(api.base_url).rstrip("/")


# The root's READMEs also have examples of other patterns, and use the ports of `make up`.
@pytest.mark.parametrize(
    ("port", "arguments"), [(8000, [str(PATTERN)]), (8400, [str(ROOT), "--skip-others"])], ids=["pattern", "root"]
)
def test_readme_examples_and_settings_are_current(api_url, port, arguments):
    command = [
        sys.executable,
        "-m",
        "serving_testing.readme",
        *arguments,
        "--base",
        f"http://localhost:{port}={api_url}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
