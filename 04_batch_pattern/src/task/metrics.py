"""What Prometheus learns of a batch. A job is gone before it could be scraped, so it leaves its figures somewhere."""

import socket
import time
from http.client import HTTPException

import structlog
from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway, write_to_textfile

from src.configurations import JobSettings

log = structlog.get_logger()


def publish(settings: JobSettings, *, predicted: int, errors: int, duration_s: float) -> None:
    """Write and push the figures of a batch that succeeded, as configured. Failing to is logged and no failure.

    A batch that fails publishes nothing: the age of the last success is what tells of it.
    """
    registry = CollectorRegistry()
    for name, text, value in (
        ("batch_rows_predicted", "Rows that the last successful batch predicted.", predicted),
        ("batch_rows_failed", "Rows that the last successful batch could not predict.", errors),
        ("batch_duration_seconds", "How long the last successful batch took.", duration_s),
        ("batch_last_success_timestamp_seconds", "When the last successful batch ended.", time.time()),
    ):
        Gauge(name, text, registry=registry).set(value)
    try:
        if settings.metrics_textfile is not None:
            write_to_textfile(str(settings.metrics_textfile), registry)
        if settings.pushgateway_url is not None:
            pushadd_to_gateway(
                settings.pushgateway_url, "batch_pattern", registry, grouping_key={"instance": socket.gethostname()}
            )
    except (OSError, HTTPException, ValueError) as exc:  # the last two: of something else at that URL, or of a bad one
        log.warning("metrics not published", reason=str(exc))
