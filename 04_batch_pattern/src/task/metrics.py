"""Prometheus metrics of a batch. A job exits before it could be scraped, so it writes or pushes them."""

import socket
import time
from http.client import HTTPException

import structlog
from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway, write_to_textfile

from src.configurations import JobSettings

log = structlog.get_logger()


def publish(settings: JobSettings, *, predicted: int, errors: int, duration_s: float) -> None:
    """Write and push the metrics of a successful batch, as configured. A failure to do so is logged, not raised.

    A failed batch publishes nothing: alert on the age of the last success.
    """
    registry = CollectorRegistry()
    for name, text, value in (
        ("batch_rows_predicted", "Rows that the last successful batch predicted.", predicted),
        ("batch_rows_failed", "Rows that the last successful batch could not predict.", errors),
        ("batch_duration_seconds", "Duration of the last successful batch.", duration_s),
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
    except (OSError, HTTPException, ValueError) as exc:  # the last two: not a gateway, or not a URL
        log.warning("metrics not published", reason=str(exc))
