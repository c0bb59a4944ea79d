"""Runs the READMEs' curl examples and compares the output; regenerates the settings tables.

The labels shown are those of MobileNetV2 on both sides, with the worker cropping, so this starts a system of its own.
"""

import subprocess
import sys

import pytest

from src.ml.weights import weights_of
from tests.conftest import PATTERN, ROOT
from tests.e2e.conftest import running_system


def test_readme_examples_match_running_system(models, tmp_path):
    model = models / "mobilenet_v2.onnx"
    if weights_of(model) != "pretrained":
        pytest.skip("the READMEs show the labels of pretrained weights, and these are random")
    with running_system(models, model, tmp_path, worker={"RESIZE_MODE": "crop", "NUM_WORKERS": "1"}) as system:
        # The root's READMEs also have examples of other patterns, and the ports of `make up`.
        for port, arguments in ((8000, [PATTERN]), (8700, [ROOT, "--skip-others"])):
            bases = [f"http://localhost:{port}={system.proxy}", f"photo.jpg={models / 'sample.jpg'}"]
            done = subprocess.run(
                [sys.executable, "-m", "serving_testing.readme", *arguments, *(f"--base={base}" for base in bases)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
