"""What happens inside one of the worker's processes: from an image's bytes to the better model's prediction."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving_common.errors import InvalidInput
from serving_common.onnx import FloatArray, available_cpus
from src.configurations import WorkerSettings
from src.jobs import read_image
from src.ml.classifier import Classifier, Prediction
from src.ml.preprocessing import preprocess

AUTOGROUP = Path("/proc/self/autogroup")

# One model per process, and no way to hand it to the calls that an executor makes but this.
_settings: WorkerSettings
_classifier: Classifier


def become_child() -> None:
    """The process does not outlive its parent."""
    # An executor's child holds both ends of the pipe on which it waits: it would never learn of its parent's death.
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def load(settings: WorkerSettings) -> int:
    """Load and warm up the model, and from then on give way to others; this process's id. Raises StartupError."""
    global _settings, _classifier
    # More threads than cores in all the processes together would only wait for each other.
    threads = max(1, available_cpus() // settings.num_workers)
    model = settings.in_precision(settings.async_model_path)
    _classifier = Classifier.load(model, settings.labels_path, threads=threads)
    _settings = settings
    os.nice(settings.worker_nice)
    # Linux may divide processor time by session first; niceness then counts only within one. So it gets its own.
    os.setsid()
    with contextlib.suppress(OSError):
        AUTOGROUP.write_text(str(settings.worker_nice))
    return os.getpid()


def predict(jobs: Sequence[bytes]) -> list[Prediction | None]:
    """For the data of each job the prediction, or None for what is not an image; in one run of the model."""
    pixels = [_read(data) for data in jobs]
    readable = [each for each in pixels if each is not None]
    predictions = iter(_classifier.classify(np.stack(readable)) if readable else [])
    return [None if each is None else next(predictions) for each in pixels]


def _read(data: bytes) -> FloatArray | None:
    try:
        image = read_image(data)
        return preprocess(image, resize_mode=_settings.resize_mode, max_pixels=_settings.max_image_pixels)
    except (ValueError, InvalidInput):
        return None
