"""Runs the warm-up requests in a SavedModel, so that its first real request is not its slowest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import DecodeError

from tfserving_protos import messages

from .inference import Inference
from .runtime import API, OpError
from .status import Code, StatusError, invalid

if TYPE_CHECKING:
    from pathlib import Path

    from .model import Servable

log = structlog.get_logger()

MAX_RECORDS = 1000


class _SingleVersionFinder:
    """Replaces the manager while a version is not in traffic yet: every request is for that version."""

    def __init__(self, servable: Servable) -> None:
        self._servable = servable

    def find(self, spec: messages.ModelSpec) -> Servable:
        return self._servable


def warm_up(servable: Servable, folder: Path, repeats: int) -> None:
    """Run assets.extra/tf_serving_warmup_requests, a TFRecord file of PredictionLogs, if there is one.

    Each request is run `repeats` times, at least once.

    Raises:
        StatusError: the file is damaged, or a request fails; the version must not serve then.
    """
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    if not path.is_file():
        return
    inference = Inference(_SingleVersionFinder(servable))
    count = 0
    try:
        for record in API.read_records(str(path)):
            count += 1
            if count > MAX_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
            request = messages.PredictionLog.FromString(record)
            for _ in range(max(1, repeats)):
                _run(inference, request)
    except DecodeError:
        raise invalid(f"Failed to parse warmup record: {count} from {path}") from None
    except OpError as error:
        raise StatusError(
            Code(error.error_code), f"{error.message}. Please verify your warmup data is in TFRecord format."
        ) from None
    log.info("version_warmed_up", model=servable.name, version=servable.version, requests=count)


def _run(inference: Inference, record: messages.PredictionLog) -> None:
    kind = record.WhichOneof("log_type")
    if kind == "predict_log":
        inference.predict(record.predict_log.request)
    elif kind == "classify_log":
        inference.classify(record.classify_log.request)
    elif kind == "regress_log":
        inference.regress(record.regress_log.request)
    elif kind == "multi_inference_log":
        inference.multi_inference(record.multi_inference_log.request)
    else:
        raise StatusError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
