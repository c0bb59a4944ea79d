"""SavedModels as ONNX, for the patterns that run ONNX Runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from models.files import BuildError


def to_onnx(folder: Path, signature: str, target: Path) -> list[str]:
    """Write one signature of a SavedModel as ONNX; notes on it. Raises BuildError.

    In a process of its own: TensorFlow takes over the logging, the signals and the memory of the one that imports it.
    """
    converter = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", folder, "--output", target]
    done = subprocess.run(  # noqa: S603 - ours
        [*map(str, converter), "--opset", "18", "--signature_def", signature],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not target.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise BuildError(f"{folder} cannot be converted to ONNX: {reason} (check --signature, or add an .onnx file)")
    return [f"signature {signature} of a SavedModel, converted with tf2onnx"]
