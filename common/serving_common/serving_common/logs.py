"""Structured logs: one line per event, JSON in containers, readable on a terminal.

Fields: `timestamp` (UTC), `level`, `component`, `action` (the event, past tense), `request_id` or `job_id` if the line
belongs to one, `duration_ms`, and the event's own fields.
"""

import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from serving_common.settings import LogFormat, Settings


def configure(component: str, settings: Settings) -> None:
    """Send all logs of this process, those of libraries too, to stdout in one format.

    Args:
        component: the process's name in every line, for instance `proxy`.
        settings: level and format.
    """

    def add_component(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["component"] = component
        return event

    is_terminal = sys.stdout.isatty()
    is_console = settings.log_format is LogFormat.CONSOLE or (settings.log_format is LogFormat.AUTO and is_terminal)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        add_component,
    ]
    # A worker writes thousands of lines per second, so orjson's bytes are written as they are, timestamp included.
    as_json = partial(orjson.dumps, default=repr, option=orjson.OPT_UTC_Z)

    def rendering(serialize: Callable[[Any], str | bytes]) -> list[Processor]:
        if is_console:
            stamp = structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%S.%fZ", utc=True)
            # Where rich is installed, the default takes seconds per traceback and prints all local variables.
            plain = structlog.dev.plain_traceback
            return [stamp, structlog.dev.ConsoleRenderer(colors=is_terminal, exception_formatter=plain)]
        return [structlog.processors.format_exc_info, _specified_names, lambda _, __, event: serialize(event)]

    structlog.configure(
        processors=[*shared, *rendering(as_json)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=(
            structlog.WriteLoggerFactory(sys.stdout) if is_console else structlog.BytesLoggerFactory(sys.stdout.buffer)
        ),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *rendering(lambda event: as_json(event).decode()),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    warn_about_deprecated_variables(settings)
    warn_about_service_links(settings)


def warn_about_deprecated_variables(settings: Settings) -> None:
    """Log one line for each variable that is set under its old name."""
    for old, new in settings.deprecated_variables_set().items():
        outcome = f"ignored, because {new} is set too" if os.environ.get(new) else f"used; rename it to {new}"
        structlog.get_logger().warning("deprecated_variable", variable=old, outcome=outcome)


def warn_about_service_links(settings: Settings) -> None:
    """Log one line for each port that Kubernetes has set to the address of a service."""
    for variable in settings.service_links_set():
        reason = "Kubernetes sets it for a service of this name; enableServiceLinks: false prevents that"
        structlog.get_logger().warning("variable_ignored", variable=variable, reason=reason)


def _specified_names(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put the fields that every line has first, under the names that the specifications give them."""
    first = {
        "timestamp": datetime.now(UTC),
        "level": event.pop("level").upper(),
        "component": event.pop("component"),
        "action": event.pop("event"),
    }
    return {**first, **event}
