"""The Iris SavedModel, built by running pattern 02's build_model.py as a command."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from models.files import BuildError, say
from models.manifest import Facts

ACCURACY = re.compile(r"accuracy on (\d+) held-out rows: ([\d.]+)%")


def build(builder: Path, target: Path) -> Facts:
    """Train and export the model into the folder `target`. Raises BuildError if TensorFlow is missing or it fails."""
    if importlib.util.find_spec("tensorflow") is None:
        raise BuildError("it needs TensorFlow, not installed here: run `make setup`")
    say("loading TensorFlow to train the Iris SavedModel; this takes half a minute")
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"} | os.environ
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as scratch:
        command = [sys.executable, str(builder), "--output", scratch, "--version", "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 ours
        found = ACCURACY.search(done.stdout)
        if done.returncode or not found:
            raise BuildError(f"{builder.name} failed: {(done.stderr.strip() or done.stdout).splitlines()[-1:]}")
        (Path(scratch) / "1").rename(target)
    rows, percent = int(found[1]), float(found[2])
    return Facts(
        inputs=[{"name": "input", "dtype": "float32", "shape": ["N", 4]}],
        outputs=[{"name": "output", "dtype": "float32", "shape": ["N", 3]}],
        metrics={"accuracy": round(rows * percent / 100) / rows},  # one decimal is enough to recover the fraction
    )
