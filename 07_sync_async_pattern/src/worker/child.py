"""Runs inside a model process of the worker: from an image's bytes to the better model's prediction."""

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
from src.ml.classifier import Classifier, ImagePrediction
from src.ml.preprocessing import preprocess

AUTOGROUP = Path("/proc/self/autogroup")

# Globals, because an executor has no other way to hand a process's model to the calls that it makes there.
_settings: WorkerSettings
_classifier: Classifier


def exit_with_parent() -> None:
    """Start a thread that ends this process when its parent dies."""
    # An executor's child holds both ends of the pipe that it reads, so it would never see its parent's end close.
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def load(settings: WorkerSettings) -> int:
    """Load and warm up the model, then lower the priority; returns this process's id. Raises StartupError."""
    global _settings, _classifier
    # More threads than cores, over all processes, would only wait for each other.
    threads = max(1, available_cpus() // settings.num_workers)
    _classifier = Classifier.load(settings.async_card, threads=threads)
    _settings = settings
    os.nice(settings.worker_nice)
    # With autogroups, Linux divides CPU time by session first and niceness counts only within one: so, an own session.
    os.setsid()
    with contextlib.suppress(OSError):
        AUTOGROUP.write_text(str(settings.worker_nice))
    return os.getpid()


def predict(jobs: Sequence[bytes]) -> list[ImagePrediction | None]:
    """One prediction per job, in one run of the model; None where the data is not an image."""
    # Not decoded ahead in a thread while the model runs: with a process per core, no core is idle meanwhile, and the
    # model runs on fewer images at a time. Measured on two busy cores, a batch of 640x480 took as long as this way, and
    # one of 4000x3000 a tenth to a fifth longer.
    pixels = [_read(data) for data in jobs]
    readable = [each for each in pixels if each is not None]
    predictions = iter(_classifier.classify(np.stack(readable)) if readable else [])
    return [None if each is None else next(predictions) for each in pixels]


def _read(data: bytes) -> FloatArray | None:
    try:
        image = read_image(data)
        return preprocess(image, _classifier.form, max_pixels=_settings.max_image_pixels)
    except (ValueError, InvalidInput):
        return None
