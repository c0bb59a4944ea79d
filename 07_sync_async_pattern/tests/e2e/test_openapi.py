"""Schemathesis generates valid and invalid requests from the OpenAPI document: no 500, nothing undocumented."""

import os
import subprocess
import sys
from pathlib import Path

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def test_proxy_conforms_to_its_openapi_document(system, tmp_path):
    url = f"{system.proxy}/openapi.json"
    done = subprocess.run(
        [SCHEMATHESIS, "run", url, "--checks", "all", "--max-examples", "10", "--seed", "1"],
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("schemathesis_hooks.py"))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
