"""Runs the warm-up requests in a version's folder, so that its first real request is not its slowest."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import DecodeError

from tfserving_protos import messages

from .core import Core
from .inference import Inference
from .status import Code, StatusError, invalid

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    inference = Inference(Core(_SingleVersionFinder(servable)))
    count = 0
    try:
        for record in _records(path):
            count += 1
            if count > MAX_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
            request = messages.PredictionLog.FromString(record)
            for _ in range(max(1, repeats)):
                _run(inference, request)
    except DecodeError:
        raise invalid(f"Failed to parse warmup record: {count} from {path}") from None
    log.info("version_warmed_up", model=servable.name, version=servable.version, requests=count)


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: each has its length, the length's CRC, the content, the content's CRC.

    Only the CRC of the length is checked: it tells another format from this one, and the content is parsed anyway.
    """
    damaged = StatusError(
        Code.DATA_LOSS,
        f"corrupted or truncated record in {path}. Please verify your warmup data is in TFRecord format.",
    )
    with path.open("rb") as file:
        while header := file.read(12):
            if len(header) < 12 or struct.unpack("<I", header[8:]) != (_masked_crc(header[:8]),):
                raise damaged
            [length] = struct.unpack("<Q", header[:8])
            if length > path.stat().st_size:
                raise damaged
            content = file.read(length + 4)
            if len(content) < length + 4:
                raise damaged
            yield content[:-4]


def _masked_crc(data: bytes) -> int:
    """CRC-32C, and the rotation that TFRecord adds."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


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
