"""Schemathesis sends valid and invalid requests made from the OpenAPI document: no 500, nothing undocumented."""

import subprocess
import sys
from pathlib import Path

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def test_api_conforms_to_its_openapi_document(api, tmp_path):
    url = f"{api.base_url}/openapi.json"
    done = subprocess.run(
        [SCHEMATHESIS, "run", url, "--checks", "all", "--max-examples", "20", "--seed", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
