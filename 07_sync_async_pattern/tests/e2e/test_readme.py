"""What the README shows is what happens: its curl lines are run, its settings tables generated anew.

The labels that it shows are those of MobileNetV2 on both sides, the worker cropping, so it needs a stack of its own.
"""

import subprocess
import sys

import pytest
from src.ml.weights import weights_of

from tests.conftest import PATTERN, ROOT
from tests.e2e.conftest import running_system


def test_the_readme_is_as_it_says(models, tmp_path):
    model = models / "mobilenet_v2.onnx"
    if weights_of(model) != "pretrained":
        pytest.skip("its labels are those of pretrained weights, and these are random")
    with running_system(models, model, tmp_path, worker={"RESIZE_MODE": "crop", "NUM_WORKERS": "1"}) as system:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.readme", PATTERN, "--base", f"http://localhost:8000={system.proxy}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 0, done.stdout + done.stderr
