"""The Iris SavedModel, made by pattern 02's own build_model.py."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from models.files import BuildError, say
from models.manifest import Facts


def build(builder: Path, target: Path) -> Facts:
    """Train and export the model into the folder `target`. Raises BuildError if TensorFlow is not installed."""
    if importlib.util.find_spec("tensorflow") is None:
        raise BuildError("it needs TensorFlow, not installed here: run `make setup`")
    say("loading TensorFlow to train the Iris SavedModel: takes half a minute")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    spec = importlib.util.spec_from_file_location("build_model", builder)
    if spec is None or spec.loader is None:
        raise BuildError(f"{builder} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module that they are defined in
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as scratch:
        metrics = module.build(Path(scratch), version=1)
        (Path(scratch) / "1").rename(target)
    return Facts(
        inputs=[{"name": "input", "dtype": "float32", "shape": ["N", 4]}],
        outputs=[{"name": "output", "dtype": "float32", "shape": ["N", 3]}],
        metrics={"accuracy": metrics.accuracy},
    )
