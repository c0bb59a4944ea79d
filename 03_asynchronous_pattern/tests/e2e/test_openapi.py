"""Schemathesis sends valid and invalid requests from the OpenAPI document: no 500, no undocumented response."""

import subprocess
import sys
from pathlib import Path

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def test_the_proxy_conforms_to_its_openapi_document(system, tmp_path):
    url = f"{system.proxy}/openapi.json"
    done = subprocess.run(
        [SCHEMATHESIS, "run", url, "--checks", "all", "--max-examples", "40", "--seed", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
