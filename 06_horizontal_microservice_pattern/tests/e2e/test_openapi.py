"""Schemathesis generates valid and invalid requests from both OpenAPI documents: no 500, nothing undocumented."""

import subprocess
import sys
from pathlib import Path

import pytest

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest.mark.parametrize("name", ["proxy", "setosa"])
def test_responses_match_the_openapi_document(system, name, tmp_path):
    url = system.proxy if name == "proxy" else system.services[name]
    done = subprocess.run(
        [SCHEMATHESIS, "run", f"{url}/openapi.json", "--checks", "all", "--max-examples", "40", "--seed", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
